"""What commands print: tables and colours on a terminal, plain text on a pipe, JSON on request.

Texts of messages come from whoever could publish: what would move the cursor of a terminal, or
break a line of a table, is shown escaped.
"""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_ID_WIDTH = 36  # of a UUID


def is_terminal() -> bool:
    """Tell whether somebody watches standard output."""
    return sys.stdout.isatty()


def require_somebody() -> None:
    """Raise click.UsageError where nobody sits at a terminal who could answer a question."""
    if not sys.stdin.isatty():
        raise click.UsageError("nobody is here to be asked: say --yes")


def emit(text: str = "") -> None:
    """Print a line."""
    click.echo(text)


def note(text: str) -> None:
    """Print a line for the person at the keyboard, on standard error."""
    click.echo(text, err=True)


def emit_json(facts: object) -> None:
    """Print facts as one JSON document, spread over lines for people."""
    indent = 2 if is_terminal() else None
    click.echo(json.dumps(facts, ensure_ascii=False, indent=indent, default=str))


def emit_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows under their columns; on a pipe no cell is cut or wrapped."""
    cells = [[clean("" if cell is None else str(cell)) for cell in row] for row in rows]
    if is_terminal():
        _emit_rich(columns, cells)
        return
    lines = [[column.upper() for column in columns], *cells]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    for line in lines:
        padded = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        click.echo("  ".join(padded).rstrip())


def _emit_rich(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    # Costs as much time as all of a short command; a pipe does without.
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        # An id is copied from here into the next command, so it stays whole where there is room.
        keeps_whole = column == "id" and console.width >= 2 * _ID_WIDTH
        table.add_column(column, overflow="fold", no_wrap=keeps_whole)
    for row in cells:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)


def clean(text: str, keep: str = "") -> str:
    """Return ``text`` with everything that is not printable escaped, but for ``keep``."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text
    )


class Interrupted(KeyboardInterrupt):
    """Somebody pressed Ctrl-C. The text says what is left behind."""


@contextmanager
def interruptible(left: str) -> Iterator[None]:
    """Say what a Ctrl-C in this block leaves behind, where nothing inside of it says so."""
    try:
        yield
    except Interrupted:
        raise
    except KeyboardInterrupt:
        raise Interrupted(left) from None


def count(number: int, noun: str, plural: str = "") -> str:
    """Return such as ``1 message`` or ``12 messages``."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"
