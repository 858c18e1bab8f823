// Request view: progress, savings, images, log.

import { call, follow, json, Problem, save, saveLarge, sleep } from "./api.js";
import { savingsChart } from "./chart.js";
import { commandsFor } from "./curl.js";
import { confirmed } from "./confirm.js";
import { announce, el } from "./dom.js";
import { failureList } from "./failures.js";
import { at, bytes, duration, images, number, savedPercent, shortId } from "./format.js";
import { imageList } from "./images.js";
import { eventLog } from "./log.js";
import { pill } from "./recent.js";
import { uploadOf } from "./uploads.js";

const POLL_MS = 4000;
const IMAGES_OF_ESTIMATE = 3;

export function requestView(id, signal) {
  const path = `/api/requests/${encodeURIComponent(id)}`;
  const state = el("span");
  const heading = el("h1", { tabindex: "-1" }, "Request ", el("code", { title: id }, shortId(id)), " ", state);
  const when = el("p", { class: "soft" });
  const notice = el("p", { class: "notice", role: "alert", hidden: true });
  const actions = el("div", { class: "row actions" });
  const progress = progressCard();
  const chart = savingsChart();
  const failures = failureList(path, signal, (reason, title) => action("Retry these", "small", async () => {
    await call(`${path}/retry?reason=${encodeURIComponent(reason)}`, { method: "POST" });
    watch();
  }, "Retry", { hidden: false, "aria-label": `Retry these: ${title}` }));
  const gallery = imageList(path, signal);
  const log = eventLog(path, signal);
  const commands = commandList(uploadOf(id) === null ? null : "Upload");
  const body = el("div", { class: "stack", hidden: true }, progress.element, chart.element, failures.element, gallery.element, log.element, commands.element);
  let shown = null;
  let disconnected = false;
  let watches = 0;

  const cancel = action("Cancel", "", async () => show(await json(`${path}/cancel`, { method: "POST" })), "Cancel");
  const retry = action("Retry failed", "primary", async () => {
    await call(`${path}/retry`, { method: "POST" });
    watch();
  }, "Retry");
  const download = action("Download CSV", "primary", () => save(`/api/download/${encodeURIComponent(id)}`, `${id}.csv`), "Download");
  const archive = action("Download images (ZIP)", "", () => saveLarge(`${path}/archive.zip`, `${id}.zip`, shown.outputBytes), "Download images");
  const remove = action("Delete", "quiet", async () => {
    const answer = await confirmed("Delete the files of this request?",
      "Its images and output CSV are deleted for good; every URL of them stops working. The results stay listed.",
      "Delete the files", "Also remove its product names and URLs from all lists");
    if (answer) show(await json(path + (answer.checked ? "?forget=true" : ""), { method: "DELETE" }));
  }, "Delete");
  const forget = action("Forget names", "quiet", async () => {
    const answer = await confirmed("Forget this request?",
      "Its product names and URLs are removed from all lists for good. Its number of images and the bytes saved stay.",
      "Forget them");
    if (answer) show(await json(`${path}?forget=true`, { method: "DELETE" }));
  }, "Forget");
  actions.append(cancel, remove, forget, retry, archive, download);

  function action(label, kind, run, name, properties = { hidden: true }) {
    const button = el("button", { type: "button", class: kind, ...properties }, label);
    button.addEventListener("click", async () => {
      if (button.ariaBusy === "true") return; // instead of disabled, which would lose the focus
      button.ariaBusy = "true";
      showError(null);
      try {
        await run();
        commands.done(name);
      } catch (problem) {
        showError(`${label}: ${problem.message}`);
      }
      button.ariaBusy = "false";
    });
    return button;
  }

  function showError(text) {
    notice.hidden = text === null;
    notice.textContent = text ?? "";
  }

  function show(status) {
    if (signal.aborted) return;
    const before = shown;
    const focused = document.activeElement;
    shown = status;
    body.hidden = false;
    const ended = status.status !== "processing";
    state.replaceChildren(pill(status));
    when.textContent = `${images(status.total)} · started ${at(status.createdAt)}`
      + (status.webhook ? ` · webhook ${status.webhook}` : "");
    cancel.hidden = ended;
    retry.hidden = !ended || status.status === "expired" || (status.failed === 0 && status.status === "completed");
    retry.textContent = status.status === "cancelled" ? "Resume" : `Retry ${number(status.failed)} failed`;
    download.hidden = !status.outputCsvUrl;
    archive.hidden = download.hidden || status.succeeded === 0;
    remove.hidden = !ended || status.status === "expired";
    forget.hidden = status.status !== "expired" || status.forgotten === true;
    download.classList.toggle("primary", retry.hidden);
    if (focused?.hidden && actions.contains(focused)) heading.focus();
    document.title = `${ended ? "" : `${status.progress} % · `}Request ${shortId(id)} · shrinkstream`;
    progress.show(status);
    chart.add(status);
    failures.show(status);
    gallery.show(status);
    commands.show(commandsFor(status, uploadOf(id)));
    if (before === null || before.status !== status.status) {
      log.refresh(chart);
      if (ended) announce(status.status === "completed"
        ? `Completed: ${number(status.succeeded)} of ${images(status.total)} compressed, ${number(status.failed)} failed`
        : status.status === "expired" ? "Expired: its files were deleted" : "Cancelled");
    }
  }

  function setConnected(connected) {
    if (connected !== disconnected) return;
    disconnected = !connected;
    showError(connected ? null : "The connection is lost; trying again …");
  }

  // The event stream ends with the request; a pending webhook is polled for while the page is visible.
  async function watch() {
    const mine = ++watches;
    const isStale = () => signal.aborted || mine !== watches;
    while (!isStale()) {
      try {
        show(await json(`/api/status/${encodeURIComponent(id)}`, { signal }));
        setConnected(true);
        if (shown.status === "processing") await follow(id, { signal, onStatus: show, onConnection: setConnected });
        else if (shown.webhook === "pending") await pollInterval(isStale);
        else return;
      } catch (problem) {
        if (isStale()) return;
        if (!(problem instanceof Problem && problem.isTransient)) {
          showError(problem.message);
          return;
        }
        setConnected(false);
        await pollInterval(isStale);
      }
    }
  }

  async function pollInterval(isStale) {
    do await sleep(POLL_MS, signal); while (document.hidden && !isStale());
  }

  watch();
  return el("div", { class: "stack" },
    el("section", { class: "request-head" },
      el("div", {}, el("p", { class: "crumb" }, el("a", { href: "#/" }, "All requests")), heading, when), actions),
    notice, body);
}

