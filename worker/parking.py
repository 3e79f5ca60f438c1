"""Parked keys: a key whose message could not be handled waits, with all its successors.

A parked message lies in the queue ``NAME.parked``; its key in the dedup store, which is as durable
as the ids, with a number that rises whenever a message of the key was confirmed to be in that
queue. ``dlq replay --key`` reads the number, then the queue, and sends the messages back to the
shard they came from, in order, with the header :data:`UNPARKED`; after the last one a marker of the
name :data:`MARKER` with the number. All of it passes through the one lane of the key. So at the
marker everything before it was handled, and where the number is still the same nothing was parked
since the queue was read: the key is set free.

A store that has forgotten everything has forgotten the parked keys too, but not what lies in the
queue. To tell that from a service that has parked nothing, it holds a mark beside the keys: where
the mark is missing the queue is read (:mod:`worker.inventory`), and then only is the mark set.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from time import time_ns
from typing import TYPE_CHECKING, Any

from worker.errors import DedupUnavailable
from worker.message import KEY_HEADER, UNPARK_HEADER
from worker.names import front_exchange

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from worker.dedup.base import DedupStore
    from worker.message import Message

#: Header of a message that comes back from the parked queue: it passes although its key is parked.
UNPARKED = "qw-unparked"
#: Header of the first message of a replay that goes to a queue: the number that was read before the
#: replay looked for what is parked.
FIRST = "qw-unparked-first"
#: Header that orders the parked messages of a key.
PLACE = "qw-parked-place"
#: Header that keeps the key of a parked message, which a foreign publisher may have nowhere else
#: but in the payload.
KEY = "qw-parked-key"
#: Name of the message that ends a replay of one key.
MARKER = "qw.unpark"

#: What the store holds for a key while it holds every parked key; no message has this key.
ALL_KNOWN = ""


def parked_keys(store: DedupStore, service: str) -> dict[str, int]:
    """Return every parked key of ``service`` with the last number that it was parked at.

    Raises DedupUnavailable.
    """
    known = dict(store.parked(service))
    known.pop(ALL_KNOWN, None)
    return known


def restore_keys(store: DedupStore, service: str, keys: Iterable[str], at: int) -> None:
    """Tell a store that has forgotten them that these keys, which are all, are parked.

    Raises DedupUnavailable: then it can be called again.
    """
    for key in keys:
        store.mark_parked(service, key, at)
    store.mark_parked(service, ALL_KNOWN, 1)


@dataclass(frozen=True, slots=True)
class Unpark:
    """A delivery that turned out to be the marker of a replay of ``key``."""

    key: str
    upto: int

    @property
    def facts(self) -> dict[str, str | int]:
        """What it is known by where it is moved: on its way there it may have come by a front."""
        return {UNPARK_HEADER: self.upto}


def unpark_of(properties: Mapping[str, Any], exchange: str, service: str) -> Unpark | None:
    """Return what a message that came by ``exchange`` is the marker of; None where it is none.

    One that came by any other exchange than a queue's own, or the front of the service, is
    somebody's event of that name. The runtime wrote it, so it says where the runtime looks,
    wherever publishers say what.
    """
    if properties.get("type") != MARKER or exchange not in {"", front_exchange(service)}:
        return None
    headers = properties.get("application_headers")
    if not isinstance(headers, dict) or not isinstance(upto := headers.get(UNPARK_HEADER), int):
        return None
    return Unpark(str(headers.get(KEY_HEADER) or ""), upto)


class Parking:
    """The parked keys of one service, as this consumer knows them. I/O thread only.

    Only the consumer of a key's shard parks and frees it, so what was read from the store when
    the shard began to be delivered stays true while it is. With one exception: a process that lost
    the shard may have a message of the key on its way to the parked queue, and tell the store of it
    when the next one goes on with the key. Such a key is not parked here, and can be set free.
    """

    def __init__(self, store: DedupStore, service: str) -> None:
        self._store = store
        self._service = service
        self._keys: set[str] = set()
        #: The replays of a key that may pass, with their shards: this process saw their first
        #: messages, and nothing of them was parked since.
        self._admitted: dict[str, dict[str, int]] = {}
        #: The last number given; they go on where another process left off.
        self._last = 0
        self._unsaved: dict[str, int] = {}
        #: Keys parked here of which nothing is confirmed to be in the queue, each with the shard.
        #: The store is not told of them: else who goes on after a crash would take what failed
        #: for what is behind it, and park it without its reason.
        self._unconfirmed: set[tuple[str, int]] = set()
        #: By key: the last number at which something of it was parked here.
        self._parked_at: dict[str, int] = {}
        #: The last number at which something that had come by a replay was parked again, or may
        #: have been.
        self._again: dict[str, int] = {}
        #: Messages of a key that are on their way to the parked queue; and whether again.
        self._under_way: Counter[tuple[str, bool]] = Counter()
        #: The ids of those that the broker refused to take, so far, by key.
        self._refused: dict[str, set[str]] = {}

    def load(self) -> bool:
        """Read the parked keys; tell whether the store knows them all. Raises DedupUnavailable."""
        known = dict(self._store.parked(self._service))
        knows_all = known.pop(ALL_KNOWN, None) is not None
        # One that has forgotten keys makes nobody forget them who has messages of them in lanes;
        # nor does one that somebody else told again, who saw nothing of what is on its way.
        ours = self._unsaved.keys() | self._begun() | self._on_their_way()
        self._keys = {*known, *(ours if knows_all else self._keys)}
        self._last = max(self._last, *known.values(), 0)
        for key, at in known.items():  # what another process parked again is among it
            self._again[key] = max(at, self._again.get(key, 0))
        return knows_all

    def restore(self, lying: Mapping[str, int]) -> None:
        """Park the keys of all that lies in the parked queue, each with its last place there.

        And those of which something is on its way from there, or to it, or about to be: nobody
        else would know of them. Raises DedupUnavailable: then it can be called again.
        """
        self._last = max(self._last, *lying.values(), 0)
        keys = lying.keys() | self._begun() | self._on_their_way()
        restore_keys(self._store, self._service, keys, self._next())
        self.load()

    def _begun(self) -> set[str]:
        """Return the keys that are parked here, and of which nothing is in the queue yet."""
        return {key for key, _shard in self._unconfirmed}

    def _on_their_way(self) -> set[str]:
        """Return the parked keys of which something lies in the parked queue no more, or not yet.

        A replay passes here; or the broker has not confirmed what it is to park.
        """
        passing = {key for key, replays in self._admitted.items() if replays}
        leaving = {key for key, _again in self._under_way}
        return self._keys & (passing | leaving)

    def __bool__(self) -> bool:
        return bool(self._keys)

    def is_parked(self, key: object) -> bool:
        """Tell whether ``key`` is parked, as far as this consumer knows."""
        return key in self._keys

    def holds(self, message: Message) -> bool:
        """Tell whether ``message`` must be set aside because its key is parked."""
        key = message.key
        if key is None or key not in self._keys:
            return False
        replay = message.headers.get(UNPARKED)
        return replay is None or replay not in self._admitted.get(key, ())

    def admit(self, message: Message) -> None:
        """Let a replay pass, if ``message`` is its first, until something of it is parked.

        Called once a message, when it arrives. A process that did not see the first one cannot
        know whether it was parked again; so it parks the others too, and the replay has to be
        repeated. Nor does one pass that may lack what another replay sent and was parked again, or
        what the parked queue refused: its successors may lie there already.
        """
        headers = message.headers
        replay, upto, key = headers.get(UNPARKED), headers.get(FIRST), str(message.key)
        if not isinstance(replay, str) or not isinstance(upto, int):
            return
        self._last = max(self._last, upto)  # by another clock, maybe
        waits = self._under_way[key, True] or key in self._refused or key in self._begun()
        if upto >= self._again.get(key, 0) and not waits:
            self._admitted.setdefault(key, {})[replay] = message.shard

    def leave(self, shards: Collection[int]) -> None:
        """Let no replay pass that began in these shards: another process goes on with them."""
        for key, replays in [*self._admitted.items()]:
            left = {replay: shard for replay, shard in replays.items() if shard not in shards}
            self._admitted[key] = left
        self.forget(shards)

    def forget(self, shards: Collection[int] | None = None) -> None:
        """Forget what was to be parked of these shards (None: all), and is not on its way yet.

        No lane has it any more, and it comes again: here, or elsewhere.
        """
        self._unconfirmed = {
            (key, shard)
            for key, shard in self._unconfirmed
            if self._is_sent(key) or not (shards is None or shard in shards)
        }

    def park(self, message: Message) -> None:
        """Park the key of ``message`` from now on; nothing of a replay passes any more."""
        key = str(message.key)
        self._keys.add(key)
        self._admitted.pop(key, None)
        self._unconfirmed.add((key, message.shard))

    def facts(self, message: Message) -> dict[str, str]:
        """Return the headers that ``message`` is parked with; :meth:`parked` tells that it is.

        One that is parked a second time keeps the place that it had, since its successors were
        parked meanwhile; and nothing of a replay passes behind it.
        """
        key, headers = str(message.key), message.headers
        again = UNPARKED in headers
        self._under_way[key, again] += 1
        if key in self._begun():
            self._again[key] = self._parked_at[key] = self._next()
        if again:
            self._admitted.pop(key, None)
        had = headers.get(PLACE)
        return {KEY: key, PLACE: had if isinstance(had, str) else f"{self._next():020d}"}

    def refused(self, message: Message) -> None:
        """Note that the broker refused ``message``, and is asked again.

        Nothing of a replay passes from here on: what it sends next may be its successors.
        """
        key = str(message.key)
        self._refused.setdefault(key, set()).add(message.id)
        self._admitted.pop(key, None)

    def parked(self, message: Message) -> None:
        """Note that ``message`` is confirmed to be in the parked queue."""
        key, again = str(message.key), UNPARKED in message.headers
        if refused := self._refused.get(key):
            refused.discard(message.id)
            if not refused:
                del self._refused[key]
        number = self._note(key)
        if again:
            self._again[key] = number
        self._under_way[key, again] -= 1
        if not self._under_way[key, again]:
            del self._under_way[key, again]

    def is_under_way(self, key: str) -> bool:
        """Tell whether something of ``key`` is on its way to the parked queue, or about to be."""
        return key in self._begun() or self._is_sent(key)

    def _is_sent(self, key: str) -> bool:
        return bool(self._under_way[key, False] or self._under_way[key, True])

    def save(self) -> bool:
        """Write what changed; tell whether nothing is left to write."""
        for key, at in [*self._unsaved.items()]:
            try:
                self._store.mark_parked(self._service, key, at)
            except DedupUnavailable:
                return False
            del self._unsaved[key]
        return True

    def free(self, key: str, upto: int) -> bool:
        """Set ``key`` free unless it was parked after ``upto``; tell whether it is free here.

        The store is asked in any case. Raises DedupUnavailable.
        """
        if not self.save():
            raise DedupUnavailable("what was parked is not written yet")
        if self._store.unpark(self._service, key, upto) or self._is_gone(key, upto):
            self._keys.discard(key)
            self._again.pop(key, None)
            self._parked_at.pop(key, None)
        if key in self._keys:
            return False
        self._admitted.pop(key, None)  # nothing has to be let pass
        return True

    def _is_gone(self, key: str, upto: int) -> bool:
        """Tell whether a key that the store does not know as parked is free here too.

        The marker in another shard, or at another group of handlers, set it free; or the store has
        forgotten it, and is told again where something was parked since, by whomever.
        """
        if key not in self._keys or key in self._store.parked(self._service):
            return False
        last = max(self._parked_at.get(key, 0), self._again.get(key, 0))  # here, or before us
        if last <= upto:
            return True
        self._unsaved[key] = last
        self.save()
        return False

    def _note(self, key: str) -> int:
        """Note that something of ``key`` is parked now; return the number of that."""
        self._unconfirmed = {each for each in self._unconfirmed if each[0] != key}
        self._unsaved[key] = self._parked_at[key] = number = self._next()
        return number

    def _next(self) -> int:
        """Return a number above all before: microseconds, where the clock allows."""
        self._last = max(self._last + 1, time_ns() // 1000)
        return self._last
