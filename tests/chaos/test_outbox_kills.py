"""kill -9 at each point of inbox, outbox and relay, again and again: sums, order, once downstream.

A bank takes money in one handler and publishes the rest of the transfer on commit; its other
handler, downstream of the broker, adds it. Processes of the service and relays die at the armed
points and are started again, until twelve have died, or OUTBOX_KILLS. Meanwhile relays lose their
lease, for longer than it lasts: one is stopped, or the store of their leases is taken away.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from itertools import cycle
from time import monotonic
from typing import Self

import pytest

from chaos.books import Books
from chaos.crashpoints import IN_HANDLERS, OUTBOX_POINTS, RELAY_POINTS
from chaos.executions import faults
from chaos.relays import Relays
from chaos.stage import Stage
from chaos.trial import Plan, judge, settle, under_way
from chaos.workloads import BankOnDjango, BankWithOutbox
from databases import Database
from servers import Guard
from waiting import until

_POINTS = (*IN_HANDLERS, *OUTBOX_POINTS, "before the record", "after the record")
_ACCOUNTS = 50
_LIKELY = 0.3
#: Transfers a second.
_RATE = 30.0
#: Seconds after which nobody has come by a point.
_PATIENCE = 120.0
_LOOK = 0.05
#: After so many deaths nobody dies until the service has no more than so much left to do: who dies
#: all the time works off nothing, and what gathers would only be waited for in the end.
_BREATH, _NEAR = 20, 60
_CATCH_UP = 240.0
#: Seconds after which no process dies at a point that is not armed any more.
_DISARMED = 0.5

#: Where it plays. That on servers is the same path.
_FILE, _SERVERS = ("embedded", "sqlite"), ("servers", "postgresql")
_MARIADB = ("servers", "mariadb")
#: And by which integration.
_ALCHEMY, _DJANGO = (BankWithOutbox,), (BankOnDjango,)
#: How many die in each. A thousand take half an hour.
_KILLS = int(os.environ.get("OUTBOX_KILLS", "12"))
campaigns = pytest.mark.parametrize(
    ("workload", "place", "database"),
    [
        pytest.param(*_ALCHEMY, *_FILE, id="on a file"),
        pytest.param(*_ALCHEMY, *_SERVERS, id="on servers", marks=pytest.mark.long),
        pytest.param(*_DJANGO, *_FILE, id="on a file, by Django"),
        pytest.param(*_DJANGO, *_SERVERS, id="on servers, by Django", marks=pytest.mark.long),
        pytest.param(*_ALCHEMY, *_MARIADB, id="on MariaDB", marks=pytest.mark.long),
        pytest.param(*_DJANGO, *_MARIADB, id="on MariaDB, by Django", marks=pytest.mark.long),
    ],
    indirect=["database"],
)


@pytest.fixture
def books(database: Database) -> Iterator[Books]:
    books = Books(database.url)
    books.create(_ACCOUNTS)
    yield books
    books.close()


@pytest.fixture
def bank(
    stage: Callable[..., Stage], workload: type[BankWithOutbox], place: str, books: Books
) -> Stage:
    """A service on which a message that was there when its process died thrice is no poison."""
    return stage(place, workload(1, _ACCOUNTS), transactional=books, crash_limit=100)


@pytest.mark.timeout(240 + 5 * _KILLS)
@campaigns
def test_a_bank_keeps_its_sum_and_its_order_though_processes_die(
    bank: Stage, books: Books, server_guard: Guard, tell: Callable[[str], None]
) -> None:
    for number in range(2):
        bank.join(f"supervisor-{number}")
    with Relays(bank, books, server_guard, 2) as relays:
        bank.until_ready()
        began = monotonic()
        with bank.load(publishers=2, rate=_RATE), relays.troubled():
            died = Deaths(bank, relays, books).until(_KILLS)
        seconds = monotonic() - began
        bank.last(_DISARMED)
        relays.revive()
        stuck = settle(bank)
        until(lambda: not books.unsent(), 30, "the outbox is empty")
        relays.drain()
        aside = bank.set_aside()
        bank.drain()
    verdict = judge(bank, Plan(seed=1, rate=_RATE, seconds=0), aside, stuck)
    tell(
        f"{bank.workload.app}, {books.kind}:"
        f" {sum(died.values())} kills at {len(died)} points in {seconds:.0f} s,"
        f" {verdict.published} transfers, {verdict.findings.effects} effects,"
        f" {len(verdict.findings.repeated)} second ones, {verdict.set_aside} set aside;"
        f" relays {dict(relays.troubles)}"
    )
    assert verdict.findings.repeated == []
    assert verdict.held, "\n".join(verdict.story)
    assert relays.wrong == []
    assert relays.troubles
    assert verdict.set_aside == 0
    if len(_POINTS) ** 2 < _KILLS:
        assert {*_POINTS, *RELAY_POINTS} <= died.keys()


class Deaths:
    """Arms points in turn, some at a time, and counts who dies where."""

    def __init__(self, stage: Stage, relays: Relays, books: Books) -> None:
        self._stage = stage
        self._relays = relays
        self._books = books
        self._seen: set[int] = set()
        self._died = Counter[str]()

    def until(self, kills: int) -> Counter[str]:
        """Go on until so many have died; return how many at each point."""
        of_service, of_relay = cycle(_POINTS), cycle(RELAY_POINTS)
        while (dead := self._died.total()) < kills:
            with ExitStack() as stack:
                # What a relay comes by is left by deaths of the service: those go on meanwhile.
                slots = [
                    stack.enter_context(_Slot(self._stage, points))
                    for points in (of_service, of_service, of_relay)
                ]
                while self._died.total() < min(kills, dead + _BREATH):
                    self._stage.last(_LOOK)
                    self._revive()
                    found = self._news()
                    for slot in slots:
                        slot.look(found)
            until(self._is_near, _CATCH_UP, "the service works off what has gathered")
        return self._died

    def _is_near(self) -> bool:
        self._revive()
        return self._books.unsent() <= _NEAR and len(under_way(self._stage)) <= _NEAR

    def _revive(self) -> None:
        self._stage.revive()
        self._relays.revive()

    def _news(self) -> list[str]:
        """Return the points at which somebody died since the last look."""
        found = []
        for fault in faults(self._stage.history.latest("fault", monotonic() - 10.0)):
            pid = min(fault.pids or (0,))
            what = fault.what.removeprefix("kill -9, ")
            if pid not in self._seen and what != fault.what:
                self._seen.add(pid)
                self._died[what] += 1
                found.append(what)
        return found


class _Slot:
    """One point that is armed; the next one, as soon as somebody has died there."""

    def __init__(self, stage: Stage, points: Iterator[str]) -> None:
        self._stage = stage
        self._points = points
        self._armed = ExitStack()
        self._name = ""
        self._since = 0.0

    def __enter__(self) -> Self:
        self._arm()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._armed.close()

    def look(self, died: Collection[str]) -> None:
        """Go on to the next point, if somebody has died at this one."""
        if self._name in died:
            self._armed.close()
            self._arm()
        assert monotonic() < self._since + _PATIENCE, f"nobody came by {self._name}"

    def _arm(self) -> None:
        self._name, self._since = next(self._points), monotonic()
        self._armed.enter_context(self._stage.armed({self._name: _LIKELY}))
