// Redoc's styled-components mark their style elements with this nonce, which the page's policy asks for.
globalThis.__webpack_nonce__ = document.currentScript.nonce;

const target = document.getElementById("docs");

import("/docs/redoc.js").then(async ({ init }) => {
  const answer = await fetch(target.dataset.document);
  if (!answer.ok) throw new Error(`${target.dataset.document}: HTTP ${answer.status}`);
  await init(await answer.json(), { disableTelemetry: true }, target);
}).catch((error) => {
  target.textContent = `The documentation can't be shown: ${error.message}`;
});
