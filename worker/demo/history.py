"""Histories of files: streams of changes, out of git, out of a prepared file, or made up.

A change carries its revision: 1, 2, 3… for each path. That is what makes "nothing lost, nothing
twice, in order" something that can be checked afterwards.
"""

from __future__ import annotations

import gzip
import os
import subprocess
from collections import Counter
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from hashlib import sha1
from itertools import count
from random import Random
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Literal, cast

import msgspec
import orjson

from worker.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Sequence
    from pathlib import Path

#: Against the first parent, merges and the first commit too, whatever the user's own git says.
_LOG = (
    *("-c", "log.showRoot=true", "-c", "log.showSignature=false", "log"),
    *("--first-parent", "-m", "--reverse", "--raw", "-z", "--no-abbrev", "--no-renames"),
    *("--no-notes", "--no-color", "--no-ext-diff", "--ignore-submodules=none"),
    *("--format=%x01%H%x20%ct", "HEAD"),
)
_COMMIT = b"\x01"
_CHUNK = 64 * 1024
_GIT_PLACES = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_COMMON_DIR")

#: What a made-up history looks like: changes a commit, and the shares of what they are.
_CHANGES_A_COMMIT = 6
_CHANGED, _RETURNED, _DELETED = 0.9, 0.92, 0.03
_FOLDERS = ("", "docs/", "src/", "src/core/", "src/web/", "tests/", "tests/unit/")
_FIRST_DAY = 1_700_000_000

Letter = Literal["A", "M", "D", "T"]


@dataclass(frozen=True, slots=True)
class Change:
    """What one commit did to one path."""

    commit: str
    #: Seconds since 1970.
    time: int
    path: str
    #: In git's letters: added, modified, deleted, or of another type (a file became a link).
    change: Letter
    #: The id of the content, and the file's mode, after the change; None where it was deleted.
    blob: str | None
    mode: str | None
    #: 1 for the first change of the path, then one more each time.
    revision: int


def read_git(repository: Path, most: int | None = None) -> list[Change]:
    """Return the first-parent history of ``HEAD``, oldest first.

    Renames are a deletion and an addition. With ``most``, ends with the commit in which so many
    changes are reached. Raises UsageError where git cannot tell.
    """
    changes: list[Change] = []
    revisions: Counter[str] = Counter()
    commit, time = "", 0
    with closing(_git(repository, *_LOG)) as fields:
        for raw in fields:
            field = raw.lstrip(b"\n")
            if field.startswith(_COMMIT):
                if most is not None and len(changes) >= most:
                    break
                commit, _, seconds = field[1:].decode().partition(" ")
                time = int(seconds)
            elif field.startswith(b":"):
                path = _text(next(fields))
                revisions[path] += 1
                changes.append(_change(commit, time, field.decode(), path, revisions[path]))
    return changes


def _change(commit: str, time: int, entry: str, path: str, revision: int) -> Change:
    """Return what an entry of ``git log --raw`` says."""
    _, mode, _, blob, letter = entry.split(" ")
    if letter not in ("A", "M", "D", "T"):
        raise UsageError(f"commit {commit}: git tells {letter!r} of {path}, which is no change")
    if letter == "D":
        return Change(commit, time, path, "D", None, None, revision)
    return Change(commit, time, path, cast("Letter", letter), blob, mode, revision)


def name_of(repository: Path) -> str:
    """Return the name of the folder that a repository lies in; ``repository`` may be below it."""
    try:
        (top, *_) = _git(repository, "rev-parse", "--show-toplevel")
    except UsageError:  # a bare one
        return repository.resolve().name
    return _text(top.strip()).rpartition("/")[2]


def read_git_tree(repository: Path, commit: str = "HEAD") -> dict[str, str]:
    """Return path and blob of every file of ``commit``. Raises UsageError where git cannot."""
    tree = {}
    for entry in _git(repository, "ls-tree", "--full-tree", "-r", "-z", commit):
        if entry:
            facts, _, path = entry.partition(b"\t")
            tree[_text(path)] = facts.split(b" ")[2].decode()
    return tree


def read_changes(file: Path) -> list[Change]:
    """Return the changes of a file of JSON lines, gzipped or not. Raises UsageError."""
    decode = msgspec.json.Decoder(Change).decode
    changes: list[Change] = []
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as lines:
            changes.extend(map(decode, lines))
    except (OSError, EOFError) as error:
        raise UsageError(f"{file} cannot be read: {error}") from None
    except msgspec.MsgspecError as error:
        line = len(changes) + 1
        raise UsageError(f"{file}, line {line}: not a change of a file: {error}") from None
    return changes


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
            letter: Letter = "D" if deleted else "M" if path in alive else "A"
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


def _git(repository: Path, *arguments: str) -> Generator[bytes, None, None]:
    """Run git and yield what it prints, cut at NULs. Raises UsageError."""
    # A hook of git names its own repository in the environment; ours is another one.
    environ = {name: value for name, value in os.environ.items() if name not in _GIT_PLACES}
    environ |= {"GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    with TemporaryFile() as errors:
        try:
            git = subprocess.Popen(  # noqa: S603 - a fixed command; the folder is no option
                ["git", "-C", str(repository), *arguments],  # noqa: S607 - the user's own git
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environ,
            )
        except OSError as error:
            raise UsageError(f"git cannot be run: {error.strerror}") from None
        with git:
            assert git.stdout is not None  # noqa: S101 - a pipe, as asked for
            try:
                rest = b""
                while chunk := git.stdout.read(_CHUNK):
                    *whole, rest = (rest + chunk).split(b"\0")
                    yield from whole
                yield rest
            except GeneratorExit:
                git.kill()
                raise
        if git.returncode:
            errors.seek(0)
            lines = errors.read().decode(errors="replace").strip().splitlines()
            reason = lines[0].removeprefix("fatal: ") if lines else f"exit code {git.returncode}"
            raise UsageError(f"{repository}: no history from git: {reason}")


def _text(path: bytes) -> str:
    """Return a path as text; git allows bytes that are none."""
    return path.decode("utf-8", "backslashreplace")
