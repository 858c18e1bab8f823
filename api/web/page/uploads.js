// What was uploaded from this tab: only for the command that repeats it.

const PREFIX = "shrinkstream.upload.";

export function rememberUpload(id, upload) {
  sessionStorage.setItem(PREFIX + id, JSON.stringify(upload));
}

/** What was uploaded, or null if it was not from this tab. */
export function uploadOf(id) {
  return JSON.parse(sessionStorage.getItem(PREFIX + id));
}
