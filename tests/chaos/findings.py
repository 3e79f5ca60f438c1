"""What the judge found: how often each promise was broken, and which limits were met."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from chaos.excuses import Pair
from chaos.executions import Execution

_MOST_TOLD = 5


@dataclass(slots=True)
class Findings:
    """What the history tells. All but the last five empty: every promise was held."""

    executions: int = 0
    effects: int = 0
    #: Handler and id of what was confirmed, has no effect and was not set aside.
    lost: list[str] = field(default_factory=list)
    #: Dead letters and parked messages that nothing is the reason of.
    undeserved: list[str] = field(default_factory=list)
    #: Effects of what was set aside too.
    twofold: list[Execution] = field(default_factory=list)
    #: Effects of a key behind what is parked of it, and what that is; and what is parked of a key
    #: behind its successor.
    past_parked: list[tuple[Execution, str]] = field(default_factory=list)
    parked_in_no_order: list[str] = field(default_factory=list)
    #: Executions that came before their predecessor, or after their successor.
    out_of_order: list[Execution] = field(default_factory=list)
    #: Effects of one id that nothing explains: the earlier and the later.
    repeated: list[Pair] = field(default_factory=list)
    #: Of these, what had an excuse but for what was recorded after it, or in its stead.
    forgotten: list[Pair] = field(default_factory=list)
    too_many: list[str] = field(default_factory=list)
    #: Executions that began though it was known to be recorded what they did.
    heedless: list[Execution] = field(default_factory=list)
    #: Executions of one key at once.
    key_overlaps: list[Pair] = field(default_factory=list)
    #: Executions of one shard (or service) at once, by different processes.
    owner_overlaps: list[Pair] = field(default_factory=list)
    #: A later execution of a shard with a lower fence than an earlier one.
    fallen_fences: list[Pair] = field(default_factory=list)
    #: Executions of one fence under two supervisors, or two lives of one.
    shared_fences: list[Pair] = field(default_factory=list)
    #: Executions without an end, of processes that nothing happened to.
    unfinished: list[Execution] = field(default_factory=list)
    #: Pieces of lines of the history that no death has cut short: nobody knows what they told.
    torn: list[str] = field(default_factory=list)
    #: What did not come to its end after the last fault; and what else is not as it must be.
    stuck: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    #: Second effects that a fault explains.
    explained: list[Pair] = field(default_factory=list)
    #: The seconds for which these could have been recorded before the kill, in order.
    ages: list[float] = field(default_factory=list)
    #: Executions that a fault left without an end.
    broken_off: list[Execution] = field(default_factory=list)
    #: Executions that outlived their lease, each with the first of its successor's.
    stale: list[Pair] = field(default_factory=list)
    #: Fences that fell since the store had forgotten them and its clock was wrong, once a shard.
    forgotten_fences: list[Pair] = field(default_factory=list)

    @property
    def held(self) -> bool:
        """Whether every promise was held, within its limit."""
        return not any(facts for _, facts in self.broken)

    @property
    def undisturbed(self) -> bool:
        """Whether every execution had its effect, and the only one of its id."""
        limits = (self.explained, self.broken_off, self.stale)
        return self.held and not any(limits) and self.executions == self.effects

    @property
    def summary(self) -> str:
        """What went wrong, in lines: how often, and the first few of each kind."""
        lines = [f"{self.executions} executions, {self.effects} effects"]
        for title, facts in [*self.broken, *self._allowed]:
            if facts:
                lines.append(f"{title}: {len(facts)}")
                lines += [f"  {_shown(fact)}" for fact in facts[:_MOST_TOLD]]
            if facts[_MOST_TOLD:]:
                lines.append("  …")
        if self.ages:
            middle, most = self.ages[len(self.ages) // 2], self.ages[-1]
            lines.append(f"seconds from such an effect to the kill: {middle:.3f}, up to {most:.3f}")
        return "\n".join(lines)

    @property
    def broken(self) -> list[tuple[str, Sequence[object]]]:
        """What must not be, by kind."""
        return [
            ("lost", self.lost),
            ("set aside without a reason", self.undeserved),
            ("done and set aside", self.twofold),
            ("done past a parked message", self.past_parked),
            ("parked in no order", self.parked_in_no_order),
            ("out of order", self.out_of_order),
            ("second effects that nothing explains", self.repeated),
            ("begun though it was recorded", self.heedless),
            ("not recorded, but what ended later was", self.forgotten),
            ("more second effects than can be under way", self.too_many),
            ("two handlers of a key at once", self.key_overlaps),
            ("two processes of a shard at once", self.owner_overlaps),
            ("fences that fell", self.fallen_fences),
            ("one fence for two owners", self.shared_fences),
            ("handlers that never ended", self.unfinished),
            ("lines of the history that were lost", self.torn),
            ("stuck after the last fault", self.stuck),
            ("wrong", self.wrong),
        ]

    @property
    def _allowed(self) -> list[tuple[str, Sequence[object]]]:
        return [
            ("second effects that a fault explains", self.explained),
            ("handlers that a fault broke off", self.broken_off),
            ("handlers that outlived their lease", self.stale),
            ("fences that were forgotten under a wrong clock", self.forgotten_fences),
        ]


def _shown(fact: object) -> str:
    if isinstance(fact, tuple):
        return " then\n    ".join(map(str, fact))
    return str(fact)
