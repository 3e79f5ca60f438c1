"""``qworker archive``: keep every event, and look at what is kept."""

from __future__ import annotations

import time
from contextlib import closing, contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec
import orjson

from worker.archive.base import ArchiveOptions
from worker.archive.open import archive_url, open_archive
from worker.archive.selection import Selection
from worker.archive.walk import count_all, pages
from worker.cli.group import Group
from worker.cli.moments import Duration, Moment, shown
from worker.cli.options import (
    SettingsCommand,
    WholeNumber,
    example,
    json_option,
    settings_options,
)
from worker.cli.output import (
    clean,
    count,
    emit,
    emit_json,
    emit_table,
    is_terminal,
    note,
    require_somebody,
)
from worker.config import load_settings
from worker.errors import UsageError
from worker.names import check_name
from worker.routing import is_pattern

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from worker.archive.base import Archive
    from worker.archive.entry import Entry

F = TypeVar("F", bound="Callable[..., Any]")


class ArchiveCommand(SettingsCommand):
    """A command about an archive."""

    first = ("archive", "archive_retention")


#: Where the archive is.
SETTINGS = "archive", "broker"
_SHOWN = 100
_TRIMMED = 1000
_COLUMNS = ("id", "name", "key", "time", "payload")
_WIDTH = 80

_FILTERS = (
    click.option(
        "--name", "names", metavar="NAME", multiple=True,
        help="Only events of this name, or pattern (repeatable).",
    ),
    click.option("--key", metavar="TEXT", help="Only events of this key."),
    click.option(
        "--since", type=Moment(), metavar="TIME",
        help="Only from this time on: 2026-01-31T12:00, or how long ago: 2h, 7d.",
    ),
    click.option("--until", type=Moment(), metavar="TIME", help="Only from before this time."),
)  # fmt: skip


def selection_options(function: F) -> F:
    """Give a command the options that say which events are meant; it gets a ``selection``."""

    @wraps(function)
    def command(
        *args: Any,
        names: tuple[str, ...],
        key: str | None,
        since: int | None,
        until: int | None,
        **rest: Any,
    ) -> Any:
        for name in names:
            check_name(name, "--name", is_pattern=is_pattern(name))
        if since is not None and until is not None and since >= until:
            raise click.UsageError("--since is not before --until: nothing can be meant")
        return function(*args, selection=Selection(names, (), key, since, until), **rest)

    decorated: Any = command
    for option in reversed(_FILTERS):
        decorated = option(decorated)
    return decorated  # type: ignore[no-any-return]  # click's decorators return what they get


@contextmanager
def opened(options: Mapping[str, object], *, to_write: bool = False) -> Iterator[Archive]:
    """Open the archive that the options name. Reading does not create one: raises NoArchive."""
    url = archive_url(load_settings(options))
    with closing(open_archive(url, ArchiveOptions(creates=to_write))) as archive:
        yield archive


@click.group(
    cls=Group,
    epilog=example(
        "qworker archive start --archive sqlite:///archive.db",
        "qworker archive list --archive sqlite:///archive.db --since 2h",
    ),
)
def archive() -> None:
    """Keep every event, and read, export and import what is kept.

    'qworker archive start' runs the service that stores what is published; 'qworker replay' sends a
    part of it to one service again.
    """


@archive.command(
    "start",
    cls=ArchiveCommand,
    short_help="Run the service that archives.",
    epilog=example(
        "qworker archive start --archive sqlite:///archive.db",
        "qworker archive start --broker amqp://host --dedup redis://host"
        " --archive postgresql://host/archive --archive-retention 31536000 --shards 4",
    ),
)
@settings_options()
def start(options: dict[str, Any]) -> int:
    """Store every event of the events exchange, once, until SIGTERM.

    It is a service as any other, with the options, signals and exit codes of 'qworker start'; its
    name is qw.archive. It has what was published since it was started for the first time.
    """
    from worker.supervisor.supervisor import run_supervisor

    return run_supervisor({**options, "app": "worker.archive.service"})


@archive.command(
    "info",
    cls=ArchiveCommand,
    short_help="Tell how much is kept.",
    epilog=example("qworker archive info", "qworker archive info --names --json"),
)
@settings_options(*SETTINGS)
@click.option("--names", "by_name", is_flag=True, help="Count the events of each name.")
@json_option
def info(options: dict[str, Any], *, by_name: bool, as_json: bool) -> None:
    """Tell how many events are kept, what they take on disk, and since when they are kept."""
    with opened(options) as store:
        size = store.size()
        tallies = count_all(store, Selection(), *store.span(Selection())) if by_name else {}
    if as_json:
        told: dict[str, Any] = {
            "events": size.events,
            "bytes": size.bytes,
            "first": shown(size.first) or None,
            "last": shown(size.last) or None,
        }
        if by_name:
            told["names"] = {name: tally.events for name, tally in tallies.items()}
        emit_json(told)
        return
    emit(f"{count(size.events, 'event')}, {_size(size.bytes)}")
    if size.events:
        emit(f"archived from {shown(size.first)} to {shown(size.last)} UTC")
    if tallies:
        rows = [(n, t.events, shown(t.first), shown(t.last)) for n, t in tallies.items()]
        emit_table(("name", "events", "first", "last"), rows)


