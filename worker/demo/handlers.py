"""The service of the demo: applies file changes to a table in a SQLite database.

Run by ``qworker start --app worker.demo.handlers``. The handler never asks whether it is its turn,
and leaves to ``Context.once`` whether it has done an event before. With ``QWORKER_DEMO_ONCE=0`` it
leaves that to the dedup store alone, which shows the crash window between effect and record.
"""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worker.app import App
from worker.demo.ledger import APPLY, NOTE, Ledger
from worker.errors import AlreadyDone, ConfigurationError
from worker.ids import derived_id
from worker.message import Event

if TYPE_CHECKING:
    from collections.abc import Iterator

    from worker.context import Context
    from worker.demo.history import Change
    from worker.middleware import CallNext

#: Environment: the SQLite file of the table and the ledger; and whether (1 or 0) the ids of the
#: events are written with them.
STATE = "QWORKER_DEMO_STATE"
ONCE = "QWORKER_DEMO_ONCE"

app = App("git-history")


class FileChanged(Event, name="git.file_changed", key="path"):
    """A commit changed a file."""

    commit: str
    path: str
    #: A, M, D or T, as git says it.
    change: str
    #: What the file holds from now on; None: it is gone.
    blob: str | None
    mode: str | None
    #: 1 for the first change of the path, then one more each time.
    revision: int


def event_of(change: Change, repository: str) -> FileChanged:
    """Return the event of a change of ``repository``.

    Its id is the same whenever it is made, so that a history can be published again.
    """
    return FileChanged(
        event_id=derived_id(repository, change.path, change.revision),
        timestamp=datetime.fromtimestamp(change.time, UTC),
        commit=change.commit,
        path=change.path,
        change=change.change,
        blob=change.blob,
        mode=change.mode,
        revision=change.revision,
    )


@app.lifespan
def open_ledger() -> Iterator[Ledger]:
    """Open the database, once a process."""
    if not (file := os.environ.get(STATE)):
        raise ConfigurationError(f"{STATE} must name the SQLite file that the demo writes to")
    with Ledger.open(Path(file), once=os.environ.get(ONCE, "1") == "1") as ledger:
        yield ledger


@app.on(FileChanged)
def apply_change(event: FileChanged, context: Context) -> None:
    """Put the change into the table, and a line into the ledger: one transaction."""
    ledger: Ledger = context.state
    with ledger.transaction() as db:
        if ledger.once:
            context.once(db)
        now = time.monotonic()
        db.execute(
            NOTE, (context.handler, event.event_id, event.path, event.revision, os.getpid(), now)
        )
        db.execute(APPLY, (event.path, event.blob, event.revision))


def note_repetitions(context: Context, call_next: CallNext) -> Any:
    """Count what was run again and found done: only to show it."""
    try:
        return call_next(context)
    except AlreadyDone:
        context.state.note_repetition(context.message_id)
        raise


app.use(note_repetitions)
