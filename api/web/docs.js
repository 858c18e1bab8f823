// Redoc's styled-components set this nonce on their style elements, as the CSP requires.
globalThis.__webpack_nonce__ = document.currentScript.nonce;

const target = document.getElementById("docs");

import("/docs/redoc.js").then(async ({ init }) => {
  const response = await fetch(target.dataset.document);
  if (!response.ok) throw new Error(`${target.dataset.document}: HTTP ${response.status}`);
  await init(await response.json(), { disableTelemetry: true }, target);
}).catch((error) => {
  target.textContent = `The documentation can't be shown: ${error.message}`;
});
