// Start view: choose a CSV or paste URLs, validate, upload; recent requests.

import { json } from "./api.js";
import { columnsForm } from "./columns.js";
import { csvOfUrls } from "./csv.js";
import { el } from "./dom.js";
import { images, number, rows } from "./format.js";
import { optionFields, rememberOptions } from "./options.js";
import { recentRequests } from "./recent.js";
import { savingsByDay } from "./savings.js";
import { rememberUpload } from "./uploads.js";

export function startView(signal) {
  const outcome = el("div", { class: "outcome", "aria-live": "polite" });
  let earlier = new AbortController();
  const check = (file, origin) => {
    earlier.abort(); // its response may arrive later than the new one
    earlier = new AbortController();
    checked(file, origin, outcome, AbortSignal.any([signal, earlier.signal]));
  };

  const input = el("input", { id: "file", type: "file", accept: ".csv,.tsv,.txt,.xlsx,.xls,.ods,text/csv", class: "unseen" });
  input.addEventListener("change", () => {
    if (input.files.length) check(input.files[0], "file");
    input.value = ""; // so that choosing the same file again fires a change event
  });
  const dropZone = el("label", { for: "file", class: "drop" },
    el("span", { class: "drop-mark", "aria-hidden": "true" }, "↓"),
    el("strong", {}, "Drop a CSV here"),
    el("span", { class: "soft" }, "or choose a file; Excel and OpenDocument, too"));
  dropZone.addEventListener("dragover", () => dropZone.classList.add("over"));
  dropZone.addEventListener("dragleave", () => dropZone.classList.remove("over"));
  dropZone.addEventListener("drop", (event) => {
    dropZone.classList.remove("over");
    const [file] = event.dataTransfer.files;
    if (file) check(file, "file");
  });

  const text = el("textarea", {
    id: "urls", rows: 5, spellcheck: "false", placeholder: "https://shop.example/shoe.jpg\nhttps://shop.example/hat.png",
  });
  const pasted = () => {
    const csv = csvOfUrls(text.value);
    if (csv) check(new File([csv], "pasted-urls.csv", { type: "text/csv" }), "urls");
    else outcome.replaceChildren(el("p", { class: "bad" }, "Paste at least one URL first."));
  };

  return el("div", { class: "stack" },
    el("section", { class: "hero" },
      el("h1", { tabindex: "-1" }, "Smaller product images"),
      el("p", { class: "lead" }, "Upload a CSV of image URLs; get compressed images, and a CSV with their new URLs.")),
    el("section", { class: "card", "aria-label": "New request" },
      el("div", { class: "ways" },
        el("div", {}, input, dropZone),
        el("div", { class: "paste" },
          el("label", { for: "urls" }, "Or paste image URLs, one per line"), text,
          el("button", { type: "button", onClick: pasted }, "Check these URLs"))),
      el("p", { class: "soft hint" }, "Columns: ", el("b", {}, "S. No."), ", ", el("b", {}, "Product Name"), ", ",
        el("b", {}, "Input Image URLs"), ". ",
        el("a", { href: "/page/template.csv", download: "template.csv" }, "Download a template")),
      outcome),
    savingsByDay(signal),
    recentRequests(signal));
}

async function checked(file, origin, outcome, signal, columns = "") {
  outcome.replaceChildren(el("p", { class: "busy" }, `Checking ${file.name} …`));
  let report;
  try {
    report = await json("/api/upload?validate_only=true", { method: "POST", body: formOf(file, { columns }), signal });
  } catch (problem) {
    if (!signal.aborted) outcome.replaceChildren(el("p", { class: "bad", role: "alert" }, problem.message));
    return;
  }
  const recheck = (mapping) => checked(file, origin, outcome, signal, mapping);
  outcome.replaceChildren(report.valid ? uploadForm(file, report, outcome, columns) : errorTable(file, report, origin, recheck));
  outcome.querySelector("h2").focus();
}

function uploadForm(file, report, outcome, columns) {
  // One idempotency key per form: a retry after a lost response creates no second request.
  const idempotencyKey = [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  const hook = el("input", { id: "hook", type: "url", placeholder: "https://shop.example/hook", autocomplete: "off" });
  const options = optionFields();
  const error = el("p", { class: "bad", role: "alert", hidden: true });
  const button = el("button", { class: "primary" }, `Compress ${images(report.images)}`);
  const form = el("form", {},
    options.element,
    el("details", {}, el("summary", {}, "Webhook (optional)"),
      el("label", { for: "hook" }, "Called when the request is completed"), hook),
    error,
    el("div", { class: "row" }, button,
      el("button", { type: "button", class: "quiet", onClick: () => outcome.replaceChildren() }, "Not this one")));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    button.disabled = true;
    button.textContent = "Uploading …";
    const chosen = options.chosen();
    const fields = { webhookUrl: hook.value.trim(), columns, ...chosen };
    rememberOptions(chosen);
    try {
      const accepted = await json("/api/upload", {
        method: "POST", body: formOf(file, fields), headers: { "Idempotency-Key": idempotencyKey },
      });
      rememberUpload(accepted.requestId, { name: file.name, fields });
      location.hash = `#/requests/${accepted.requestId}`;
    } catch (problem) {
      error.hidden = false;
      error.textContent = problem.message;
      button.disabled = false;
      button.textContent = "Try again";
    }
  });
  return el("section", { class: "found good" },
    el("h2", { tabindex: "-1" }, `${file.name} is fine`),
    el("p", {}, `${images(report.images)} in ${rows(report.rows)}. Nothing has started yet.`),
    form);
}

function errorTable(file, report, origin, recheck) {
  const pasted = origin === "urls";
  const more = report.errorCount > report.errors.length;
  return el("section", { class: "found" },
    el("h2", { tabindex: "-1" }, pasted ? "These URLs can't be used" : `${file.name} can't be used`),
    el("p", {}, report.errorCount
      ? `${rows(report.errorCount)} ${report.errorCount === 1 ? "has" : "have"} to be corrected`
        + `${more ? `; the first ${number(report.errors.length)} are shown` : ""}. Nothing was started.`
      : `${report.detail}. Nothing was started.`),
    report.errors.length > 0 && el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Errors" },
      el("table", {},
        el("thead", {}, el("tr", {}, ...[pasted ? "URL" : "Line", "Column", "Error"].map((name) => el("th", { scope: "col" }, name)))),
        el("tbody", {}, report.errors.map((error) => el("tr", {},
          el("td", { class: "figure" }, number(pasted ? error.row - 1 : error.row)), // without the header line
          el("td", {}, error.column ?? "–"),
          el("td", {}, error.message)))))),
    !pasted && columnsForm(report, recheck));
}

function formOf(file, fields) {
  const form = new FormData();
  for (const [name, value] of Object.entries(fields)) if (value) form.append(name, value);
  form.append("file", file, file.name);
  return form;
}
