"""When the number of shards was changed, by the history: no refused one, and none for ever."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from subprocess import Popen
from time import monotonic
from typing import Any

import pytest

from chaos.changes import changes_in
from chaos.places import Place
from chaos.stage import Stage
from chaos.workloads import Ledger
from servers import Guard


class Desk:
    """A supervisor whose commands end with a code, or never; and its status."""

    last_pid = None

    def __init__(self, code: int | None = None, status: str = "") -> None:
        self._script = "sleep 60" if code is None else f"exit {code}"
        self._status = status

    def begin(self, *_words: str) -> Popen[bytes]:
        return Popen(["/bin/sh", "-c", self._script])

    def run(self, *_words: str) -> Any:
        class Done:
            returncode, stdout, stderr = int(not self._status), self._status, "no answer"

        return Done


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    place, folder = Place(broker="memory://"), tmp_path / "stage"
    with Guard() as guard:
        made = Stage(folder, guard, Ledger(1), place, transactional=False, options=())
        with made:
            yield made


def ask(stage: Stage, code: int | None = None) -> bool:
    """Ask for another number of shards; tell whether that may go on, once nobody waits for it."""
    desk: Any = Desk(code)
    asked = stage.reshard(desk, 4)
    if code is None:
        asked.kill()
    asked.wait()
    return stage.resharded(asked)


def changes(stage: Stage) -> list[tuple[float, float]]:
    return changes_in(stage.history.entries())


def says(stage: Stage, status: str) -> None:
    desk: Any = Desk(status=status)
    stage.supervisors["desk"] = desk


def test_a_change_that_is_refused_is_none(stage: Stage) -> None:
    assert not ask(stage, 2)
    assert changes(stage) == []


def test_a_change_that_is_waited_for_is_over_then(stage: Stage) -> None:
    begin = monotonic()
    assert not ask(stage, 0)

    ((since, until),) = changes(stage)
    assert begin <= since <= until <= monotonic()


@pytest.mark.parametrize("code", [None, 1, 4])
def test_a_change_that_nobody_waits_for_is_over_once_none_goes_on(
    stage: Stage, code: int | None
) -> None:
    assert ask(stage, code)
    for status in ("", '{"reshard": {"phase": "drain"}}', '{"reshard": null, "generation": null}'):
        says(stage, status)
        assert stage.is_changing()
        assert [until for _, until in changes(stage)] == [math.inf], status
    asked_at = monotonic()
    says(stage, '{"reshard": null, "generation": 2}')
    assert not stage.is_changing()

    ((_, until),) = changes(stage)
    assert asked_at <= until <= monotonic()
    assert ask(stage)
    assert changes(stage)[1][1] == math.inf, "the next one is not"


def test_a_change_that_is_had_ends_what_was_asked_for_before(stage: Stage) -> None:
    assert ask(stage)
    assert not ask(stage, 0)

    assert all(until < math.inf for _, until in changes(stage))
    assert len(changes(stage)) == 2


def test_who_only_asks_when_another_change_is_over_has_yet_to_begin(stage: Stage) -> None:
    assert ask(stage)
    desk: Any = Desk()
    asked = stage.reshard(desk, 4)
    says(stage, '{"reshard": null, "generation": 2}')
    assert stage.change() == ""
    asked.kill()
    asked.wait()
    assert stage.resharded(asked)

    (_, first), (_, second) = changes(stage)
    assert first < math.inf
    assert second == math.inf, "it asked a moment later"
