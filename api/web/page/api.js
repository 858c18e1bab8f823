// API client of the page: authentication, problem details and the event stream of a request.

import { key, promptForKey } from "./key.js";

const IDLE_TIMEOUT_MS = 45_000; // the server sends a heartbeat every 15 s
const MAX_BLOB_BYTES = 500_000_000;
const MIN_BACKOFF_MS = 1000;
const MAX_BACKOFF_MS = 15_000;

/** Problem details of an error response (RFC 9457), or a network error (status 0). */
export class Problem extends Error {
  constructor(status, details = {}) {
    super(details.detail ?? (status ? `The server answered with HTTP ${status}.` : "The server is unreachable."));
    this.status = status;
    this.details = details;
  }

  get isTransient() {
    return this.status === 0 || this.status === 429 || this.status >= 500;
  }
}

/** Fetch from the API. Throws Problem for an error response, and AbortError when the signal aborts. */
export async function call(path, { method = "GET", body, headers = {}, signal } = {}) {
  for (;;) {
    const sent = key();
    const authorization = sent === null ? {} : { Authorization: `Bearer ${encodeHeader(sent)}` };
    let response;
    try {
      response = await fetch(path, { method, body, headers: { ...headers, ...authorization }, signal, cache: "no-store" });
    } catch (error) {
      if (signal?.aborted) throw error;
      throw new Problem(0);
    }
    if (response.ok) return response;
    if (response.status !== 401) throw new Problem(response.status, await detailsOf(response));
    // A concurrent call may have prompted for a new key already.
    if (key() === sent) await promptForKey();
  }
}

export async function json(path, options) {
  return (await call(path, options)).json();
}

/** Download a response as a file: a link could not send the API key. */
export async function save(path, name) {
  const url = URL.createObjectURL(await (await call(path)).blob());
  clickLink(url, name);
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

/** As `save`, but streamed to the disk where no API key is needed; with one, up to MAX_BLOB_BYTES. */
export async function saveLarge(path, name, size) {
  if (key() !== null && size > MAX_BLOB_BYTES) {
    throw new Problem(0, { detail: "with an API key the browser would hold the whole file in memory, which is too large for that."
      + " Use its curl command below, or shrinkstream download ID --images DIR." });
  }
  await call(path, { method: "HEAD" }); // an error is shown here, not saved as the file
  if (key() === null) clickLink(path, name);
  else await save(path, name);
}

function clickLink(url, name) {
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
}

/**
 * Follow the status of a request until it is not `processing` or the signal aborts; reconnects with backoff.
 * Replaces EventSource, which can't send an API key. Throws Problem for a permanent error.
 */
export async function follow(id, { signal, onStatus, onConnection }) {
  let last = "";
  let backoff = MIN_BACKOFF_MS;
  while (!signal.aborted) {
    const idle = new AbortController();
    let timer = 0;
    const resetTimeout = () => {
      clearTimeout(timer);
      timer = setTimeout(() => idle.abort(), IDLE_TIMEOUT_MS);
    };
    try {
      resetTimeout();
      const response = await call(`/api/requests/${encodeURIComponent(id)}/events`, {
        headers: { Accept: "text/event-stream", ...(last && { "Last-Event-ID": last }) },
        signal: AbortSignal.any([signal, idle.signal]),
      });
      if (response.status === 204) return;
      onConnection(true);
      for await (const event of eventsOf(response.body, resetTimeout)) {
        if (event.data === undefined) continue;
        last = event.id ?? last;
        backoff = MIN_BACKOFF_MS;
        const status = JSON.parse(event.data);
        onStatus(status);
        if (status.status !== "processing") return;
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof Problem && !error.isTransient) throw error;
      onConnection(false);
    } finally {
      clearTimeout(timer);
    }
    await sleep(backoff, signal);
    backoff = Math.min(2 * backoff, MAX_BACKOFF_MS);
  }
}

async function* eventsOf(stream, onData) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    onData();
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

async function detailsOf(response) {
  try {
    return await response.json();
  } catch {
    return {}; // an error page of a proxy
  }
}

// fetch throws for a header with other characters, which no valid key has.
const encodeHeader = (text) => text.replace(/[^\x20-\x7e]/g, "?");
