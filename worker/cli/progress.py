"""The progress bar of a long publish, on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from worker.cli.lines import Source


class Bar:
    """Shows how much of ``source`` is published; called with the number of messages so far."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._progress = Progress(
            TextColumn("publishing"),
            BarColumn(),
            TextColumn("{task.fields[published]:,} events"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task("", total=source.size, published=0)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._progress.stop()

    def __call__(self, published: int) -> None:
        """Show that ``published`` messages are confirmed."""
        self._progress.update(self._task, completed=self._source.position, published=published)
