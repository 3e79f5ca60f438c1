"""What the fleet makes of its processes: they are the other end of a pipe, and fakes."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import count
from typing import Any, TypeVar

import pytest

from worker.leases.base import View, lease_clock
from worker.sharding.generations import Generation, Plan
from worker.supervisor.control import (
    Beat,
    Drain,
    Finished,
    Follow,
    Followed,
    Given,
    Hello,
    Message,
    Open,
    Ready,
    Take,
    Terms,
    Trust,
)
from worker.supervisor.fleet import Fleet
from worker.supervisor.pipe import Channel
from worker.supervisor.policy import MAX_STARTUP_DEATHS

NOW = 100.0
M = TypeVar("M", bound=Message)

_TERMS = Terms(
    service="bank",
    queues="bank",
    shards=2,
    processes=1,
    most_processes=2,
    drain_timeout=10.0,
    watchdog=5.0,
    connect_timeout=5.0,
)


class Process:
    """A process that was spawned, as far as its pipe goes."""

    returncode: int | None = None

    def __init__(self, pid: int, descriptor: int) -> None:
        self.pid = pid
        self.channel = Channel(socket.socket(fileno=descriptor))
        self.heard: list[Message] = []

    def say(self, message: Message) -> None:
        self.channel.send(message)

    def told(self, kind: type[M]) -> list[M]:
        """Return what it was told of this kind so far."""
        return [message for message in self.listen() if isinstance(message, kind)]

    def listen(self) -> list[Message]:
        """Return all that it was told so far."""
        self.heard += self.channel.receive()
        return self.heard


class Garage:
    """A fleet, and every process that it started."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **terms: Any) -> None:
        self.processes: list[Process] = []
        self.terms = {**asdict(_TERMS), **terms}
        self._pids = count(50_000_000)  # more than a kernel gives
        self._dead: list[tuple[int, int]] = []
        monkeypatch.setattr("worker.supervisor.process.subprocess.Popen", self._spawn)
        monkeypatch.setattr("worker.supervisor.process.os.kill", lambda _pid, _number: None)
        monkeypatch.setattr("worker.supervisor.fleet.os.waitpid", self._wait)
        self.released: list[str] = []
        self.fleet = Fleet({}, given=lambda lease, _epoch: self.released.append(lease))
        self.plan = Plan(Generation(1, 2), single_active=bool(self.terms["single_active"]))
        consumed = self.plan.consumed
        self.leases = [consumed.lease] if self.plan.single_active else consumed.leases
        self.fleet.dealer.follow(self.plan, 1)
        self.fleet.resharder.hear(self.plan, View(), 1, leads=False)
        self.fleet.dealer.hear(dict.fromkeys(self.leases, 17), ())
        self.fleet.dealer.trust(lease_clock() + 3600, ())

    def _spawn(self, _command: Sequence[str], *, pass_fds: tuple[int, ...], **_: object) -> Process:
        self.processes.append(Process(next(self._pids), os.dup(pass_fds[0])))
        return self.processes[-1]

    def _wait(self, _pid: int, _options: int) -> tuple[int, int]:
        return self._dead.pop() if self._dead else (0, 0)

    def go_on(self) -> None:
        """Let the supervisor's loop go round a few times."""
        for _ in range(3):
            self.fleet.listen(NOW)
            self.fleet.reap(NOW)
            self.fleet.manage(NOW)

    def start(self) -> Process:
        """Let the process that was spawned last get ready."""
        self.go_on()
        process = self.processes[-1]
        process.say(Hello(process.pid, f"{process.pid:x}", self.terms))
        self.go_on()
        (told,) = process.told(Open)
        process.say(Ready(1, told.version))
        self.go_on()
        return process

    def end(self, process: Process, finish: str = "DRAINED") -> None:
        process.say(Finished(finish))
        self.die(process)

    def die(self, process: Process) -> None:
        self._dead.append((process.pid, 0))
        self.go_on()


@pytest.fixture
def garage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Garage]:
    """One process at a time, two shards, whose leases are owned."""
    made = Garage(monkeypatch)
    yield made
    close(made)