function progressCard() {
  const bar = el("progress", { max: "100", value: "0", "aria-label": "Progress" });
  const done = el("b");
  const rate = el("span", { class: "soft" });
  const big = el("strong", { class: "big" });
  const percent = el("span", { class: "soft" });
  const estimate = el("span", { class: "soft" });
  const before = meter("Before");
  const after = meter("After");
  const succeeded = el("dd");
  const failed = el("dd");
  let first = null;
  let announced = 0;

  function show(status) {
    const ready = status.succeeded + status.failed;
    bar.value = status.progress;
    done.textContent = `${status.progress} % · ${number(ready)} of ${images(status.total)}`;
    bar.classList.toggle("stopped", status.status === "cancelled");
    rate.textContent = status.status === "processing" ? rateOf(status, ready) : "";
    big.textContent = bytes(Math.max(0, status.inputBytes - status.outputBytes));
    percent.textContent = status.inputBytes ? `saved, ${savedPercent(status.inputBytes, status.outputBytes)} % of all bytes` : "saved so far";
    estimate.textContent = status.status === "processing" ? estimateOf(status) : "";
    before.show(status.inputBytes, status.inputBytes);
    after.show(status.outputBytes, status.inputBytes);
    succeeded.textContent = number(status.succeeded);
    failed.textContent = number(status.failed);
    failed.classList.toggle("bad", status.failed > 0);
    const quarter = Math.floor(status.progress / 25) * 25;
    if (status.status === "processing" && quarter > announced) announce(`${quarter} percent`);
    announced = quarter;
  }

  /** Throughput since this view was opened; an earlier pause must not distort the estimate. */
  function rateOf(status, ready) {
    const now = performance.now();
    if (first === null || ready < first.ready) first = { now, ready };
    const perSecond = (ready - first.ready) / ((now - first.now) / 1000);
    if (!(perSecond > 0) || now - first.now < 1500) return "";
    if (ready === status.total) return "writing the CSV";
    return `${perSecond.toFixed(perSecond < 10 ? 1 : 0)} images/s · ${duration((status.total - ready) / perSecond)} left`;
  }

  const element = el("section", { class: "card progress", "aria-label": "Progress and savings" },
    el("div", { class: "progress-line" }, done, rate), bar,
    el("div", { class: "sums" },
      el("p", { class: "saved" }, big, percent, estimate),
      el("div", { class: "meters" }, before.element, after.element),
      el("dl", { class: "counts" },
        el("div", {}, el("dt", {}, "Compressed"), succeeded),
        el("div", {}, el("dt", {}, "Failed"), failed))));
  return { element, show };
}

/** Savings of the whole request if its other images are like those that are ready, the failed ones included. */
function estimateOf({ succeeded, failed, total, inputBytes, outputBytes }) {
  const ready = succeeded + failed;
  if (succeeded < IMAGES_OF_ESTIMATE || ready === total || outputBytes >= inputBytes) return "";
  return `about ${bytes(((inputBytes - outputBytes) / ready) * total)} of about ${bytes((inputBytes / ready) * total)} in the end`;
}

function meter(name) {
  const bar = el("span", { class: `meter-bar ${name.toLowerCase()}` });
  const value = el("span", { class: "figure" });
  return {
    element: el("p", { class: "meter" }, el("span", { class: "soft" }, name), el("span", { class: "meter-track" }, bar), value),
    show(amount, of) {
      bar.style.width = of ? `${(amount / of) * 100}%` : "0";
      value.textContent = of ? bytes(amount) : "–";
    },
  };
}

function commandList(justDone) {
  const list = el("ul", { class: "commands" });
  let commands = [];
  let drawn = "";

  function draw() {
    const text = JSON.stringify([commands, justDone]);
    if (text === drawn) return; // preserves a text selection
    drawn = text;
    list.replaceChildren(...commands.toSorted((a, b) => (b.name === justDone) - (a.name === justDone)).map(({ name, command }) => {
      const code = el("code", {}, command);
      const copy = el("button", { type: "button", class: "small", "aria-label": `Copy the command: ${name}` }, "Copy");
      copy.addEventListener("click", async () => {
        try {
          await navigator.clipboard.writeText(command);
          copy.textContent = "Copied";
          announce("Copied");
          setTimeout(() => { copy.textContent = "Copy"; }, 2000);
        } catch {
          getSelection().selectAllChildren(code); // the clipboard API requires https
          copy.textContent = "Press Ctrl+C";
        }
      });
      return el("li", {}, el("span", { class: "command-name" }, name, name === justDone && el("small", {}, "just done")),
        el("div", { class: "command", role: "region", tabindex: "0", "aria-label": `${name} with curl` }, code), copy);
    }));
  }

  return {
    element: el("details", { class: "card" }, el("summary", {}, el("h2", {}, "The same with curl")), list),
    show(given) { commands = given; draw(); },
    done(name) { justDone = name; draw(); },
  };
}
