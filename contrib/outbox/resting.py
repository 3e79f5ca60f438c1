"""Lanes that the broker did not take: how long each is left alone, and which are sent alone.

A message that the broker refuses stops its own lane. One that it does not confirm may stop others
too: RabbitMQ, say, ends the connection at a message that it cannot read, and confirms nothing of
what was sent behind it. Of those it is not known which one it was. So their lanes are sent *apart*
from then on, one at a time, until they are through: all but the bad one are, at once. Where several
of them in a row are not, it is the broker that confirms nothing, and the others are sent together
again: there may be thousands by then, and one at a time they would keep all that is new waiting.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from contrib.outbox.shipping import Refusal

#: Seconds after which a refused lane is tried again: at first, and at most.
_FIRST, _LONGEST = 1.0, 60.0
#: So many lanes in a row that are not confirmed apart, and it is the broker that confirms nothing.
_HOPELESS = 3


@dataclass(frozen=True, slots=True)
class _Rest:
    """A lane that was refused: until when it rests, and how long that is."""

    until: float
    #: 0 where it is to be tried apart, and never was.
    length: float
    reason: str
    is_apart: bool


class Rests:
    """The lanes that were refused and are not through. For one thread; times are the caller's."""

    def __init__(self) -> None:
        self._rests: dict[str, _Rest] = {}
        self._misses = 0

    @property
    def lanes(self) -> set[str]:
        """All of them."""
        return {*self._rests}

    @property
    def doubted(self) -> int:
        """How many are to be sent apart, and never were."""
        return sum(rest.is_apart and not rest.length for rest in self._rests.values())

    def quiet(self, now: float) -> set[str]:
        """Return those that are not sent together with others: they rest, or are sent apart."""
        return {lane for lane, rest in self._rests.items() if rest.is_apart or rest.until > now}

    def due(self, now: float) -> list[str]:
        """Return those to be sent apart now; first who was tried least, and waits longest."""
        due = [(s, lane) for lane, s in self._rests.items() if s.is_apart and s.until <= now]
        due.sort(key=lambda found: (found[0].length, found[0].until))
        return [lane for _, lane in due]

    def end(self, lanes: Iterable[str]) -> None:
        """Forget those that are through, or gone."""
        for lane in lanes:
            if self._rests.pop(lane, None) is not None:
                self._misses = 0

    def doubt(self, refusals: Iterable[Refusal], now: float) -> None:
        """Have these sent apart: one of them, or more, has kept all from being confirmed."""
        for refusal in refusals:
            self._rests[refusal.entry.lane] = _Rest(now, 0.0, refusal.reason, is_apart=True)

    def refuse(self, refusal: Refusal, now: float) -> bool:
        """Let its lane rest, longer each time; return whether the reason is news."""
        lane = refusal.entry.lane
        before = self._rests.get(lane)
        length = min(2 * before.length, _LONGEST) if before and before.length else _FIRST
        self._rests[lane] = _Rest(
            now + length, length, refusal.reason, is_apart=not refusal.is_certain
        )
        if not refusal.is_certain:
            self._miss(now)
        return before is None or not before.length or before.reason != refusal.reason

    def _miss(self, now: float) -> None:
        """Doubt the others no more, after some that were as bad: nobody waits for these."""
        self._misses += 1
        if self._misses >= _HOPELESS:
            for lane, rest in self._rests.items():
                if not rest.length:
                    again = replace(rest, until=now + _FIRST, length=_FIRST, is_apart=False)
                    self._rests[lane] = again
