// DOM helpers. Data becomes text or attributes, never markup.

const SVG = "http://www.w3.org/2000/svg";
const ON = /^on([A-Z])/;

/** Create an element; properties named onClick… are listeners, others attributes (false, null: omitted; true: empty). */
export function el(tag, properties = {}, ...children) {
  return fill(document.createElement(tag), properties, children);
}

/** Create an SVG element. */
export function svg(tag, properties = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), properties, children);
}

function fill(element, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (ON.test(name)) element.addEventListener(name.slice(2).toLowerCase(), value);
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** An untrusted URL as a link if it is http(s), otherwise as text (javascript: URLs). */
export function linkTo(url, text = url) {
  if (!isWebUrl(url)) return el("span", { class: "url" }, text);
  return el("a", { class: "url", href: url, target: "_blank", rel: "noopener noreferrer" }, text);
}

export function isWebUrl(url) {
  try {
    return ["http:", "https:"].includes(new URL(url).protocol);
  } catch {
    return false;
  }
}

/** Announce a change to screen readers. */
export function announce(text) {
  const announcer = document.getElementById("announcer");
  if (announcer.textContent !== text) announcer.textContent = text;
}
