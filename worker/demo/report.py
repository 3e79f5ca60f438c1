"""What came out of a trial, and whether that is what was promised."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from worker.demo.checker import Findings
    from worker.demo.ledger import Kill


@dataclass(slots=True)
class Report:
    """What came out of a trial."""

    events: int
    #: Files that must be there in the end.
    files: int
    published: int
    #: By the runtime's own count, less up to a second's numbers of every process that was killed.
    delivered: int
    duplicates: int
    findings: Findings
    kills: list[Kill]
    #: Of every supervisor, in order.
    exit_codes: list[int]
    dead_letters: int
    #: Messages that are still in a shard's queue.
    left: int
    seconds: float
    #: Why it ended before everything was done; empty where it did not.
    trouble: str = ""
    #: What went wrong, in lines to read. Empty where nothing did.
    story: list[str] = field(default_factory=list)

    @property
    def second_effects(self) -> int:
        """Effects that happened twice, each explained by a kill."""
        return len(self.findings.explained)

    @property
    def longest_window(self) -> float:
        """Seconds between an effect and the kill that made it happen twice, at most."""
        return max((effect.window for effect in self.findings.explained), default=0.0)

    @property
    def longest_replay(self) -> int:
        """How many revisions of one path were applied a second time after one kill, at most."""
        return max((1 + len(effect.overtaken) for effect in self.findings.explained), default=0)

    @property
    def summary(self) -> str:
        """The numbers, in one line."""
        found = self.findings
        window = (
            f" (up to {self.longest_replay} of a path, up to {self.longest_window:.3f} s after the"
            " first)"
            if found.explained
            else ""
        )
        return (
            f"{self.events} events published {self.published} times, delivered at least"
            f" {self.delivered} times, applied {found.applied}, second effects after"
            f" {len(self.kills)} kills: {self.second_effects}{window}, others"
            f" {len(found.unexplained)}, out of order {len(found.out_of_order)}, lost"
            f" {len(found.lost)}, wrong files {len(found.differences)}, dead letters"
            f" {self.dead_letters}, exit codes {self.exit_codes}, {self.seconds:.0f} s"
        )

    @property
    def held(self) -> bool:
        """Whether every promise was held."""
        orderly = not any(self.exit_codes) and not self.trouble
        return orderly and self.findings.held and not self.dead_letters and not self.left
