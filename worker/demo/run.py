"""The command: find a history, try it, show the result."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from worker.demo.history import made_up, name_of, read_git, read_git_tree, side_by_side, tree_of
from worker.demo.scenario import Scenario
from worker.demo.trial import Trial
from worker.demo.view import Moving, Plain, View, result
from worker.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import FrameType

    from worker.demo.history import Change
    from worker.demo.report import Report

EVENTS = 6000
SECONDS = 15.0
DUPLICATES = 0.05
SHARDS, PROCESSES = 4, 2
#: A history with fewer changes to files that were there before has little order to keep.
_FEWEST = 100
_SETTLE_SECONDS = 120.0
_EXIT_BROKEN = 1
_EXIT_INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Source:
    """A history to stream, and what it is in words."""

    name: str
    text: str
    changes: Sequence[Change]
    tree: Mapping[str, str]


def run_demo(  # noqa: PLR0913 - the options of the command
    *,
    events: int = EVENTS,
    seconds: float = SECONDS,
    kills: int | None = None,
    live: bool | None = None,
    seed: int | None = None,
    repository: Path | None = None,
) -> int:
    """Run the demo and return its exit code: 0 only if every promise was held.

    Publishes ``events`` in about ``seconds``, kills a process about once a second (or ``kills``
    times in all), and shows it ``live`` (by default on a terminal). The same ``seed`` chooses the
    same copies and victims. The history is that of ``repository``; by default of the repository
    that it is started in, or that this package lies in; or a made-up one where they have too
    little. Raises UsageError where ``repository`` is none.
    """
    console = Console()
    seed = Random().randrange(10_000) if seed is None else seed
    source = find_history(events, repository, seed)
    console.print(Text("qworker demo", "bold"))
    console.print(Text(f"{source.text}."), soft_wrap=True)
    facts = (
        f"{SHARDS} shards, {PROCESSES} processes, one SQLite file for broker and ids, one for the"
        f" effects; seed {seed}."
    )
    console.print(Text(facts), soft_wrap=True)
    console.print()
    folder = Path(tempfile.mkdtemp(prefix="qworker-demo-"))
    scenario = Scenario(
        changes=source.changes,
        tree=source.tree,
        repository=source.name,
        folder=folder,
        shards=SHARDS,
        processes=PROCESSES,
        duplicates=DUPLICATES,
        rate=len(source.changes) * (1 + DUPLICATES) / seconds if seconds else None,
        kill_every=_pause(seconds, kills),
        most_kills=kills,
        seed=seed,
        patience=seconds + _SETTLE_SECONDS,
    )
    kept = False
    try:
        report = watch(Trial(scenario), console, live=live)
        kept = not report.held
    except KeyboardInterrupt:
        console.print("stopped")
        return _EXIT_INTERRUPTED
    finally:
        if not kept:
            shutil.rmtree(folder, ignore_errors=True)
    code = tell(report, console)
    if kept:
        console.print(f"What happened lies in {folder}", soft_wrap=True)
    return code


def watch(trial: Trial, console: Console, *, live: bool | None = None) -> Report:
    """Run a trial and show it. SIGTERM and a closed terminal end it as Ctrl-C does."""
    moving = console.is_terminal if live is None else live
    view: View = Moving(console) if moving else Plain(console)
    handlers = {n: signal.signal(n, _interrupt) for n in (signal.SIGTERM, signal.SIGHUP)}
    try:
        with view:
            return trial.run(view)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def tell(report: Report, console: Console) -> int:
    """Print the result of a trial and return the exit code."""
    console.print()
    console.print(result(report))
    console.print()
    if report.held:
        text = f"All promises held: {report.files:,} files are as they should be."
        console.print(Text(text, "bold green"))
        return os.EX_OK
    for line in report.story:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    end = "A promise was broken."
    if report.trouble:
        end = f"It did not come to its end: {report.trouble}"
    console.print(Text(end, "bold red"))
    return _EXIT_BROKEN


def find_history(events: int, repository: Path | None, seed: int) -> Source:
    """Return a history of ``events`` changes, or a few more or less."""
    if repository is not None:
        return _repeated(_history_of(repository, events), events)
    for folder in (Path.cwd(), Path(__file__).parent):
        try:
            source = _history_of(folder, events)
        except UsageError:
            continue
        if len(source.changes) - len({change.path for change in source.changes}) >= _FEWEST:
            return _repeated(source, events)
    changes = made_up(events, seed)
    paths = len({change.path for change in changes})
    text = f"A made-up history: {len(changes):,} changes of {paths:,} files"
    return Source("made-up", text, changes, tree_of(changes))


def _history_of(folder: Path, most: int) -> Source:
    changes = read_git(folder, most)
    if not changes:
        raise UsageError(f"{folder}: its history changes no file")
    name = name_of(folder)
    paths = len({change.path for change in changes})
    text = f"The history of {name}: {len(changes):,} changes of {paths:,} files"
    return Source(name, text, changes, read_git_tree(folder, changes[-1].commit))


def _repeated(source: Source, events: int) -> Source:
    """Return as many copies of a short history, in folders side by side, as make ``events``."""
    copies = max(1, round(events / len(source.changes)))
    if copies == 1:
        return source
    changes = list(side_by_side(source.changes, copies))
    tree = {
        f"copy-{number}/{path}": blob
        for path, blob in source.tree.items()
        for number in range(1, copies + 1)
    }
    text = f"{source.text}, {copies} copies of it side by side"
    return Source(source.name, text, changes, tree)


def _pause(seconds: float, kills: int | None) -> float | None:
    """Return the mean seconds between two kills."""
    if kills is None:
        return 1.0
    return max(0.1, seconds / (kills + 1)) if kills else None


def _interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature of handlers
    raise KeyboardInterrupt
