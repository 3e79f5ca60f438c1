"""What is published, and how its end is looked at beside the history."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, count
from random import Random
from typing import Any, ClassVar

from acceptance.apps.events import Step
from chaos.apps import transfers
from chaos.apps.bank import Transfer
from chaos.apps.ledger import DEAD, FLAKY, HOPELESS, Strict
from chaos.checker import Due
from chaos.database import Records
from chaos.history import Entry
from chaos.publishing import Publication
from worker.demo.history import Change
from worker.ids import derived_id

_SECONDS = 0.005
#: The share of the events whose handlers take so many seconds: some longer than a lease lives
#: (3 s), some longer than a claim (5 s). And how many of a key at most, as its others wait for it.
_LONG, _LONG_SECONDS, _MOST_LONG = 0.004, (1.0, 7.0), 2
#: Keys of a publisher that dies.
_STRAY_KEYS = 3


class Workload(ABC):
    """Events, the service that handles them, and what must be true in the end."""

    #: The module of the service.
    app: ClassVar[str]
    #: The handlers of an event, by its name.
    handlers: ClassVar[Mapping[str, Sequence[str]]]
    unordered: ClassVar[Collection[str]] = ()
    #: The handlers that publish, and those that park the keys of what they cannot do.
    parents: ClassVar[Collection[str]] = ()
    parking: ClassVar[Collection[str]] = ()

    @abstractmethod
    def stream(self, number: int, publishers: int) -> Iterator[Publication]:
        """Yield the events of one of several publishers: no two have a key in common."""

    def wanted(self, entries: Iterable[Entry], aside: Collection[Due]) -> set[Due]:
        """Return what has to end because of what these lines of the history tell.

        ``aside`` is what is a dead letter or parked; the handler is empty where it is for all.
        """
        return {
            (handler, e.id)
            for e in entries
            if e.what == "confirmed"
            for handler in self.handlers[e.detail]
        }

    def hopeless(self, entries: Iterable[Entry], reasons: Mapping[Due, str]) -> set[Due]:
        """Return what is ordered to fail for good; ``reasons`` are those of what is set aside."""
        return set()

    def published_again(self, entries: Iterable[Entry]) -> set[str]:
        """Return the ids that the broker may have got more than once.

        Publishers send again what they heard of no confirm for.
        """
        times = Counter(entry.id for entry in entries if entry.what == "invoke")
        return {id_ for id_, number in times.items() if number > 1}

    def children(self, entries: Iterable[Entry]) -> dict[str, float]:
        """Return when the first handler began that publishes each id which no publisher sends."""
        return {}

    def mistakes(
        self, entries: Sequence[Entry], database: Records | None, aside: Collection[Due]
    ) -> list[str]:
        """Return what is wrong in the end that no execution tells; ``aside`` as for ``wanted``."""
        return []


class Ledger(Workload):
    """Sequence numbers per key. A few keys have most of the events, as in life.

    Some events fail twice before they succeed, a few are dead letters, and some keys are parked.
    """

    app = "chaos.apps.ledger"
    handlers: ClassVar[Mapping[str, Sequence[str]]] = {
        "test.step": ("ledger.count", "ledger.observe"),
        "test.strict": ("ledger.post",),
    }
    parking = ("ledger.post",)
    _STRICT = 4
    _PARKED_AT = 30

    def __init__(self, seed: int, keys: int = 100) -> None:
        self._seed = seed
        self._keys = keys

    def stream(self, number: int, publishers: int) -> Iterator[Publication]:
        """Yield events of the keys of this publisher, those of the first keys most often."""
        random = Random(f"{self._seed} publisher {number}")
        long = _Long(Random(f"{self._seed} long {number}"))
        keys = range(number, self._keys, publishers)
        weights = [*accumulate(1 / (rank + 1) for rank in range(len(keys)))]
        sequences = Counter[str]()
        while True:
            (key,) = random.choices(keys, cum_weights=weights)
            name = f"key-{key}"
            sequence = sequences[name]
            sequences[name] += 1
            if key < self._STRICT:
                hopeless = sequence == self._PARKED_AT and key % 2 == 0
                fault = HOPELESS if hopeless else ""
                seconds = long.seconds(name)
                strict = Strict(key=name, sequence=sequence, fault=fault, seconds=seconds)
                yield Publication(strict, sequence)
            else:
                (fault,) = random.choices(["", FLAKY, DEAD], [1.0, 0.01, 0.003])
                step = Step(key=name, sequence=sequence, fault=fault, seconds=long.seconds(name))
                yield Publication(step, sequence)

    def hopeless(self, entries: Iterable[Entry], reasons: Mapping[Due, str]) -> set[Due]:
        """Return what is dead by order, and what fails always.

        What fails twice may be given up before it succeeds, where so much waits for retries that it
        holds up a shard; the reason says so then.
        """
        return {
            (handler, e.id)
            for e in entries
            if e.what == "invoke" and e.order
            for handler in self.handlers[e.detail]
            if e.order in (DEAD, HOPELESS) or _is_early(reasons.get((handler, e.id), ""))
        }


class _Long:
    """Which events take long, by a seed."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._of_key = Counter[str]()

    def seconds(self, key: str) -> float:
        """Return what the handlers of the next event of a key take."""
        if self._random.random() >= _LONG or self._of_key[key] >= _MOST_LONG:
            return _SECONDS
        self._of_key[key] += 1
        return self._random.uniform(*_LONG_SECONDS)