def close(garage: Garage) -> None:
    for process in garage.processes:
        process.channel.close()
    for child in garage.fleet.children():
        child.channel.close()


def test_a_process_that_cannot_be_started_is_tried_again_and_then_given_up() -> None:
    fleet = Fleet({}, ["/nowhere/python"])
    now = NOW
    waits = []

    while fleet.failure is None:
        fleet.manage(now)
        waits.append(fleet.next_deadline() - now)
        now = fleet.next_deadline()

    assert waits[:-1] == [0.5, 1.0, 2.0, 4.0]
    assert len(waits) == MAX_STARTUP_DEATHS
    assert fleet.failure.exit_code == 5
    assert fleet.children() == []


def test_a_process_that_waits_for_trust_to_connect_is_trusted_and_told_once_more(
    garage: Garage,
) -> None:
    garage.go_on()
    (process,) = garage.processes
    process.say(Hello(process.pid, "a", garage.terms))
    garage.go_on()
    process.say(Ready(1, 0))
    garage.go_on()

    said = [type(message) for message in process.listen()]
    assert said.index(Trust) < said.index(Follow), "or it would have to refuse"
    assert said.count(Follow) == 1
    (child,) = garage.fleet.children()
    assert child.followed == 0
    process.say(Followed(1))
    garage.go_on()
    assert child.followed == 1
    assert process.told(Take), "and is one like any other"


def connect_late(garage: Garage) -> Process:
    """Let the process that was spawned last find no trust left once the broker answers."""
    garage.go_on()
    process = garage.processes[-1]
    process.say(Hello(process.pid, f"{process.pid:x}", garage.terms))
    garage.go_on()
    process.say(Ready(1, 0))
    garage.go_on()
    return process


def test_a_service_is_ready_once_its_process_has_declared(garage: Garage) -> None:
    """Whoever publishes from then on loses nothing: there is a queue that observes it."""
    fleet = garage.fleet
    process = connect_late(garage)
    assert fleet.broker_away, "nothing was told of it yet"
    for said in (Beat({"connected": False}), Followed(1, "BrokerUnreachable: it is away")):
        process.say(said)
        garage.go_on()
        assert (fleet.ready, fleet.booted) == (False, False), said
        assert [child.facts(NOW)["stage"] for child in fleet.children()] == ["opening"]
    assert fleet.broker_away

    process.say(Followed(1))
    process.say(Beat({"connected": True}))
    garage.go_on()
    assert fleet.ready
    assert fleet.booted
    assert not fleet.broker_away
    assert [child.facts(NOW)["stage"] for child in fleet.children()] == ["ready"]

    fleet.resharder.hear(garage.plan, View(), 2, leads=False)
    garage.go_on()
    assert process.told(Follow)[-1].version == 2
    assert fleet.ready, "what it declared is there while it follows another plan"


def test_a_process_that_connected_to_get_ready_is_not_away_before_its_first_beat(
    garage: Garage,
) -> None:
    garage.start()
    assert garage.fleet.ready
    assert not garage.fleet.broker_away


@pytest.mark.parametrize(("shards", "processes"), [(0, 2), (0, 1), (2, 2)])
def test_where_no_number_of_shards_is_asked_for_there_are_processes_for_those_of_the_plan(
    monkeypatch: pytest.MonkeyPatch, shards: int, processes: int
) -> None:
    wanted = {(0, 2): 8, (0, 1): 1, (2, 2): 2}[shards, processes]
    garage = Garage(monkeypatch, shards=shards, processes=wanted, most_processes=1024)
    garage.start()
    assert garage.fleet.processes == len(garage.processes) == processes
    close(garage)


@pytest.mark.parametrize(("before", "after", "told"), [(2, 0, ""), (0, 2, ""), (0, 3, "not set")])
def test_fresh_code_may_ask_for_no_number_or_for_that_of_the_plan(
    before: int, after: int, told: str
) -> None:
    differs = replace(_TERMS, shards=before).differs(replace(_TERMS, shards=after), {2})
    assert bool(differs) == bool(told)
    assert told in differs


QUIET: Mapping[str, object] = {"idle": True, "received": 7}


