"""A supervisor and its processes, from start to end, with real signals and real kill -9."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from processes import is_alive
from supervised import Supervised, fell, fences, holders, overlaps, spans
from waiting import until


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Supervised]:
    """A service that is not started yet."""
    supervised = Supervised(tmp_path)
    yield supervised
    supervised.end()


def test_every_shard_is_consumed_by_one_process(service: Supervised) -> None:
    service.start_ready(shards=5, processes=3, most_processes=5)

    dealt = sorted(spans(service.journal()).items())
    assert [shard for shard, _ in dealt] == [0, 1, 2, 3, 4]
    assert all(len(held) == 1 for _, held in dealt)
    numbers = Counter(held[0].pid for _, held in dealt)
    assert sorted(numbers.values()) == [1, 2, 2], "nobody has two more than another"
    until(
        lambda: sorted(shard for own in service.dealt().values() for shard in own) == [*range(5)],
        message="the status tells of it",
    )


# The end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_the_exit_code_is_zero(service: Supervised, number: int) -> None:
    service.behave(drain_takes=0.5)
    service.start_ready()

    service.signal(number)

    assert service.exit_code() == 0
    assert [entry.about for entry in service.journal("close")] == ["DRAINED", "DRAINED"]
    assert service.status() == {}


def test_what_outlasts_the_drain_is_abandoned_in_time(service: Supervised) -> None:
    service.behave(drain_takes=60)
    service.start_ready(drain_timeout=2.0)

    began = time.monotonic()
    service.signal(signal.SIGTERM)

    assert service.exit_code() == 75
    assert time.monotonic() - began < 3
    assert [entry.about for entry in service.journal("close")] == ["ABANDONED", "ABANDONED"]


def test_a_process_that_hangs_in_the_drain_is_killed_at_the_deadline(service: Supervised) -> None:
    service.start_ready(drain_timeout=1.0)
    stopped = service.processes()[0]
    os.kill(stopped, signal.SIGSTOP)

    began = time.monotonic()
    service.signal(signal.SIGTERM)

    assert service.exit_code() == 75
    assert time.monotonic() - began < 2
    assert not is_alive(stopped)


def test_a_process_that_was_killed_just_before_the_drain_abandons_nothing(
    service: Supervised,
) -> None:
    service.start_ready()
    victim = service.processes()[0]

    os.kill(service.pid, signal.SIGSTOP)  # so that it hears of both at once
    os.kill(victim, signal.SIGKILL)
    until(lambda: not is_alive(victim))
    service.signal(signal.SIGTERM)
    service.signal(signal.SIGCONT)

    assert service.exit_code() == 0
    assert [entry.about for entry in service.journal("close")] == ["DRAINED"]
    assert "killed by SIGKILL" in service.log


def test_a_process_that_is_killed_in_the_drain_abandons_nothing(service: Supervised) -> None:
    service.behave(drain_takes=1.0)
    service.start_ready()
    victim = service.processes()[0]

    service.signal(signal.SIGTERM)
    until(lambda: len(service.journal("drain")) == 2)
    os.kill(victim, signal.SIGKILL)

    assert service.exit_code() == 0
    assert [entry.about for entry in service.journal("close")] == ["DRAINED"]


def test_beside_a_killed_process_one_that_outlasts_the_drain_is_told(service: Supervised) -> None:
    service.behave(drain_takes=60)
    service.start_ready(drain_timeout=1.0)
    victim = service.processes()[0]

    service.signal(signal.SIGTERM)
    until(lambda: len(service.journal("drain")) == 2)
    os.kill(victim, signal.SIGKILL)

    assert service.exit_code() == 75


def test_a_second_signal_stops_at_once(service: Supervised) -> None:
    service.behave(drain_takes=60)
    service.start_ready()
    service.signal(signal.SIGTERM)
    until(lambda: len(service.journal("drain")) == 2)

    began = time.monotonic()
    service.signal(signal.SIGTERM)

    assert service.exit_code() == 130
    assert time.monotonic() - began < 1.5
    assert not any(map(is_alive, service.pids_seen()))


def test_ctrl_c_in_a_terminal_drains_though_every_process_gets_it(service: Supervised) -> None:
    service.behave(drain_takes=0.5)
    service.start_ready()

    os.killpg(service.pid, signal.SIGINT)

    assert service.exit_code() == 0
    assert [entry.about for entry in service.journal("close")] == ["DRAINED", "DRAINED"]


def test_a_drain_while_processes_still_start_ends_at_once(service: Supervised) -> None:
    service.behave(boot="hang")
    service.start()
    until(lambda: service.journal("boot"))

    service.signal(signal.SIGTERM)

    assert service.exit_code(5) == 0
    assert not any(map(is_alive, service.pids_seen()))


def test_a_drain_does_not_wait_for_a_process_that_cannot_connect(service: Supervised) -> None:
    service.behave(open="hang")
    service.start()
    until(lambda: len(service.journal("boot")) == 2)

    service.signal(signal.SIGTERM)

    assert service.exit_code(5) == 0


# Errors of the start


@pytest.mark.parametrize("when", ["boot", "open"])
@pytest.mark.parametrize(
    ("how", "code", "text"),
    [
        ("wrong", 3, "qworker: --shards: 0 is too small; at least 1"),
        ("unreachable", 4, "qworker: amqp://user:***@broker.invalid does not answer"),
    ],
)
def test_a_service_that_cannot_start_says_why_once_and_ends(
    service: Supervised, when: str, how: str, code: int, text: str
) -> None:
    service.behave(**{when: how})

    service.start()

    assert service.exit_code() == code
    assert service.log.count(text) == 1
    assert "Traceback" not in service.log
    assert "secret" not in service.log


def test_an_error_of_one_process_at_the_start_drains_the_others(service: Supervised) -> None:
    service.behave(only=1, open="wrong")

    service.start()

    assert service.exit_code() == 3
    assert [entry.about for entry in service.journal("close")] in ([], ["DRAINED"])


@pytest.mark.parametrize("how", ["crash", "exception"])
def test_processes_that_keep_dying_at_the_start_are_given_up(service: Supervised, how: str) -> None:
    service.behave(open=how)

    service.start(processes=1)

    assert service.exit_code(30) == 5
    assert len(service.journal("boot")) == 5
    assert "died 5 times in a row" in service.log


# Deaths


def test_a_killed_process_is_replaced_at_once_and_everybody_knows_it_is_dead(
    service: Supervised,
) -> None:
    service.start_ready()
    victim = service.processes()[0]
    owner = next(entry.about for entry in service.journal("owner") if entry.pid == victim)

    shards = sorted(shard for shard, pid in holders(service.journal()).items() if pid == victim)
    assert len(shards) == 2

    killed = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    until(lambda: len(service.journal("take")) == 3)

    replacement = service.journal("take")[2]
    assert replacement.index == 0
    assert sorted(map(int, replacement.about)) == shards, "the neighbour's stay where they are"
    assert replacement.at - killed < 2
    assert overlaps(service.journal()) == []
    until(
        lambda: (
            {entry.index for entry in service.journal("bury") if owner in entry.about} == {0, 1}
        ),
        message="the replacement and the neighbour bury the dead",
    )
    assert service.running


def test_the_fence_of_a_shard_is_the_epoch_of_its_lease(service: Supervised) -> None:
    """It rises with every owner of the lease, and is the same in every process of one owner."""
    service.start_ready(processes=1, shards=1, most_processes=1, leases="sqlite:///leases.db")
    os.kill(service.processes()[0], signal.SIGKILL)
    until(lambda: len(service.journal("take")) == 2)
    service.signal(signal.SIGTERM)
    assert service.exit_code() == 0
    service.start_ready(processes=1, shards=1, most_processes=1, leases="sqlite:///leases.db")

    first, second, third = fences(service.journal())[0]

    assert first == second < third
    assert first > 1_600_000_000_000, "a store that forgets everything hands out none twice"


def test_killing_a_process_again_and_again_never_ends_the_service(service: Supervised) -> None:
    service.start_ready()
    killed: list[int] = []

    for _ in range(8):
        until(lambda: service.processes().get(0, 0) not in (0, *killed))
        killed.append(service.processes()[0])
        os.kill(killed[-1], signal.SIGKILL)

    until(lambda: service.status().get("ready") and service.unowned() == [])
    assert service.running
    assert overlaps(service.journal()) == []
    assert fell(service.journal()) == []


def test_a_process_that_cannot_go_on_is_replaced(service: Supervised) -> None:
    service.start_ready()

    service.behave(only=1, run="failed")
    until(lambda: service.journal("close"))
    service.behave()

    until(lambda: len(service.journal("take")) >= 3 and service.status()["ready"])
    assert service.running
    assert overlaps(service.journal()) == []


def test_a_process_with_a_stuck_thread_is_replaced_and_leaves_nothing_behind(
    service: Supervised,
) -> None:
    service.start_ready()
    stuck = service.processes()[0]

    service.behave(only=0, run="stuck")
    until(lambda: [entry for entry in service.journal("close") if entry.pid == stuck])
    service.behave()

    until(lambda: not is_alive(stuck))
    until(lambda: 0 in service.processes())
    until(lambda: "stuck" in service.log)


@pytest.mark.parametrize("how", ["its loop hangs", "it is stopped"])
def test_a_process_without_a_sign_of_life_is_killed_and_replaced(
    service: Supervised, how: str
) -> None:
    service.start_ready(watchdog=1.0)
    victim = service.processes()[0]

    if how == "it is stopped":
        os.kill(victim, signal.SIGSTOP)
    else:
        service.behave(only=0, run="hang")
        until(lambda: service.journal("hang"))
        service.behave()

    until(lambda: service.processes().get(0) not in (None, victim))
    assert not is_alive(victim)
    assert f"process 0 (pid {victim}) hangs: no sign of life" in service.log
    if how == "its loop hangs":
        assert "_round" in service.log, "the stack of the hung thread is in the log"


def test_a_pause_of_the_supervisor_costs_no_process(service: Supervised) -> None:
    service.start_ready(watchdog=1.0)
    before = service.processes()

    for pid in (service.pid, *before.values()):
        os.kill(pid, signal.SIGSTOP)
    written = service.status()["at"]
    time.sleep(3)  # the pause itself
    for pid in (service.pid, *before.values()):
        os.kill(pid, signal.SIGCONT)

    until(lambda: service.status()["at"] > written + 5)
    assert service.processes() == before
    assert "hangs" not in service.log


def test_a_process_that_is_told_to_drain_by_somebody_else_is_replaced(
    service: Supervised,
) -> None:
    service.start_ready()
    told = service.processes()[1]

    os.kill(told, signal.SIGTERM)
    until(lambda: len(service.journal("take")) == 3)

    assert [entry.about for entry in service.journal("close")] == ["DRAINED"]
    assert service.unowned() == []
    assert overlaps(service.journal()) == []
    assert service.running


def test_processes_that_lose_their_supervisor_drain_by_themselves(service: Supervised) -> None:
    service.behave(drain_takes=0.5)
    service.start_ready()
    processes = service.processes().values()

    service.signal(signal.SIGKILL)

    until(lambda: not any(map(is_alive, processes)))
    assert [entry.about for entry in service.journal("close")] == ["DRAINED", "DRAINED"]


def test_an_orphan_that_cannot_drain_ends_before_its_leases_do(service: Supervised) -> None:
    service.behave(drain_takes=60)
    service.start_ready()
    processes = service.processes().values()

    killed = time.monotonic()
    service.signal(signal.SIGKILL)

    until(lambda: not any(map(is_alive, processes)), 15)
    assert time.monotonic() - killed < 10


def test_an_orphan_whose_loop_hangs_ends_before_its_leases_do(service: Supervised) -> None:
    service.behave(drain_takes=60)
    service.start_ready(watchdog=60.0)
    processes = service.processes().values()

    killed = time.monotonic()
    service.signal(signal.SIGKILL)
    until(lambda: len(service.journal("drain")) == 2)
    service.behave(run="hang")

    until(lambda: not any(map(is_alive, processes)), 15)
    assert time.monotonic() - killed < 10.5


# Telling


def test_a_dump_tells_of_every_process(service: Supervised) -> None:
    service.start_ready()

    service.signal(signal.SIGUSR1)

    first, second = service.processes().values()
    until(lambda: f"dump of {first}: nothing in flight" in service.log)
    until(lambda: f"dump of {second}: nothing in flight" in service.log)


def test_a_burst_ends_when_everything_is_quiet(service: Supervised) -> None:
    service.behave(busy=True)
    service.start_ready(burst=True)
    until(lambda: service.status()["counters"].get("received", 0) > 20)
    assert service.running

    service.behave()

    assert service.exit_code() == 0
