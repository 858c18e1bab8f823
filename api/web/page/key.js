// The API key, where the server wants one: asked for once, kept until the tab is closed.

import { el } from "./dom.js";

const STORED = "shrinkstream.key";
let asking = null;

export const key = () => sessionStorage.getItem(STORED);

/** Ask for a key; all that need one wait for the same answer. */
export function askForKey() {
  asking ??= ask().finally(() => { asking = null; });
  return asking;
}

export function showForgetButton() {
  const button = document.getElementById("forget-key");
  button.hidden = key() === null;
  button.onclick = () => {
    sessionStorage.removeItem(STORED);
    location.reload();
  };
}

function ask() {
  const refused = key() !== null;
  sessionStorage.removeItem(STORED);
  return new Promise((resolve) => {
    const input = el("input", {
      id: "key", type: "password", autocomplete: "off", required: true, "aria-describedby": "key-hint",
      "aria-invalid": refused ? "true" : null,
    });
    const dialog = el("dialog", { class: "ask", "aria-labelledby": "key-title" },
      el("form", { method: "dialog" },
        el("h2", { id: "key-title" }, "This server wants a key"),
        el("p", { id: "key-hint", class: refused ? "bad" : "soft" },
          refused ? "That key was not accepted. Please check it." : "It is kept in this tab only, until you close it."),
        el("label", { for: "key" }, "API key"), input,
        el("button", { class: "primary" }, "Continue")));
    dialog.addEventListener("cancel", (event) => event.preventDefault()); // nothing works without it
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
