// Confirmation of what can't be undone.

import { el } from "./dom.js";

/** Ask in a dialog; resolves to whether the answer is yes. */
export function confirmed(title, text, yes) {
  return new Promise((resolve) => {
    const dialog = el("dialog", { class: "ask", "aria-labelledby": "ask-title", "aria-describedby": "ask-text" },
      el("form", { method: "dialog" },
        el("h2", { id: "ask-title" }, title), el("p", { id: "ask-text", class: "soft" }, text),
        el("div", { class: "row end" }, el("button", { value: "no" }, "Keep them"), el("button", { value: "yes", class: "danger" }, yes))));
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "yes");
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}
