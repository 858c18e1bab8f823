// Paged image list of a request: a bounded number of DOM nodes for any number of images.

import { json } from "./api.js";
import { compareImages } from "./compare.js";
import { el, isWebUrl, linkTo } from "./dom.js";
import { bytes, number, savedPercent } from "./format.js";

const PAGE = 24;
const REFRESH_MS = 1500;
const MAX_CALLS = 20; // per page: with a status filter, a response may be empty and still have a cursor

const KINDS = [["", "All"], ["succeeded", "Compressed"], ["failed", "Failed"]];

export function imageList(path, signal) {
  const grid = el("ul", { class: "grid-of-images", "aria-live": "off" });
  const note = el("p", { class: "soft", role: "status" });
  const pageLabel = el("span", { class: "soft" });
  const back = el("button", { type: "button", onClick: () => turn(-1) }, "Previous");
  const forward = el("button", { type: "button", onClick: () => turn(1) }, "Next");
  const pager = el("nav", { class: "pager", "aria-label": "Pages of images" }, back, pageLabel, forward);
  const kinds = KINDS.map(([kind, name]) =>
    el("button", { type: "button", class: "tab", "aria-pressed": String(kind === ""), onClick: () => choose(kind) }, name));
  const element = el("section", { class: "card", "aria-labelledby": "images" },
    el("div", { class: "images-head" }, el("h2", { id: "images" }, "Images"),
      el("div", { class: "tabs", role: "group", "aria-label": "Which images" }, kinds)),
    note, grid, pager);

  let kind = "";
  let cursors = [null]; // cursor of each page up to the next one
  let page = 0;
  let cards = new Map(); // image index → {text, element}
  let items = [];
  let status = null;
  let loading = 0;
  let timer = 0;
  signal.addEventListener("abort", () => clearTimeout(timer));

  function choose(chosen) {
    kind = chosen;
    kinds.forEach((button, index) => button.setAttribute("aria-pressed", String(KINDS[index][0] === kind)));
    cursors = [null];
    page = 0;
    load();
  }

  function turn(step) {
    page += step;
    load().then(() => element.scrollIntoView({ block: "start" }));
  }

  async function load() {
    const mine = ++loading;
    let found = [];
    let cursor = cursors[page];
    if (status?.forgotten) { // the lists may take a moment to forget them
      cursors = [null];
      page = 0;
      draw(found);
      return;
    }
    try {
      for (let calls = 0; calls < MAX_CALLS && found.length < PAGE; calls += 1) {
        const query = new URLSearchParams({ limit: PAGE - found.length, ...(kind && { status: kind }), ...(cursor && { cursor }) });
        const part = await json(`${path}/images?${query}`, { signal });
        found = found.concat(part.items);
        cursor = part.nextCursor;
        if (cursor === null) break;
      }
    } catch (problem) {
      if (!signal.aborted && mine === loading) note.textContent = problem.message;
      return;
    }
    if (mine !== loading) return;
    cursors[page + 1] = cursor;
    draw(found);
  }

  function draw(found) {
    items = found;
    const kept = new Map();
    for (const image of found) {
      const text = JSON.stringify(image);
      const known = cards.get(image.index);
      kept.set(image.index, known?.text === text ? known : { text, element: card(image, () => compare(image)) });
    }
    cards = kept;
    const wanted = [...kept.values()].map((each) => each.element);
    // Unchanged nodes are not touched, which preserves focus and scroll position.
    wanted.forEach((each, index) => { if (grid.children[index] !== each) grid.insertBefore(each, grid.children[index] ?? null); });
    while (grid.children.length > wanted.length) grid.lastElementChild.remove();
    note.textContent = found.length ? "" : status?.forgotten ? "The images of this request are forgotten."
      : kind === "failed" ? "No image has failed." : "No images here yet.";
    const more = cursors[page + 1] !== null && cursors[page + 1] !== undefined;
    pager.hidden = page === 0 && !more;
    back.disabled = page === 0;
    forward.disabled = !more;
    pageLabel.textContent = kind || !status ? `Page ${page + 1}` : `Page ${page + 1} of ${number(Math.ceil(status.total / PAGE))}`;
  }

  function compare(image) {
    const comparable = items.filter((item) => item.status === "succeeded");
    compareImages(comparable, comparable.findIndex((item) => item.index === image.index));
  }

  return {
    element,

    /** Show a new status: reloads the page of images, throttled, if results were added. */
    show(now) {
      const ended = now.status !== "processing" && (status?.status !== now.status || status?.forgotten !== now.forgotten);
      const changed = status === null || status.succeeded + status.failed !== now.succeeded + now.failed || status.status !== now.status || status.forgotten !== now.forgotten;
      status = now;
      kinds.forEach((button, index) => {
        const amount = [now.total, now.succeeded, now.failed][index];
        button.textContent = `${KINDS[index][1]} ${number(amount)}`;
      });
      if (!changed) return;
      if (loading === 0 || ended) {
        clearTimeout(timer);
        timer = 0;
        load();
      } else if (timer === 0) {
        timer = setTimeout(() => { timer = 0; load(); }, REFRESH_MS);
      }
    },
  };
}

function card(image, compare) {
  const name = image.productName ?? `Image ${number(image.index + 1)}`;
  const caption = [el("b", { class: "image-name", title: name }, name)];
  let picture;
  if (image.status === "succeeded") {
    picture = el("button", { type: "button", class: "picture", "aria-label": `Compare ${name} before and after`, onClick: compare },
      isWebUrl(image.outputUrl) ? el("img", { src: image.outputUrl, alt: "", loading: "lazy", decoding: "async" }) : "No preview");
    caption.push(el("span", { class: "soft" }, image.keptOriginal
      ? `${bytes(image.inputBytes)}, already small: original kept`
      : `${bytes(image.inputBytes)} → ${bytes(image.outputBytes)}`));
    caption.push(savedBar(image));
  } else if (image.status === "failed") {
    picture = el("div", { class: "picture none", "aria-hidden": "true" }, "!");
    caption.push(el("span", { class: "bad" }, image.detail || image.reason), el("code", {}, image.reason), linkTo(image.inputUrl));
  } else {
    picture = el("div", { class: `picture none ${image.status}`, "aria-hidden": "true" }, image.status === "pending" ? "…" : "–");
    caption.push(el("span", { class: "soft" }, image.status === "pending" ? "Waiting" : "Not processed: cancelled"));
  }
  return el("li", { class: `image ${image.status}` }, picture, el("div", { class: "caption" }, caption));
}

function savedBar(image) {
  const percent = savedPercent(image.inputBytes, image.outputBytes);
  const bar = el("span", { class: "saved-bar", "aria-hidden": "true" }, el("span"));
  bar.firstElementChild.style.width = `${percent}%`;
  return el("span", { class: "saved-line" }, bar, el("span", { class: "figure" }, `−${percent} %`));
}
