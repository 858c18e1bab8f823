// Confirmation of what can't be undone.

import { el } from "./dom.js";

/** Ask in a dialog, with a checkbox if there is an `option`; resolves to null for no, else to {checked}. */
export function confirmed(title, text, yes, option = null) {
  return new Promise((resolve) => {
    const box = el("input", { type: "checkbox" });
    const dialog = el("dialog", { class: "ask", "aria-labelledby": "ask-title", "aria-describedby": "ask-text" },
      el("form", { method: "dialog" },
        el("h2", { id: "ask-title" }, title), el("p", { id: "ask-text", class: "soft" }, text),
        option && el("label", { class: "check" }, box, el("span", {}, option)),
        el("div", { class: "row end" }, el("button", { value: "no" }, "Keep them"), el("button", { value: "yes", class: "danger" }, yes))));
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "yes" ? { checked: box.checked } : null);
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}
