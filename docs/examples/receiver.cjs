// Receives webhooks and verifies their signature: npm install standardwebhooks && WEBHOOK_SECRET=whsec_… node receiver.cjs
const { createServer } = require("node:http");
const { Webhook, WebhookVerificationError } = require("standardwebhooks");

const MAX_BODY_BYTES = 1024 * 1024;
const webhook = new Webhook(process.env.WEBHOOK_SECRET);

async function bodyOf(request) {
  const chunks = [];
  let size = 0;
  for await (const chunk of request) {
    if ((size += chunk.length) > MAX_BODY_BYTES) throw new WebhookVerificationError("too large");
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString(); // the signature is of these bytes: parse them afterwards
}

const server = createServer(async (request, response) => {
  try {
    const message = webhook.verify(await bodyOf(request), request.headers);
    // A message that is sent again has the same webhook-id: ignore one that you know.
    console.log(request.headers["webhook-id"], message.type, message.data.outputCsvUrl);
    response.writeHead(204).end();
  } catch (error) {
    response.writeHead(error instanceof WebhookVerificationError ? 401 : 500).end();
  }
});
server.listen(Number(process.env.PORT ?? 9000), "127.0.0.1", () => console.log("listening"));
