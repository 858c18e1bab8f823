// Before/after comparison with a slider: a range input, which keyboard and touch can operate.

import { el, isWebUrl, linkTo } from "./dom.js";
import { bytes, savedPercent } from "./format.js";

/** Open a dialog for `images[index]`, with navigation to the others; all of them succeeded. */
export function compareImages(images, index) {
  const heading = el("h2", { id: "compare-title" });
  const stage = el("div", { class: "stage" });
  const facts = el("p", { class: "facts" });
  const links = el("p", { class: "links" });
  const back = el("button", { type: "button", "aria-label": "Previous image", onClick: () => show(index - 1) }, "Previous");
  const forward = el("button", { type: "button", "aria-label": "Next image", onClick: () => show(index + 1) }, "Next");
  const dialog = el("dialog", { class: "compare", "aria-labelledby": "compare-title" },
    el("div", { class: "compare-head" }, heading,
      el("button", { type: "button", class: "quiet", "aria-label": "Close", onClick: () => dialog.close() }, "✕")),
    stage, facts, el("div", { class: "compare-foot" }, back, links, forward));

  function show(next) {
    index = next;
    const image = images[index];
    heading.textContent = image.productName;
    stage.replaceChildren(...slider(image));
    facts.textContent = `${bytes(image.inputBytes)} before, ${bytes(image.outputBytes)} after`
      + ` (−${savedPercent(image.inputBytes, image.outputBytes)} %) · ${image.width} × ${image.height} ${image.format.toUpperCase()}`;
    links.replaceChildren(linkTo(image.inputUrl, "Original"), " · ", linkTo(image.outputUrl, "Compressed"));
    back.disabled = index === 0;
    forward.disabled = index === images.length - 1;
  }

  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("close", () => dialog.remove());
  show(index);
  document.body.append(dialog);
  dialog.showModal();
  dialog.querySelector("input")?.focus();
}

function slider(image) {
  if (!isWebUrl(image.inputUrl) || !isWebUrl(image.outputUrl)) return [el("p", { class: "soft" }, "This image can't be shown.")];
  const after = el("img", { class: "after", src: image.outputUrl, alt: "Compressed", referrerpolicy: "no-referrer" });
  const before = el("img", { class: "before", src: image.inputUrl, alt: "Original", referrerpolicy: "no-referrer" });
  const range = el("input", { type: "range", min: "0", max: "100", value: "50", "aria-label": "How much of the original is shown" });
  const box = el("div", { class: "slider" }, after, before,
    el("span", { class: "label left", "aria-hidden": "true" }, "Before"), el("span", { class: "label right", "aria-hidden": "true" }, "After"),
    range, el("span", { class: "handle", "aria-hidden": "true" }));
  const missing = el("p", { class: "soft", hidden: true }, "The original can't be shown: its server no longer serves it to this page.");
  const move = () => {
    box.style.setProperty("--split", `${range.value}%`);
    range.setAttribute("aria-valuetext", `${range.value} % original`);
  };
  range.addEventListener("input", move);
  before.addEventListener("error", () => {
    missing.hidden = false;
    before.remove();
    range.remove();
    box.classList.add("only-after");
  });
  box.style.setProperty("--shape", `${image.width} / ${image.height}`);
  box.style.setProperty("--ratio", image.width / image.height);
  move();
  return [box, missing];
}
