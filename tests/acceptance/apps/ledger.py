"""What handlers leave outside the system: lines appended to the file named by ``LEDGER``.

A line is one ``write`` to a file opened for appending, so lines of several processes never mix, and
what was written outlives a kill -9 of its writer.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from acceptance.apps.events import Step
from worker import Context, Event


@contextmanager
def noted(event: Step, context: Context) -> Iterator[None]:
    """Note that the handler began, and, where the block ends well, its effect."""
    note("begin", event, context)
    yield
    note("effect", event, context)


def note(what: str, event: Event, context: Context) -> None:
    """Append one line."""
    entry = {
        "what": what,
        "handler": context.handler,
        "id": context.message_id,
        "key": context.key or "",
        "sequence": event.sequence if isinstance(event, Step) else 0,
        "attempt": context.attempt,
        "pid": os.getpid(),
        "at": time.monotonic(),
        "shard": context.shard,
        "fence": context.fence,
        "supervisor": os.environ.get("SUPERVISOR", ""),
    }
    os.write(_file(), json.dumps(entry).encode() + b"\n")


@cache
def _file() -> int:
    return os.open(os.environ["LEDGER"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
