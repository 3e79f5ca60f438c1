"""Keeps each step of a change of shards from being over before a test has seen it.

Whoever leads the change writes down that a step is done; where ``CHAOS_GATE`` names a folder, it
waits before that until the folder says that the step may end. It does nothing else meanwhile, so
that its leases end, where a test takes longer than they last.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import Any

from chaos.wrapping import when_imported
from waiting import until

#: Names the folder in the environment of a service under test.
VARIABLE = "CHAOS_GATE"
_MODULE = "worker.sharding.generations"
#: Seconds that a test may take to see a step.
_PATIENCE = 60.0


def install() -> None:
    """Keep the gate in this process."""
    when_imported(_MODULE, lambda: _wrap(Gate(Path(os.environ[VARIABLE]))))


class Gate:
    """Each step of each change: closed, until it is opened. One folder is one gate."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open(self, plan: Any) -> None:
        """Let the current step of ``plan`` end."""
        self._file(plan, "open").touch()

    def wait(self, plan: Any) -> None:
        """Note that the current step of ``plan`` is done; block until it may end."""
        self._file(plan, "done").touch()
        until(self._file(plan, "open").exists, _PATIENCE, f"{plan.phase} may end")

    def is_done(self, plan: Any) -> bool:
        """Tell whether somebody waits, or waited, at the end of the current step of ``plan``."""
        return self._file(plan, "done").exists()

    def _file(self, plan: Any, what: str) -> Path:
        return self._folder / f"{plan.target.number}.{plan.phase.name}.{what}"


def _wrap(gate: Gate) -> None:
    plan = import_module(_MODULE).Plan
    original: Callable[[Any], Any] = plan.advanced

    @wraps(original)
    def advanced(self: Any) -> Any:
        gate.wait(self)
        return original(self)

    plan.advanced = advanced
