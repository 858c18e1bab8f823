// API key: prompted for after a 401, kept in the session storage of the tab.

import { el } from "./dom.js";

const STORED = "shrinkstream.key";
let pendingPrompt = null;

export const key = () => sessionStorage.getItem(STORED);

/** Prompt for a key; concurrent calls share one prompt. */
export function promptForKey() {
  pendingPrompt ??= openPrompt().finally(() => { pendingPrompt = null; });
  return pendingPrompt;
}

export function showForgetButton() {
  const button = document.getElementById("forget-key");
  button.hidden = key() === null;
  button.onclick = () => {
    sessionStorage.removeItem(STORED);
    location.reload();
  };
}

function openPrompt() {
  const refused = key() !== null;
  sessionStorage.removeItem(STORED);
  return new Promise((resolve) => {
    const input = el("input", {
      id: "key", type: "password", autocomplete: "off", required: true, "aria-describedby": "key-hint",
      "aria-invalid": refused ? "true" : null,
    });
    const dialog = el("dialog", { class: "ask", "aria-labelledby": "key-title" },
      el("form", { method: "dialog" },
        el("h2", { id: "key-title" }, "This server requires an API key"),
        el("p", { id: "key-hint", class: refused ? "bad" : "soft" },
          refused ? "That key was not accepted. Please check it." : "It is kept in this tab only, until you close it."),
        el("label", { for: "key" }, "API key"), input,
        el("button", { class: "primary" }, "Continue")));
    dialog.addEventListener("cancel", (event) => event.preventDefault()); // the page needs a key
    dialog.addEventListener("close", () => {
      dialog.remove();
      sessionStorage.setItem(STORED, input.value.trim());
      showForgetButton();
      resolve();
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}
