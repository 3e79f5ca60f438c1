"""Each mechanism of the product is broken once, and the simulation notices it."""

from __future__ import annotations

import pytest

from simulation import mutate, seams
from simulation.courses import COURSES
from simulation.ledger import Finding
from simulation.mutations import MUTATIONS
from simulation.schedule import Result, simulate

#: Schedules within which it has to be noticed.
BUDGET = 300


@pytest.mark.parametrize("name", MUTATIONS)
def test_it_is_noticed_what_is_broken(name: str) -> None:
    broken = MUTATIONS[name]
    with seams.in_place(), broken.breaks():
        for seed in (broken.first, *range(BUDGET - 1)):
            if broken.noticed(simulate(seed, COURSES[broken.course])):
                return
    pytest.fail(f"{name!r}: not noticed in {BUDGET} schedules of {broken.course!r}")


def test_a_schedule_that_is_red_for_another_reason_does_not_count() -> None:
    stuck, lost = Finding(None, "not done in time: p1"), Finding("a", "lost: p2", ("p2",))
    result = Result(7, [stuck, lost], [], 0, 0.0)

    assert MUTATIONS["acknowledged when it is delivered"].noticed(result) == lost
    assert MUTATIONS["a retry does not hold its lane"].noticed(result) is None
    assert [name for name, broken in MUTATIONS.items() if not all(broken.sees)] == []


def test_the_command_tells_the_story_of_a_red_and_a_table_at_the_end(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert mutate.main(["--only", "acknowledged before it is recorded"]) == 0

    told, _, table = capsys.readouterr().out.partition("\n\n")
    of_which, what, *lines = told.splitlines()
    assert of_which == "acknowledged before it is recorded (seed 0 of 'short'):"
    assert what.startswith("  settled before it is recorded: p")
    assert 2 < len(lines) < 20
    assert "effect of record" in lines[-1]
    assert table.splitlines()[2].startswith("| order of done and ack | acknowledged before")


def test_the_command_fails_where_something_is_not_noticed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert mutate.main(["--only", "completes whoever owns it", "--budget", "1"]) == 1

    assert "1 of 1 not noticed: completes whoever owns it" in capsys.readouterr().out


def test_the_help_of_the_command_names_all_that_can_be_broken(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        mutate.main(["--help"])

    assert ended.value.code == 0
    told = capsys.readouterr().out.splitlines()
    assert [name for name in MUTATIONS if f"  {name}" not in told] == []


@pytest.mark.parametrize("options", [["--budget", "0"], ["--only", "nothing"]], ids=" ".join)
def test_a_mistake_in_an_option_is_told(
    options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        mutate.main(options)

    assert ended.value.code == 2
    assert f"argument {options[0]}: " in capsys.readouterr().err
