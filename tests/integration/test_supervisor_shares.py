"""Several supervisors share the shards of a service by leases: nobody twice, nobody left alone."""

from __future__ import annotations

import os
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from processes import is_alive
from supervised import Supervised, fell, fences, holders, overlaps, spans
from waiting import until

LEASES = {"leases": "sqlite:///leases.db", "lease_ttl": 2.0, "processes": 1}
ALL = [0, 1, 2, 3]

Join = Callable[..., Supervised]


@pytest.fixture
def join(tmp_path: Path) -> Iterator[Join]:
    """Start a supervisor of the service."""
    started: list[Supervised] = []

    def start(**terms: Any) -> Supervised:
        started.append(Supervised(tmp_path, f"{len(started)}-"))
        started[-1].start(**{**LEASES, **terms})
        return started[-1]

    yield start
    for service in started:
        service.end()


def shards(*services: Supervised) -> list[list[int]]:
    """Return what the living processes of each supervisor have, by the journal."""
    had = {s: p for s, p in holders(services[0].journal()).items() if is_alive(p)}
    own = [set(service.processes().values()) for service in services]
    return [sorted(shard for shard, pid in had.items() if pid in pids) for pids in own]


def balanced(*services: Supervised) -> bool:
    """Whether all shards are consumed, and nobody has two more than another."""
    dealt = shards(*services)
    sizes = [len(each) for each in dealt]
    return sorted(shard for own in dealt for shard in own) == ALL and max(sizes) - min(sizes) <= 1


def check(service: Supervised) -> None:
    """No shard was ever with two, and no fence fell."""
    assert overlaps(service.journal()) == []
    assert fell(service.journal()) == []


def test_who_joins_gets_a_share_and_who_leaves_gives_it_back(join: Join) -> None:
    ann = join()
    until(lambda: shards(ann) == [ALL], 30)
    first = dict(ann.processes())

    bob = join()
    until(lambda: balanced(ann, bob), 30)
    assert ann.processes() == first, "nobody is replaced for that"
    moved = shards(bob)[0]
    seen = fences(ann.journal())
    assert all(seen[shard][-1] > seen[shard][0] for shard in moved)
    assert all(len(seen[shard]) == 1 for shard in ALL if shard not in moved)

    bob.signal(signal.SIGTERM)
    assert bob.exit_code() == 0
    until(lambda: shards(ann) == [ALL])
    last = [held[-1] for shard, held in spans(ann.journal()).items() if shard in moved]
    left = next(entry.at for entry in ann.journal("close"))
    assert all(span.begin - left < 1.5 for span in last), "it need not wait for leases to end"
    check(ann)


def test_who_leaves_gives_each_shard_as_soon_as_nothing_of_it_is_left(join: Join) -> None:
    ann = join()
    until(lambda: shards(ann) == [ALL], 30)
    bob = join()
    until(lambda: balanced(ann, bob), 30)
    idle, busy = shards(ann)[0]

    ann.behave(drain_takes=60, idle=[idle])
    ann.signal(signal.SIGTERM)
    until(lambda: idle in shards(bob)[0], 5, "it has what is idle, while handlers run for long")
    assert shards(ann, bob) == [[], [shard for shard in ALL if shard != busy]]
    assert ann.running
    ann.behave()
    assert ann.exit_code() == 0
    until(lambda: shards(bob) == [ALL])
    check(bob)


def test_a_reload_hands_each_shard_over_as_soon_as_nothing_of_it_is_left(join: Join) -> None:
    ann = join()
    until(lambda: shards(ann) == [ALL], 30)
    (old,) = ann.processes().values()

    ann.behave(drain_takes=60, idle=[1, 3])
    ann.signal(signal.SIGHUP)
    until(lambda: ann.dealt() == {0: [1, 3]}, 20, "its successor has what is idle")
    had = holders(ann.journal())
    assert {shard for shard, pid in had.items() if pid == old} == {0, 2}
    assert ann.status()["ready"]
    assert ann.status()["state"] == "reloading"

    ann.behave()
    until(lambda: not is_alive(old) and shards(ann) == [ALL], 20)
    until(lambda: ann.status()["state"] == "running")
    assert all(len(set(seen)) == 1 for seen in fences(ann.journal()).values())
    check(ann)


def test_the_shards_of_a_process_that_drains_by_itself_are_consumed_by_another(join: Join) -> None:
    ann = join()
    until(lambda: shards(ann) == [ALL], 30)
    (old,) = ann.processes().values()

    ann.behave(drain_takes=60, idle=[1, 3])
    os.kill(old, signal.SIGTERM)
    until(lambda: ann.dealt() == {0: [1, 3]}, 20, "handlers of the others run for long")
    assert is_alive(old)
    assert ann.status()["ready"]

    ann.behave()
    until(lambda: not is_alive(old) and shards(ann) == [ALL], 20)
    assert ann.journal("boot")[2:] == [], "it is replaced once"
    assert all(len(set(seen)) == 1 for seen in fences(ann.journal()).values())
    check(ann)