class Bank(Workload):
    """Transfers between accounts: in the end no money is made and none is lost."""

    app = "chaos.apps.bank"
    handlers: ClassVar[Mapping[str, Sequence[str]]] = {"bank.transfer": ("bank.withdraw",)}
    unordered: ClassVar[Collection[str]] = ("bank.deposit",)
    parents: ClassVar[Collection[str]] = ("bank.withdraw",)
    #: The event of a transfer.
    kind: ClassVar[Any] = Transfer
    _FIRST, _SECOND = "bank.withdraw", "bank.deposit"

    def __init__(self, seed: int, accounts: int = 50) -> None:
        self._seed = seed
        self._accounts = accounts

    def stream(self, number: int, publishers: int) -> Iterator[Publication]:
        """Yield transfers from the accounts of this publisher to any."""
        random = Random(f"{self._seed} publisher {number}")
        sequences = Counter[int]()
        while True:
            source = random.randrange(number, self._accounts, publishers)
            target = random.randrange(self._accounts)
            transfer = self.kind(
                source=f"account-{source}",
                target=f"account-{target}",
                amount=random.randint(1, 100),
                sequence=sequences[source],
            )
            yield Publication(transfer, sequences[source])
            sequences[source] += 1

    def wanted(self, entries: Iterable[Entry], aside: Collection[Due]) -> set[Due]:
        """Return all transfers that were confirmed; and the second half of all that are begun.

        What is set aside after its effect, because its process died each time, brings it on when it
        is replayed.
        """
        entries = [*entries]
        second = {
            (self._SECOND, _child(e))
            for e in entries
            if _has_effect(e, self._FIRST) and not _is_aside(e, aside)
        }
        return super().wanted(entries, aside) | second

    def published_again(self, entries: Iterable[Entry]) -> set[str]:
        """Return those ids, and the second half of each transfer that was begun more than once."""
        entries = [*entries]
        begun = [e for e in entries if e.what == "begin" and e.handler == self._FIRST]
        times = Counter(e.id for e in begun)
        return super().published_again(entries) | {_child(e) for e in begun if times[e.id] > 1}

    def children(self, entries: Iterable[Entry]) -> dict[str, float]:
        """Return when the first half of each transfer was begun, by the id of the second one."""
        begun = [e for e in entries if e.what == "begin" and e.handler == self._FIRST]
        return {_child(e): e.at for e in sorted(begun, key=lambda e: e.at, reverse=True)}

    def mistakes(
        self, entries: Sequence[Entry], database: Records | None, aside: Collection[Due]
    ) -> list[str]:
        """Tell of money that was made or lost, beside what second effects explain.

        The one who counts is the database, or else all effects together. The money of a half that
        was set aside is under way: whoever replays it brings it on.
        """
        have = database.balances() if database is not None else _balances(entries)
        total = sum(have.values())
        # Second effects are judged by the checker; here each counts as it moved money.
        moved = defaultdict[tuple[str, str], list[int]](list)
        for entry in entries:
            if entry.what == "effect":
                moved[entry.handler, entry.id].append(_amount(entry))
        twice = sum(sum(amounts[1:]) for amounts in moved.values())
        under_way = sum(self._under_way(entries, aside).values())
        if total - twice + under_way:
            made = f"of which second effects made {twice}"
            return [f"the accounts have {total}, {made}, and {under_way} is under way; not 0"]
        return []

    def _under_way(self, entries: Iterable[Entry], aside: Collection[Due]) -> dict[str, int]:
        """Return the amount of each second half that is not done, as it or the first is aside."""
        entries = [*entries]
        done = {e.id for e in entries if _has_effect(e, self._SECOND)}
        waiting = {id_ for handler, id_ in aside if handler in ("", self._SECOND)}
        return {
            child: -_amount(e)
            for e in entries
            if _has_effect(e, self._FIRST)
            and (child := _child(e)) not in done
            and (child in waiting or _is_aside(e, aside))
        }


