"""The service of the demo: applies file changes to a table, and remembers nothing by itself.

Run by ``qworker start --app worker.demo.handlers``. Whatever is done once here is done once by the
runtime: the handler never asks whether it saw an event before, or whether it is its turn.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from worker.app import App
from worker.demo.ledger import Ledger
from worker.errors import ConfigurationError
from worker.ids import derived_id
from worker.message import Context, Event

if TYPE_CHECKING:
    from collections.abc import Iterator

    from worker.demo.history import Change

#: Environment: the SQLite file of the table and the ledger.
STATE = "QWORKER_DEMO_STATE"

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
    with Ledger.open(Path(file)) as ledger:
        yield ledger


@app.on(FileChanged)
def apply_change(event: FileChanged, ctx: Context) -> None:
    """Put the change into the table."""
    ctx.state.apply(ctx.handler, event.event_id, event.path, event.blob, event.revision)