def test_a_member_waits_for_what_still_runs_elsewhere(join: Join) -> None:
    ann = join()
    until(lambda: shards(ann) == [ALL], 30)
    ann.behave(give_takes=3.0)  # longer than a lease lasts without renewal

    bob = join()
    until(lambda: balanced(ann, bob), 30)

    assert len(ann.journal("given")) == 1
    assert ann.journal("lapse") == []
    check(ann)


@pytest.mark.parametrize("what", ["the supervisor", "all of it"])
def test_a_member_that_is_killed_is_replaced_by_the_others(join: Join, what: str) -> None:
    ann, bob = join(), join()
    until(lambda: balanced(ann, bob), 30)
    processes = list(bob.processes().values())

    bob.behave(drain_takes=60)
    for pid in [bob.pid] + ([] if what == "the supervisor" else processes):
        os.kill(pid, signal.SIGKILL)

    until(lambda: shards(ann) == [ALL], 20)
    seen = fences(ann.journal())
    assert sum(len(set(epochs)) > 1 for epochs in seen.values()) >= 2
    check(ann)


def test_processes_whose_supervisor_stands_still_give_their_shards_before_others_take_them(
    join: Join,
) -> None:
    ann, bob = join(), join()
    until(lambda: balanced(ann, bob), 30)
    had = shards(bob)[0]

    os.kill(bob.pid, signal.SIGSTOP)
    until(lambda: shards(ann) == [ALL], 20)
    assert [entry.about for entry in ann.journal("lapse")] == [had]
    check(ann)

    os.kill(bob.pid, signal.SIGCONT)
    until(lambda: balanced(ann, bob), 20)
    check(ann)


def test_a_store_that_is_away_stops_everything_until_it_is_back(join: Join, tmp_path: Path) -> None:
    ann, bob = join(), join()
    until(lambda: balanced(ann, bob), 30)

    with closing(sqlite3.connect(tmp_path / "leases.db", isolation_level=None)) as lock:
        lock.execute("BEGIN EXCLUSIVE")
        until(lambda: len(ann.journal("lapse")) == 2, 20)
        until(lambda: ann.unowned() == ALL)
        until(lambda: not ann.status()["ready"], 20)
        assert "the lease store" in ann.status()["text"]
        opened = len(ann.journal("open"))
        (victim,) = ann.processes().values()
        os.kill(victim, signal.SIGKILL)
        until(lambda: len(ann.journal("boot")) == 3)
        until(lambda: "greeted" in [each["stage"] for each in ann.status()["processes"]])
        later = ann.status()["at"] + 1
        until(lambda: ann.status()["at"] > later)
        assert len(ann.journal("open")) == opened, "the plan that it knew may be an old one"
        lock.execute("ROLLBACK")

    until(lambda: balanced(ann, bob), 20)
    until(lambda: ann.status()["ready"])
    assert ann.log.count("the lease store is away") == 1
    check(ann)


@pytest.mark.parametrize(
    ("terms", "told"),
    [
        ({"shards": 8}, "bank has 4 shards, and 8 are asked for: start with --shards 4."),
        ({"single_active": True}, "bank runs without --single-active elsewhere"),
    ],
)
def test_who_does_not_fit_ends_with_what_to_do(
    join: Join, terms: dict[str, object], told: str
) -> None:
    ann = join()
    until(lambda: shards(ann) == [ALL], 30)

    bob = join(**terms)

    assert bob.exit_code() == 3
    assert f"qworker: {told}" in bob.log
    assert "Traceback" not in bob.log
    assert shards(ann) == [ALL]
    assert ann.journal("given") == []


def test_a_single_active_service_has_one_consumer_and_another_in_waiting(join: Join) -> None:
    ann = join(single_active=True, most_processes=1)
    until(lambda: shards(ann) == [ALL], 30)
    bob = join(single_active=True, most_processes=1)
    until(lambda: bob.status().get("ready"), 30)
    assert shards(ann, bob) == [ALL, []]

    ann.signal(signal.SIGTERM)
    assert ann.exit_code() == 0
    until(lambda: shards(bob) == [ALL])

    assert all(first < second for first, second in fences(bob.journal()).values())
    check(bob)


def test_a_member_that_lost_the_broker_leaves_its_shards_to_one_that_has_it(join: Join) -> None:
    ann, bob = join(), join()
    until(lambda: balanced(ann, bob), 30)

    ann.behave(away=list(ann.processes().values()))
    until(lambda: shards(ann, bob) == [[], ALL], 30)
    ann.behave()
    until(lambda: balanced(ann, bob), 30)

    check(ann)


def test_when_nobody_has_the_broker_everything_stays_where_it_is(join: Join) -> None:
    ann, bob = join(), join()
    until(lambda: balanced(ann, bob), 30)
    taken = len(ann.journal("take"))

    ann.behave(away=True)
    until(lambda: "the broker" in ann.status()["text"] and "the broker" in bob.status()["text"])
    later = ann.status()["at"] + 6  # three lengths of a lease
    until(lambda: ann.status()["at"] > later, 30)

    assert balanced(ann, bob)
    assert len(ann.journal("take")) <= taken + 4, "what moves before all know of it moves once"
    check(ann)
