// Uploads of this tab, for the curl command that repeats them.

const PREFIX = "shrinkstream.upload.";

export function rememberUpload(id, upload) {
  sessionStorage.setItem(PREFIX + id, JSON.stringify(upload));
}

/** The upload of a request, or null if it was not made in this tab. */
export function uploadOf(id) {
  return JSON.parse(sessionStorage.getItem(PREFIX + id));
}
