"""``qworker archive import``: JSON lines into the archive."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import click

from worker.archive.entry import Unarchivable
from worker.cli.archive import ArchiveCommand, archive, opened
from worker.cli.archive_export import export
from worker.cli.lines import Source
from worker.cli.options import example, json_option, settings_options
from worker.cli.output import count, emit, emit_json
from worker.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from worker.archive.entry import Entry

#: Events of one transaction.
_BATCH = 500

archive.add_command(export)


@archive.command(
    "import",
    cls=ArchiveCommand,
    short_help="Read events from JSON lines.",
    left="what was read before stays; the same command leaves it out",
    epilog=example(
        "qworker archive import events.jsonl",
        "qworker archive import users.jsonl.gz --archive postgresql://host/archive",
    ),
)
@settings_options("archive", "broker")
@click.argument("file")
@json_option
def import_(options: dict[str, Any], *, file: str, as_json: bool) -> None:
    """Store the events of FILE ('-' is standard input, .gz is unpacked), in the order of its lines.

    Lines are as 'qworker archive export' writes them. Events that are there already, by their ids,
    are left out; the others are the newest of the archive, whatever their time. A line that cannot
    be read ends the command, after all lines before it are stored.
    """
    source = Source(file)
    new = old = 0
    try:
        with opened(options, to_write=True) as store:
            for batch in _batches(source):
                stored = store.add(batch)
                new, old = new + stored, old + len(batch) - stored
                if sys.stderr.isatty():
                    click.echo(f"\r\x1b[K{new + old} read", nl=False, err=True)
    finally:
        source.close()
        if sys.stderr.isatty():
            click.echo("\r\x1b[K", nl=False, err=True)
    if as_json:
        emit_json({"imported": new, "there_already": old})
    else:
        emit(f"{count(new, 'event')} imported, {old} were there already")


def _batches(source: Source) -> Iterator[list[Entry]]:
    """Yield the events of the lines. Raises UsageError for one that is none, after all before."""
    from worker.archive.lines import load_line  # and with it the broker's client

    batch: list[Entry] = []
    for number, line in source:
        try:
            batch.append(load_line(line, time.time_ns() // 1000))
        except Unarchivable as error:
            yield batch
            told = f"line {number}: {error}\nAll lines before it are imported"
            raise UsageError(told) from None
        if len(batch) >= _BATCH:
            yield batch
            batch = []
    yield batch
