"""What the store has recorded is noted before anything else happens, and nothing else is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from chaos.clerk import recorded
from chaos.executions import faults
from chaos.history import Entry, History

#: A process whose store answers what the last line of it says, for messages m0, m1 and so on.
PROGRAM = """
import sys
sys.path[:0] = {path!r}
from types import SimpleNamespace
import sitecustomize
from chaos.wrapping import _changes
from worker.dedup.base import Answer

def task(number):
    message = SimpleNamespace(id=f"m{{number}}")
    return SimpleNamespace(handler=SimpleNamespace(full_name="s.h"), message=message)

def stub():
    from worker.dialogue import Dialogue, Replies
    completed = [(task(n), answer) for n, answer in enumerate({answers})]
    Dialogue.exchange = lambda *_, **__: Replies(completed, [], False, [])

if "worker.dialogue" in _changes:
    _changes["worker.dialogue"].insert(0, stub)
from worker.dialogue import Dialogue
print(hasattr(Dialogue.exchange, "__wrapped__"))
Dialogue.exchange(SimpleNamespace(_completing=[]))
"""


def run(folder: Path, answers: str, **environment: str) -> tuple[int, list[Entry]]:
    """Run the program; return how it ended, and what it noted."""
    tests = Path(__file__).parents[1]
    # Without the site, and so without what it knows of an editable installation.
    paths = [str(tests / "chaos" / "startup"), *sys.path, str(tests.parent)]
    done = subprocess.run(
        [sys.executable, "-S", "-c", PROGRAM.format(path=paths, answers=answers)],
        env={**os.environ, **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode, History(folder / "history").entries()


def test_what_was_kept_is_noted_in_one_line_and_what_was_refused_is_not(tmp_path: Path) -> None:
    answers = "[Answer.KEPT, Answer.STALE, Answer.ALREADY_DONE]"
    _, entries = run(tmp_path, answers, CHAOS_RECORDS="history")

    (line,) = entries
    assert line.what == "recorded"
    assert json.loads(line.detail) == [["s.h", "m0"], ["s.h", "m2"]]
    assert recorded(entries) == {("s.h", "m0"): [line.at], ("s.h", "m2"): [line.at]}


def test_an_answer_that_is_about_nothing_recorded_leaves_no_line(tmp_path: Path) -> None:
    for answers in ("[]", "[Answer.STALE]"):
        assert run(tmp_path, answers, CHAOS_RECORDS="history") == (0, [])


def test_it_is_noted_before_the_first_crash_point_behind_it(tmp_path: Path) -> None:
    (tmp_path / "points").write_text(json.dumps({"after the record": 1.0}))
    names = {"CHAOS_RECORDS": "history", "CHAOS_HISTORY": "history", "CHAOS_POINTS": "points"}
    code, entries = run(tmp_path, "[Answer.KEPT]", **names)

    assert code == -signal.SIGKILL
    assert [entry.what for entry in entries] == ["recorded", "fault"]
    assert faults(entries)[0].what == "kill -9, after the record"


def test_who_dies_before_that_point_notes_nothing(tmp_path: Path) -> None:
    (tmp_path / "points").write_text(json.dumps({"after the record": 1.0}))
    names = {"CHAOS_RECORDS": "history", "CHAOS_HISTORY": "history", "CHAOS_POINTS": "points"}
    _, entries = run(tmp_path, "[]", **names)

    assert entries == []


@pytest.mark.parametrize("lines", [[], [Entry(what="effect", at=1.0, id="x", handler="h")]])
def test_a_history_without_such_lines_tells_of_nothing(lines: list[Entry]) -> None:
    assert recorded(lines) == {}
