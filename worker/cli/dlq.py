"""``qworker dlq``: read, replay and purge what was set aside."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from worker.cli.dlq_replay import replay
from worker.cli.group import Group
from worker.cli.letters import COLUMNS, Filter, all_facts, facts, page, row
from worker.cli.loading import service_option, target
from worker.cli.options import (
    SettingsCommand,
    WholeNumber,
    example,
    json_option,
    settings_options,
)
from worker.cli.output import count, emit, emit_json, emit_table, note, require_somebody
from worker.cli.parked import how_to_return, tell_parked
from worker.cli.reading import SETTINGS, Search, filter_options, open_box, tell_handler
from worker.errors import UsageError

if TYPE_CHECKING:
    from worker.deadletters import Letter

_SHOWN = 100


@click.group(cls=Group)
def dlq() -> None:
    """Read, replay and purge the messages that a service has set aside.

    They lie in its dead-letter queue until somebody decides; those of parked keys lie, in order,
    in its parked queue.
    """


replay.left = "what was not sent back for sure is still there; the same command goes on"
dlq.add_command(replay)


@dlq.command(
    "list",
    cls=SettingsCommand,
    short_help="List what is set aside.",
    epilog=example(
        "qworker dlq list --app handlers",
        "qworker dlq list --service bank --broker amqp://host --reason 'card declined' --json",
    ),
)
@settings_options(*SETTINGS)
@service_option
@filter_options
@click.option(
    "--limit",
    type=WholeNumber(0),
    default=_SHOWN,
    show_default=True,
    metavar="N",
    help="Show so many at most, or all with 0.",
)
@click.option("--parked", is_flag=True, help="List the messages of parked keys instead.")
@json_option
def list_(
    options: dict[str, Any],
    service: str | None,
    limit: int,
    *,
    parked: bool,
    as_json: bool,
    **wanted: Any,
) -> None:
    """List what lies in the dead-letter queue, the oldest first. Nothing is taken from it."""
    place = target(options, service)
    choice = Filter(**wanted)
    tell_handler(place, choice)
    with open_box(place, parked=parked) as box:
        search = Search(box, choice)
        found = list(search)
    if parked:
        found.sort(key=lambda letter: (letter.key or "", letter.place))
    shown = found[: limit or None]
    if as_json:
        emit_json([facts(letter) for letter in shown])
    elif shown:
        emit_table(COLUMNS, [row(letter) for letter in shown])
    search.tell(len(found))
    if not parked:
        tell_parked(place)
    elif keys := {letter.key for letter in found if letter.key is not None}:
        note(how_to_return(keys))
    if more := len(found) - len(shown):
        note(f"{more} more; --limit 0 shows all")


@dlq.command(
    "show",
    cls=SettingsCommand,
    short_help="Show one message with its traceback.",
    epilog=example("qworker dlq show 01969d8e-53a1-7b2c-8d11-0c7f2a3b4c5d --app handlers"),
)
@settings_options(*SETTINGS)
@service_option
@click.argument("message_id", metavar="ID")
@json_option
def show(options: dict[str, Any], service: str | None, message_id: str, *, as_json: bool) -> None:
    """Show a message that was set aside: its headers, its body, and the traceback.

    One id may have several letters: one for each handler that could not do it.
    """
    place = target(options, service)
    found: list[Letter] = []
    for parked in (False, True):
        with open_box(place, parked=parked) as box:
            found.extend(Search(box, Filter(ids=(message_id,))))
    if not found:
        raise UsageError(f"no message {message_id!r} of {place.service!r} is set aside")
    if as_json:
        emit_json([all_facts(letter) for letter in found])
        return
    for number, letter in enumerate(found):
        if number:
            emit()
        for line in page(letter):
            emit(line)


@dlq.command(
    "purge",
    cls=SettingsCommand,
    short_help="Remove messages for good.",
    left="some of them may be removed; 'qworker dlq list' shows the rest",
    epilog=example("qworker dlq purge --app handlers --handler audit --yes"),
)
@settings_options(*SETTINGS)
@service_option
@click.argument("ids", metavar="[ID]...", nargs=-1)
@filter_options
@click.option("--parked", is_flag=True, help="Remove parked messages of a --key instead.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def purge(  # noqa: PLR0913 - its options
    options: dict[str, Any],
    service: str | None,
    ids: tuple[str, ...],
    *,
    parked: bool,
    yes: bool,
    as_json: bool,
    **wanted: Any,
) -> int:
    """Remove dead letters for good: all, some ids, or what a filter takes.

    Parked messages are not touched without --parked. Their key stays parked, also where none is
    left: 'dlq replay --key' then returns the rest and sets it free.
    """
    place = target(options, service)
    choice = Filter(ids=ids, **wanted)
    tell_handler(place, choice)
    if parked and choice.key is None:
        raise click.UsageError("--parked goes with a --key: whose messages?")
    if not yes:
        require_somebody()
        # Nothing is held while the answer is awaited: a reader that is silent loses its hold.
        with open_box(place, parked=parked) as box:
            search = Search(box, choice)
            number = sum(1 for _ in search)
        if not number:
            return _tell_removed(0, search, as_json=as_json)
        click.confirm(f"Remove {count(number, 'message')} of {box.queue} for good?", abort=True)
    number = 0
    with open_box(place, parked=parked) as box:
        search = Search(box, choice)
        for letter in search:
            box.remove([letter])
            number += 1
    return _tell_removed(number, search, as_json=as_json)


def _tell_removed(number: int, search: Search, *, as_json: bool) -> int:
    """Tell what was removed; return the exit code."""
    search.tell(number)
    if as_json:
        emit_json({"removed": number})
    else:
        emit(f"{count(number, 'message')} removed")
    return 1 if search.incomplete else 0
