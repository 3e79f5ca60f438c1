"""Were the promises held? Reads the ledger row by row and says what it found, and where.

For each path the revisions must rise by one. The one thing that is allowed beside: the last
revision once more, right behind the first time, where the process that applied it first was
killed, so that nobody could know that its effect had happened. That is the crash window of a tier
whose memory of ids is not in the handler's own transaction; it is counted, and shown.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from worker.demo.ledger import Execution, Kill

#: Seconds between an effect and the kill that explains its repetition, at most: the runtime
#: records an effect within a tick, so more than this is no crash window but a forgotten effect.
_LONGEST_WINDOW = 5.0
_MOST_TOLD = 5


@dataclass(frozen=True, slots=True)
class SecondEffect:
    """A revision that was applied once more."""

    first: Execution
    second: Execution
    #: What explains it; None: nothing does.
    kill: Kill | None

    @property
    def window(self) -> float:
        """Seconds from the first effect to the kill: how long the runtime had not recorded it."""
        return max(0.0, self.kill.at - self.first.at) if self.kill is not None else 0.0


@dataclass(slots=True)
class Findings:
    """What the ledger and the table tell. All empty, but for ``explained``: promises held."""

    applied: int = 0
    explained: list[SecondEffect] = field(default_factory=list)
    unexplained: list[SecondEffect] = field(default_factory=list)
    #: Executions that came too late, or before their predecessor.
    out_of_order: list[Execution] = field(default_factory=list)
    #: Path and revision of what was never applied.
    lost: list[tuple[str, int]] = field(default_factory=list)
    #: Path, the blob that it should have, the blob that it has.
    differences: list[tuple[str, str | None, str | None]] = field(default_factory=list)

    @property
    def held(self) -> bool:
        """Whether every promise was held, within its limit."""
        return not (self.unexplained or self.out_of_order or self.lost or self.differences)


class Checker:
    """Follows a ledger. ``expected`` is the number of revisions of every path."""

    def __init__(self, expected: Mapping[str, int]) -> None:
        self._expected = dict(expected)
        self._last: dict[str, Execution] = {}
        self._done: dict[str, set[int]] = {}
        self._repeated: list[tuple[Execution, Execution]] = []
        self._out_of_order: list[Execution] = []
        #: How many different (path, revision) were applied.
        self.applied = 0
        self.wanted = sum(self._expected.values())

    @property
    def repeated(self) -> int:
        """How many executions repeated the one before, explained or not."""
        return len(self._repeated)

    @property
    def out_of_order(self) -> int:
        """How many executions were out of order."""
        return len(self._out_of_order)

    @property
    def complete(self) -> bool:
        """Whether everything that is expected was applied."""
        return self.applied >= self.wanted

    def expect(self, path: str) -> None:
        """Expect one more revision of ``path``."""
        self._expected[path] = self._expected.get(path, 0) + 1
        self.wanted += 1

    def see(self, rows: Iterable[Execution]) -> None:
        """Take the next rows of the ledger."""
        for row in rows:
            last = self._last.get(row.path)
            before = last.revision if last is not None else 0
            done = self._done.setdefault(row.path, set())
            if last is not None and row.revision == before:
                self._repeated.append((last, row))
            elif row.revision == before + 1:
                self._last[row.path] = row
            else:
                self._out_of_order.append(row)
                self._last[row.path] = row
            if row.revision not in done:
                done.add(row.revision)
                self.applied += 1

    def findings(
        self, kills: Sequence[Kill], expected: Mapping[str, str], tree: Mapping[str, str]
    ) -> Findings:
        """Return the verdict: ``tree`` is the table of files, ``expected`` what it should be."""
        found = Findings(applied=self.applied, out_of_order=list(self._out_of_order))
        killed = {kill.pid: kill for kill in kills}
        for first, second in self._repeated:
            effect = SecondEffect(first, second, _explanation(first, second, killed))
            (found.unexplained if effect.kill is None else found.explained).append(effect)
        for path, revisions in self._expected.items():
            done = self._done.get(path, set())
            found.lost += [(path, n) for n in range(1, revisions + 1) if n not in done]
        found.differences = [
            (path, expected.get(path), tree.get(path))
            for path in sorted(expected.keys() | tree.keys())
            if expected.get(path) != tree.get(path)
        ]
        return found


def _explanation(first: Execution, second: Execution, killed: Mapping[int, Kill]) -> Kill | None:
    """Return the kill between two executions of one event that made the second one happen."""
    kill = killed.get(first.pid)
    if kill is None or second.pid == first.pid or second.event_id != first.event_id:
        return None
    return kill if kill.at < second.at and kill.at - first.at <= _LONGEST_WINDOW else None


def story(found: Findings, executions: Callable[[str], Sequence[Execution]]) -> list[str]:
    """Return what went wrong, in lines: which path, which revision, and its rows of the ledger."""
    lines = []
    paths: dict[str, None] = {}

    def tell(title: str, facts: Sequence[tuple[str, str]]) -> None:
        if facts:
            lines.append(f"{title}: {len(facts)}")
        for path, text in facts[:_MOST_TOLD]:
            lines.append(f"  {path}: {text}")
            paths[path] = None
        if facts[_MOST_TOLD:]:
            lines.append("  …")

    tell(
        "out of order",
        [(r.path, f"revision {r.revision}, row {r.number}") for r in found.out_of_order],
    )
    tell("lost", [(path, f"revision {revision}") for path, revision in found.lost])
    tell(
        "second effects without an explanation",
        [(s.second.path, _unexplained(s)) for s in found.unexplained],
    )
    tell(
        "files that differ",
        [
            (path, f"should be {want or 'gone'}, is {have or 'gone'}")
            for path, want, have in found.differences
        ],
    )
    for path in paths:
        lines.append(f"ledger of {path}:")
        lines += [
            f"  row {row.number}: revision {row.revision}, process {row.pid}, at {row.at:.3f} s,"
            f" event {row.event_id}"
            for row in executions(path)
        ]
    return lines


def _unexplained(effect: SecondEffect) -> str:
    first, second = effect.first, effect.second
    return (
        f"revision {second.revision}, rows {first.number} and {second.number}: process {first.pid}"
        " was not killed between them"
    )