@pytest.mark.parametrize("burst", [False, True])
def test_beats_are_counted_in_a_burst_only(monkeypatch: pytest.MonkeyPatch, burst: bool) -> None:
    garage = Garage(monkeypatch, burst=burst)
    process = garage.start()
    for _ in range(3):
        process.say(Beat(QUIET))
    garage.go_on()

    assert garage.fleet.burst.over([process.pid]) is burst
    garage.die(process)
    assert not garage.fleet.burst.over([process.pid]), "it is forgotten with its process"
    close(garage)


def had(process: Process) -> list[int]:
    """Return the shards that a process was told to take, in order."""
    return sorted(shard for take in process.told(Take) for shard, _ in take.fences)


def reload(garage: Garage) -> tuple[Process, Process]:
    """Let the one process be replaced by another; return both when the old one drains."""
    old = garage.start()
    assert had(old) == [0, 1]
    garage.fleet.reload()
    new = garage.start()
    assert old.told(Drain)
    assert had(new) == []
    return old, new


def test_a_reload_hands_each_shard_over_as_soon_as_nothing_of_it_is_left(garage: Garage) -> None:
    old, new = reload(garage)

    old.say(Given([1], draining=True))
    garage.go_on()
    assert had(new) == [1], "a handler of the other shard may run for long"
    assert garage.fleet.ready
    assert garage.fleet.changing, "the next process waits until this one is gone"

    garage.end(old)
    assert had(new) == [0, 1]
    assert not garage.fleet.changing
    assert garage.fleet.children() == garage.fleet.holders
    assert garage.released == [], "no lease changed hands"
    assert len(garage.processes) == 2
    assert garage.fleet.restarts == 0


def test_a_reload_drains_nobody_for_a_process_that_has_not_declared(garage: Garage) -> None:
    old = garage.start()
    garage.fleet.reload()
    new = connect_late(garage)
    new.say(Followed(1, "BrokerUnreachable: it is away"))
    new.say(Beat({"connected": False}))
    garage.go_on()
    assert not old.told(Drain)
    assert garage.fleet.changing
    assert garage.fleet.ready
    assert not garage.fleet.broker_away, "who has the shards has it"
    assert garage.fleet.waits_for() == ""

    new.say(Followed(1))
    garage.go_on()
    assert old.told(Drain)
    garage.end(old)
    assert had(new) == [0, 1]
    assert not garage.fleet.changing


def test_where_one_process_is_active_a_reload_hands_over_all_or_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    garage = Garage(monkeypatch, single_active=True, most_processes=1)
    old, new = reload(garage)

    old.say(Given([1], draining=True))
    garage.go_on()
    assert had(new) == []
    old.say(Given([0], draining=True))
    garage.go_on()
    assert had(new) == [0, 1]
    close(garage)


def test_a_process_that_drains_takes_nothing_whoever_told_it_to(garage: Garage) -> None:
    process = garage.start()
    garage.fleet.drain(10, NOW)
    process.say(Given([1], draining=True))
    garage.go_on()
    assert had(process) == [0, 1], "what it had before"
    assert garage.released == []


def test_who_drains_by_itself_takes_nothing_until_it_is_replaced(garage: Garage) -> None:
    process = garage.start()
    process.say(Given([1], draining=True))
    garage.go_on()
    assert had(process) == [0, 1], "it would give it again, and again"
    assert not garage.fleet.ready

    garage.fleet.drain(10, NOW)
    assert len(process.told(Drain)) == 1, "and ends in time"
    assert garage.fleet.next_deadline() == NOW + 10


@pytest.mark.parametrize("said", [Beat({}, draining=True), Given([1], draining=True)])
def test_the_shards_of_who_drains_by_itself_go_to_another_at_once(
    garage: Garage, said: Message
) -> None:
    stuck = garage.start()
    stuck.say(said)
    another = garage.start()
    stuck.say(Given([1], draining=True))
    garage.go_on()
    assert had(another) == [1], "a handler of the other shard may run for long"
    assert garage.fleet.ready
    assert garage.fleet.restarts == 0, "nobody ended yet"

    garage.end(stuck, "STUCK")
    assert had(another) == [0, 1]
    assert garage.fleet.children() == garage.fleet.holders
    assert garage.released == [], "no lease changed hands"
    assert len(garage.processes) == 2
    assert garage.fleet.restarts == 1


