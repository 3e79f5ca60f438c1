"""Sends messages that were set aside back to the shards of their keys.

The order of steps is what keeps every message: *forget* its id, *publish* it with a confirm,
*remove* it from where it lay. Killed in between, the message is still there, and a second replay
sends it once more. An id that is claimed cannot be forgotten: whoever set the message aside has yet
to record that, so it stays where it is. :mod:`worker.places` knows the queues, and what a change of
the number of shards asks of whoever sends.

The messages of a parked key return in their order, while new ones of the key go on being parked.
Behind the last one goes a marker, at which the service sets the key free unless more was parked
meanwhile; that is then sent after, until the key is free. :mod:`worker.parking` has the other side.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from time import monotonic, sleep, time_ns
from typing import TYPE_CHECKING, Self

from worker.aside import HANDLER, ONLY, first_exchange
from worker.codec import Codec
from worker.deadletters import Box, Letter
from worker.errors import ConfirmTimeout, PublishError, UsageError
from worker.ids import new_id
from worker.inventory import lying_keys
from worker.message import UNPARK_HEADER
from worker.parking import (
    ALL_KNOWN,
    FIRST,
    MARKER,
    UNPARKED,
    parked_keys,
    restore_keys,
    unpark_of,
)
from worker.payload import to_json
from worker.places import Places
from worker.topology import parked_queue
from worker.transport.capabilities import connect
from worker.transport.outbound import Outbound

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from worker.app import App
    from worker.config import Settings
    from worker.dedup.base import DedupStore
    from worker.message import Outgoing
    from worker.places import Place

#: Messages that are on their way at once: so many a kill may send twice.
_BATCH = 200
#: Seconds between two looks at whether the key is free: what arrives meanwhile has to wait.
_FIRST_LOOK, _LONGEST_LOOK = 0.02, 0.1
#: Why a letter stays whose id cannot be forgotten.
_CLAIMED = (
    "the service has not recorded yet that it was set aside, or is at it again; when it runs and"
    " the dedup store answers it, give the same command again"
)


@dataclass(slots=True)
class Replayed:
    """What became of a replay of dead letters."""

    returned: int = 0
    #: What stayed where it was, and why.
    refused: list[tuple[Letter, str]] = field(default_factory=list)


@dataclass(slots=True)
class Unparked:
    """What became of a replay of a parked key."""

    #: There is something to do: the key is parked, or something of it lies in the parked queue.
    is_parked: bool = True
    #: Messages that were sent back.
    returned: int = 0
    #: The key is not parked any more: everything that was sent back was handled.
    freed: bool = False
    #: The message that failed again. It and its successors are parked as before.
    failed: Letter | None = None
    #: Nothing more can be sent while somebody else reads what is parked.
    is_read: bool = False
    #: Nothing more can be sent before the old queues of a change of shards are drained.
    between: bool = False


class _Moved(Exception):
    """The shards of the service are other ones since something was sent."""


class _Shared(Exception):
    """Somebody else reads what is parked, and has some of it."""


class Replay:
    """Sends letters of one service back. A context manager, for one thread.

    Raises BrokerUnreachable, ConfigurationError, and what :class:`~worker.places.Places` does.
    """

    def __init__(
        self, service: str, settings: Settings, store: DedupStore, app: App | None = None
    ) -> None:
        self._service = service
        self._settings = settings
        self._store = store
        self._codec = Codec.of(service, settings)
        #: Replays, by where their first message has been sent.
        self._begun: set[tuple[str, Place]] = set()
        connection = connect(
            settings.broker,
            heartbeat=settings.heartbeat,
            timeout=settings.connect_timeout,
            name=f"qworker {service} replay {os.getpid()}",
        )
        self._outbound = Outbound(connection, settings.broker)
        try:
            self._places = Places(service, settings, app)
        except BaseException:
            self._outbound.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._outbound.close()
        self._places.close()

    def letters(
        self,
        box: Box,
        letters: Iterable[Letter],
        *,
        header: str | None = None,
        tell: Callable[[int], None] = lambda _: None,
    ) -> Replayed:
        """Send ``letters``, which ``box`` yielded, back, so that their handlers run again.

        ``header`` lets them pass although their key is parked; ``tell`` is called with the number
        sent so far. Raises BrokerUnreachable and DedupUnavailable: then what was not confirmed is
        still in the box.
        """
        done = Replayed()
        batch: list[Letter] = []
        for letter in letters:
            batch.append(letter)
            if len(batch) >= _BATCH:
                self._return(box, batch, header, done)
                tell(done.returned)
                batch.clear()
        self._return(box, batch, header, done)
        return done

    def _return(self, box: Box, batch: list[Letter], header: str | None, done: Replayed) -> None:
        done.refused += [(x, "nothing says where it came from") for x in batch if not x.queue]
        ready = self._forgotten([letter for letter in batch if letter.queue], done)
        errors = self._send_back(box, ready, header)
        while self._places.moved():  # what is not in its new place yet is a duplicate there
            errors = self._send_back(box, ready, header)
        sent = [letter for letter, error in zip(ready, errors, strict=True) if error is None]
        box.remove(sent)
        done.returned += len(sent)
        done.refused += [(x, str(e)) for x, e in zip(ready, errors, strict=True) if e is not None]

    def _forgotten(self, letters: Sequence[Letter], done: Replayed) -> list[Letter]:
        """Make the ids of ``letters`` forgotten; return those of which that is so.

        The others are refused. Somebody is about to record them as done, and what was sent before
        that would be dropped as a duplicate.
        """
        records = [letter.record(self._service) for letter in letters]
        forgets = [record for record in records if record is not None]
        claimed = self._store.forget(forgets) if forgets else frozenset()
        told = [*zip(letters, records, strict=True)]
        done.refused += [(letter, _CLAIMED) for letter, record in told if record in claimed]
        return [letter for letter, record in told if record not in claimed]

    def _send_back(
        self, box: Box, letters: Sequence[Letter], header: str | None
    ) -> list[PublishError | None]:
        """Send dead letters to where their keys are; return what became of each."""
        returning = []
        # They have one key, where they shall pass.
        upto = self._number(letters[0].key) if header is not None and letters else 0
        for letter in letters:
            place = self._places.of(letter)
            facts = {
                **_again(letter),
                **self._passing(place, header, upto),
                **_marks(letter, self._service),
            }
            returning.append(letter.back(*place, facts))
        return self._send(box, returning)

    def key(self, key: str, replay_id: str, wait: float) -> Unparked:
        """Send the parked messages of ``key`` back in order, and wait until the key is free.

        ``wait`` is in seconds from the last message sent; the service must run. A store may have
        forgotten the key, so the queue is looked at too. Raises PublishError where a message cannot
        be sent (nothing after it is), UsageError where more is parked than can be looked at,
        BrokerUnreachable, DedupUnavailable and LeasesUnavailable; called again it goes on where it
        was.
        """
        if self._parked(key) is None:
            if not self._lies_parked(key):
                return Unparked(is_parked=False)
            self._store.mark_parked(self._service, key, time_ns() // 1000)
        done = Unparked()
        ids = [replay_id]
        deadline, pause = monotonic() + wait, _FIRST_LOOK
        upto = -1
        # What is counted in the number lies in the queue, so the number is read first.
        while (last := self._still_parked(key)) is not None:
            if last > upto:
                try:
                    senders = self._move(key, ids, done)
                except _Moved:
                    # What was sent may come twice, in two queues: only one of both may pass.
                    ids.append(new_id())
                except _Shared:
                    done.is_read = True
                else:
                    done.is_read = False
                    if done.failed is not None:
                        return done
                    upto = last
                    self._mark(key, senders, upto)
                    deadline, pause = monotonic() + wait, _FIRST_LOOK
            if monotonic() > deadline:
                done.between = self._places.between
                return done
            sleep(pause)
            pause = min(2 * pause, _LONGEST_LOOK)
            self._outbound.pump()  # nothing is sent; the broker's heartbeats are read
            self._outbound.keep_alive()
        done.freed = True
        return done

    def _passing(self, place: Place, replay_id: str | None, upto: int) -> dict[str, str | int]:
        """Return the headers that let a letter pass although its key is parked.

        The first one of a replay that goes to a place says so, with the number of its key.
        """
        if replay_id is None:
            return {}
        first = (replay_id, place) not in self._begun
        self._begun.add((replay_id, place))
        return {UNPARKED: replay_id, FIRST: upto} if first else {UNPARKED: replay_id}

    def _parked(self, key: str) -> int | None:
        return parked_keys(self._store, self._service).get(key)

    def _still_parked(self, key: str) -> int | None:
        """Return the number of a key that is not free yet.

        One that the store does not know is free only where the store knows all that are parked.
        Where it has forgotten them it is told again: of this key too, unless it is there already.
        """
        known = self._store.parked(self._service)
        if key not in known and ALL_KNOWN not in known:
            number = time_ns() // 1000
            lying = lying_keys(self._service, self._settings)
            if lying is None:  # somebody else reads it
                self._store.mark_parked(self._service, key, number)
            else:
                number = max([number, *lying.values()])  # by another clock, maybe
                restore_keys(self._store, self._service, {*lying, key}, number)
            return number
        return known.get(key)

    def _number(self, key: str | None) -> int:
        return 0 if key is None else self._parked(key) or 0

    def _lies_parked(self, key: str) -> bool:
        """Tell whether something of ``key`` lies in the parked queue, or may do so."""
        with Box(parked_queue(self._service), self._codec, self._settings) as box:
            return any(letter.key == key for letter in box.read()) or box.is_shared

    def _move(self, key: str, ids: Sequence[str], done: Unparked) -> list[Letter]:
        """Move what is parked of ``key``; return the letters, or note the one that came back.

        ``ids`` are those of this replay, the last one is the one to use. Raises _Moved where the
        shards change: then nothing was sent, or what was sent has to be sent again. Raises _Shared
        where not all can be seen: behind a part of it nothing can be said to be all.
        """
        self._places.moved()
        if self._places.between:
            raise _Moved
        upto = self._number(key)
        with Box(parked_queue(self._service), self._codec, self._settings) as box:
            mine = [letter for letter in box.read() if letter.key == key]
            if box.is_shared:
                raise _Shared
            mine.sort(key=lambda letter: letter.place)
            if back := [letter for letter in mine if letter.headers.get(UNPARKED) in ids]:
                # The one that failed says at which handler; what came before may be with it.
                done.failed = next((letter for letter in back if letter.handler), back[0])
                return []
            places = [self._places.of(letter) for letter in mine]
            if self._places.between:
                raise _Moved
            for start in range(0, len(mine), _BATCH):
                batch = mine[start : start + _BATCH]
                there = places[start : start + _BATCH]
                passing = [
                    letter.back(*place, _only(letter) | self._passing(place, ids[-1], upto))
                    for letter, place in zip(batch, there, strict=True)
                ]
                errors = self._send(box, passing)
                if self._places.moved():
                    raise _Moved
                sent = [x for x, error in zip(batch, errors, strict=True) if error is None]
                box.remove(sent)
                done.returned += len(sent)
                for error in errors:
                    if error is not None:
                        raise error
            if box.unread:
                raise UsageError(
                    f"{box.depth} messages are parked, and of the last {box.unread} of them nothing"
                    f" is known: {done.returned} of {key!r} were sent back, and it stays parked."
                    " Give the same command again if some were, else send other keys back first"
                )
        return mine

    def _mark(self, key: str, letters: Sequence[Letter], upto: int) -> None:
        """Send the marker behind the letters that were sent, or to where the key's messages go."""
        marker = self._codec.pack(
            MARKER,
            to_json({"key": key}),
            message_id=new_id(),
            key=key,
            headers={UNPARK_HEADER: upto},
        )
        marker.mandatory = True
        while True:
            errors = []
            places = dict.fromkeys(map(self._places.of, letters))
            for place in places or (self._places.of_key(key),):
                marker.exchange, marker.routing_key = place
                errors += self._send(None, [marker])
            if self._places.moved():
                continue  # one more does no harm
            for error in errors:
                if error is not None:
                    raise error
            return

    def _send(self, box: Box | None, messages: list[Outgoing]) -> list[PublishError | None]:
        """Publish in order; return what became of each, once everything is known."""
        meanwhile = box.keep_alive if box is not None else lambda: None
        timeout = self._settings.confirm_timeout
        try:
            return self._outbound.deliver(messages, timeout, meanwhile)
        except ConfirmTimeout as error:
            raise ConfirmTimeout(
                f"{error}; nothing was removed, so the same command can be given again"
            ) from None


def _again(letter: Letter) -> dict[str, str | int]:
    """Return the header that keeps a dead letter from the handlers that did not set it aside.

    These may have done it longer ago than ids are remembered.
    """
    return {HANDLER: letter.handler} if letter.handler else {}


def _marks(letter: Letter, service: str) -> dict[str, str | int]:
    """Return the header that keeps a dead-lettered marker a marker; of other letters nothing."""
    arrival = letter.arrival
    unpark = unpark_of(arrival.properties, first_exchange(arrival), service)
    return {} if unpark is None else unpark.facts


def _only(letter: Letter) -> dict[str, str | int]:
    """Return the header that lets a parked dead letter return to its own handler."""
    only = letter.headers.get(ONLY)
    return {HANDLER: str(only)} if only is not None else {}
