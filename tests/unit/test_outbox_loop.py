"""How long a relay goes on, and how a burst of one ends, whoever has the lease."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
from worker.contrib.outbox.loop import Loop
from worker.contrib.outbox.relay import Pass
from worker.contrib.outbox.rows import EVERYTHING, Bounds, OutboxUnavailable

from worker import BrokerUnreachable, ConfigurationError

_PATIENCE = 30.0
#: Seconds after which a test that goes on is one that never ends.
_FOR_EVER = 1000.0


class World:
    """Rows, who has the lease, and a clock that goes on while somebody waits."""

    def __init__(self, *rows: int, has_lease: bool) -> None:
        self.now = 0.0
        self.rows = [*rows]
        self.has_lease = has_lease
        #: What the next passes come to: a pass, or what is raised.
        self.passes: list[Pass | Exception] = []
        #: Called at each pause.
        self.meanwhile: Callable[[], object] = lambda: None
        self.is_away = False
        self.turns = 0

    # A relay.
    def turn(self) -> Pass:
        self.turns += 1
        passed = self.passes.pop(0) if self.passes else Pass()
        if isinstance(passed, Exception):
            raise passed
        return passed

    # A store.
    def newest(self) -> int:
        self._answer()
        return max(self.rows, default=0)

    def read(self, limit: int, within: Bounds = EVERYTHING) -> list[Any]:
        self._answer()
        until = within.until
        return [Row(n) for n in self.rows if until is None or n <= until][:limit]

    def _answer(self) -> None:
        if self.is_away:
            raise OutboxUnavailable("the database is away")

    # An event.
    def is_set(self) -> bool:
        assert self.now < _FOR_EVER, "it goes on for ever"
        return False

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.meanwhile()

    def burst(self) -> bool:
        parts: Any = self
        loop = Loop(parts, parts, lambda: self.has_lease, parts, pause=0.5, clock=lambda: self.now)
        is_empty: bool = loop.burst(_PATIENCE)
        return is_empty


class Row:
    def __init__(self, sequence: int) -> None:
        self.sequence = sequence


def one_by_one(steps: Iterable[Callable[[], object]]) -> Callable[[], object]:
    """Do one of these at each call, then nothing."""
    rest = iter(steps)

    def step() -> None:
        for each in rest:
            each()
            return

    return step


def test_a_burst_ends_with_the_pass_that_leaves_nothing() -> None:
    world = World(has_lease=True)
    world.passes = [Pass(sent=3), Pass(held=1), Pass(doubted=1), Pass(is_cut=True)]
    assert world.burst()
    assert world.turns == 5


def test_a_burst_tells_that_what_is_left_is_refused() -> None:
    world = World(has_lease=True)
    world.passes = [Pass(sent=3), Pass(refused=1)]
    assert not world.burst()


@pytest.mark.parametrize("error", [BrokerUnreachable("away"), ConfigurationError("may not")])
def test_what_waiting_here_does_not_mend_ends_a_burst(error: Exception) -> None:
    world = World(has_lease=True)
    world.passes = [Pass(sent=3), error]
    with pytest.raises(type(error)):
        world.burst()


def test_a_database_that_is_away_for_a_moment_does_not_end_a_burst() -> None:
    world = World(has_lease=True)
    world.passes = [OutboxUnavailable("lost"), Pass(sent=1)]
    assert world.burst()


@pytest.mark.parametrize("has_lease", [True, False])
def test_a_database_that_stays_away_ends_a_burst(*, has_lease: bool) -> None:
    world = World(1, has_lease=has_lease)
    world.is_away = True
    world.passes = [OutboxUnavailable("away")] * 1000
    with pytest.raises(OutboxUnavailable):
        world.burst()
    assert world.now == pytest.approx(_PATIENCE, abs=6)


def test_beside_another_relay_a_burst_ends_when_that_has_sent_all_that_there_was() -> None:
    world = World(1, 2, 3, has_lease=False)

    def send() -> None:  # and somebody goes on writing
        del world.rows[0]
        world.rows.append(world.rows[-1] + 1)

    world.meanwhile = send
    assert world.burst()
    assert world.rows == [4, 5, 6]
    assert world.turns == 0


def test_beside_another_relay_that_gets_nowhere_a_burst_ends_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World(1, 2, 3, has_lease=False)
    world.meanwhile = one_by_one([lambda: world.rows.remove(1)])
    assert not world.burst()
    assert world.now == pytest.approx(_PATIENCE, abs=2)
    (told,) = caplog.messages
    assert told.startswith("row 2 of the outbox has been the oldest for 30 seconds")


def test_a_slow_relay_beside_it_gets_somewhere() -> None:
    world = World(1, 2, 3, has_lease=False)
    pauses = [lambda: None] * 50
    world.meanwhile = one_by_one([*pauses, *[lambda: world.rows.pop(0), *pauses] * 3])
    assert world.burst()
    assert world.now > 2 * _PATIENCE


def test_a_burst_that_is_given_the_lease_goes_on_itself() -> None:
    world = World(1, has_lease=False)

    def take() -> None:
        world.has_lease = True

    world.meanwhile = one_by_one([take])
    world.passes = [Pass(refused=1)]
    assert not world.burst()


def test_what_was_refused_before_the_lease_was_lost_is_not_left_once_another_has_sent_it() -> None:
    world = World(1, has_lease=True)

    def lose() -> None:
        world.has_lease = False
        world.rows.clear()

    world.passes = [Pass(sent=1, refused=1)]
    world.meanwhile = one_by_one([lose])
    assert world.burst()
