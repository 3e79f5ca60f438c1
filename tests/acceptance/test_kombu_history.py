"""A real history of 8,865 file changes, while processes are killed and the service is restarted.

The history is that of a public repository (kombu), prepared as JSON lines, and the right answer
beside it. They lie outside this repository, in the folder that QWORKER_HISTORY_DATA names; without
them a made-up history of the same size takes their place.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from worker.demo.history import Change, made_up, read_changes, tree_of
from worker.demo.plan import Plan
from worker.demo.trial import Trial

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("QWORKER_HISTORY_DATA") or ROOT.parent.joinpath("shared", "data"))
SIZE = 8865
SEED = 20_240_229


@dataclass(frozen=True, slots=True)
class History:
    """Changes in order, and what must be there after the last one."""

    name: str
    changes: Sequence[Change]
    tree: Mapping[str, str]


@pytest.fixture(scope="module")
def history() -> History:
    """The real history, or one of its size."""
    changes, tree = DATA / "kombu-history.jsonl.gz", DATA / "kombu-history.tree.json"
    if changes.exists():
        return History("kombu", read_changes(changes), json.loads(tree.read_bytes()))
    made = made_up(SIZE, SEED)
    return History("made-up", made, tree_of(made))


@pytest.fixture(params=["SQLite and SQLite", "RabbitMQ and Redis", "RabbitMQ and SQLite"])
def servers(request: pytest.FixtureRequest) -> tuple[str, str, str]:
    """What it runs on: a title, and the URLs of broker and dedup store; "" is a SQLite file."""
    title: str = request.param
    broker, _, store = title.partition(" and ")
    amqp = request.getfixturevalue("amqp_url") if broker == "RabbitMQ" else ""
    redis = request.getfixturevalue("redis_url") if store == "Redis" else ""
    return title, amqp, redis


@pytest.mark.timeout(180)
def test_every_change_is_applied_once_and_in_order(
    history: History,
    servers: tuple[str, str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    title, broker, dedup = servers
    plan = Plan(
        changes=history.changes,
        tree=history.tree,
        repository=history.name,
        folder=tmp_path,
        broker=broker,
        dedup=dedup,
        shards=8,
        processes=2,
        duplicates=0.05,
        rate=600.0,
        kill_every=1.0,
        restart_at=0.5,
        seed=SEED,
    )

    report = Trial(plan).run()

    with capsys.disabled():
        print(f"\n{history.name} history, {title}: {report.summary}")  # noqa: T201 - a result
    assert report.held, "\n".join(report.story)
    assert report.exit_codes == [0, 0]
    assert len(report.kills) >= 5
    assert report.published > len(history.changes)
    # Once more, from the handler's own database and without the demo's own judgement.
    database = sqlite3.connect(tmp_path / "state.db")
    assert files(database) == history.tree
    in_order = {path: [*range(1, size + 1)] for path, size in sizes(history).items()}
    assert revisions(database, "min") == in_order, "first effects"
    assert revisions(database, "max") == in_order, "last effects"
    assert repeated_by_the_living(database) == []
    database.close()


def files(database: sqlite3.Connection) -> dict[str, str]:
    """Return path and blob of every file that is there."""
    return dict(database.execute("SELECT path, blob FROM files WHERE blob IS NOT NULL").fetchall())


def sizes(history: History) -> dict[str, int]:
    """Return the number of revisions of every path."""
    return {change.path: change.revision for change in history.changes}


def revisions(database: sqlite3.Connection, which: Literal["min", "max"]) -> dict[str, list[int]]:
    """Return the revisions of every path in the order of their first, or of their last, effect."""
    query = f"SELECT path, revision FROM ledger GROUP BY path, revision ORDER BY {which}(number)"  # noqa: S608 - one of two words
    found = defaultdict(list)
    for path, revision in database.execute(query):
        found[path].append(revision)
    return dict(found)


def repeated_by_the_living(database: sqlite3.Connection) -> list[tuple[str, int]]:
    """Return path and revision of what was applied again though the first one was not killed."""
    return database.execute(
        "WITH repeated AS (SELECT path, revision, count(*) AS times FROM ledger"
        "                  GROUP BY path, revision HAVING times > 1)"
        " SELECT path, revision FROM repeated WHERE times > 1 +"
        " (SELECT count(DISTINCT k.pid) FROM ledger AS l JOIN kills AS k ON k.pid = l.pid"
        "  WHERE l.path = repeated.path AND l.revision = repeated.revision)"
    ).fetchall()
