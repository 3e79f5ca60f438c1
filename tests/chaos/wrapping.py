"""Changes a module of the runtime as soon as somebody imports it, and imports none for that.

A supervisor does without most of them, and starts in half the time.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

Change = Callable[[], None]

_changes: dict[str, list[Change]] = {}


def when_imported(module: str, change: Change) -> None:
    """Make a change once ``module`` is imported, after those that were asked for before."""
    if not any(isinstance(finder, _Wrapping) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Wrapping())
    _changes.setdefault(module, []).append(change)


class _Wrapping(MetaPathFinder):
    """Lets the others find a module, and sees to it that it is changed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return how to load one of those that are to be changed."""
        if fullname not in _changes:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_change(module: ModuleType) -> None:
                execute(module)
                for change in _changes[fullname]:
                    change()

            spec.loader.exec_module = execute_and_change  # type: ignore[method-assign]  # its own one
        return spec
