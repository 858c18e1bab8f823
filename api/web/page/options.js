// Options of an upload: format, quality and size of the results; the last choice is remembered by this browser.

import { el } from "./dom.js";

const STORED = "shrinkstream.options";

const FORMATS = [["", "as each image is"], ["jpeg", "JPEG"], ["png", "PNG"], ["webp", "WebP"], ["avif", "AVIF"]];
const NUMBERS = [
  ["quality", "Quality", 1, 100, "1 to 100"],
  ["maxWidth", "Largest width", 1, 65535, "pixels"],
  ["maxHeight", "Largest height", 1, 65535, "pixels"],
];

/** Fields to choose the options, and `chosen()`: those that are not left to the server's defaults, by API name. */
export function optionFields() {
  const known = remembered();
  const format = el("select", { id: "format" },
    FORMATS.map(([value, name]) => el("option", { value, selected: value === known.format }, name)));
  const inputs = NUMBERS.map(([name, title, min, max, unit]) => {
    const input = el("input", {
      id: name, type: "number", inputmode: "numeric", min, max, step: 1, placeholder: "default",
      value: known[name] === "auto" ? undefined : known[name], "aria-describedby": `${name}-unit`,
    });
    return { name, input, field: el("div", {}, el("label", { for: name }, title), input,
      el("small", { id: `${name}-unit`, class: "soft" }, unit)) };
  });
  const automatic = el("input", { id: "automatic", type: "checkbox", checked: known.quality === "auto" });
  const [quality] = inputs;
  quality.field.append(el("label", { for: "automatic", class: "tick" }, automatic, "Automatic, for each image"));
  const chosen = () => Object.fromEntries(
    [["format", format.value], ...inputs.map(({ name, input }) => [name, input.value]),
      ["quality", automatic.checked ? "auto" : quality.input.value]].filter(([, value]) => value));
  const summary = el("summary");
  const describe = () => {
    quality.input.disabled = automatic.checked;
    summary.replaceChildren("Format, quality and size: ", el("b", {}, wordsFor(chosen())));
  };
  const element = el("details", { open: Object.keys(known).length > 0 }, summary,
    el("div", { class: "choices" },
      el("div", {}, el("label", { for: "format" }, "Format"), format), inputs.map(({ field }) => field)),
    el("p", { class: "soft hint" }, "Larger images are made to fit inside the size, none is enlarged."));
  element.addEventListener("input", describe);
  describe();
  return { element, chosen };
}

export function rememberOptions(options) {
  localStorage.setItem(STORED, JSON.stringify(options));
}

function remembered() {
  try {
    return JSON.parse(localStorage.getItem(STORED)) ?? {};
  } catch {
    return {}; // of another release
  }
}

function wordsFor({ format, quality, maxWidth, maxHeight }) {
  const words = [
    format && FORMATS.find(([value]) => value === format)[1],
    quality && (quality === "auto" ? "automatic quality" : `quality ${quality}`),
    (maxWidth || maxHeight) && `${maxWidth ?? "any"} × ${maxHeight ?? "any"}`,
  ].filter(Boolean);
  return words.length ? words.join(", ") : "the server's defaults";
}
