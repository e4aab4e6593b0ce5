// Verifies a webhook: reads {"headers", "body", "secrets"}, prints for each secret whether it fits.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

// The package stands in the tools' folder, not beside this file.
const { Webhook, WebhookVerificationError } = createRequire(process.argv[2])("standardwebhooks");
const asked = JSON.parse(readFileSync(0, "utf8"));
const found = asked.secrets.map((secret) => {
  try {
    new Webhook(secret).verify(asked.body, asked.headers);
    return true;
  } catch (error) {
    if (error instanceof WebhookVerificationError) return false;
    throw error;
  }
});
console.log(JSON.stringify(found));
