"""A real history of 8,865 file changes, while processes are killed and the service is restarted.

On the transactional tier the handler writes the id of its event into the transaction of its effect:
there is no second effect. On the Redis tier only the store remembers ids, a moment after the
effects: a second effect needs a process that was killed in that moment. Both are counted and told.

The history is that of a public repository (kombu), prepared as JSON lines, and the right answer
beside it. They lie outside this repository, in the folder that QWORKER_HISTORY_DATA names; without
them a made-up history of the same size takes their place.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest

from worker.demo.history import Change, made_up, read_changes, tree_of
from worker.demo.scenario import Scenario
from worker.demo.trial import Trial

if TYPE_CHECKING:
    from worker.demo.report import Report

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("QWORKER_HISTORY_DATA") or ROOT.parent.joinpath("shared", "data"))
SIZE = 8865
#: The changes that show on SQLite alone, in a third of the time, what RabbitMQ and Redis are shown
#: with all of them.
SOME = 3000
SEED = 20_240_229


@dataclass(frozen=True, slots=True)
class History:
    """Changes in order, and what must be there after the last one."""

    name: str
    changes: Sequence[Change]
    tree: Mapping[str, str]

    def first(self, size: int) -> History:
        """Its beginning."""
        changes = self.changes[:size]
        return self if size >= len(self.changes) else History(self.name, changes, tree_of(changes))


@pytest.fixture(scope="module")
def history() -> History:
    """The real history, or one of its size."""
    changes, tree = DATA / "kombu-history.jsonl.gz", DATA / "kombu-history.tree.json"
    if changes.exists():
        return History("kombu", read_changes(changes), json.loads(tree.read_bytes()))
    made = made_up(SIZE, SEED)
    return History("made-up", made, tree_of(made))


@dataclass(frozen=True, slots=True)
class Run:
    """A trial that is over."""

    report: Report
    #: The handler's own database, to judge without the demo's own judgement.
    database: sqlite3.Connection


@pytest.fixture
def run(tmp_path: Path, tell: Callable[[str], None]) -> Iterator[Callable[..., Run]]:
    """Run a history through servers by their URLs ("" is a SQLite file), and print the result."""
    with ExitStack() as stack:

        def run_it(
            history: History,
            title: str,
            *,
            broker: str = "",
            dedup: str = "",
            once: bool,
        ) -> Run:
            scenario = Scenario(
                changes=history.changes,
                tree=history.tree,
                repository=history.name,
                folder=tmp_path,
                broker=broker,
                dedup=dedup,
                once=once,
                shards=8,
                processes=2,
                duplicates=0.05,
                rate=600.0 if len(history.changes) > SOME else 400.0,
                # As many as on a quick machine: a slow one would see little but deaths and starts.
                kill_every=1.0 if len(history.changes) > SOME else 0.6,
                most_kills=20 if len(history.changes) > SOME else 10,
                restart_at=0.5,
                seed=SEED,
            )
            report = Trial(scenario).run()
            tell(f"{history.name} history, {title}: {report.summary}")
            database = stack.enter_context(closing(sqlite3.connect(tmp_path / "state.db")))
            return Run(report, database)

        yield run_it


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("broker", "size"),
    [
        pytest.param("SQLite", SOME, id="SQLite"),
        pytest.param("SQLite", SIZE, id="SQLite-all", marks=pytest.mark.long),
        pytest.param("RabbitMQ", SIZE, id="RabbitMQ-all", marks=pytest.mark.long),
    ],
)
def test_every_change_takes_effect_once_and_in_order(
    history: History,
    run: Callable[..., Run],
    request: pytest.FixtureRequest,
    broker: str,
    size: int,
) -> None:
    url = request.getfixturevalue("amqp_url") if broker == "RabbitMQ" else ""
    history = history.first(size)

    done = run(history, f"{broker} and SQLite", broker=url, once=True)

    assert_nothing_is_lost(history, done)
    assert done.report.second_effects == 0
    assert len(effects_of(done)) == len(history.changes), "one effect a change"
    assert by_path(effects_of(done)) == in_order(history)


@pytest.fixture(params=["redis", pytest.param("postgres", marks=pytest.mark.long)])
def store(request: pytest.FixtureRequest) -> tuple[str, str]:
    """A dedup store that is a server: its name and its URL."""
    return request.param, request.getfixturevalue(f"{request.param}_url")


@pytest.mark.timeout(180)
def test_a_second_effect_needs_a_process_that_was_killed_before_its_record(
    history: History,
    run: Callable[..., Run],
    amqp_url: str,
    store: tuple[str, str],
    tell: Callable[[str], None],
) -> None:
    name, url = store
    done = run(history, f"RabbitMQ and {name}", broker=amqp_url, dedup=url, once=False)

    for kill, effects in done.report.by_kill:
        longest = 1000 * max(effect.window for effect in effects)
        tell(
            f"  explained by kill -9 of process {kill.pid}: {len(effects)} second effects, of what"
            f" it had applied in its last {longest:.0f} ms"
        )
    assert_nothing_is_lost(history, done)
    assert done.report.findings.unexplained == []
    assert done.report.second_effects == len(effects_of(done)) - len(history.changes)
    assert by_path(revisions(done.database, "min")) == in_order(history), "first effects"
    assert by_path(revisions(done.database, "max")) == in_order(history), "last effects"
    assert repeated_by_the_living(done.database) == []


def assert_nothing_is_lost(history: History, done: Run) -> None:
    """Assert what holds on every tier: all is applied, and the troubles were there."""
    report = done.report
    assert report.held, "\n".join(report.story)
    assert report.findings.out_of_order == []
    assert report.findings.lost == []
    assert report.exit_codes == [0, 0]
    assert len(report.kills) >= 5
    assert report.published > len(history.changes)
    assert files(done.database) == history.tree


def files(database: sqlite3.Connection) -> dict[str, str]:
    """Return path and blob of every file that is there."""
    return dict(database.execute("SELECT path, blob FROM files WHERE blob IS NOT NULL").fetchall())


def in_order(history: History) -> dict[str, list[int]]:
    """Return the revisions of every path as they must take effect."""
    return by_path((change.path, change.revision) for change in history.changes)


def by_path(effects: Iterable[tuple[str, int]]) -> dict[str, list[int]]:
    """Return the revisions of every path, in the order of ``effects``."""
    found = defaultdict(list)
    for path, revision in effects:
        found[path].append(revision)
    return dict(found)


def effects_of(done: Run) -> list[tuple[str, int]]:
    """Return path and revision of every effect, in the order in which they happened."""
    return done.database.execute("SELECT path, revision FROM ledger ORDER BY number").fetchall()


def revisions(database: sqlite3.Connection, which: Literal["min", "max"]) -> list[tuple[str, int]]:
    """Return every revision once, in the order of their first, or of their last, effects."""
    query = f"SELECT path, revision FROM ledger GROUP BY path, revision ORDER BY {which}(number)"  # noqa: S608 - one of two words
    return database.execute(query).fetchall()


def repeated_by_the_living(database: sqlite3.Connection) -> list[tuple[str, int]]:
    """Return path and revision of what was applied again though the first one was not killed."""
    return database.execute(
        "WITH repeated AS (SELECT path, revision, count(*) AS times FROM ledger"
        "                  GROUP BY path, revision HAVING times > 1)"
        " SELECT path, revision FROM repeated WHERE times > 1 +"
        " (SELECT count(DISTINCT k.pid) FROM ledger AS l JOIN kills AS k ON k.pid = l.pid"
        "  WHERE l.path = repeated.path AND l.revision = repeated.revision)"
    ).fetchall()
