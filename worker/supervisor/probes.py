"""Probes and metrics over HTTP: ``/live``, ``/ready``, ``/metrics``.

A thread serves what the loop published last; it asks nobody, so a probe costs next to nothing and
does not depend on the broker. A loop that hangs publishes nothing new, and that is what ``/live``
then tells.
"""

from __future__ import annotations

import logging
import socket
import sys
import threading
import time
from collections import OrderedDict
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from socketserver import TCPServer, ThreadingMixIn
from typing import TYPE_CHECKING

from worker.errors import ConfigurationError
from worker.supervisor.metrics import CONTENT_TYPE, exposition
from worker.supervisor.status import Verdict, is_live, is_ready

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from worker.supervisor.status import Status

logger = logging.getLogger("worker.supervisor")

#: Connections served at once; when one more comes, the oldest is closed.
_MOST_CONNECTIONS = 16
_TIMEOUT = 5.0
_HIGHEST_PORT = 65535


def parse_address(text: str) -> tuple[str, int]:
    """Return host and port of ``HOST:PORT``; without a host it is the loopback.

    Raises ConfigurationError.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > _HIGHEST_PORT:
        raise ConfigurationError(f"http: {text!r} is not HOST:PORT, as in 127.0.0.1:8080")
    return host.removeprefix("[").removesuffix("]") or "127.0.0.1", int(port)


class Probes:
    """Serves the latest status until it is closed."""

    def __init__(self, address: str, status: Callable[[], Status]) -> None:
        """Listen on ``address`` (HOST:PORT). Raises ConfigurationError if that is not possible."""
        host, port = parse_address(address)
        try:
            self._server = _Server(host, port, status)
        except OSError as error:
            raise ConfigurationError(f"http: cannot listen on {address}: {error}") from error
        #: Where it listens, with the port that was found for port 0.
        self.address = _shown(*self._server.socket.getsockname()[:2])
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="qworker-probes", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(_TIMEOUT)


def _shown(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class _Server(ThreadingMixIn, HTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, host: str, port: int, status: Callable[[], Status]) -> None:
        self.status = status
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._open: OrderedDict[int, socket.socket] = OrderedDict()
        self._lock = threading.Lock()
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        """Bind without HTTPServer's look-up of the host's name, which may take seconds."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = "", 0  # HTTPServer's own; nobody asks

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve in a thread; the oldest of too many connections makes room."""
        with self._lock:
            self._open[id(request)] = request
            if len(self._open) > _MOST_CONNECTIONS:
                _, oldest = self._open.popitem(last=False)
                with suppress(OSError):  # it was just done
                    oldest.shutdown(socket.SHUT_RDWR)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Forget a connection that was served."""
        with self._lock:
            self._open.pop(id(request), None)
        super().shutdown_request(request)

    def handle_error(self, _request: Any, _client_address: Any) -> None:
        """Say in the log, not on standard error, that a client was not served."""
        logger.debug("a probe was not answered: %s", sys.exception())


class _Handler(BaseHTTPRequestHandler):
    timeout = _TIMEOUT
    server: _Server
    server_version = "qworker"
    sys_version = ""

    def do_GET(self) -> None:
        """Answer a probe."""
        status = self.server.status()
        now = time.monotonic()
        match self.path.partition("?")[0]:
            case "/live":
                self._tell(is_live([status], now))
            case "/ready":
                self._tell(is_ready([status], now))
            case "/metrics":
                self._answer(200, CONTENT_TYPE, exposition(status))
            case _:
                self._answer(404, "text/plain; charset=utf-8", b"/live, /ready or /metrics\n")

    do_HEAD = do_GET  # noqa: N815 - the name that http.server asks for

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - overrides
        """Keep requests out of the log."""

    def _tell(self, verdict: Verdict) -> None:
        code = 200 if verdict.ok else 503
        self._answer(code, "text/plain; charset=utf-8", f"{verdict.text}\n".encode())

    def _answer(self, code: int, kind: str, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
