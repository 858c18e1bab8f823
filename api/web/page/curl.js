// What the page does, as commands for a terminal.

import { key } from "./key.js";

/** The commands about a request: {name, command}. `upload` is what made it, where that is known. */
export function commandsFor(status, upload) {
  const id = status.requestId;
  const commands = [
    ["Upload", `curl ${authorization()}${formOf(upload)} ${address("/api/upload")}`],
    ["Status", `curl ${authorization()}${address(`/api/status/${id}`)}`],
    ["Follow", `curl -N ${authorization()}${address(`/api/requests/${id}/events`)}`],
  ];
  if (status.status === "processing") {
    commands.push(["Cancel", `curl -X POST ${authorization()}${address(`/api/requests/${id}/cancel`)}`]);
  } else {
    commands.push(["Failures", `curl ${authorization()}${address(`/api/requests/${id}/images?status=failed`)}`]);
    if (status.status !== "expired") commands.push(["Retry", `curl -X POST ${authorization()}${address(`/api/requests/${id}/retry`)}`]);
  }
  if (status.outputCsvUrl) commands.push(["Download", `curl -OJ ${authorization()}${address(`/api/download/${id}`)}`]);
  return commands.map(([name, command]) => ({ name, command }));
}

// The key itself is not put where it would be copied into tickets and histories.
const authorization = () => (key() === null ? "" : '-H "Authorization: Bearer $SHRINKSTREAM_API_KEY" ');

const address = (path) => quoted(location.origin + path);

function formOf(upload) {
  const { name, webhookUrl } = upload ?? { name: "products.csv" };
  // curl reads a file's name up to a comma or semicolon unless it stands in quotes.
  const file = /^[\w. -]+$/.test(name) ? name : `"${name.replace(/[\\"]/g, "\\$&")}"`;
  const hook = webhookUrl ? ` --form-string ${quoted(`webhookUrl=${webhookUrl}`)}` : "";
  return `-F ${quoted(`file=@${file}`)}${hook}`;
}

/** As one word of a POSIX shell. */
export function quoted(word) {
  return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
}
