"""``qworker archive export``: JSON lines out of the archive."""

from __future__ import annotations

import gzip
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import click

from worker.archive.walk import pages
from worker.cli.archive import SETTINGS, ArchiveCommand, opened, selection_options
from worker.cli.options import example, settings_options
from worker.cli.output import count, note
from worker.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from worker.archive.selection import Selection


@click.command(
    "export",
    cls=ArchiveCommand,
    short_help="Write events as JSON lines.",
    left="what was written is whole lines, up to the last; with --force it begins anew",
    epilog=example(
        "qworker archive export events.jsonl",
        "qworker archive export --name 'user.*' users.jsonl.gz",
        "qworker archive export --since 2h - | wc -l",
    ),
)
@settings_options(*SETTINGS)
@selection_options
@click.option("--force", is_flag=True, help="Write over a file that is there.")
@click.argument("file")
def export(options: dict[str, Any], *, selection: Selection, force: bool, file: str) -> None:
    """Write events to FILE ('-' is standard output, .gz is packed), a line of JSON each, in order.

    What is archived meanwhile is left out.
    """
    from worker.archive.lines import dump_line  # and with it the broker's client

    number = 0
    with opened(options) as store, _written(file, force=force) as out:
        for page in pages(store, selection, *store.span(selection)):
            out.write(b"".join(map(dump_line, page.entries)))
            number += len(page.entries)
    note(f"{count(number, 'event')} exported")


@contextmanager
def _written(place: str, *, force: bool) -> Iterator[IO[bytes]]:
    """Open what is written to; it is there, all of it, when the block ends."""
    if place == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    path = Path(place)
    # A pipe or a terminal is there before anybody writes to it.
    anew = not force and (path.is_file() or not path.exists())
    try:
        raw = path.open("xb" if anew else "wb")
    except FileExistsError:
        raise UsageError(f"{place} is there already: --force writes over it") from None
    except OSError as error:
        raise UsageError(f"{place}: {error.strerror or error}") from None
    with raw:
        if place.endswith(".gz"):
            with gzip.GzipFile(fileobj=raw, mode="wb") as packed:
                yield cast("IO[bytes]", packed)
        else:
            yield raw
