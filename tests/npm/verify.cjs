// Reads {secret, headers, body} as JSON; exits 0 if the npm package `standardwebhooks` accepts it, 3 if it refuses.
const { Webhook, WebhookVerificationError } = require("standardwebhooks");
const { secret, headers, body } = JSON.parse(require("fs").readFileSync(0, "utf8"));
try {
  new Webhook(secret).verify(body, headers);
} catch (error) {
  if (!(error instanceof WebhookVerificationError)) throw error; // Node.js exits with 1
  process.exit(3);
}
