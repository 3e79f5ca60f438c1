"""kill -9 at each point of inbox, outbox and relay, again and again: sums, order, once downstream.

A bank takes money in one handler and publishes the rest of the transfer on commit; its other
handler, downstream of the broker, adds it. Processes of the service and relays die at the armed
points and are started again, until so many have died and each point had its deaths.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from time import monotonic

import pytest

from chaos.books import Books
from chaos.crashpoints import IN_HANDLERS, OUTBOX_POINTS, RELAY_POINTS
from chaos.executions import faults
from chaos.relays import Relays
from chaos.stage import Stage
from chaos.trial import Plan, judge, settle
from chaos.workloads import BankWithOutbox
from databases import Database
from servers import Guard
from waiting import until

_POINTS = (*IN_HANDLERS, *OUTBOX_POINTS, "before the record", "after the record")
_ACCOUNTS = 50
#: Points that are armed at once: some of the service, and one of the relay.
_AT_ONCE = 3
_LIKELY = 0.3
#: Seconds after which nobody has come by a point.
_PATIENCE = 120.0
_LOOK = 0.05

#: Where it plays, and how many die. That on servers is the same path.
_FILE, _SERVERS = ("embedded", "sqlite"), ("servers", "postgresql")
_LONG = (pytest.mark.long, pytest.mark.timeout(5400))
campaigns = pytest.mark.parametrize(
    ("place", "database", "kills"),
    [
        pytest.param(*_FILE, 12, id="a few on a file", marks=pytest.mark.timeout(240)),
        pytest.param(*_SERVERS, 12, id="a few on servers", marks=_LONG),
        pytest.param(*_FILE, 1000, id="a thousand on a file", marks=_LONG),
        pytest.param(*_SERVERS, 1000, id="a thousand on servers", marks=_LONG),
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
def bank(stage: Callable[..., Stage], place: str, books: Books) -> Stage:
    """A service on which a message that was there when its process died thrice is no poison."""
    return stage(place, BankWithOutbox(1, _ACCOUNTS), transactional=books, crash_limit=100)


@campaigns
def test_a_bank_keeps_its_sum_and_its_order_though_processes_die(
    bank: Stage, books: Books, kills: int, server_guard: Guard, tell: Callable[[str], None]
) -> None:
    for number in range(2):
        bank.join(f"supervisor-{number}")
    with Relays(bank, books, server_guard, 2) as relays:
        bank.until_ready()
        began = monotonic()
        with bank.load(publishers=2, rate=30):
            died = Deaths(bank, relays).until(kills)
        seconds = monotonic() - began
        stuck = settle(bank)
        until(lambda: not books.unsent(), 30, "the outbox is empty")
        relays.drain()
        aside = bank.set_aside()
        bank.drain()
    verdict = judge(bank, Plan(seed=1, rate=30, seconds=0), aside, stuck)
    tell(
        f"{books.kind}: {sum(died.values())} kills at {len(died)} points in {seconds:.0f} s,"
        f" {verdict.published} transfers, {verdict.findings.effects} effects,"
        f" {len(verdict.findings.repeated)} second ones, {verdict.set_aside} set aside"
    )
    assert verdict.held, "\n".join(verdict.story)
    assert verdict.findings.explained == []
    assert relays.wrong == []
    assert verdict.set_aside == 0
    if kills > len(_POINTS) ** 2:
        assert {*_POINTS, *RELAY_POINTS} <= died.keys()


class Deaths:
    """Arms points in turn, a few at a time, and counts who dies where."""

    def __init__(self, stage: Stage, relays: Relays) -> None:
        self._stage = stage
        self._relays = relays
        self._of_service, self._of_relay = deque(_POINTS), deque(RELAY_POINTS)
        self._seen: set[int] = set()
        self._died = Counter[str]()

    def until(self, kills: int) -> Counter[str]:
        """Go on until so many have died; return how many at each point."""
        while sum(self._died.values()) < kills:
            names = [_next(self._of_service) for _ in range(_AT_ONCE - 1)]
            names.append(_next(self._of_relay))
            self._kill_at(names, kills)
        return self._died

    def _kill_at(self, names: Sequence[str], kills: int) -> None:
        """Arm these points, each until somebody has died there."""
        deadline = monotonic() + _PATIENCE
        with ExitStack() as stack:
            armed = {name: stack.enter_context(_closing(self._stage, name)) for name in names}
            while armed and sum(self._died.values()) < kills:
                assert monotonic() < deadline, f"nobody came by {' nor '.join(armed)}"
                self._stage.last(_LOOK)
                self._stage.revive()
                self._relays.revive()
                for name in self._news():
                    if name in armed:
                        armed.pop(name)()

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


@contextmanager
def _closing(stage: Stage, name: str) -> Iterator[Callable[[], None]]:
    """Arm a point; gives what disarms it, at the end of the block at the latest."""
    with ExitStack() as stack:
        stack.enter_context(stage.armed({name: _LIKELY}))
        yield stack.close


def _next(points: deque[str]) -> str:
    points.rotate(-1)
    return points[-1]
