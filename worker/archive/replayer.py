"""Carries out a replay: reads the archive, sends, saves how far it is; and the seam, where asked.

Servers that are away are waited for. Somebody may pause or cancel it, which is found out at the
next save, about a second later.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from worker.again import replay_headers
from worker.archive.horizon import Horizon
from worker.archive.journal import State
from worker.archive.pace import Pace
from worker.archive.removals import removals_of
from worker.archive.selection import Selection
from worker.archive.sender import Moved, Sender
from worker.errors import ConfirmTimeout, LeasesUnavailable, QworkerError, Unreachable

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.app import App
    from worker.archive.base import Archive
    from worker.archive.journal import Stint
    from worker.archive.seam import Seam
    from worker.config import Settings

_EVERYTHING = Selection()
#: Events that are sent at a time, at most; and how many more at a time, where it was less.
_LARGEST_BATCH, _MORE = 1000, 10
#: Events, and bytes, after which it is made sure that they are where they belong.
_MOST_UNSETTLED, _UNSETTLED_BYTES = 5000, 16 * 1024 * 1024
_SAVE_EVERY = 1.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
#: Seconds between two looks for what is archived meanwhile, or at the barriers.
_LOOK = 0.05


class Overtaken(QworkerError):
    """Events were removed from the archive before the replay has sent them."""


@dataclass(frozen=True, slots=True)
class Told:
    """What is told of a replay while it is under way."""

    sent: int
    position: int
    upto: int | None
    #: What it waits for; empty where for nothing.
    waits: str


class Replayer:
    """Does one replay. A context manager, for one thread.

    ``rate`` is in events a second (0: no limit), ``ahead`` in messages a shard. ``tell`` is called
    about once a second, and may raise.
    """

    def __init__(  # noqa: PLR0913 - what a replay needs
        self,
        archive: Archive,
        stint: Stint,
        settings: Settings,
        app: App | None,
        *,
        seam: Seam | None = None,
        rate: float = 0.0,
        ahead: int = 0,
        tell: Callable[[Told], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._archive = archive
        self._stint = stint
        self._settings = settings
        self._app = app
        self._seam = seam
        self._pace = Pace(rate, clock)
        self._ahead = ahead
        self._tell = tell
        self._clock = clock
        self._sleep = sleep
        replay = stint.replay
        self._headers = replay_headers(replay.id, replay.handlers, again=replay.again)
        self._sender: Sender | None = None
        self._horizon: Horizon | None = None
        self._batch = _LARGEST_BATCH
        #: What is live is held, as far as is known since the last trouble.
        self._held = False
        #: The place up to which all is sent; how many, and how large, since what is settled.
        self._reached = self._under_way = self._bytes = 0
        self._save_at = self._tell_at = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._disconnect()

    def run(self) -> None:
        """Go on to the end.

        Raises Stopped, Lost, Overtaken, PublishError, StoreCorrupt, ConfigurationError. Whatever it
        raises, what is sent for sure is known to whoever resumes it.
        """
        pause = _FIRST_PAUSE
        while True:
            try:
                done = self._turn()
            except (Unreachable, ConfirmTimeout) as error:
                self._disconnect()
                # A page may be too much for the line to the archive.
                self._batch = max(1, self._batch // 2)
                with suppress(Unreachable):  # it is the archive that is away
                    self._progress(str(error))
                self._sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
                continue
            except Moved:
                if self._seam is not None:
                    raise self._seam.lost() from None
                raise
            pause = _FIRST_PAUSE
            if done:
                return

    def _turn(self) -> bool:
        """Do what comes next; tell whether nothing does."""
        replay = self._stint.replay
        seam = self._seam
        if seam is not None and not replay.complete and not self._held:
            seam.hold(replay.id, begun=replay.begun)
            self._held = True
            self._save(begun=True)
            return False
        if replay.removed is None:
            self._look_for_the_beginning()
            return False
        if not replay.complete:
            if self._send_some():
                return False
            if replay.upto is None:
                return self._look_for_the_end()
            self._save(complete=True)
            return False
        if seam is not None:
            seam.end(replay.id)
        self._stint.leave(State.DONE)
        return True

    def _look_for_the_beginning(self) -> None:
        """Begin at the first event that can be meant: what is removed from now on is missing."""
        replay = self._stint.replay
        removals = removals_of(self._archive)
        first, _ = self._archive.span(replay.selection)
        self._save(
            removed=removals.upto,
            removed_below=removals.number,
            position=max(first, replay.position),
        )

    def _send_some(self) -> bool:
        """Send what comes next, or settle what was sent; tell whether there was anything."""
        replay = self._stint.replay
        upto = replay.upto
        if upto is None:
            _, last = self._archive.span(_EVERYTHING)
            upto = max(last, removals_of(self._archive).upto)  # there is none where all is removed
        reached = max(self._reached, replay.position)
        if reached >= upto:
            return self._settle()
        if (left := self._pace.left()) > 0:
            self._settle()
            self._wait(min(left, 0.5), "")
            return True
        page = self._archive.read(replay.selection, reached, upto, self._pace.page(self._batch))
        self._check_kept(reached, upto)  # what is removed from here on was read
        if page.entries:
            self._connected().send(page.entries)
            self._batch = min(self._batch + _MORE, _LARGEST_BATCH)
            self._pace.note(len(page.entries))
        self._reached = page.upto
        self._under_way += len(page.entries)
        self._bytes += sum(len(entry.body) for entry in page.entries)
        much = self._under_way >= _MOST_UNSETTLED or self._bytes >= _UNSETTLED_BYTES
        if much or self._clock() >= self._save_at:
            self._settle()
        return True

    def _check_kept(self, reached: int, upto: int) -> None:
        """Raise Overtaken where something between was removed since it began to send."""
        replay = self._stint.replay
        removals = removals_of(self._archive)
        removed = removals.since(replay.removed or 0, replay.removed_below, upto)
        if removed <= reached:
            return
        anew = "begin another, which sends what is still there"
        if replay.holds:
            anew = (
                f"the state of {replay.service} has a hole there: begin anew, with a service of"
                " another name"
            )
        raise Overtaken(
            f"the replay {replay.id} is at place {reached}, and the archive has removed events up"
            f" to place {removed} since it began (--archive-retention, or 'qworker archive trim')."
            f" What it had not sent of these is missing; {anew}, and --since well within what is"
            " kept"
        )

    def _settle(self) -> bool:
        """Wait until all that was sent is where it belongs; tell whether there was anything."""
        replay = self._stint.replay
        if self._reached <= replay.position:
            return False
        if self._sender is not None:
            self._sender.settle()
        self._stint.note(position=self._reached, sent=replay.sent + self._under_way)
        self._under_way = self._bytes = 0
        self._progress("")
        return True

    def _look_for_the_end(self) -> bool:
        """Find out where the past ends that is to be sent, while what is live is held."""
        seam = self._seam
        assert seam is not None  # noqa: S101 - every other replay knows its end
        if not seam.is_settled:
            self._wait(_LOOK, "")
        elif self._horizon is None:
            self._horizon = Horizon(self._archive, self._settings)
        elif (place := self._horizon.reached()) is not None:
            self._horizon.close()
            self._horizon = None
            self._save(upto=place)
        else:
            waits = "the archive, which has to store what was published before"
            with suppress(LeasesUnavailable):  # which is no reason to begin anew with the barriers
                if not seam.is_archived():
                    waits += "; nobody runs it ('qworker archive start')"
            self._wait(_LOOK, waits)
        return False

    def _connected(self) -> Sender:
        if self._sender is None:
            self._sender = Sender(
                self._stint.replay.service,
                self._settings,
                self._app,
                headers=self._headers,
                ahead=self._ahead,
                stays=self._seam is not None,
                waits=self._wait_for_queue,
            )
        return self._sender

    def _disconnect(self) -> None:
        for part in (self._sender, self._horizon):
            if part is not None:
                part.close()
        self._sender = self._horizon = None
        self._held = False
        self._reached = self._under_way = self._bytes = 0

    def _wait_for_queue(self, queue: str) -> None:
        self._progress(queue and f"{queue}, in which {self._ahead} messages wait to be consumed")

    def _wait(self, seconds: float, waits: str) -> None:
        self._progress(waits)
        if self._sender is not None:
            self._sender.keep_alive()
        self._sleep(seconds)

    def _progress(self, waits: str) -> None:
        """Save and tell how far it is, where it is time to."""
        now = self._clock()
        if now >= self._save_at:
            self._save()
        if now >= self._tell_at:
            self._tell_at = now + _SAVE_EVERY
            replay = self._stint.replay
            self._tell(Told(replay.sent, replay.position, replay.upto, waits))

    def _save(self, **facts: object) -> None:
        self._save_at = self._clock() + _SAVE_EVERY
        self._stint.save(**facts)
