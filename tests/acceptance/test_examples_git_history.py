"""A history of files through a service that is killed all along: the example, and the demo."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from acceptance.examples import ROOT, Outcome, run
from worker.demo.history import made_up, read_changes, tree_of, write_changes
from worker.demo.report import Report
from worker.demo.scenario import Scenario
from worker.demo.trial import Trial

DATA = Path(os.environ.get("QWORKER_HISTORY_DATA") or ROOT.parent.joinpath("shared", "data"))
SLICE = 1500


def number(story: Outcome, name: str) -> int:
    """Return a number of the table at the end."""
    found = re.search(rf"^{name} +(?:≥ )?([\d,]+)", story.output, re.MULTILINE)
    assert found, f"no {name!r} in:\n{story.output}"
    return int(found[1].replace(",", ""))


def assert_held(story: Outcome, second_effects: str = "second effects") -> None:
    assert story.exit_code == 0, story.output
    for name in (second_effects, "out of order", "lost", "dead letters", "wrong files"):
        assert number(story, name) == 0, story.output
    assert "All promises held" in story.output


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A git repository with merges, renames, deletions, links, odd names and empty commits."""
    folder = tmp_path / "a repository"
    folder.mkdir()

    def git(*arguments: str) -> None:
        identity = ("-c", "user.name=A", "-c", "user.email=a@example.com", "-c", "core.hooksPath=")
        subprocess.run(
            ["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, timeout=30
        )

    def commit(**files: str) -> None:
        for name, text in files.items():
            (folder / name).write_text(text)
        git("add", "--all")
        git("commit", "-m", "change", "--allow-empty")

    git("init", "--initial-branch=main")
    commit(a="1", b="1", keep="1")
    (folder / "ünïcödé \t name").write_text("1")
    commit(a="2")
    for round_ in range(8):
        git("switch", "-c", f"side-{round_}")
        commit(**{f"side-{round_}": "1", "b": f"side {round_}"})
        commit(**{f"side-{round_}": "2"})
        git("switch", "main")
        commit(a=f"main {round_}")
        git("merge", "--no-ff", "-m", "merge", f"side-{round_}")
    git("mv", "a", "renamed")
    commit()
    (folder / "keep").unlink()
    (folder / "keep").symlink_to("renamed")
    commit()
    git("rm", "b")
    commit()
    commit()
    return folder


def test_the_history_of_a_repository_with_merges_and_renames(repository: Path) -> None:
    story = run("examples.git_history", str(repository), "--shards=4", "--seed=7", "--rate=40")

    assert_held(story)
    assert number(story, "applied") == 2 + 1 + 1 + 1 + 8 * 3 + 2 + 1 + 1, story.output


def test_a_prepared_file_through_rabbitmq_and_redis_with_a_restart(
    tmp_path: Path, amqp_url: str, redis_url: str
) -> None:
    real = DATA / "kombu-history.jsonl.gz"
    changes = read_changes(real)[:SLICE] if real.exists() else made_up(SLICE)
    file = tmp_path / "history.jsonl.gz"
    write_changes(file, changes)

    story = run(
        "examples.git_history", str(file), "--restart", "--seed=3", broker=amqp_url, dedup=redis_url
    )

    assert_held(story)
    assert number(story, "applied") == SLICE
    assert number(story, "published") > SLICE
    assert number(story, "processes killed") > 0


@pytest.mark.long
def test_without_once_a_second_effect_needs_a_kill(
    tmp_path: Path, amqp_url: str, redis_url: str
) -> None:
    file = tmp_path / "history.jsonl"
    write_changes(file, made_up(SLICE))
    options = ("--without-once", "--seed=4", "--kill-every=0.5")

    story = run("examples.git_history", str(file), *options, broker=amqp_url, dedup=redis_url)

    assert_held(story, "other second effects")
    assert number(story, "second effects") >= 0
    assert number(story, "processes killed") > 0


def test_publishing_a_history_again_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    write_changes(file, made_up(300))
    options = (str(file), f"--folder={tmp_path / 'state'}", "--shards=2", "--kill-every=0")
    assert_held(run("examples.git_history", *options))

    again = run("examples.git_history", *options)

    assert_held(again)
    assert number(again, "duplicates dropped") >= number(again, "published") >= 300
    assert number(again, "applied") == 300


def test_thousands_of_duplicates_are_dropped_in_a_moment(
    tmp_path: Path, amqp_url: str, redis_url: str
) -> None:
    changes = made_up(3000)
    scenario = Scenario(
        changes=changes,
        tree=tree_of(changes),
        repository="made-up",
        folder=tmp_path,
        broker=amqp_url,
        dedup=redis_url,
        kill_every=None,
        patience=20.0,
    )
    first = Trial(scenario).run()
    assert first.held, "\n".join(first.story)

    again = Trial(scenario).run()

    assert again.held, "\n".join(again.story)
    assert again.duplicates == again.published > 3000


def with_a_store_that_forgets(folder: Path, *, once: bool) -> Report:
    """Run a small history with many duplicates, all of which the store gives to the handler."""
    changes = made_up(400)
    scenario = Scenario(
        changes=changes,
        tree=tree_of(changes),
        repository="made-up",
        folder=folder,
        dedup="acceptance.apps.forgetful:Forgetful",
        once=once,
        shards=2,
        processes=2,
        duplicates=0.3,
        kill_every=None,
    )
    return Trial(scenario).run()


def test_the_handlers_own_transaction_remembers_what_the_store_forgets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"))

    report = with_a_store_that_forgets(tmp_path, once=True)

    assert report.held, "\n".join(report.story)
    assert report.second_effects == 0
    assert report.repetitions == report.published - report.events > 50


def test_a_memory_that_forgets_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"))

    report = with_a_store_that_forgets(tmp_path, once=False)

    story = "\n".join(report.story)
    assert not report.held
    assert len(report.findings.out_of_order) + len(report.findings.unexplained) > 50
    assert re.search(r"^out of order: \d+\n  .*: revision \d+, row \d+$", story, re.MULTILINE), (
        story
    )
    assert re.search(r"^ledger of .*:\n  row \d+: revision 1, process", story, re.MULTILINE), story


def test_what_cannot_be_read_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "broken.jsonl").write_text('{"commit": 1}\n')

    story = run("examples.git_history", str(tmp_path / "broken.jsonl"))

    assert story.exit_code == 2
    assert story.output.startswith("git_history:")
    assert "line 1: not a change of a file" in story.output


def test_the_demo_holds_every_promise_and_says_so() -> None:
    story = run("worker.cli", "demo", "--events=1000", "--seconds=6", "--kills=4")

    assert_held(story)
    assert "kill -9" in story.output
    assert 500 < number(story, "applied") < 2000


def test_the_demo_makes_up_a_history_where_there_is_no_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # without git

    story = run("worker.cli", "demo", "--events=200", "--seconds=1", "--kills=0", folder=tmp_path)

    assert_held(story)
    assert "A made-up history: " in story.output