class BankWithOutbox(Bank):
    """The same on SQLAlchemy: the second halves go through an outbox, in order per account."""

    app = "chaos.apps.books"
    handlers: ClassVar[Mapping[str, Sequence[str]]] = {"books.transfer": ("books.withdraw",)}
    unordered = ()
    parents = ()
    kind = transfers.Transfer
    _FIRST, _SECOND = "books.withdraw", "books.deposit"


class BankOnDjango(BankWithOutbox):
    """The same on Django."""

    app = "chaos.apps.djangobooks"
    handlers: ClassVar[Mapping[str, Sequence[str]]] = {"books.transfer": ("djangobooks.withdraw",)}
    _FIRST, _SECOND = "djangobooks.withdraw", "djangobooks.deposit"


class GitHistory(Workload):
    """The changes of a repository's files, in their order; a path is a key."""

    app = "chaos.apps.ledger"
    handlers: ClassVar[Mapping[str, Sequence[str]]] = Ledger.handlers

    def __init__(self, changes: Sequence[Change]) -> None:
        self._changes = changes

    def stream(self, number: int, publishers: int) -> Iterator[Publication]:
        """Yield the changes of this publisher's paths; then those of another round of them all."""
        mine = [c for c in self._changes if hash_of(c.path) % publishers == number]
        for turn in count():
            for change in mine:
                key = f"{turn}/{change.path}"
                step = Step(key=key, sequence=change.revision - 1)
                yield Publication(step, change.revision - 1)


def strays(app: str, name: str) -> Iterator[Publication]:
    """Yield events for a service's module, of keys that are those of this publisher alone."""
    random = Random(f"stray {name}")
    sequences = Counter[str]()
    while True:
        key = f"{name}/{random.randrange(_STRAY_KEYS)}"
        sequence = sequences[key]
        sequences[key] += 1
        if app == Bank.app:
            target, amount = f"{name}/target", random.randint(1, 100)
            transfer = Transfer(source=key, target=target, amount=amount, sequence=sequence)
            yield Publication(transfer, sequence)
        else:
            yield Publication(Step(key=key, sequence=sequence, seconds=_SECONDS), sequence)


def hash_of(text: str) -> int:
    """Return a number that is the same in every process."""
    return sum(text.encode())


def _has_effect(entry: Entry, handler: str) -> bool:
    return entry.what == "effect" and entry.handler == handler


def _is_early(reason: str) -> bool:
    return reason.startswith("given up early")


def _is_aside(entry: Entry, aside: Collection[Due]) -> bool:
    return (entry.handler, entry.id) in aside or ("", entry.id) in aside


def _child(entry: Entry) -> str:
    """Return the id of the only message that a handler publishes."""
    return derived_id(entry.id, entry.handler, 0)


def _balances(entries: Iterable[Entry]) -> dict[str, int]:
    found = Counter[str]()
    for entry in entries:
        if entry.what == "effect":
            account, _, _ = entry.detail.rpartition(":")
            found[account] += _amount(entry)
    return dict(found)


def _amount(entry: Entry) -> int:
    return int(entry.detail.rpartition(":")[2])
