"""A campaign keeps a record of each trial, tells every broken one, and outlives its own errors."""

from __future__ import annotations

import json
import logging
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from chaos import campaign, nemesis
from chaos.campaign import Trial, carry_out, failed, main, publishers_log
from chaos.findings import Findings
from chaos.record import record, table
from chaos.toll import Toll
from chaos.trial import Plan, Verdict

PLAN = Plan(seed=7)
FACTS = {"workload": "Ledger", "place": "embedded", "tier": "SQLite"}


def recorded(found: Findings | None = None) -> dict[str, Any]:
    """Return the record of a trial."""
    return record(FACTS, Verdict(PLAN, found or Findings()))


def faulty(**faults: int) -> dict[str, Any]:
    """Return the record of a trial with so many faults of each name."""
    return record(FACTS, Verdict(PLAN, Findings(), toll=Toll(faults=faults)))


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


def test_what_was_thrown_is_kept_and_summed_up_by_fault() -> None:
    records = [faulty(reload=1), faulty(reload=2, scale=1) | {"place": "servers", "tier": "Redis"}]

    assert records[1]["faults"] == {"reload": 2, "scale": 1}
    assert "\nFaults thrown:\n" in table(records)
    assert row("fault", records) == ["embedded, SQLite", "servers, Redis", "all"]
    assert row("reload", records) == ["1", "2", "3"]
    assert row("scale", records) == ["0", "1", "1"]
    assert row("all faults", records) == ["1", "3", "4"]


def test_records_of_before_faults_were_counted_are_said_to_lack_them() -> None:
    old = recorded()
    del old["faults"]

    assert "Faults thrown in 1 of 2 trials:" in table([old, faulty(reload=3)])
    assert row("reload", [old, faulty(reload=3)]) == ["3", "3"]
    assert "Faults thrown" not in table([old])


def test_the_recorded_campaign_can_be_summed_up() -> None:
    kept = Path(__file__).parents[2] / "benchmarks" / "results" / "campaign.jsonl"
    records = [json.loads(line) for line in kept.read_text().splitlines()]
    assert row("trials", records)[-1] == str(len(records))


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


def test_a_trial_is_told_of_while_it_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def play() -> Verdict:
        runs = capsys.readouterr().out
        assert runs.startswith("runs   ")
        assert "seed 7" in runs
        assert "30 s of a storm of kills" in runs
        return Verdict(PLAN, Findings())

    assert carry_out(Trial.of(7, 30.0, 1.0), tmp_path / "trial", play)["held"]


def test_all_that_happened_is_told_of_a_trial_that_held_where_it_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trial, file = Trial.of(7, 30.0, 1.0), tmp_path / "story"
    verdict = Verdict(PLAN, Findings(), timeline=["     0.50 s  reload: alice"])

    carry_out(trial, tmp_path / "1", lambda: verdict)
    carry_out(trial, tmp_path / "2", lambda: verdict, str(file))
    assert "reload: alice" not in capsys.readouterr().out
    carry_out(trial, tmp_path / "3", lambda: verdict, str(file))
    held, told, *_ = file.read_text().splitlines()
    assert held.startswith("held   ")
    assert told == "     0.50 s  reload: alice"
    assert file.read_text().count("reload: alice") == 2, "it is appended"

    carry_out(trial, tmp_path / "4", lambda: verdict, "-")
    assert "\n     0.50 s  reload: alice\n" in capsys.readouterr().out


def test_what_publishers_say_goes_into_a_file_while_a_trial_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with publishers_log(tmp_path / "publishers.log"):
        logging.getLogger("worker").warning("the broker does not answer")

    assert "the broker does not answer\n" in (tmp_path / "publishers.log").read_text()
    assert capsys.readouterr().err == ""
    assert logging.getLogger("worker").handlers == []


@pytest.mark.parametrize(
    "options",
    [
        ["--storms", "1.5"],
        ["--minutes", "0"],
        ["--seconds", "nan"],
        ["--seed", "1", "--again", "2"],
        ["--table", "/nowhere/campaign.jsonl"],
    ],
    ids=" ".join,
)
def test_a_mistake_in_an_option_is_told_and_nothing_is_run(
    options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(options)

    assert ended.value.code == 2
    assert f"argument {options[-2]}: " in capsys.readouterr().err


def test_a_line_of_the_record_says_of_which_tree_and_with_which_options(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class NoServer(AbstractContextManager[None]):
        def __init__(self, *_: object) -> None: ...

        def __exit__(self, *_: object) -> None: ...

    for name in ("RabbitMQ", "RedisByClock"):
        monkeypatch.setattr(campaign, name, NoServer)
    monkeypatch.setattr(Trial, "play", lambda *_: Verdict(PLAN, Findings()))
    monkeypatch.setattr(campaign, "commit", lambda: "1c1fd0e-dirty")
    file = tmp_path / "campaign.jsonl"
    words = ["--again", "7", "--seconds", "12", "--storms", "0.25", "--record", str(file)]

    assert main(words) == 0
    (line,) = map(json.loads, file.read_text().splitlines())
    assert (line["commit"], line["seconds"], line["storms"]) == ("1c1fd0e-dirty", 12.0, 0.25)


def test_what_cannot_be_had_here_is_told_as_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    trials = [Trial.of(seed, 30.0, 0.0) for seed in range(20)]
    for able, missing in ((True, []), (False, ["disk-full"])):
        monkeypatch.setattr(nemesis, "can_mount", lambda able=able: able)
        for trial in trials:
            expected = missing if trial.place == "embedded" else []
            assert trial.facts["left_out"] == expected
            assert ("but disk-full" in trial.outlook) == bool(expected)


def test_a_campaign_that_is_interrupted_sums_up_what_it_has(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def begin(_options: object, records: list[dict[str, Any]]) -> None:
        records.append(recorded())
        raise KeyboardInterrupt

    monkeypatch.setattr(campaign, "_campaign", begin)
    assert main([]) == 130
    assert "| trials | 1 | 1 |" in capsys.readouterr().out
