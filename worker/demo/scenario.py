"""What to do in a trial: the events, the service, and the troubles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from worker.demo.history import Change


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A trial that can be run again. The seed chooses copies, victims and moments."""

    changes: Sequence[Change]
    #: Path and blob of every file that must be there in the end.
    tree: Mapping[str, str]
    #: Part of every event's id.
    repository: str
    #: Where the database, the logs and the embedded broker are. Must exist.
    folder: Path
    #: URLs; by default SQLite files in the folder.
    broker: str = ""
    dedup: str = ""
    #: Whether the handler writes the id of its event into the transaction of its effect; if not,
    #: only the dedup store remembers it, a moment later.
    once: bool = True
    shards: int = 8
    processes: int = 2
    #: The share of events that is published twice.
    duplicates: float = 0.05
    #: Messages a second; None: as fast as the broker confirms them.
    rate: float | None = None
    #: Mean seconds from one kill to the next; None: nobody is killed.
    kill_every: float | None = 1.0
    most_kills: int | None = None
    #: The share of the work after which the whole service is restarted; None: it is not.
    restart_at: float | None = None
    seed: int = 0
    #: Seconds after which a trial that is not done has failed.
    patience: float = 120.0
