"""What of a service is paused: all of it, some shards, some handlers. Pure.

It is a document in the lease store, so it outlives every member, and holds for those that come.
Shards are those of one generation: in the next one the same numbers are other keys.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from worker.errors import StoreCorrupt

if TYPE_CHECKING:
    from collections.abc import Iterable

#: The name of the document.
PAUSED = "paused"


@dataclass(frozen=True, slots=True)
class Pauses:
    """What is paused. ``shards`` and ``handlers`` are in order, each once."""

    service: bool = False
    #: The generation that the shards are of.
    generation: int = 0
    shards: tuple[int, ...] = ()
    handlers: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.service or self.shards or self.handlers)

    def covers(self, generation: int, shard: int) -> bool:
        """Tell whether nobody shall consume this shard for now."""
        return self.service or (generation == self.generation and shard in self.shards)

    def of(self, generation: int) -> Pauses:
        """Return what of it holds in this generation."""
        shards = self.shards if generation == self.generation else ()
        return replace(self, generation=generation if shards else 0, shards=shards)

    def paused(
        self, generation: int, shards: Iterable[int] = (), handlers: Iterable[str] = ()
    ) -> Pauses:
        """Return this with these shards of the generation, and handlers; all, if none is named."""
        shards, handlers = {*shards}, {*handlers}
        here = self.of(generation)
        everything = not (shards or handlers)
        return _pauses(
            generation,
            {*here.shards} | shards,
            {*here.handlers} | handlers,
            service=here.service or everything,
        )

    def resumed(
        self, generation: int, shards: Iterable[int] = (), handlers: Iterable[str] = ()
    ) -> Pauses:
        """Return this without these shards and handlers; nothing is left, if none is named."""
        shards, handlers = {*shards}, {*handlers}
        if not (shards or handlers):
            return Pauses()
        here = self.of(generation)
        return _pauses(
            generation,
            {*here.shards} - shards,
            {*here.handlers} - handlers,
            service=here.service,
        )

    def without(self, others: Pauses) -> Pauses:
        """Return what of it is not in ``others``, which are of the same generation."""
        return _pauses(
            self.generation,
            {*self.shards} - {*others.shards},
            {*self.handlers} - {*others.handlers},
            service=self.service and not others.service,
        )

    def __str__(self) -> str:
        """Return it in words."""
        told = ["the whole service"] if self.service else []
        if self.shards:
            numbers = ", ".join(map(str, self.shards))
            told.append(f"shard{'' if len(self.shards) == 1 else 's'} {numbers}")
        if self.handlers:
            plural = "" if len(self.handlers) == 1 else "s"
            told.append(f"handler{plural} {', '.join(self.handlers)}")
        return " and ".join(told) or "nothing"

    def dump(self) -> str:
        """Return it as a document."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def load(cls, text: str) -> Pauses:
        """Read what ``dump`` wrote. Raises StoreCorrupt for anything else."""
        try:
            told = json.loads(text)
            shards, handlers = told["shards"], told["handlers"]
            found = cls(
                bool(told["service"]),
                int(told["generation"]),
                tuple(sorted({int(shard) for shard in shards})),
                tuple(sorted({str(name) for name in handlers})),
            )
        except (ValueError, TypeError, LookupError) as error:
            raise StoreCorrupt(f"the lease store does not tell what is paused: {error!r}") from None
        return found


def _pauses(generation: int, shards: set[int], handlers: set[str], *, service: bool) -> Pauses:
    """Return equal pauses for the same things, so that doing it twice changes nothing."""
    number = generation if shards else 0
    return Pauses(service, number, tuple(sorted(shards)), tuple(sorted(handlers)))