def test_whoever_dies_while_it_drains_by_itself_was_counted_before(garage: Garage) -> None:
    stuck = garage.start()
    stuck.say(Beat({}, draining=True))
    garage.go_on()
    garage.die(stuck)
    another = garage.start()
    assert len(garage.processes) == 2
    assert had(another) == [0, 1]

    garage.die(another)
    assert len(garage.processes) == 2, "the second one that ends young is waited for"
    assert garage.fleet.next_deadline() == NOW + 0.1


def test_a_place_has_one_process_at_a_time_that_leaves_it(garage: Garage) -> None:
    first = garage.start()
    first.say(Given([1], draining=True))
    second = garage.start()
    second.say(Beat({}, draining=True))
    garage.go_on()
    assert len(garage.processes) == 2

    garage.end(first, "STUCK")
    assert garage.fleet.next_deadline() == NOW + 0.1, "they resign young"
    garage.fleet.manage(NOW + 0.1)
    third = garage.start()
    assert had(third) == [0]
    second.say(Given([1], draining=True))
    garage.go_on()
    assert had(third) == [0, 1]


def test_a_reload_waits_for_who_drains_by_itself(garage: Garage) -> None:
    stuck = garage.start()
    stuck.say(Given([1], draining=True))
    another = garage.start()
    garage.fleet.reload()
    fresh = garage.start()
    assert not another.told(Drain), "nobody could take what it would give"

    garage.end(stuck, "STUCK")
    assert another.told(Drain)
    garage.end(another)
    assert had(fresh) == [0, 1]
    assert not garage.fleet.changing


def test_who_drains_by_itself_is_replaced_by_the_latest_code(garage: Garage) -> None:
    stuck = garage.start()
    garage.fleet.reload()
    garage.go_on()
    stuck.say(Given([1], draining=True))
    garage.go_on()
    garage.fleet.reload()
    garage.die(garage.processes[-1])
    fresh = garage.start()
    assert len(garage.processes) == 3

    assert had(fresh) == [1]
    garage.end(stuck, "STUCK")
    assert had(fresh) == [0, 1]
    assert not garage.fleet.changing


def test_a_process_that_had_its_say_about_leases_alone_takes_them_again(garage: Garage) -> None:
    """It gave them because it was not told in time that they may be trusted."""
    process = garage.start()
    process.say(Given([0, 1]))
    garage.go_on()

    assert had(process) == [0, 0, 1, 1]


def test_a_drain_gives_back_each_lease_when_nothing_of_its_shard_is_left(garage: Garage) -> None:
    process = garage.start()
    garage.fleet.drain(10, NOW)
    garage.fleet.dealer.hear({}, garage.leases)
    garage.go_on()
    assert garage.released == []

    process.say(Given([1], draining=True))
    garage.go_on()
    assert garage.released == ["g1.1"]
    garage.end(process)
    assert garage.released == ["g1.1", "g1.0"]
    assert garage.fleet.children() == []


def test_who_takes_over_while_another_leaves_may_die_and_nothing_is_dealt_twice(
    garage: Garage,
) -> None:
    old, new = reload(garage)
    old.say(Given([1], draining=True))
    garage.go_on()

    garage.die(new)
    third = garage.start()
    assert had(third) == [1], "the other one still has the rest"
    garage.end(old)
    assert had(third) == [0, 1]


def test_a_drain_in_the_middle_of_a_hand_over_waits_for_both(garage: Garage) -> None:
    old, new = reload(garage)
    old.say(Given([1], draining=True))
    garage.go_on()
    garage.fleet.drain(10, NOW)
    garage.fleet.dealer.hear({}, garage.leases)
    garage.end(old)
    assert garage.released == ["g1.0"]
    assert new.told(Drain)

    garage.end(new)
    assert garage.released == ["g1.0", "g1.1"]
    assert garage.fleet.children() == []
