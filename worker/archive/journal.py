"""How far each replay is: a document in the archive, changed by compare-and-set.

What is at or before the position of a replay is sent, and confirmed by the queues; so a replay goes
on from there, whoever died. It sends some of it twice, under the same ids, in the same order, which
is harmless: the first copies are in order, and second copies are duplicates. That holds also where
two are at one replay, so nothing rests on the owner that a document names; it keeps people from
starting the same thing twice.
"""

from __future__ import annotations

import json
import os
import socket
from dataclasses import asdict, dataclass, field, replace
from difflib import get_close_matches
from enum import Enum
from typing import TYPE_CHECKING, Any

from worker.archive.selection import Selection
from worker.errors import StoreCorrupt, UsageError
from worker.ids import new_id

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.archive.base import Archive

_PREFIX = "replay/"
#: Seconds without a word after which whoever is at a replay is not waited for.
SILENT = 15.0
_SHOWN = 5


class State(Enum):
    """What a replay is at."""

    #: Somebody is at it, or was until it died.
    RUNNING = "running"
    PAUSED = "paused"
    CANCELLED = "cancelled"
    DONE = "done"


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """A replay: what was asked for, and how far it is."""

    id: str
    service: str
    #: The handlers that it is for; none: all.
    handlers: tuple[str, ...] = ()
    selection: Selection = field(default_factory=Selection)
    #: They do it again, by a memory of its own.
    again: bool = False
    #: The service begins with it, and what is live is held meanwhile.
    holds: bool = False

    state: State = State.RUNNING
    #: Up to which place events had been removed from the archive when it began to send; None until
    #: then.
    removed: int | None = None
    #: How often something had been removed below that (:mod:`worker.archive.removals`).
    removed_below: int = 0
    #: All that is meant is sent up to this place; and to which place it is meant, where that is
    #: known already.
    position: int = 0
    upto: int | None = None
    sent: int = 0
    #: Where it holds what is live: that began; everything is sent, so that it may end.
    begun: bool = False
    complete: bool = False
    #: Who is at it, and when that one said so, in seconds since 1970.
    owner: str = ""
    told_at: float = 0.0

    def dump(self) -> str:
        """Return it as a document."""
        told = asdict(self)
        told |= {"state": self.state.value, "selection": self.selection.dump()}
        return json.dumps(told, separators=(",", ":"))

    @classmethod
    def load(cls, text: str) -> Replay:
        """Read what ``dump`` wrote. Raises StoreCorrupt for anything else."""
        try:
            told = json.loads(text)
            told["state"] = State(told["state"])
            told["selection"] = Selection.load(told["selection"])
            told["handlers"] = tuple(told["handlers"])
            return cls(**told)
        except (ValueError, TypeError, KeyError) as error:
            raise StoreCorrupt(f"the archive holds no replay there: {error!r}") from None


class Stopped(Exception):
    """Somebody has paused or cancelled the replay, or is at it instead; the text says which."""

    def __init__(self, replay: Replay) -> None:
        text = "is paused" if replay.state is State.PAUSED else f"is {replay.state.value}"
        if replay.state is State.RUNNING:
            text = f"goes on at {replay.owner.partition('/')[0]}"
        super().__init__(f"the replay {replay.id} {text}")
        self.replay = replay


