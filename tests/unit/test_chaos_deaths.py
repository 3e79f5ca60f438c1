"""A process that nobody killed, and that nobody told to end, is told."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from chaos.deaths import End, Watch, lost_lines, unexplained, unexplained_ends
from chaos.executions import Fault, Kind
from chaos.history import Entry, Torn
from judged import ALICE, BOB, NAMES, killed, outage
from waiting import until


def told(*lines: str) -> list[tuple[str, str]]:
    """Return a log of these messages."""
    return [("alice log.1", "\n".join(json.dumps({"message": line}) for line in lines))]


def ended(pid: int, how: str) -> str:
    return f"process 0 ended (pid {pid}): {how}"


def complaints(log: list[tuple[str, str]], *faults: Fault, asked: float | None = None) -> list[str]:
    return unexplained(log, faults, {} if asked is None else {"alice": [asked]})


def gone(pid: int, at: float) -> Fault:
    return Fault(Kind.GONE, NAMES[pid], at - 0.1, at, frozenset({pid}))


def test_who_ended_as_it_was_told_to_is_no_news() -> None:
    lines = [ended(ALICE, how) for how in ("exit code 0", "exit code 0, drained")]

    assert complaints(told("process 0: ready", *lines), gone(ALICE, 50)) == []


def test_who_is_ended_by_its_supervisor_or_leaves_something_needs_a_fault_before() -> None:
    cut = Fault(Kind.CUT, "alice", 40, 45)
    for how in ("by the supervisor", "exit code 4", "exit code 75, abandoned"):
        log = told(ended(ALICE, how))

        assert len(complaints(log, gone(ALICE, 50))) == 1
        assert complaints(log, gone(ALICE, 50), cut) == []
        assert complaints(log, gone(ALICE, 50), outage(10, 25)) == []
        for fault in (replace(cut, supervisor="bob"), outage(1, 9), outage(51, 60)):
            assert len(complaints(log, gone(ALICE, 50), fault)) == 1, fault


def test_who_had_yet_to_connect_is_ended_at_a_signal() -> None:
    log = told(ended(ALICE, "by the supervisor"))

    assert complaints(log, gone(ALICE, 50), asked=48) == []
    for at in (20, 51):
        assert len(complaints(log, gone(ALICE, 50), asked=at)) == 1, at
    for how in ("by the supervisor, drained", "exit code 4"):
        assert len(complaints(told(ended(ALICE, how)), gone(ALICE, 50), asked=48)) == 1


def end(code: int, *asked: int) -> End:
    return End("alice", ALICE, code, 50.0, asked, "the last words")


def test_how_a_supervisor_ends_needs_a_signal_or_a_fault() -> None:
    cut = Fault(Kind.CUT, "alice", 40, 45)
    term = signal.SIGTERM
    for code, asked, faults in (
        (0, [term], []),
        (75, [term], [cut]),
        (130, [term, term], []),
        (4, [], [cut]),
        (5, [], [cut]),
        (-9, [], [killed(ALICE, 49)]),
        (-15, [term], []),
        (-1, [signal.SIGHUP], []),
    ):
        assert unexplained_ends([end(code, *asked)], faults) == [], code
        less = [end(code, *asked[1:])], faults if asked else []
        assert unexplained_ends(*less) == [f"alice ended with exit code {code}: the last words"]
    assert len(unexplained_ends([end(75, term)], [])) == 1
    assert len(unexplained_ends([end(-9)], [killed(BOB, 49)])) == 1
    assert len(unexplained_ends([end(4)], [replace(cut, since=1, until=2)])) == 1
    for code in (1, 2, 3, -11):
        assert len(unexplained_ends([end(code, term)], [cut, killed(ALICE, 49)])) == 1, code


def test_who_died_of_itself_is_told() -> None:
    for how in ("exit code 1, failed", "exit code 76, stuck", "exit code 40", "killed by SIGSEGV"):
        assert complaints(told(ended(ALICE, how)), killed(ALICE, 1)) == [
            f"alice log.1: {ended(ALICE, how)}"
        ]


def test_a_kill_explains_the_death_of_whom_it_met() -> None:
    log = told(ended(ALICE, "killed by SIGKILL"))

    assert complaints(log, killed(ALICE, 1)) == []
    assert len(complaints(log, killed(BOB, 1))) == 1


def test_a_traceback_between_handlers_is_told() -> None:
    raw = "Traceback (most recent call last):\n  File …\nRuntimeError: between handlers\n"

    assert complaints([("alice log.1", raw)]) == ["alice log.1: Traceback (most recent call last):"]
    assert complaints(told("the process cannot go on")) == ["alice log.1: the process cannot go on"]
    assert complaints(told("ledger.count failed at attempt 1")) == []


def test_pieces_of_what_two_processes_dump_at_once_are_no_complaint() -> None:
    assert complaints([("alice log.1", "Timeout (0:00:02)!\n1045\n[87]\n{}\n")]) == []


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


def torn(pid: int, place: int = 0) -> Torn:
    """Return half a line of an effect of the event x."""
    return Torn(f'{{"pid": {pid}, "at": 1.0, "what": "effect", "id": "x", "han', place)


#: So little of a line that nobody knows whose it is.
STUB = Torn('{"pid": 1', 0)


def test_a_death_cuts_one_line_short() -> None:
    assert lost_lines([torn(ALICE), torn(BOB)], [], [killed(ALICE, 1), gone(BOB, 2)]) == []
    (told,) = lost_lines([torn(ALICE), torn(BOB)], [], [killed(ALICE, 1)])
    assert told.startswith('{"pid": 22,')
    assert told.endswith(" x"), "for the story of that event"
    assert len(lost_lines([torn(ALICE), torn(ALICE)], [], [killed(ALICE, 1)])) == 1


def test_who_died_wrote_nothing_behind_what_its_death_has_cut_short() -> None:
    entries = [Entry(what="begin", at=1.0, pid=pid) for pid in (ALICE, ALICE, BOB)]

    assert lost_lines([torn(ALICE, 2)], entries, [killed(ALICE, 1)]) == []
    assert len(lost_lines([torn(ALICE, 1)], entries, [killed(ALICE, 1)])) == 1


def test_what_is_nobodys_is_of_one_that_was_killed_and_left_no_other() -> None:
    assert len(lost_lines([STUB], [], [])) == 1
    assert lost_lines([STUB], [], [killed(ALICE, 1)]) == []
    assert len(lost_lines([STUB, STUB], [], [killed(ALICE, 1)])) == 1
    assert len(lost_lines([STUB, torn(ALICE)], [], [killed(ALICE, 1)])) == 1
    assert lost_lines([STUB, torn(ALICE)], [], [killed(ALICE, 1), killed(BOB, 1)]) == []
    assert len(lost_lines([STUB], [], [gone(ALICE, 1)])) == 1, "it may have ended in order"
