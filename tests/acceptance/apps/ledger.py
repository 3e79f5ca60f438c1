"""What handlers leave outside the system: lines appended to the file named by ``LEDGER``."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import count
from pathlib import Path

from acceptance.apps.events import Step
from chaos.history import Writer
from worker import Context, Event

#: Numbers of the calls in this process; any thread may take the next one.
_runs = count(1)
#: The supervisor that started this process, and may be gone later.
_LIFE = os.getppid()


@contextmanager
def noted(event: Step, context: Context) -> Iterator[None]:
    """Note that the handler began, and, where the block ends well, its effect."""
    run = next(_runs)
    note("begin", event, context, run)
    yield
    note("effect", event, context, run)


def note(what: str, event: Event, context: Context, run: int = 0) -> None:
    """Append one line."""
    _writer().note(
        what,
        handler=context.handler,
        run=run,
        id=context.message_id,
        key=context.key or "",
        sequence=event.sequence if isinstance(event, Step) else 0,
        attempt=context.attempt,
        shard=context.shard,
        fence=context.fence,
        supervisor=os.environ.get("SUPERVISOR", ""),
        life=_LIFE,
    )


@cache
def _writer() -> Writer:
    # What a killed process wrote is in the kernel's hands: no need to wait for the disk.
    return Writer(Path(os.environ["LEDGER"]), sync=False)
