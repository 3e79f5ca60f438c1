"""Histories: made up, in files, and streamed at least once."""

from __future__ import annotations

import gzip
import json
import subprocess
from pathlib import Path
from random import Random

import pytest

from worker.demo.handlers import event_of
from worker.demo.history import (
    Change,
    made_up,
    name_of,
    read_changes,
    read_git,
    read_git_tree,
    side_by_side,
    tree_of,
    write_changes,
)
from worker.demo.stream import at_least_once
from worker.errors import UsageError


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with two files, one of them in a folder."""
    top = tmp_path / "ours"
    (top / "docs").mkdir(parents=True)
    (top / "README").write_text("one")
    (top / "docs" / "guide").write_text("two")
    who = ("-c", "user.name=nobody", "-c", "user.email=nobody@localhost")
    for command in (["init", "-q"], ["add", "."], [*who, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", *command], cwd=top, check=True)
    return top


def test_the_whole_repository_is_read_wherever_one_stands_in_it(repository: Path) -> None:
    below = repository / "docs"

    assert {change.path for change in read_git(below)} == {"README", "docs/guide"}
    assert read_git_tree(below) == read_git_tree(repository)
    assert set(read_git_tree(below)) == {"README", "docs/guide"}
    assert name_of(below) == "ours"


def test_a_made_up_history_counts_the_revisions_of_every_path() -> None:
    changes = made_up(2000, seed=4)

    last: dict[str, Change] = {}
    for change in changes:
        before = last.get(change.path)
        assert change.revision == (before.revision if before else 0) + 1
        gone = before is None or before.change == "D"
        assert (change.change == "A") == gone
        last[change.path] = change
    assert len(changes) == 2000
    assert {change.change for change in changes} == {"A", "M", "D"}
    assert max(change.revision for change in changes) > 20


def test_the_same_seed_makes_up_the_same_history() -> None:
    assert made_up(300, seed=1) == made_up(300, seed=1)
    assert made_up(300, seed=1) != made_up(300, seed=2)


def test_the_tree_is_what_the_last_changes_left() -> None:
    changes = made_up(1000)

    tree = tree_of(changes)

    last = {change.path: change.blob for change in changes}
    assert tree == {path: blob for path, blob in last.items() if blob is not None}
    assert len(tree) < len(last)


@pytest.mark.parametrize("name", ["changes.jsonl", "changes.jsonl.gz"])
def test_a_history_survives_a_file(tmp_path: Path, name: str) -> None:
    changes = made_up(50)

    write_changes(tmp_path / name, changes)

    assert read_changes(tmp_path / name) == changes


def test_a_line_that_is_no_change_is_named(tmp_path: Path) -> None:
    file = tmp_path / "changes.jsonl.gz"
    write_changes(file, made_up(2))
    with gzip.open(file, "ab") as out:
        out.write(json.dumps({"path": "a", "revision": "one"}).encode())

    with pytest.raises(UsageError, match="line 3: not a change of a file"):
        read_changes(file)


def test_a_file_that_is_not_there_and_one_that_is_cut_are_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_changes(tmp_path / "nowhere")
    write_changes(tmp_path / "cut.gz", made_up(50))
    (tmp_path / "cut.gz").write_bytes((tmp_path / "cut.gz").read_bytes()[:-20])
    with pytest.raises(UsageError, match="cannot be read"):
        read_changes(tmp_path / "cut.gz")


def test_a_folder_without_a_repository_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no history from git"):
        read_git(tmp_path)


def test_copies_of_a_history_share_no_path_and_keep_its_order() -> None:
    changes = made_up(100)

    copies = list(side_by_side(changes, 3))

    assert len(copies) == 300
    second = [c for c in copies if c.path.startswith("copy-2/")]
    assert [c.path.removeprefix("copy-2/") for c in second] == [c.path for c in changes]
    assert [c.revision for c in second] == [c.revision for c in changes]


def test_an_event_has_the_same_id_whenever_it_is_made() -> None:
    changes = made_up(500)

    ids = [event_of(change, "here").event_id for change in changes]

    assert ids == [event_of(change, "here").event_id for change in changes]
    assert len({*ids, *(event_of(change, "there").event_id for change in changes)}) == 1000


def test_at_least_once_sends_everything_in_order_and_copies_after_their_originals() -> None:
    changes = made_up(2000)

    sent = list(at_least_once(changes, 0.1, Random(3)))

    assert [change for change, is_copy in sent if not is_copy] == changes
    copies = [change for change, is_copy in sent if is_copy]
    assert 100 < len(copies) < 300
    seen = set()
    for change, is_copy in sent:
        assert is_copy == ((change.path, change.revision) in seen)
        seen.add((change.path, change.revision))
    overtaken = [
        change
        for number, (change, is_copy) in enumerate(sent)
        if is_copy
        and any(
            c.path == change.path and c.revision > change.revision
            for c, _ in sent[max(0, number - 400) : number]
        )
    ]
    assert overtaken, "some copies come behind the next revision of their path"
