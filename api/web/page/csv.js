// Builds a CSV from pasted URLs.

const HEADER = "S. No.,Product Name,Input Image URLs";

/** A CSV with one row per white-space-separated URL, or null without any. The server validates the URLs. */
export function csvOfUrls(text) {
  const rows = text.split(/\s+/).filter(Boolean).map((url, index) => [index + 1, nameOf(url), url].map(quoted).join(","));
  return rows.length ? [HEADER, ...rows, ""].join("\r\n") : null;
}

const quoted = (cell) => `"${String(cell).replaceAll('"', '""')}"`;

/** Product name from a URL: the file name without its extension. */
function nameOf(url) {
  const file = url.replace(/[?#].*/, "").split("/").pop().replace(/\.\w+$/, "");
  try {
    return decodeURIComponent(file).replace(/[\x00-\x1f\x7f]/g, " ").trim().slice(0, 200) || "image";
  } catch {
    return file.slice(0, 200) || "image";
  }
}
