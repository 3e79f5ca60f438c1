"""Fresh code and another number of processes, while the service runs."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from processes import is_alive
from supervised import Supervised, fell, overlaps, spans
from waiting import until


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Supervised]:
    """A service that is not started yet."""
    supervised = Supervised(tmp_path)
    yield supervised
    supervised.end()


def replaced(service: Supervised, before: dict[int, int]) -> bool:
    """Whether every process is another one than before."""
    now = service.processes()
    return (
        service.status().get("state") == "running"
        and now.keys() == before.keys()
        and not now.items() & before.items()
    )


def complete(service: Supervised, shards: int = 4) -> dict[int, list[int]]:
    """Return who has which shard, once every shard is told to be with somebody, and all is calm."""
    dealt = service.dealt()
    told = sorted(shard for own in dealt.values() for shard in own)
    calm = service.status().get("state") == "running" and service.unowned(shards) == []
    return dealt if calm and told == [*range(shards)] and all(dealt.values()) else {}


def unserved(service: Supervised, since: float) -> list[list[int]]:
    """Return what nobody had after each taking since then, of all that ever was had."""
    journal = service.journal()
    moments = [entry.at for entry in journal if entry.what == "take" and entry.at > since]
    had = spans(journal)
    return [
        sorted(s for s, held in had.items() if not any(e.begin <= at <= e.end for e in held))
        for at in moments
    ]


def test_a_reload_replaces_the_processes_one_by_one_without_a_gap(service: Supervised) -> None:
    service.behave(drain_takes=0.2)
    service.start_ready(processes=3)
    before = service.processes()
    dealt = until(lambda: complete(service))
    asked = time.monotonic()

    service.signal(signal.SIGHUP)
    until(lambda: replaced(service, before) and complete(service), 20)

    assert overlaps(service.journal()) == []
    assert fell(service.journal()) == []
    steps = ("boot", "open", "drain", "close", "take")
    changes = [e for e in service.journal() if e.what in steps and e.at > asked]
    assert [(e.what, e.index) for e in changes] == [
        (what, index) for index in range(3) for what in steps
    ], "a new process is connected before the old one drains"
    assert [entry.about for entry in service.journal("close")] == ["DRAINED"] * 3
    assert unserved(service, asked) == [[]] * 3, "the shards of one place at a time"
    assert service.dealt() == dealt, "to the place that it had"


@pytest.mark.parametrize("how", ["wrong", "unreachable", "crash"])
def test_code_that_does_not_boot_costs_nothing(service: Supervised, how: str) -> None:
    service.start_ready()
    before = service.processes()

    service.behave(boot=how)
    service.signal(signal.SIGHUP)

    until(lambda: "the processes that run go on as they are" in service.log, 30)
    until(lambda: service.status()["state"] == "running")
    assert service.processes() == before
    assert service.journal("drain") == []

    service.behave()
    service.signal(signal.SIGHUP)
    until(lambda: replaced(service, before), 20, "code that boots again is taken")


def test_a_reload_waits_until_the_new_process_has_declared(service: Supervised) -> None:
    service.start_ready()
    before = service.processes()

    service.behave(open="late", declare="unreachable")
    service.signal(signal.SIGHUP)
    until(lambda: service.log.count("broker.invalid does not answer") >= 2, 20)
    assert service.journal("drain") == []
    assert service.processes() == before
    assert service.unowned() == []

    service.behave(open="late")
    until(lambda: replaced(service, before), 30)
    assert overlaps(service.journal()) == []


@pytest.mark.parametrize(
    "terms",
    [
        {"shards": 8},
        {"service": "mailer"},
        {"single_active": True},
        {"leases": "redis://user:secret@elsewhere"},
        {"lease_ttl": 20.0},
    ],
)
def test_a_reload_refuses_settings_that_need_a_restart(
    service: Supervised, terms: dict[str, object]
) -> None:
    service.start_ready()
    before = service.processes()

    service.behave(terms=terms)
    service.signal(signal.SIGHUP)

    until(lambda: "and start it anew" in service.log)
    until(lambda: service.status()["state"] == "running")
    assert service.processes() == before
    assert "secret" not in service.log


def test_a_reload_takes_over_where_a_process_dies_meanwhile(service: Supervised) -> None:
    service.behave(only=0, drain_takes=3)
    service.start_ready()
    before = service.processes()

    service.signal(signal.SIGHUP)
    until(lambda: service.journal("drain"))
    for pid in before.values():
        os.kill(pid, signal.SIGKILL)

    until(lambda: replaced(service, before), 20)
    assert overlaps(service.journal()) == []


def hanging_successor(service: Supervised) -> int:
    """Ask for fresh code; return the process that hangs while it boots, as no later one does."""
    seen = service.pids_seen()
    service.behave(boot="hang")
    service.signal(signal.SIGHUP)
    (successor,) = until(lambda: service.pids_seen() - seen)
    service.behave()
    return successor


def test_a_reload_survives_the_death_of_a_successor(service: Supervised) -> None:
    service.start_ready()
    before = service.processes()

    os.kill(hanging_successor(service), signal.SIGKILL)

    until(lambda: replaced(service, before), 20)


def test_a_second_reload_while_the_first_boots_gets_the_latest_code(service: Supervised) -> None:
    service.start_ready()
    before = service.processes()

    hanging = hanging_successor(service)
    service.signal(signal.SIGHUP)

    until(lambda: replaced(service, before), 20)
    assert not is_alive(hanging)


def test_a_reload_does_not_forget_that_another_process_was_asked_for(service: Supervised) -> None:
    service.start_ready(shards=4, processes=2)
    before = service.processes()
    seen = service.pids_seen()

    service.behave(boot="hang")
    service.signal(signal.SIGTTIN)
    until(lambda: service.pids_seen() - seen)
    service.behave()
    service.signal(signal.SIGHUP)

    until(lambda: len(service.processes()) == 3 and service.status()["state"] == "running", 20)
    assert not service.processes().items() & before.items()
    assert overlaps(service.journal()) == []


def test_a_drain_in_the_middle_of_a_reload_ends_everything(service: Supervised) -> None:
    service.behave(drain_takes=1)
    service.start_ready()

    service.signal(signal.SIGHUP)
    until(lambda: service.journal("drain"))
    service.signal(signal.SIGTERM)

    assert service.exit_code() == 0
    assert not any(map(is_alive, service.pids_seen()))


def test_one_more_process_and_one_fewer(service: Supervised) -> None:
    service.behave(drain_takes=0.2)
    service.start_ready(shards=4, processes=2)

    before = service.processes()
    dealt = until(lambda: complete(service))

    service.signal(signal.SIGTTIN)
    until(lambda: len(service.processes()) == 3 and len(complete(service)) == 3, 20)
    assert before.items() <= service.processes().items(), "who runs goes on running"
    assert service.journal("drain") == []
    third = service.dealt()
    assert sorted(map(len, third.values())) == [1, 1, 2]
    assert all(set(third[index]) <= set(dealt[index]) for index in dealt)
    (moved,) = third[2]
    assert [entry.about for entry in service.journal("given")] == [[moved]]
    assert service.journal("take")[-1].at > service.journal("given")[-1].at

    service.signal(signal.SIGTTOU)
    until(lambda: len(service.processes()) == 2 and len(complete(service)) == 2, 20)
    service.signal(signal.SIGTTOU)
    until(lambda: len(service.processes()) == 1 and len(complete(service)) == 1, 20)

    assert service.processes() == {0: before[0]}
    assert service.dealt() == {0: [0, 1, 2, 3]}
    assert overlaps(service.journal()) == []
    assert fell(service.journal()) == []
    assert {entry.about for entry in service.journal("close")} == {"DRAINED"}


def test_a_shard_that_moves_waits_for_what_runs_of_it_and_no_other_does(
    service: Supervised,
) -> None:
    service.behave(give_takes=2.0)
    service.start_ready(shards=4, processes=1)
    asked = time.monotonic()

    service.signal(signal.SIGTTIN)
    until(lambda: len(service.processes()) == 2 and len(complete(service)) == 2, 20)

    moved = [shard for entry in service.journal("given") for shard in entry.about]
    assert len(moved) == 2
    for shard, held in spans(service.journal()).items():
        if shard not in moved:
            assert len(held) == 1, "it stays where it is"
            continue
        former, latter = held
        assert latter.begin > former.end > asked + 2.0
        assert latter.fence == former.fence, "one owner of the lease"


def test_a_process_that_dies_while_it_gives_a_shard_up_gives_it_so(service: Supervised) -> None:
    service.behave(give_takes=60)
    service.start_ready(shards=4, processes=1)
    (holder,) = service.processes().values()
    service.signal(signal.SIGTTIN)
    until(lambda: "process 0 gives" in service.log, 20)
    assert len(service.journal("take")) == 1

    service.behave()
    os.kill(holder, signal.SIGKILL)

    until(lambda: len(service.processes()) == 2 and len(complete(service)) == 2, 20)
    assert sorted(map(len, service.dealt().values())) == [2, 2]
    assert overlaps(service.journal()) == []


def heard(service: Supervised, number: int) -> bool:
    return service.log.count("got SIGTTIN") == number


def test_several_signals_add_up(service: Supervised) -> None:
    service.start_ready(shards=4, processes=1)

    for number in range(1, 4):
        service.signal(signal.SIGTTIN)
        until(partial(heard, service, number))

    until(lambda: len(service.processes()) == 4, 20)


def test_the_number_of_processes_has_limits(service: Supervised) -> None:
    service.start_ready(shards=2, processes=2, most_processes=2)
    before = service.processes()

    service.signal(signal.SIGTTIN)
    until(lambda: "not going to 3 processes: 2 is the most" in service.log)
    service.signal(signal.SIGTTOU)
    until(lambda: len(service.processes()) == 1, 20)
    service.signal(signal.SIGTTOU)
    until(lambda: "not going below one process" in service.log)

    assert service.running
    assert before.keys() == {0, 1}


@pytest.mark.parametrize("when", ["boot", "open"])
def test_a_process_that_does_not_start_leaves_their_number_as_it_was(
    service: Supervised, when: str
) -> None:
    service.start_ready(shards=4, processes=2)
    before = service.processes()
    dealt = until(lambda: complete(service))

    service.behave(only=2, **{when: "wrong"})
    service.signal(signal.SIGTTIN)

    until(lambda: "the processes that run go on as they are" in service.log)
    until(lambda: service.status()["state"] == "running")
    assert service.processes() == before
    assert service.dealt() == dealt
    assert service.journal("given") == []

    service.behave()
    service.signal(signal.SIGTTIN)
    until(lambda: len(service.processes()) == 3, 20, "it can be asked for again")


def test_another_number_asks_nothing_of_the_code_of_those_that_run(service: Supervised) -> None:
    service.start_ready(shards=4, processes=2)
    before = service.processes()

    service.behave(only=0, boot="wrong")
    service.signal(signal.SIGTTIN)

    until(lambda: len(service.processes()) == 3 and len(complete(service)) == 3, 20)
    assert before.items() <= service.processes().items()


def test_changed_code_is_loaded_by_itself(service: Supervised) -> None:
    service.start_ready(reload=True)
    before = service.processes()
    code = service.folder / "handlers.py"

    def changed() -> bool:
        code.write_text(f"# {len(service.log)}\n")  # the watch begins some time after the start
        return "changed: handlers.py" in service.log

    until(changed)
    until(lambda: not service.processes().items() & before.items() and service.processes(), 20)
    assert overlaps(service.journal()) == []
