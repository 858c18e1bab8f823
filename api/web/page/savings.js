// Bytes saved in the last 30 days, by day: a chart of bars, and the same as a table.

import { json } from "./api.js";
import { el, svg } from "./dom.js";
import { bytes, dayOf, images, number, savedPercent } from "./format.js";

const HEIGHT = 80;
const STEP = 10; // a bar and the gap after it

export function savingsByDay(signal) {
  const element = el("section", { class: "card savings", "aria-labelledby": "savings", hidden: true });
  load(element, signal);
  return element;
}

async function load(element, signal) {
  let stats;
  try {
    stats = await json("/api/stats", { signal });
  } catch {
    return; // the page works without the chart, and the list of requests says what is unavailable
  }
  if (signal.aborted || stats.savedBytes <= 0) return;
  const { days } = stats;
  const [first, last] = [days[0].day, days.at(-1).day].map(dayOf);
  const best = days.reduce((one, other) => (other.savedBytes > one.savedBytes ? other : one));
  const sentence = `${first} to ${last}: ${bytes(stats.savedBytes)} saved, most on ${dayOf(best.day)} with ${bytes(best.savedBytes)}`;
  element.replaceChildren(
    el("h2", { id: "savings" }, "Saved in the last 30 days"),
    el("p", { class: "savings-sum" },
      el("strong", { class: "big" }, bytes(stats.savedBytes)), " ",
      el("span", { class: "soft" }, `${savedPercent(stats.inputBytes, stats.outputBytes)} % of ${images(stats.images - stats.failed)}`
        + ` in ${number(stats.requests)} request${stats.requests === 1 ? "" : "s"}`)),
    bars(days, best.savedBytes, sentence),
    el("p", { class: "axis soft", "aria-hidden": "true" }, el("span", {}, first), el("span", {}, `most: ${bytes(best.savedBytes)}`), el("span", {}, last)),
    table(days));
  element.hidden = false;
}

function bars(days, most, sentence) {
  return svg("svg", { viewBox: `0 0 ${days.length * STEP} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": sentence },
    svg("line", { class: "grid", x1: 0, x2: days.length * STEP, y1: HEIGHT - 0.5, y2: HEIGHT - 0.5 }),
    days.map((day, index) => {
      const height = day.savedBytes > 0 ? Math.max(1.5, (day.savedBytes / most) * (HEIGHT - 2)) : 0;
      return svg("rect", { class: "bar", x: index * STEP + 1, y: (HEIGHT - height).toFixed(1), width: STEP - 2, height: height.toFixed(1) },
        svg("title", {}, `${dayOf(day.day)}: ${bytes(Math.max(0, day.savedBytes))}`));
    }));
}

function table(days) {
  const shown = days.filter((day) => day.requests > 0).reverse();
  return el("details", {}, el("summary", {}, "As a table"),
    el("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": "Savings by day" },
      el("table", { class: "figures" },
        el("thead", {}, el("tr", {}, ["Day", "Requests", "Images", "Failed", "Saved"].map((name) => el("th", { scope: "col" }, name)))),
        el("tbody", {}, shown.map((day) => el("tr", {},
          el("th", { scope: "row" }, dayOf(day.day)),
          [number(day.requests), number(day.images), number(day.failed)].map((text) => el("td", {}, text)),
          el("td", {}, bytes(Math.max(0, day.savedBytes)),
            el("span", { class: "share" }, ` (${savedPercent(day.inputBytes, day.outputBytes)} %)`))))))));
}
