"""Histories of files: streams of changes, out of git, out of a prepared file, or made up.

A change carries its revision: 1, 2, 3… for each path. That is what makes "nothing lost, nothing
twice, in order" something that can be checked afterwards.
"""

from __future__ import annotations

import gzip
import os
import subprocess
from collections import Counter
from dataclasses import asdict, dataclass, replace
from hashlib import sha1
from itertools import count
from random import Random
from typing import TYPE_CHECKING, Literal

import msgspec
import orjson

from worker.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

#: Against the first parent, merges and the first commit too, whatever the user's own git says.
_LOG = (
    "-c log.showRoot=true -c log.showSignature=false -c core.quotePath=false"
    " log --first-parent -m --reverse --raw -z --no-abbrev --no-renames --no-notes --no-color"
    " --no-ext-diff --ignore-submodules=none --format=%x01%H%x20%ct HEAD"
).split()
_COMMIT = b"\x01"
_GIT_SECONDS = 120.0
_GIT_PLACES = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_COMMON_DIR")

#: What a made-up history looks like: changes a commit, and the shares of what they are.
_CHANGES_A_COMMIT = 6
_CHANGED, _RETURNED, _DELETED = 0.9, 0.92, 0.03
_FOLDERS = ("", "docs/", "src/", "src/core/", "src/web/", "tests/", "tests/unit/")
_FIRST_DAY = 1_700_000_000


@dataclass(frozen=True, slots=True)
class Change:
    """What one commit did to one path."""

    commit: str
    #: Seconds since 1970.
    time: int
    path: str
    #: In git's letters: added, modified, deleted, or of another type (a file became a link).
    change: Literal["A", "M", "D", "T"]
    #: The id of the content, and the file's mode, after the change; None where it was deleted.
    blob: str | None
    mode: str | None
    #: 1 for the first change of the path, then one more each time.
    revision: int


def read_git(repository: Path) -> list[Change]:
    """Return the first-parent history of ``HEAD``, oldest first.

    Renames are a deletion and an addition. Raises UsageError where git cannot tell.
    """
    changes: list[Change] = []
    revisions: Counter[str] = Counter()
    commit, time = "", 0
    fields = iter(_git(repository, *_LOG).split(b"\0"))
    for raw in fields:
        field = raw.lstrip(b"\n")
        if field.startswith(_COMMIT):
            commit, _, seconds = field[1:].decode().partition(" ")
            time = int(seconds)
        elif field.startswith(b":"):
            _, mode, _, blob, status = field.decode().split(" ")
            path = _text(next(fields))
            revisions[path] += 1
            gone = status == "D"
            changes.append(
                Change(
                    commit,
                    time,
                    path,
                    status,
                    None if gone else blob,
                    None if gone else mode,
                    revisions[path],
                )
            )
    return changes


def read_git_tree(repository: Path) -> dict[str, str]:
    """Return path and blob of every file of ``HEAD``. Raises UsageError where git cannot tell."""
    tree = {}
    for entry in _git(repository, "ls-tree", "-r", "-z", "HEAD").split(b"\0"):
        if entry:
            facts, _, path = entry.partition(b"\t")
            tree[_text(path)] = facts.split(b" ")[2].decode()
    return tree


def read_changes(file: Path) -> list[Change]:
    """Return the changes of a file of JSON lines, gzipped or not. Raises UsageError."""
    decode = msgspec.json.Decoder(Change).decode
    number = 0
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as lines:
            changes = []
            for number, line in enumerate(lines, 1):
                changes.append(decode(line))
            return changes
    except (OSError, EOFError) as error:
        raise UsageError(f"{file} cannot be read: {error}") from None
    except msgspec.MsgspecError as error:
        raise UsageError(f"{file}, line {number}: not a change of a file: {error}") from None


def write_changes(file: Path, changes: Iterable[Change]) -> None:
    """Write what :func:`read_changes` reads."""
    with gzip.open(file, "wb", compresslevel=6) if file.suffix == ".gz" else file.open("wb") as out:
        for change in changes:
            out.write(orjson.dumps(asdict(change)) + b"\n")


def made_up(size: int, seed: int = 0) -> list[Change]:
    """Return ``size`` changes that look like a project's: few paths change often, many seldom.

    The same arguments give the same history.
    """
    random = Random(seed)
    alive: list[str] = []
    gone: list[str] = []
    names = (f"{random.choice(_FOLDERS)}file{number}.py" for number in count(1))
    revisions: Counter[str] = Counter()
    changes: list[Change] = []
    while len(changes) < size:
        commit = _digest(f"{seed} {len(changes)}")
        time = _FIRST_DAY + 3600 * len(changes)
        touched: set[str] = set()
        for _ in range(min(random.randint(1, _CHANGES_A_COMMIT), size - len(changes))):
            kind = random.random()
            path = ""
            if alive and kind < _CHANGED:
                path = alive[int(len(alive) * random.random() ** 2)]  # old files change most
            elif gone and kind < _RETURNED:
                path = random.choice(gone)
            if not path or path in touched:
                path = next(names)
            touched.add(path)
            revisions[path] += 1
            deleted = path in alive and random.random() < _DELETED
            blob = None if deleted else _digest(f"{seed} {path} {revisions[path]}")
            mode = None if deleted else "100644"
            letter: Literal["A", "M", "D"] = "D" if deleted else "M" if path in alive else "A"
            changes.append(Change(commit, time, path, letter, blob, mode, revisions[path]))
            if deleted:
                alive.remove(path)
                gone.append(path)
            elif letter == "A":
                alive.append(path)
                if path in gone:
                    gone.remove(path)
    return changes


def _digest(text: str) -> str:
    return sha1(text.encode(), usedforsecurity=False).hexdigest()


def tree_of(changes: Iterable[Change]) -> dict[str, str]:
    """Return path and blob of every file that is there after the last of ``changes``."""
    tree: dict[str, str] = {}
    for change in changes:
        if change.blob is None:
            tree.pop(change.path, None)
        else:
            tree[change.path] = change.blob
    return tree


def side_by_side(changes: Sequence[Change], copies: int) -> Iterator[Change]:
    """Yield ``copies`` of a history as if so many repositories grew at once, a folder each."""
    if copies == 1:
        yield from changes
        return
    for change in changes:
        for number in range(1, copies + 1):
            yield replace(change, path=f"copy-{number}/{change.path}")


def _git(repository: Path, *arguments: str) -> bytes:
    # A hook of git names its own repository in the environment; ours is another one.
    environ = {name: value for name, value in os.environ.items() if name not in _GIT_PLACES}
    environ |= {"GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    try:
        return subprocess.run(  # noqa: S603 - a fixed command; the folder is no option
            ["git", "-C", str(repository), *arguments],  # noqa: S607 - the user's own git
            check=True,
            capture_output=True,
            env=environ,
            timeout=_GIT_SECONDS,
        ).stdout
    except FileNotFoundError:
        raise UsageError("git is not installed, or not on PATH") from None
    except subprocess.TimeoutExpired:
        raise UsageError(f"{repository}: git took longer than {_GIT_SECONDS:g} s") from None
    except subprocess.CalledProcessError as error:
        lines = error.stderr.decode(errors="replace").strip().splitlines()
        reason = lines[0].removeprefix("fatal: ") if lines else f"exit code {error.returncode}"
        raise UsageError(f"{repository}: no history from git: {reason}") from None


def _text(path: bytes) -> str:
    """Return a path as text; git allows bytes that are none."""
    return path.decode("utf-8", "backslashreplace")
