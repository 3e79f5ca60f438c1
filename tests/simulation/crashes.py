"""What deaths of processes leave behind: claims, and to whom they may be charged.

A process that dies leaves what it had claimed as suspects, each charged with a crash when it is
claimed again. Here it is known what nobody else can know: which message killed the process. So it
is seen whether one kills more processes than it may, whether an innocent one is taken for poison,
and whether a living process goes on waiting for the claim of one whose supervisor buried it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from simulation.ledger import Finding
from simulation.service import FAIL
from worker.dedup.base import NOBODY, OWNER_BYTES, Answer

if TYPE_CHECKING:
    from simulation.children import Child
    from simulation.world import World
    from worker.dedup.base import Claim, Verdict

#: Seconds within which a supervisor has told its processes of a death, and they have listened: two
#: of its turns, the longest way of a word, a turn of theirs.
_BURIED = 1.5


class Crashes:
    """The deaths of the children of a world."""

    def __init__(self, world: World) -> None:
        self._world = world
        #: By record: what killed the processes that had claimed it, each cause once.
        self._causes = defaultdict[bytes, set[str]](set)
        #: How many processes each message killed.
        self._kills = Counter[str]()
        #: By owner: the process that it was, and when that died.
        self._dead: dict[bytes, tuple[Child, float]] = {}

    def note(self, child: Child, culprit: str) -> None:
        """A process died; ``culprit`` is the message that killed it, empty where none did."""
        if culprit:
            self._kills[culprit] += 1
        owner = getattr(child, "owner", None)
        if owner is None:
            return
        self._dead[owner] = child, self._world.clock()
        for record, held in self._world.memory.records.held.items():
            if held.token not in (None, NOBODY) and held.token[:OWNER_BYTES] == owner:
                self._causes[record].add(culprit or f"the death of {child}")

    def check_claims(self, claims: Sequence[Claim], verdicts: Sequence[Verdict]) -> None:
        """See whether the process that runs is kept waiting by one that it should know dead."""
        world, held = self._world, self._world.memory.records.held
        for claim, verdict in zip(claims, verdicts, strict=True):
            if verdict.answer is not Answer.BUSY or (token := held[claim.record].token) is None:
                continue
            child, died = self._dead.get(token[:OWNER_BYTES], (None, 0.0))
            waits: Child = world.seams.running  # type: ignore[assignment]  # who else claims
            if (
                child is not None
                and child.parent is waits.parent
                and world.clock() - died > _BURIED
                and not world.was_held_up(waits, died)
            ):
                id_, handler = world.named(claim.record)
                text = f"waits for the dead: {waits} for {child}, with {id_} at {handler}"
                world.ledger.complain(None, text, id_)

    def check(self, handler: str, dead: Sequence[str]) -> list[Finding]:
        """Return what is wrong with the dead letters of a handler, and with who killed."""
        world, limit = self._world, self._world.shape.crash_limit
        found = []
        record_id = world.app.handlers[handler].record_id
        for id_ in dead:
            causes = self._causes.get(record_id(id_), set())
            if self._is_given_up(id_):
                continue
            if not world.posts[id_].is_poison and len(causes) < limit:
                told = ", ".join(sorted(causes)) or "nothing"
                found.append(Finding(None, f"taken for poison: {id_}, after {told}", (id_,)))
        for id_, number in self._kills.items():
            if number > limit:
                text = f"kills on: {id_} killed {number} processes, {limit} at most"
                found.append(Finding(None, text, (id_,)))
        return found

    def _is_given_up(self, id_: str) -> bool:
        """Tell whether it failed, and was given up early since too many wait for retries."""
        told = self._world.ledger.reasons.get(id_, "").startswith("given up early")
        return told and FAIL in self._world.posts[id_].plan
