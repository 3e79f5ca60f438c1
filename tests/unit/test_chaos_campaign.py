"""A campaign keeps a record of each trial, tells every broken one, and outlives its own errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from chaos.campaign import Trial, carry_out, failed, main
from chaos.findings import Findings
from chaos.record import record, table
from chaos.trial import Plan, Verdict

PLAN = Plan(seed=7)
FACTS = {"workload": "Ledger", "place": "embedded", "tier": "SQLite"}


def recorded(found: Findings | None = None) -> dict[str, Any]:
    """Return the record of a trial."""
    return record(FACTS, Verdict(PLAN, found or Findings()))


def row(title: str, records: list[dict[str, Any]]) -> list[str]:
    """Return the cells of a row of the table."""
    for line in table(records).splitlines():
        first, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        if first == title:
            return cells
    raise AssertionError(f"no row {title!r}")


def sum_up(folder: Path, *records: dict[str, Any]) -> int:
    """Write a record, and return how `campaign.py --table` of it ends."""
    file = folder / "campaign.jsonl"
    file.write_text("".join(json.dumps(each) + "\n" for each in records))
    return main(["--table", str(file)])


KINDS = [name for name, _ in Findings().broken]


@pytest.mark.parametrize("number", range(len(KINDS)), ids=KINDS)
def test_every_kind_of_broken_promise_has_a_row(number: int) -> None:
    found = Findings()
    found.broken[number][1].append("this")  # type: ignore[attr-defined]  # they are lists

    records = [recorded(), recorded(found)]
    assert row(KINDS[number], records) == ["1", "1"]
    assert row("broken trials", records) == ["1", "1"]
    assert f"- seed 7: {KINDS[number]}: 1" in table(records)


def test_a_column_is_a_place_and_a_tier() -> None:
    other = recorded(Findings(lost=["h 1", "h 2"])) | {"place": "servers", "tier": "Redis"}

    assert row("", [recorded(), other]) == ["embedded, SQLite", "servers, Redis", "all"]
    assert row("lost", [recorded(), other]) == ["0", "2", "2"]


def test_records_of_before_a_kind_was_looked_for_are_summed_up_too() -> None:
    old = recorded()
    del old["wrong"], old["harness error"]

    assert row("wrong", [old, recorded(Findings(wrong=["money"]))]) == ["1", "1"]


def test_summing_up_a_record_ends_with_1_where_a_trial_broke(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sum_up(tmp_path, recorded()) == 0
    assert sum_up(tmp_path, recorded(), recorded(Findings(wrong=["money"]))) == 1
    assert "| broken trials | 1 | 1 |" in capsys.readouterr().out


def test_an_empty_record_shows_nothing_that_was_held(tmp_path: Path) -> None:
    assert sum_up(tmp_path) == 1


def test_an_error_of_the_harness_is_a_broken_trial_whose_folder_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "trial"

    def play() -> Verdict:
        (folder / "history").touch()
        raise FileNotFoundError("points.new")

    kept = carry_out(Trial.of(7, 30.0, 1.0), folder, play)

    assert not kept["held"]
    assert kept["harness error"] == "FileNotFoundError: points.new"
    assert (folder / "history").exists()
    told = capsys.readouterr().out
    assert "BROKEN" in told
    assert "in play" in told, "the traceback"
    assert str(folder) in told
    assert row("harness errors", [kept]) == ["1", "1"]
    assert "- seed 7: harness error: FileNotFoundError: points.new" in table([kept])
    assert sum_up(tmp_path, recorded(), kept) == 1


def test_the_folder_of_a_trial_that_held_is_not_kept(tmp_path: Path) -> None:
    verdict = Verdict(PLAN, Findings())
    assert carry_out(Trial.of(7, 30.0, 1.0), tmp_path / "trial", lambda: verdict)["held"]
    assert not (tmp_path / "trial").exists()


def test_whoever_stops_a_campaign_stops_it(tmp_path: Path) -> None:
    def play() -> Verdict:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        carry_out(Trial.of(7, 30.0, 1.0), tmp_path / "trial", play)


def test_a_verdict_on_an_error_is_not_held_and_tells_it_in_its_line() -> None:
    verdict = failed(PLAN, ValueError("of the harness"))
    assert not verdict.held
    assert "ValueError: of the harness" in verdict.line
