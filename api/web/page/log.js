// Log of a request, from its events.

import { json } from "./api.js";
import { el } from "./dom.js";
import { at, bytes, clockTime } from "./format.js";

export function eventLog(path, signal) {
  const list = el("ol", { class: "log" });
  const note = el("p", { class: "soft" }, "Reading the events …");
  const again = el("button", { type: "button", class: "small", onClick: () => refresh() }, "Read again");
  const element = el("details", { class: "card" }, el("summary", {}, el("h2", {}, "What happened when")), list, note, again);
  let reading = 0;

  /** Load the log, and prepend it to the chart. */
  async function refresh(chart) {
    const mine = ++reading;
    try {
      const log = await json(`${path}/log`, { signal });
      if (mine !== reading) return;
      list.replaceChildren(...log.entries.map(line));
      note.textContent = log.whole ? "" : "The log is truncated.";
      chart?.prepend(log.entries);
    } catch (problem) {
      if (!signal.aborted && mine === reading) note.textContent = problem.message;
    }
  }

  element.addEventListener("toggle", () => { if (element.open) refresh(); });
  return { element, refresh };
}

function line(entry) {
  const saved = entry.results && entry.results.inputBytes - entry.results.outputBytes;
  return el("li", {},
    el("time", { datetime: entry.time, title: at(entry.time) }, clockTime(entry.time)),
    el("span", {}, entry.text, saved > 0 && `, ${bytes(saved)} saved`),
    el("code", {}, entry.event));
}
