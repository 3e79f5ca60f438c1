"""The mailer. qworker start --app examples.mailer.handlers"""

import json
import os
from urllib.request import Request, urlopen

from examples.mailer.messages import SendEmail
from worker import App, Context, RetryPolicy

MAIL_SERVER = os.environ.get("MAIL_SERVER", "http://127.0.0.1:8025/")

app = App("mailer")

#: For a mail server that is away for minutes. Should even that not do, the user's mails are set
#: aside in order, and `qworker dlq replay --key` sends them when somebody has had a look.
PATIENT = RetryPolicy(attempts=100, first_wait=0.1, max_wait=2.0, exhausted="park_key")


@app.on(SendEmail, retry=PATIENT)
class Mailer:
    def handle(self, command: SendEmail, context: Context) -> None:
        body = json.dumps({"to": command.user_id, "text": command.text}).encode()
        # The same for every attempt: where the answer got lost, the server knows the mail again.
        headers = {"Content-Type": "application/json", "Idempotency-Key": context.idempotency_key}
        request = Request(MAIL_SERVER, body, headers)  # noqa: S310 - our own URL
        with urlopen(request, timeout=5):  # noqa: S310 - as above
            context.logger.info("sent a mail to %s", command.user_id)
