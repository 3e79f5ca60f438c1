"""Watches the code of the current folder, for ``--reload``."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from worker.errors import ConfigurationError
from worker.extras import how_to_install

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger("worker.supervisor")

NEEDS_WATCHFILES = (
    f"reload: watching the code needs the package watchfiles: {how_to_install('reload')}"
)


class CodeWatch:
    """Calls ``changed`` in a thread of its own whenever Python files of ``folder`` change."""

    def __init__(self, folder: Path, changed: Callable[[], None]) -> None:
        """Begin to watch. Raises ConfigurationError where watchfiles is not installed."""
        try:
            import watchfiles  # noqa: PLC0415 - an optional extra
        except ImportError:
            raise ConfigurationError(NEEDS_WATCHFILES) from None
        self._watchfiles = watchfiles
        self._folder = folder
        self._changed = changed
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="qworker-reload", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()
        self._thread.join(5.0)

    def _watch(self) -> None:
        changes = self._watchfiles.watch(
            self._folder,
            watch_filter=self._watchfiles.PythonFilter(),
            stop_event=self._closed,
            raise_interrupt=False,
        )
        for files in changes:
            names = sorted(str(Path(path).relative_to(self._folder)) for _, path in files)
            logger.info("changed: %s", ", ".join(names))
            self._changed()
