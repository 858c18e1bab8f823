// Pasted URLs as a CSV.

const HEADER = "S. No.,Product Name,Input Image URLs";

/** A CSV with a row for each of the URLs, which are separated by white space; whether they are any is for the server. */
export function csvOfUrls(text) {
  const rows = text.split(/\s+/).filter(Boolean).map((url, place) => [place + 1, nameOf(url), url].map(quoted).join(","));
  return rows.length ? [HEADER, ...rows, ""].join("\r\n") : null;
}

const quoted = (cell) => `"${String(cell).replaceAll('"', '""')}"`;

/** The file name without its ending is the best that a URL tells of the product. */
function nameOf(url) {
  const file = url.replace(/[?#].*/, "").split("/").pop().replace(/\.\w+$/, "");
  try {
    return decodeURIComponent(file).replace(/[\x00-\x1f\x7f]/g, " ").trim().slice(0, 200) || "image";
  } catch {
    return file.slice(0, 200) || "image";
  }
}