@archive.command(
    "list",
    cls=ArchiveCommand,
    short_help="List events.",
    epilog=example(
        "qworker archive list --name 'user.*' --since 2h",
        "qworker archive list --key u1 --limit 0 --json",
    ),
)
@settings_options(*SETTINGS)
@selection_options
@click.option(
    "--limit", type=WholeNumber(0), default=_SHOWN, show_default=True, metavar="N",
    help="Show so many at most, or all with 0.",
)  # fmt: skip
@json_option
def list_(options: dict[str, Any], *, selection: Selection, limit: int, as_json: bool) -> None:
    """List events in the order in which they were archived. With --json, a line for each."""
    rows: list[tuple[object, ...]] = []
    number, more = 0, False
    with opened(options) as store:
        for entry in _entries(store, selection):
            if limit and number >= limit:
                more = True
                break
            number += 1
            if as_json:
                emit(_line(entry))
            else:
                rows.append(_row(entry))
        kept = number or store.size().events
    if rows:
        emit_table(_COLUMNS, rows)
    elif not number:
        note(f"none of {count(kept, 'event')} is meant" if kept else "the archive is empty")
    if more:
        note(f"only the first {limit}; --limit 0 shows all")


@archive.command(
    "show",
    cls=ArchiveCommand,
    short_help="Show one event.",
    epilog=example("qworker archive show 01969d8e-53a1-7b2c-8d11-0c7f2a3b4c5d"),
)
@settings_options(*SETTINGS)
@click.argument("event_id", metavar="ID")
@json_option
def show(options: dict[str, Any], event_id: str, *, as_json: bool) -> None:
    """Show an event with its headers, properties and payload."""
    with opened(options) as store:
        entry = store.find(event_id)
    if entry is None:
        raise UsageError(f"no event {event_id!r} is archived there")
    if as_json:
        line = _line(entry)
        emit(_spread(line) if is_terminal() else line)
        return
    for name, value in facts(entry).items():
        text = value if isinstance(value, str) else _spread(orjson.dumps(value).decode())
        emit(f"{name}: {clean(text, keep=chr(10))}")


@archive.command(
    "trim",
    cls=ArchiveCommand,
    short_help="Remove old events for good.",
    left="some of them are removed; the same command goes on",
    epilog=example("qworker archive trim --older-than 90d --yes"),
)
@settings_options(*SETTINGS)
@click.option(
    "--older-than", "age", type=Duration(), required=True, metavar="DURATION",
    help="Those archived longer ago: 90d, 4w.",
)  # fmt: skip
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def trim(options: dict[str, Any], *, age: float, yes: bool, as_json: bool) -> None:
    """Remove events that were archived long ago. --archive-retention does so all along."""
    before = int((time.time() - age) * 1_000_000)
    if not yes:
        require_somebody()
    with opened(options) as store:
        if not yes:
            click.confirm(f"Remove what was archived before {shown(before)} UTC?", abort=True)
        number = 0
        while removed := store.trim(before, _TRIMMED):
            number += removed
    if as_json:
        emit_json({"removed": number})
    else:
        emit(f"{count(number, 'event')} removed")


def facts(entry: Entry) -> dict[str, Any]:
    """Return all that is known of an event, for orjson: what is JSON already stays as it is.

    A payload may hold what no reader of ours would take, such as a number of 5,000 digits.
    """
    return {
        "id": entry.id,
        "name": entry.name,
        "key": entry.key,
        "time": shown(entry.time),
        "archived": shown(entry.at),
        "place": entry.seq,
        "headers": orjson.Fragment(entry.headers),
        "properties": orjson.Fragment(entry.properties),
        "payload": orjson.Fragment(entry.body),
    }


def _line(entry: Entry) -> str:
    """Return it as a line of JSON. Line breaks of a payload lie between its values."""
    return orjson.dumps(facts(entry)).decode().replace("\n", " ").replace("\r", " ")


def _spread(text: str) -> str:
    """Return JSON spread over lines for people; as it is, where that cannot be done."""
    try:
        return msgspec.json.format(text, indent=2)
    except msgspec.DecodeError:
        return text


def _entries(store: Archive, selection: Selection) -> Iterator[Entry]:
    for page in pages(store, selection, *store.span(selection)):
        yield from page.entries


def _row(entry: Entry) -> tuple[object, ...]:
    payload = entry.body[: 4 * _WIDTH].decode("utf-8", "ignore")
    if len(payload) > _WIDTH:
        payload = payload[: _WIDTH - 1] + "…"
    return entry.id, entry.name, entry.key, shown(entry.time), payload


def _size(number: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if number < 1024:  # noqa: PLR2004 - of one unit in the next
            return f"{number:.0f} {unit}" if unit == "bytes" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"
