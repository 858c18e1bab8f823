// curl commands equivalent to the page's actions.

import { key } from "./key.js";

/** The commands for a request: {name, command}. `upload`: its upload, if it was made in this tab. */
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
  if (status.status !== "processing" && status.status !== "expired") {
    commands.push(["Delete", `curl -X DELETE ${authorization()}${address(`/api/requests/${id}`)}`]);
  }
  if (status.status !== "processing" && !status.forgotten) {
    commands.push(["Forget", `curl -X DELETE ${authorization()}${address(`/api/requests/${id}?forget=true`)}`]);
  }
  if (status.outputCsvUrl) {
    commands.push(["Download", `curl -OJ ${authorization()}${address(`/api/download/${id}`)}`]);
    commands.push(["Download images", `curl -OJ ${authorization()}${address(`/api/requests/${id}/archive.zip`)}`]);
  }
  return commands.map(([name, command]) => ({ name, command }));
}

// A variable instead of the key, which must not leak into tickets and shell histories.
const authorization = () => (key() === null ? "" : '-H "Authorization: Bearer $SHRINKSTREAM_API_KEY" ');

const address = (path) => quoted(location.origin + path);

function formOf(upload) {
  const { name, fields } = upload ?? { name: "products.csv", fields: {} };
  // curl ends an unquoted file name at a comma or semicolon.
  const file = /^[\w. -]+$/.test(name) ? name : `"${name.replace(/[\\"]/g, "\\$&")}"`;
  const others = Object.entries(fields).filter(([, value]) => value);
  return `-F ${quoted(`file=@${file}`)}${others.map((field) => ` --form-string ${quoted(field.join("="))}`).join("")}`;
}

/** Quote a word for a POSIX shell. */
export function quoted(word) {
  return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
}
