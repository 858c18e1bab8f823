// Chart of the cumulative bytes downloaded and stored over time.

import { el, svg } from "./dom.js";
import { bytes, clockTime } from "./format.js";

const WIDTH = 600;
const HEIGHT = 160;
const MAX_POINTS = 400;

export function savingsChart() {
  let points = []; // {time, before, after}: cumulative sums, ordered by time
  const before = svg("path", { class: "area before" });
  const after = svg("path", { class: "area after" });
  const drawing = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" },
    ...[0.25, 0.5, 0.75].map((share) => svg("line", { class: "grid", x1: 0, x2: WIDTH, y1: HEIGHT * share, y2: HEIGHT * share })),
    before, after);
  const top = el("span");
  const start = el("span");
  const end = el("span");
  const element = el("section", { class: "card chart", "aria-labelledby": "chart", hidden: true },
    el("h2", { id: "chart" }, "Bytes before and after"),
    el("p", { class: "legend soft" }, el("span", { class: "key before" }, "downloaded"), el("span", { class: "key after" }, "stored"), top),
    drawing, el("p", { class: "axis soft" }, start, end));

  function draw() {
    const [first, last] = [points[0], points.at(-1)];
    element.hidden = points.length < 2 || last.time <= first.time || last.before === 0;
    if (element.hidden) return;
    const x = (point) => (((point.time - first.time) / (last.time - first.time)) * WIDTH).toFixed(1);
    const y = (value) => (HEIGHT - (value / last.before) * (HEIGHT - 6)).toFixed(1);
    const area = (name) => `M0,${HEIGHT}${points.map((point) => `L${x(point)},${y(point[name])}`).join("")}V${HEIGHT}Z`;
    before.setAttribute("d", area("before"));
    after.setAttribute("d", area("after"));
    top.textContent = `top: ${bytes(last.before)}`;
    start.textContent = clockTime(first.time);
    end.textContent = clockTime(last.time);
    drawing.setAttribute("aria-label",
      `From ${clockTime(first.time)} to ${clockTime(last.time)}, ${bytes(last.before)} were downloaded and ${bytes(last.after)} stored`);
  }

  return {
    element,

    /** Add a point from a status. */
    add(status) {
      const point = { time: Date.parse(status.updatedAt), before: status.inputBytes, after: status.outputBytes };
      if (points.length === 0) points.push({ time: Date.parse(status.createdAt), before: 0, after: 0 });
      const last = points.at(-1);
      if (point.time <= last.time || (point.before === last.before && point.after === last.after)) return;
      points.push(point);
      if (points.length > MAX_POINTS) points = points.filter((_, index) => index % 2 === 0 || index === points.length - 1);
      draw();
    },

    /** Prepend the points before this view was opened, from the log. */
    prepend(entries) {
      const created = entries.find((entry) => entry.event === "RequestCreated");
      const past = created ? [{ time: Date.parse(created.time), before: 0, after: 0 }] : [];
      let [sumBefore, sumAfter] = [0, 0];
      for (const { until, results } of entries.filter((entry) => entry.results)) {
        sumBefore += results.inputBytes;
        sumAfter += results.outputBytes;
        past.push({ time: Date.parse(until), before: sumBefore, after: sumAfter });
      }
      if (past.length < 2) return;
      const known = past.at(-1);
      points = [...past, ...points.filter((point) => point.time > known.time && point.before > known.before)];
      draw();
    },
  };
}