class Journal:
    """The replays of one archive. ``clock`` tells seconds since 1970."""

    def __init__(self, archive: Archive, clock: Callable[[], float]) -> None:
        self._archive = archive
        self._clock = clock
        self._me = f"{socket.gethostname()}:{os.getpid()}/{new_id()}"

    def all(self) -> list[Replay]:
        """Return every replay that was begun, by id."""
        return [Replay.load(found.text) for found in self._archive.documents(_PREFIX).values()]

    def meant(self, begins: str) -> str:
        """Return the id of the one replay that is called so, or begins so; else ``begins``.

        Raises UsageError where several begin so.
        """
        ids = [each.id for each in self.all()]
        found = [each for each in ids if begins and each.startswith(begins)]
        if begins in ids or not found:
            return begins
        if len(found) > 1:
            some = ", ".join(found[:_SHOWN]) + (", …" if found[_SHOWN:] else "")
            raise UsageError(f"{len(found)} replays have an id that begins with {begins!r}: {some}")
        return found[0]

    def find(self, replay_id: str) -> tuple[int, Replay]:
        """Return a replay, with the version of its document. Raises UsageError where none is."""
        found = self._archive.documents(f"{_PREFIX}{replay_id}").get(f"{_PREFIX}{replay_id}")
        if found is None:
            near = get_close_matches(replay_id, [each.id for each in self.all()], n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UsageError(f"the archive has no replay {replay_id!r}{hint}")
        return found.version, Replay.load(found.text)

    def begin(self, replay: Replay) -> Stint:
        """Note a new replay as being done here. Raises UsageError where there is one of its id."""
        mine = replace(replay, state=State.RUNNING, owner=self._me, told_at=self._clock())
        if not self._archive.write(f"{_PREFIX}{replay.id}", 0, mine.dump()):
            raise UsageError(
                f"there is a replay {replay.id!r} already: go on with it (--resume {replay.id}), or"
                " give the new one another --id"
            )
        return Stint(self, mine, 1)

    def resume(self, replay_id: str) -> Stint:
        """Note a replay as being done here from now on.

        Raises UsageError where there is none, it is over, or somebody is at it.
        """
        version, found = self.find(replay_id)
        if found.state is State.DONE and found.holds:
            raise UsageError(
                f"the replay {replay_id} has sent all: {found.service} goes over to what is live by"
                " itself, the first time that it runs"
            )
        if found.state in (State.DONE, State.CANCELLED):
            raise UsageError(f"the replay {replay_id} is {found.state.value}: begin another")
        if self.is_alive(found):
            raise UsageError(
                f"{found.owner.partition('/')[0]} is at the replay {replay_id}: pause it first"
                f" (--pause {replay_id})"
            )
        mine = replace(found, state=State.RUNNING, owner=self._me, told_at=self._clock())
        if not self.write(mine, version):
            raise UsageError(f"somebody else has changed the replay {replay_id} just now")
        return Stint(self, mine, version + 1)

    def ask(self, replay_id: str, state: State) -> Replay:
        """Pause or cancel a replay; whoever is at it finds that out within about a second.

        Raises UsageError where there is none, or it is over.
        """
        while True:
            version, found = self.find(replay_id)
            if found.state in (State.DONE, State.CANCELLED) and found.state is not state:
                raise UsageError(f"the replay {replay_id} is {found.state.value} already")
            if self.write(replace(found, state=state), version):
                return found

    def is_alive(self, replay: Replay) -> bool:
        """Tell whether somebody is at it, and said so lately; one of this machine is looked for.

        What was said long from now is of a clock that was ahead, and tells nothing.
        """
        lately = abs(self._clock() - replay.told_at) < SILENT
        return bool(replay.owner) and lately and not _is_gone(replay.owner)

    def is_mine(self, replay: Replay) -> bool:
        """Tell whether it is done here."""
        return replay.owner == self._me

    def now(self) -> float:
        """Return the time."""
        return self._clock()

    def write(self, replay: Replay, version: int) -> bool:
        """Change a replay if its document has this version still."""
        return self._archive.write(f"{_PREFIX}{replay.id}", version, replay.dump())


def _is_gone(owner: str) -> bool:
    """Tell whether an owner is known to run no more: a process of this machine."""
    host, _, pid = owner.partition("/")[0].rpartition(":")
    if host != socket.gethostname() or not pid.isdecimal():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return False


class Stint:
    """One process's time at a replay."""

    def __init__(self, journal: Journal, replay: Replay, version: int) -> None:
        self._journal = journal
        self._version = version
        #: What is known of it here, and what of that the archive knows.
        self.replay = replay

    def note(self, **facts: Any) -> None:
        """Know this of it from now on; the next ``save`` tells the archive."""
        self.replay = replace(self.replay, **facts)

    def save(self, **facts: Any) -> None:
        """Tell the archive how far it is, and this.

        Raises Stopped where somebody has paused or cancelled it, or goes on with it; then the
        position is told all the same, unless somebody goes on.
        """
        self.note(**facts, told_at=self._journal.now())
        while not self._journal.write(self.replay, self._version):
            self._version, found = self._journal.find(self.replay.id)
            if not self._journal.is_mine(found):
                raise Stopped(found)
            if found.state is not State.RUNNING:
                self.note(state=found.state, owner="")
                if self._journal.write(self.replay, self._version):
                    raise Stopped(self.replay)
        self._version += 1

    def leave(self, state: State) -> None:
        """Tell how far it is, and that nobody is at it here any more. Raises as ``save`` does."""
        self.save(state=state, owner="")
