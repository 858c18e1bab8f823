// Recent requests, newest first.

import { json } from "./api.js";
import { el } from "./dom.js";
import { at, bytes, images, savedPercent, shortId, since } from "./format.js";

const PAGE = 10;

export function recentRequests(signal) {
  const list = el("ul", { class: "requests" });
  const note = el("p", { class: "soft" }, "Loading …");
  const more = el("button", { type: "button", class: "quiet", hidden: true, onClick: () => load() }, "Show older requests");
  let cursor = null;

  async function load() {
    more.disabled = true;
    try {
      const page = await json(`/api/requests?limit=${PAGE}${cursor ? `&cursor=${encodeURIComponent(cursor)}` : ""}`, { signal });
      list.append(...page.items.map(line));
      cursor = page.nextCursor;
      more.hidden = cursor === null;
      note.hidden = list.childElementCount > 0;
      note.textContent = "None yet. Your requests will be listed here.";
    } catch (problem) {
      if (signal.aborted) return;
      note.hidden = false;
      note.textContent = problem.message;
      more.hidden = false;
      more.textContent = "Try again";
    }
    more.disabled = false;
  }

  load();
  return el("section", { class: "card", "aria-labelledby": "recent" }, el("h2", { id: "recent" }, "Recent requests"), note, list, more);
}

function line(status) {
  const saved = status.inputBytes - status.outputBytes;
  return el("li", {}, el("a", { href: `#/requests/${status.requestId}` },
    el("span", { class: "request-name" }, el("b", {}, images(status.total)), el("code", {}, shortId(status.requestId))),
    el("span", { class: "request-saved" }, saved > 0
      ? `${bytes(saved)} saved (${savedPercent(status.inputBytes, status.outputBytes)} %)` : ""),
    el("time", { class: "soft", datetime: status.createdAt, title: at(status.createdAt) }, since(status.createdAt)),
    pill(status)));
}

/** Status badge of a request; not by colour alone, for accessibility. */
export function pill(status) {
  const state = status.status === "completed" && status.failed ? "partly" : status.status;
  const words = {
    processing: `${status.progress} %`, completed: "Completed", cancelled: "Cancelled", expired: "Expired", partly: `${status.failed} failed`,
  };
  return el("span", { class: `pill ${state}` }, words[state]);
}
