// The API as this page uses it: keys, problems and the stream of a request's status.

import { askForKey, key } from "./key.js";

const SILENCE_MS = 45_000; // the server says something every 15 s
const FIRST_PAUSE_MS = 1000;
const LONGEST_PAUSE_MS = 15_000;

/** What the server says is wrong (RFC 9457), or that there was no answer (status 0). */
export class Problem extends Error {
  constructor(status, details = {}) {
    super(details.detail ?? (status ? `The server answers with HTTP ${status}.` : "The server can't be reached."));
    this.status = status;
    this.details = details;
  }

  get mayPass() {
    return this.status === 0 || this.status === 429 || this.status >= 500;
  }
}

/** The server's answer. Raises Problem for anything but success, and the signal's AbortError. */
export async function call(path, { method = "GET", body, headers = {}, signal } = {}) {
  for (;;) {
    const sent = key();
    const authorization = sent === null ? {} : { Authorization: `Bearer ${encodeHeader(sent)}` };
    let answer;
    try {
      answer = await fetch(path, { method, body, headers: { ...headers, ...authorization }, signal, cache: "no-store" });
    } catch (error) {
      if (signal?.aborted) throw error;
      throw new Problem(0);
    }
    if (answer.ok) return answer;
    if (answer.status !== 401) throw new Problem(answer.status, await detailsOf(answer));
    // Somebody may have given a better one meanwhile.
    if (key() === sent) await askForKey();
  }
}

export async function json(path, options) {
  return (await call(path, options)).json();
}

/** Save what the server sends as a file: a link could not carry the key. */
export async function save(path, name) {
  const url = URL.createObjectURL(await (await call(path)).blob());
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

/**
 * Tell each new status of a request until it is no longer processed or the signal aborts; come back after every
 * break. EventSource would do, could it send a key. Raises Problem where coming back can't help.
 */
export async function follow(id, { signal, onStatus, onConnection }) {
  let last = "";
  let pause = FIRST_PAUSE_MS;
  while (!signal.aborted) {
    const silence = new AbortController();
    let timer = 0;
    const heard = () => {
      clearTimeout(timer);
      timer = setTimeout(() => silence.abort(), SILENCE_MS);
    };
    try {
      heard();
      const answer = await call(`/api/requests/${encodeURIComponent(id)}/events`, {
        headers: { Accept: "text/event-stream", ...(last && { "Last-Event-ID": last }) },
        signal: AbortSignal.any([signal, silence.signal]),
      });
      if (answer.status === 204) return;
      onConnection(true);
      for await (const event of eventsOf(answer.body, heard)) {
        if (event.data === undefined) continue;
        last = event.id ?? last;
        pause = FIRST_PAUSE_MS;
        const status = JSON.parse(event.data);
        onStatus(status);
        if (status.status !== "processing") return;
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof Problem && !error.mayPass) throw error;
      onConnection(false);
    } finally {
      clearTimeout(timer);
    }
    await sleep(pause, signal);
    pause = Math.min(2 * pause, LONGEST_PAUSE_MS);
  }
}

async function* eventsOf(stream, heard) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    heard();
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      yield Object.fromEntries(block.split("\n").filter((line) => line && !line.startsWith(":")).map((line) => {
        const colon = line.indexOf(":");
        return [line.slice(0, colon), line.slice(colon + 1).trimStart()];
      }));
    }
  }
}

export function sleep(milliseconds, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    signal?.addEventListener("abort", () => { clearTimeout(timer); resolve(); }, { once: true });
  });
}

async function detailsOf(answer) {
  try {
    return await answer.json();
  } catch {
    return {}; // a proxy's page
  }
}

// A header holds bytes: others would make fetch throw, and no key of the server's has them.
const encodeHeader = (text) => text.replace(/[^\x20-\x7e]/g, "?");
