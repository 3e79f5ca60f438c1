"""python -m examples.git_history [REPOSITORY or FILE]: see README.md."""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from random import Random

from rich.console import Console

from worker import QworkerError
from worker.demo.history import Change, read_changes, read_git, read_git_tree, tree_of
from worker.demo.run import tell, watch
from worker.demo.scenario import Scenario
from worker.demo.trial import Trial


def main() -> int:
    options = arguments()
    console = Console()
    try:
        changes, tree = history(options.source)
        console.print(f"{len(changes):,} changes of {options.source.name}; seed {options.seed}")
        with tempfile.TemporaryDirectory(prefix="qworker-history-") as temporary:
            folder = options.folder or Path(temporary)
            folder.mkdir(parents=True, exist_ok=True)
            scenario = Scenario(
                changes=changes,
                tree=tree,
                repository=options.source.resolve().name,
                folder=folder,
                broker=os.environ.get("QWORKER_BROKER_URL", ""),
                dedup=os.environ.get("QWORKER_DEDUP_URL", ""),
                once=not options.without_once,
                shards=options.shards,
                processes=options.processes,
                duplicates=options.duplicates,
                rate=options.rate,
                kill_every=options.kill_every or None,
                restart_at=0.5 if options.restart else None,
                seed=options.seed,
                patience=options.patience,
            )
            return tell(watch(Trial(scenario), console), console)
    except QworkerError as error:
        console.print(f"git_history: {error}", markup=False, soft_wrap=True)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def history(source: Path) -> tuple[list[Change], dict[str, str]]:
    """Return the changes of a repository or a prepared file, and the files that are there now."""
    if source.is_file():
        changes = read_changes(source)
        return changes, tree_of(changes)
    return read_git(source), read_git_tree(source)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.git_history",
        description="Stream a repository's history through a service that is killed all along.",
        epilog="QWORKER_BROKER_URL and QWORKER_DEDUP_URL name servers; without them it is SQLite.",
    )
    add = parser.add_argument
    add("source", nargs="?", type=Path, default=Path(), help="repository, or .jsonl(.gz) file")
    add("--folder", type=Path, help="keep databases and logs here, and go on with what is there")
    add("--without-once", action="store_true", help="leave the ids to the dedup store alone")
    add("--shards", type=int, default=8)
    add("--processes", type=int, default=2)
    add("--duplicates", type=float, default=0.05, help="share of events that is published twice")
    add("--rate", type=float, default=600.0, help="messages published a second")
    add("--kill-every", type=float, default=1.0, help="mean seconds between kills; 0: none")
    add("--restart", action="store_true", help="restart the whole service half-way, by SIGTERM")
    add("--seed", type=int, default=Random().randrange(10_000), help="of copies and victims")
    add("--patience", type=float, default=600.0, help="seconds after which it has failed")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
