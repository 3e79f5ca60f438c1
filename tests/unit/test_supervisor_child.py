"""The child's end of the control pipe, with a stand-in for the consumer."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from enum import Enum
from typing import Any

import pytest

from waiting import until
from worker.leases.base import lease_clock
from worker.sharding.generations import Generation, Phase, Plan
from worker.supervisor.child import Child, Service
from worker.supervisor.control import Follow, Followed, Message, Open, Ready, Terms, Trust
from worker.supervisor.pipe import Channel

PLAN = Plan(Generation(1, 2))
NEXT = Plan(Generation(1, 2), Generation(2, 3), Phase.BIND)
TERMS = Terms(
    service="bank",
    queues="bank",
    shards=2,
    processes=1,
    most_processes=2,
    drain_timeout=600.0,
    watchdog=5.0,
    connect_timeout=5.0,
)


class Finish(Enum):
    DRAINED = "drained"


class Runner:
    """What the process runs: goes through the test's script, and notes what it is told."""

    def __init__(self) -> None:
        self.connects = True
        self.script: Callable[[], None] = lambda: None
        self.told: list[tuple[str, Any]] = []
        self.callbacks: dict[object, Callable[[], None]] = {}
        self.on_beat = self.on_paused = lambda: None
        self.on_given: Callable[[list[int]], None] = lambda _shards: None

    def open(self, trusted_until: float) -> bool:
        self.told.append(("open", trusted_until))
        return self.connects

    def run(self) -> Finish:
        self.script()
        return Finish.DRAINED

    def watch(self, fileobj: object, callback: Callable[[], None]) -> None:
        self.callbacks[fileobj] = callback

    def unwatch(self, fileobj: object) -> None:
        del self.callbacks[fileobj]

    def statistics(self) -> dict[str, object]:
        return {}

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *about: self.told.append((name, about[0] if about else None))


class Steps:
    """Notes which plans are declared."""

    def __init__(self) -> None:
        self.declared: list[Plan] = []

    def declare(self, plan: Plan) -> None:
        self.declared.append(plan)

    def take(self, _plan: Plan) -> bool:
        return True


class Office:
    """The supervisor's end of the pipe, and the process at the other."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("worker.supervisor.child.configure_logging", lambda *_, **__: None)
        ours, theirs = socket.socketpair()
        self.channel = Channel(ours)
        self.runner = Runner()
        self.steps = Steps()
        self.terms = TERMS
        self.heard: list[Message] = []
        self._theirs = Channel(theirs)
        self._child = Child(self._theirs)

    def close(self) -> None:
        self.channel.close()
        self._theirs.close()
        self._child._signals.close()

    def serve(self, plan: Plan = PLAN, *, trusted_until: float) -> None:
        """Let the process live, from its opening by this plan to the end of the script."""
        self.channel.send(Open(plan.dump(), 7, trusted_until))
        runner: Any = self.runner
        self._child._serve(Service(self.terms, lambda _plan, _owner: runner, self.steps))
        self.listen()

    def say(self, *messages: Message) -> None:
        """Say this, and let the process act on it."""
        for message in messages:
            self.channel.send(message)
        self.go_on()

    def go_on(self) -> None:
        for callback in [*self.runner.callbacks.values()]:
            callback()

    def listen(self) -> list[Message]:
        self.go_on()
        self.heard += self.channel.receive()
        return self.heard

    def answer(self, kind: type[Message]) -> Any:
        """Wait for an answer of this kind, and take it."""
        found = until(lambda: [m for m in self.listen() if isinstance(m, kind)])
        self.heard.remove(found[0])
        return found[0]


@pytest.fixture
def office(monkeypatch: pytest.MonkeyPatch) -> Iterator[Office]:
    made = Office(monkeypatch)
    yield made
    made.close()


@pytest.mark.parametrize("connects", [True, False])
def test_a_process_is_ready_by_the_plan_that_it_declared(office: Office, connects: bool) -> None:
    """One that was away for too long to connect is ready all the same, to be told what holds."""
    office.runner.connects = connects
    until_then = lease_clock() + 5
    office.serve(trusted_until=until_then)

    assert office.answer(Ready) == Ready(1, 7 if connects else 0)
    assert office.runner.told == [("open", until_then)]


def test_a_process_that_was_away_declares_nothing_before_it_is_trusted_again(
    office: Office,
) -> None:
    def script() -> None:
        office.say(Follow(PLAN.dump(), 7))
        assert "not trusted" in office.answer(Followed).error
        assert office.steps.declared == []
        office.say(Follow(NEXT.dump(), 8), Trust(lease_clock() + 3600))
        assert office.answer(Followed) == Followed(8)
        assert office.steps.declared == [NEXT]

    office.runner.script = script
    office.serve(trusted_until=lease_clock() - 1)
    assert [kind for kind, _ in office.runner.told] == ["open", "follow", "follow", "trust"]


def test_a_process_that_goes_over_to_another_generation_is_trusted_as_it_is_told(
    office: Office,
) -> None:
    then = lease_clock() + 3600

    def script() -> None:
        office.say(Open(NEXT.dump(), 8, then))
        assert office.answer(Ready) == Ready(1, 7)
        assert office.answer(Ready) == Ready(1, 0)
        office.say(Follow(NEXT.dump(), 8))
        assert office.answer(Followed) == Followed(8)

    office.runner.script = script
    office.serve(trusted_until=lease_clock() - 1)
    assert office.runner.told[1:3] == [("switch", NEXT), ("trust", then)]


@pytest.mark.parametrize(
    ("lease_ttl", "drain_timeout", "seconds"),
    [
        (10.0, 600.0, 8.0),
        (60.0, 600.0, 8.0),
        (2.0, 600.0, 1.6),
        (1.0, 600.0, 0.8),
        (10.0, 3.0, 3.0),
    ],
)
def test_a_process_whose_supervisor_is_gone_ends_before_its_leases_do(
    office: Office,
    monkeypatch: pytest.MonkeyPatch,
    lease_ttl: float,
    drain_timeout: float,
    seconds: float,
) -> None:
    ends: list[float] = []
    monkeypatch.setattr(
        "worker.supervisor.child.faulthandler.dump_traceback_later",
        lambda after, **_: ends.append(after),
    )
    office.terms = replace(TERMS, lease_ttl=lease_ttl, drain_timeout=drain_timeout)
    began = time.monotonic()

    def script() -> None:
        office.channel.close()
        office.go_on()

    office.runner.script = script
    office.serve(trusted_until=lease_clock() + 60)

    ((_, deadline),) = [told for told in office.runner.told if told[0] == "drain"]
    assert deadline - began == pytest.approx(seconds, abs=0.5)
    assert ends[0] > seconds
    assert ends[0] < lease_ttl
