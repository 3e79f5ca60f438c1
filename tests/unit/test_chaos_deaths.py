"""A process that nobody killed, and that nobody told to end, is told."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

from chaos.deaths import Watch, unexplained
from chaos.executions import Fault, Kind
from judged import ALICE, BOB, killed
from waiting import until


def told(*lines: str) -> list[tuple[str, str]]:
    """Return a log of these messages."""
    return [("alice log.1", "\n".join(json.dumps({"message": line}) for line in lines))]


def ended(pid: int, how: str) -> str:
    return f"process 0 ended (pid {pid}): {how}"


def test_who_ended_as_it_was_told_to_is_no_news() -> None:
    fine = ("exit code 0", "exit code 0, drained", "exit code 75, abandoned", "exit code 4")
    lines = [
        ended(ALICE, how) for how in (*fine, "by the supervisor", "by the supervisor, drained")
    ]

    assert unexplained(told("process 0: ready", *lines), []) == []


def test_who_died_of_itself_is_told() -> None:
    for how in ("exit code 1, failed", "exit code 76, stuck", "exit code 40", "killed by SIGSEGV"):
        assert unexplained(told(ended(ALICE, how)), [killed(ALICE, 1)]) == [
            f"alice log.1: {ended(ALICE, how)}"
        ]


def test_a_kill_explains_the_death_of_whom_it_met() -> None:
    log = told(ended(ALICE, "killed by SIGKILL"))

    assert unexplained(log, [killed(ALICE, 1)]) == []
    assert len(unexplained(log, [killed(BOB, 1)])) == 1


def test_a_traceback_between_handlers_is_told() -> None:
    raw = "Traceback (most recent call last):\n  File …\nRuntimeError: between handlers\n"

    assert unexplained([("alice log.1", raw)], []) == [
        "alice log.1: Traceback (most recent call last):"
    ]
    assert unexplained(told("the process cannot go on"), []) == [
        "alice log.1: the process cannot go on"
    ]
    assert unexplained(told("ledger.count failed at attempt 1"), []) == []


def test_the_watch_notes_once_who_is_gone_and_since_when() -> None:
    noted: list[Fault] = []
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        supervisor: Any = SimpleNamespace(name="alice", last_pid=process.pid)
        watch = Watch(lambda: [supervisor], noted.append)
        watch.look()
        assert noted == []
        process.kill()

        def is_noted() -> bool:
            watch.look()
            return bool(noted)

        until(is_noted, message="it is gone")
        watch.look()

    (fault,) = noted
    assert (fault.kind, fault.supervisor, fault.pids) == (
        Kind.GONE,
        "alice",
        frozenset({process.pid}),
    )
    assert fault.since <= fault.until
