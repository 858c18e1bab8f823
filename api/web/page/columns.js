// Mapping of a file's columns to the roles of an upload, for exports whose columns have other names.

import { el } from "./dom.js";

const ROLES = [
  ["product", "Product Name", /^(product.?)?(title|name)/i],
  ["urls", "Input Image URLs", /image|img|photo|picture|url|link/i],
  ["serial", "S. No.", /^(s.*no|no|#|id)\W*$/i],
];

/** Form to choose the columns of a file whose header lacks some, or null; `recheck` gets the value of `columns`. */
export function columnsForm(report, recheck) {
  const lacksColumns = report.errors.some((error) => ["column_missing", "column_doubled"].includes(error.code));
  const names = [...new Set(report.header.map((name) => name.trim()).filter(Boolean))];
  if (!lacksColumns || names.length < 2) return null;
  const choices = ROLES.map(([role, title, usual]) => {
    const optional = role === "serial";
    const likely = names.find((name) => usual.test(name));
    const select = el("select", { id: `column-${role}`, required: !optional },
      el("option", { value: "" }, optional ? "none: number the rows" : "choose a column"),
      names.map((name) => el("option", { value: name, selected: name === likely }, name)));
    return { role, select, field: el("div", {}, el("label", { for: select.id }, title), select) };
  });
  const form = el("form", { class: "columns", "aria-labelledby": "columns" },
    el("h3", { id: "columns" }, "Which columns are they?"),
    el("div", { class: "choices" }, choices.map(({ field }) => field)),
    el("div", { class: "row" }, el("button", { class: "primary" }, "Check with these columns")));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    recheck(choices.filter(({ select }) => select.value).map(({ role, select }) => item(role, select.value)).join(","));
  });
  return form;
}

/** One item of `columns`, which is a line of CSV. */
const item = (role, name) => `"${`${role}:${name}`.replaceAll('"', '""')}"`;
