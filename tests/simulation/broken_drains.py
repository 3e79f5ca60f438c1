"""How a process ends in order, broken."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

from simulation.breaking import mutation
from worker.ending import Ending


@mutation("processes", off="patience of a drain", sees="drained and runs still")
def a_drain_waits_for_no_handler() -> Iterator[None]:
    def leave(self: Ending, _now: float, _resolve: Any) -> None:
        if self.deadline is not None:
            self.finish = self._aim

    with patch.object(Ending, "check", leave):
        yield
