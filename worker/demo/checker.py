"""Were the promises held? Reads the ledger row by row and says what it found, and where.

For each path the revisions must rise by one. Where the memory of ids is in the handler's own
transaction, nothing else is allowed. Otherwise there is a crash window, and one thing is allowed
beside, a *replay*: where the process that applied the last revisions of a path was killed before it
could record them, so that nobody could know of their effects, they are applied once more, in order,
before anything else of that path. It is counted, and shown.
"""

from __future__ import annotations

from collections import defaultdict
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
    #: Later revisions that had been applied before ``second``, and have to be applied again too.
    overtaken: tuple[Execution, ...]
    #: What explains it; None: nothing does.
    kill: Kill | None

    @property
    def window(self) -> float:
        """Seconds from the first effect to the kill: how long the runtime had not recorded it."""
        return max(0.0, self.kill.at - self.first.at) if self.kill is not None else 0.0


@dataclass(slots=True)
class _Path:
    """What was seen of one path."""

    last: int = 0
    #: The latest execution of every revision.
    latest: dict[int, Execution] = field(default_factory=dict)


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
    """Follows a ledger. ``expected`` is the number of revisions of every path.

    ``has_window`` tells whether a crash may lie between an effect and its memory.
    """

    def __init__(self, expected: Mapping[str, int], *, has_window: bool = True) -> None:
        self._expected = dict(expected)
        self._has_window = has_window
        self._paths: dict[str, _Path] = defaultdict(_Path)
        self._repeated: list[tuple[Execution, Execution, tuple[Execution, ...]]] = []
        self._out_of_order: list[Execution] = []
        #: How many different (path, revision) were applied.
        self.applied = 0
        self.wanted = sum(self._expected.values())

    @property
    def repeated(self) -> int:
        """How many executions repeated an earlier one, explained or not."""
        return len(self._repeated)

    @property
    def out_of_order(self) -> int:
        """How many executions were out of order."""
        return len(self._out_of_order)

    @property
    def complete(self) -> bool:
        """Whether everything that is expected was applied."""
        return self.applied >= self.wanted

    def see(self, rows: Iterable[Execution]) -> None:
        """Take the next rows of the ledger."""
        for row in rows:
            path = self._paths[row.path]
            first = path.latest.get(row.revision)
            if first is None:
                self.applied += 1
            if row.revision > path.last + 1 or (first is None and row.revision <= path.last):
                self._out_of_order.append(row)
            elif first is not None:
                later = range(row.revision + 1, max(path.latest) + 1)
                overtaken = tuple(path.latest[n] for n in later if n in path.latest)
                self._repeated.append((first, row, overtaken))
            path.latest[row.revision] = row
            path.last = row.revision

    def findings(
        self, kills: Sequence[Kill], expected: Mapping[str, str], tree: Mapping[str, str]
    ) -> Findings:
        """Return the verdict: ``tree`` is the table of files, ``expected`` what it should be."""
        found = Findings(applied=self.applied, out_of_order=list(self._out_of_order))
        killed = {kill.pid: kill for kill in kills}
        for first, second, overtaken in self._repeated:
            kill = _explanation(first, second, overtaken, killed)
            effect = SecondEffect(first, second, overtaken, kill)
            is_allowed = self._has_window and kill is not None
            (found.explained if is_allowed else found.unexplained).append(effect)
        for path in self._paths.values():
            end = path.latest[path.last]
            # A replay that stopped half-way: the past overwrote what came after it.
            if path.last < max(path.latest) and end not in found.out_of_order:
                found.out_of_order.append(end)
        for name, revisions in self._expected.items():
            done = self._paths[name].latest
            found.lost += [(name, n) for n in range(1, revisions + 1) if n not in done]
        found.differences = [
            (name, expected.get(name), tree.get(name))
            for name in sorted(expected.keys() | tree.keys())
            if expected.get(name) != tree.get(name)
        ]
        return found


def _explanation(
    first: Execution,
    second: Execution,
    overtaken: Sequence[Execution],
    killed: Mapping[int, Kill],
) -> Kill | None:
    """Return the kill that made the second execution of an event happen."""
    for execution in (first, *overtaken):
        kill = killed.get(execution.pid)
        if kill is None or second.pid == execution.pid or kill.at >= second.at:
            return None
    kill = killed[first.pid]
    if second.event_id != first.event_id or kill.at - first.at > _LONGEST_WINDOW:
        return None
    return kill


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
        "second effects that are not allowed",
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
    why = "was not killed between them"
    if effect.kill is not None:
        why = "was killed between them, but effect and id are one transaction"
    return (
        f"revision {second.revision}, rows {first.number} and {second.number}: process {first.pid}"
        f" {why}"
    )
