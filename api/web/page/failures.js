// Failures of a request grouped by reason, with what to do about each and a retry of that reason only.

import { json } from "./api.js";
import { el } from "./dom.js";
import { number } from "./format.js";

/** `retry(reason, name)` makes the button that retries one reason. */
export function failureList(path, signal, retry) {
  const list = el("ul", { class: "failures" });
  const element = el("section", { class: "card", "aria-labelledby": "failures", hidden: true },
    el("h2", { id: "failures", tabindex: "-1" }, "What failed, and what to do"), list);
  let shown = "";

  async function load(canRetry) {
    let reasons;
    try {
      ({ reasons } = await json(`${path}/failures`, { signal }));
    } catch {
      if (!signal.aborted) shown = ""; // the list of failed images has them, too; the next change loads again
      return;
    }
    const hadFocus = list.contains(document.activeElement);
    list.replaceChildren(...reasons.map(({ reason, images, title, advice }) => el("li", {},
      el("b", { class: "figure" }, `${number(images)} × `), el("span", {}, el("b", {}, title), " ", el("code", {}, reason)),
      el("span", { class: "soft" }, advice),
      canRetry && retry(reason, title))));
    element.hidden = reasons.length === 0;
    if (hadFocus) element.querySelector("h2").focus();
  }

  return {
    element,

    /** Show a new status: loads the reasons when the number of failures is another one. */
    show(status) {
      const ended = status.status !== "processing";
      const state = JSON.stringify([status.status, status.completedAt, ended && status.failed, status.forgotten]);
      if (state === shown) return;
      shown = state;
      if (status.failed > 0 && ended && !status.forgotten) load(status.status !== "expired");
      else element.hidden = true;
    },
  };
}
