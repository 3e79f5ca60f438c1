"""``qworker status --watch`` on a terminal."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from worker.cli.output import clean
from worker.cli.overview import footlines, headlines, member_table, shard_table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from rich.console import RenderableType

    from worker.cli.overview import Table as Rows

_LEAST_ROWS = 4


@contextmanager
def live(around: int) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Return what draws an overview in the place of the one before.

    ``around`` are the lines that are kept for other things than shards, members and outages.
    """
    console = Console()
    with Live(console=console, auto_refresh=False, transient=False) as screen:

        def show(told: Mapping[str, Any]) -> None:
            taken = around + len(told["members"]) + len(told["outages"])
            room = max(_LEAST_ROWS, console.size.height - taken)
            screen.update(_drawn(told, room), refresh=True)

        yield show


def _drawn(told: Mapping[str, Any], room: int) -> RenderableType:
    first, *rest = headlines(told)
    parts: list[RenderableType] = [Text(f"{clean(first)}   {time.strftime('%X')}", style="bold")]
    parts += [Text(clean(line), style="yellow") for line in rest]
    if told.get("problem"):
        parts.append(Text(clean(told["problem"]), style="red"))
    members, shards = member_table(told), shard_table(told, room)
    for rows in (members, shards):
        if rows[1]:
            parts += [Text(), _table(rows)]
    if hidden := len(told["shards"]) - len(shards[1]):
        parts.append(Text(f"{hidden} more shards, with less to look at", style="dim"))
    parts += [Text(), *(Text(clean(line)) for line in footlines(told))]
    return Group(*parts)


def _table(rows: Rows) -> Table:
    columns, cells = rows
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=True)
    for row in cells:
        table.add_row(*(Text(clean("" if cell is None else str(cell))) for cell in row))
    return table
