"""A server that is away for a while, whichever it is, and comes back with its data.

A server has one outage at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from servers import Server


@contextmanager
def stopped(server: Server) -> Iterator[None]:
    """Stop it in good order."""
    server.stop()
    try:
        yield
    finally:
        server.start()


@contextmanager
def killed(server: Server) -> Iterator[None]:
    """End it with SIGKILL."""
    server.kill()
    try:
        yield
    finally:
        server.start()
