"""A fake mail server, and not a good one. python -m examples.mailer.mail_server PORT FILE

It takes mails over HTTP and writes each to FILE. Every few mails its answer gets lost: the mail is
sent, and the client cannot know. Like the real ones, it knows a mail again by its idempotency key.
"""

import json
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

#: The answer to every so many mails gets lost.
LOSES = 7


class MailServer(HTTPServer):
    def __init__(self, port: int, file: Path) -> None:
        self.file = file
        lines = file.read_text().splitlines() if file.exists() else []
        self.keys = {json.loads(line)["key"] for line in lines}
        super().__init__(("127.0.0.1", port), Mailbox)


class Mailbox(BaseHTTPRequestHandler):
    server: MailServer

    def do_POST(self) -> None:
        mail = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        key = self.headers["Idempotency-Key"]
        known = key in self.server.keys
        if not known:
            self.server.keys.add(key)
            with self.server.file.open("a") as file:
                file.write(json.dumps({"key": key, **mail}) + "\n")
            if len(self.server.keys) % LOSES == 0:
                self.close_connection = True
                return
        self.send_response(200 if known else 201)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    with MailServer(int(sys.argv[1]), Path(sys.argv[2])) as server:
        server.serve_forever()
