"""The web application: a view that publishes a command. python -m examples.mailer.web PORT

It answers at once, whatever the mailer and the mail server are at.
"""

import sys
from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

from examples.mailer.messages import SendEmail
from worker import App

app = App("web")


def send_password(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """POST /USER_ID, with the new password as the body."""
    user_id = environ["PATH_INFO"].strip("/")
    password = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)).decode()
    command = SendEmail(user_id=user_id, text=f"The new password you requested is {password}")
    app.publish(command)
    start_response("202 Accepted", [("Content-Type", "text/plain")])
    return [command.event_id.encode()]


class Quiet(WSGIRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    with make_server("127.0.0.1", int(sys.argv[1]), send_password, handler_class=Quiet) as server:
        server.serve_forever()
