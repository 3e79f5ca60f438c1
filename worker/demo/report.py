"""What came out of a trial, and whether that is what was promised."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from worker.demo.checker import Findings, SecondEffect
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
    #: Whether ids were written into the transactions of their effects.
    once: bool
    #: How often an event was run again and had no second effect.
    repetitions: int
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
        """Effects that happened twice, whether the crash window allows it or not."""
        return len(self.findings.explained) + len(self.findings.unexplained)

    @property
    def longest_window(self) -> float:
        """Seconds between an effect and the kill that made it happen twice, at most."""
        return max((effect.window for effect in self.findings.explained), default=0.0)

    @property
    def by_kill(self) -> list[tuple[Kill, list[SecondEffect]]]:
        """The second effects that the crash window allows, by the kill that explains them."""
        found = defaultdict(list)
        for effect in self.findings.explained:
            if effect.kill is not None:
                found[effect.kill].append(effect)
        return sorted(found.items(), key=lambda item: item[0].at)

    @property
    def summary(self) -> str:
        """The numbers, in one line."""
        found = self.findings
        second = f"second effects {self.second_effects}"
        if self.once:
            second += f" ({self.repetitions} run again without one)"
        elif self.second_effects:
            second += f" ({len(found.explained)} of them explained by a kill)"
        return (
            f"{self.events} events published {self.published} times, {len(self.kills)} kills,"
            f" {self.seconds:.0f} s; {second}, lost {len(found.lost)},"
            f" out of order {len(found.out_of_order)}; applied {found.applied},"
            f" wrong files {len(found.differences)}, dead letters {self.dead_letters},"
            f" exit codes {self.exit_codes}"
        )

    @property
    def held(self) -> bool:
        """Whether every promise was held."""
        orderly = not any(self.exit_codes) and not self.trouble
        return orderly and self.findings.held and not self.dead_letters and not self.left
