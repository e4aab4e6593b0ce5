"""Verifies a webhook: reads {"headers", "body", "secrets"}, prints for each secret whether it fits."""

import json
import sys

from standardwebhooks import Webhook, WebhookVerificationError

asked = json.load(sys.stdin)
found = []
for secret in asked["secrets"]:
    try:
        Webhook(secret).verify(asked["body"], asked["headers"])
        found.append(True)
    except WebhookVerificationError:
        found.append(False)
print(json.dumps(found))
