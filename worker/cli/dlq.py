"""``qworker dlq``: read, replay and purge what was set aside."""

from __future__ import annotations

import sys
from contextlib import closing
from typing import TYPE_CHECKING, Any, TypeVar

import click

from worker.cli.group import Group
from worker.cli.letters import COLUMNS, Filter, Mistyped, all_facts, facts, page, row
from worker.cli.loading import service_option, target
from worker.cli.options import SettingsCommand, example, json_option, settings_options
from worker.cli.output import count, emit, emit_json, emit_table, note
from worker.deadletters import Box, Letter, NoSuchQueue
from worker.dedup.base import StoreOptions
from worker.dedup.open import open_store
from worker.errors import ConfigurationError, UsageError
from worker.ids import new_id
from worker.replay import Replay, Replayed
from worker.topology import dead_letter_queue, parked_queue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from worker.cli.loading import Target
    from worker.dedup.base import DedupStore

F = TypeVar("F", bound="Callable[..., Any]")

_SETTINGS = ("app", "broker", "dedup", "connect_timeout", "confirm_timeout", "dedup_timeout")
_SHOWN = 100


def _filter_options(function: F) -> F:
    for option in reversed((
        click.option("--handler", metavar="NAME", help="Only what this handler could not do."),
        click.option("--name", metavar="NAME", help="Only events of this name, or pattern."),
        click.option("--key", metavar="TEXT", help="Only what has this key."),
        click.option("--reason", metavar="TEXT", help="Only where the reason contains this."),
    )):
        function = option(function)
    return function


@click.group(cls=Group)
def dlq() -> None:
    """Read, replay and purge the messages that a service has set aside.

    They lie in its dead-letter queue until somebody decides; those of parked keys lie, in order,
    in its parked queue.
    """


@dlq.command("list", cls=SettingsCommand, epilog=example(
    "qworker dlq list --app handlers",
    "qworker dlq list --service bank --broker amqp://host --reason 'card declined' --json",
))  # fmt: skip
@settings_options(*_SETTINGS)
@service_option
@_filter_options
@click.option("--limit", type=click.IntRange(0), default=_SHOWN, show_default=True, metavar="N",
              help="Show at most so many; 0 is all.")  # fmt: skip
@click.option("--parked", is_flag=True, help="List the messages of parked keys instead.")
@json_option
def list_(  # noqa: PLR0913 - its options
    options: dict[str, Any],
    service: str | None,
    limit: int,
    *,
    parked: bool,
    as_json: bool,
    **wanted: Any,  # noqa: ANN401 - the filter's options
) -> None:
    """List what lies in the dead-letter queue, the oldest first. Nothing is taken from it."""
    place = target(options, service)
    choice = Filter(**wanted)
    mistyped = Mistyped(choice)
    found, more = [], 0
    with _open(place, parked=parked) as box:
        for letter in _read(box, mistyped):
            if not choice.takes(letter):
                continue
            if limit and len(found) >= limit and not parked:
                more += 1
            else:
                found.append(letter)
    if parked:
        found.sort(key=lambda letter: (letter.key or "", letter.place))
        more, found = max(0, len(found) - (limit or len(found))), found[: limit or None]
    if as_json:
        emit_json([facts(letter) for letter in found])
    elif found:
        emit_table(COLUMNS, [row(letter) for letter in found])
    else:
        note(_nothing(box, choice, mistyped))
    if more:
        note(f"{more} more; --limit 0 shows all")
    _tell_unread(box)


@dlq.command("show", cls=SettingsCommand, epilog=example(
    "qworker dlq show 01969d8e-53a1-7b2c-8d11-0c7f2a3b4c5d --app handlers",
))  # fmt: skip
@settings_options(*_SETTINGS)
@service_option
@click.argument("message_id", metavar="ID")
@json_option
def show(
    options: dict[str, Any], service: str | None, message_id: str, *, as_json: bool
) -> None:
    """Show a message that was set aside: its headers, its body, and the traceback.

    One id may have several letters: one for each handler that could not do it.
    """
    place = target(options, service)
    choice = Filter(ids=(message_id,))
    found: list[Letter] = []
    for parked in (False, True):
        with _open(place, parked=parked) as box:
            found += filter(choice.takes, box.read())
            _tell_unread(box)
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


@dlq.command("replay", cls=SettingsCommand, epilog=example(
    "qworker dlq replay --app handlers --handler charge --dry-run",
    "qworker dlq replay --app handlers --handler charge",
    "qworker dlq replay --app handlers --key u1       # also the parked messages of u1",
))  # fmt: skip
@settings_options(*_SETTINGS)
@service_option
@click.argument("ids", metavar="[ID]...", nargs=-1)
@_filter_options
@click.option("--dry-run", is_flag=True, help="Only tell what would be sent back.")
@click.option("--wait", type=click.FloatRange(0), default=30.0, show_default=True,
              metavar="SECONDS", help="How long a parked key may take to become free.")  # fmt: skip
def replay(  # noqa: PLR0913 - its options
    options: dict[str, Any],
    service: str | None,
    ids: tuple[str, ...],
    wait: float,
    *,
    dry_run: bool,
    **wanted: Any,  # noqa: ANN401 - the filter's options
) -> int:
    """Send dead letters back to the queues they came from: all, some ids, or what a filter takes.

    The handler that failed forgets the id and runs again; the others, which are done, do not.
    Killed at any moment it loses nothing: what was not sent for sure is still there.

    With --key alone the parked messages of that key return as well, in order, and the key is free
    again when all of them were handled; the service must run for that.
    """
    place = target(options, service)
    choice = Filter(ids=ids, **wanted)
    if dry_run:
        return _rehearse(place, choice)
    with closing(_store(place)) as store, Replay(place.service, place.settings, store) as sender:
        replay_id = new_id() if choice.only_key else None
        mistyped = Mistyped(choice)
        with _open(place) as box:
            letters = filter(choice.takes, _read(box, mistyped))
            done = sender.letters(box, letters, header=replay_id, tell=_progress)
        code = _tell_replayed(done)
        parked = store.parked(place.service)
        if replay_id is not None and choice.key is not None and choice.key in parked:
            return max(code, _unpark(sender, choice.key, replay_id, wait))
        if not done.returned and not done.refused:
            note(_nothing(box, choice, mistyped))
        _tell_unread(box)
        if parked and not choice:
            keys = count(len(parked), "key is", "keys are")
            note(f"{keys} parked, with {count(sum(parked.values()), 'message')}: dlq list --parked")
        return code


def _rehearse(place: Target, choice: Filter) -> int:
    number = 0
    for parked in (False, True)[: 1 + choice.only_key]:
        mistyped = Mistyped(choice)
        with _open(place, parked=parked) as box:
            found = [letter for letter in _read(box, mistyped) if choice.takes(letter)]
            _tell_unread(box)
        found.sort(key=lambda letter: letter.place)
        for letter in found:
            emit(f"{letter.id} {letter.name} would go to {letter.queue or 'nowhere'}")
        number += len(found)
    emit(f"{count(number, 'message')} would be sent back")
    return 0


def _tell_replayed(done: Replayed) -> int:
    for letter, why in done.refused:
        note(f"qworker: stays: {letter.id or 'a message without id'}: {why}")
    if done.returned:
        emit(f"{count(done.returned, 'message')} sent back")
    return 1 if done.refused else 0


def _unpark(sender: Replay, key: str, replay_id: str, wait: float) -> int:
    """Return the parked messages of a key; tell how it went and return the exit code."""
    done = sender.key(key, replay_id, wait)
    if done.returned:
        emit(f"{count(done.returned, 'parked message')} sent back")
    if done.failed is not None:
        note(
            f"qworker: {key!r} stays parked: {done.failed.id} ({done.failed.name}) failed again:"
            f" {done.failed.reason}"
        )
        return 1
    if not done.freed:
        note(
            f"qworker: {key!r} is still parked after {wait:g} s: its messages wait in their queue."
            " Does the service run? Then give the same command again"
        )
        return 1
    emit(f"{key!r} is free")
    return 0


@dlq.command("purge", cls=SettingsCommand, epilog=example(
    "qworker dlq purge --app handlers --handler audit --yes",
))  # fmt: skip
@settings_options(*_SETTINGS)
@service_option
@click.argument("ids", metavar="[ID]...", nargs=-1)
@_filter_options
@click.option("--yes", is_flag=True, help="Do not ask.")
def purge(
    options: dict[str, Any],
    service: str | None,
    ids: tuple[str, ...],
    *,
    yes: bool,
    **wanted: Any,  # noqa: ANN401 - the filter's options
) -> None:
    """Remove dead letters for good: all, some ids, or what a filter takes.

    Parked messages are not touched: their key could not be set free any more.
    """
    place = target(options, service)
    choice = Filter(ids=ids, **wanted)
    mistyped = Mistyped(choice)
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError("nobody is here to be asked: say --yes")
        # Nothing is held while the answer is awaited: a reader that is silent loses its hold.
        with _open(place) as box:
            number = sum(map(choice.takes, _read(box, mistyped)))
        if not number:
            note(_nothing(box, choice, mistyped))
            return
        click.confirm(f"Remove {count(number, 'message')} of {box.queue} for good?", abort=True)
    number = 0
    with _open(place) as box:
        for letter in _read(box, mistyped):
            if choice.takes(letter):
                box.remove([letter])
                number += 1
    _tell_unread(box)
    emit(f"{count(number, 'message')} removed")


def _open(place: Target, *, parked: bool = False) -> Box:
    queue = (parked_queue if parked else dead_letter_queue)(place.service)
    try:
        return Box(queue, place.codec, place.settings)
    except NoSuchQueue as error:
        if place.app is None:
            raise
        raise ConfigurationError(str(error)) from None


def _read(box: Box, mistyped: Mistyped) -> Iterator[Letter]:
    for letter in box.read():
        mistyped.look(letter)
        yield letter


def _store(place: Target) -> DedupStore:
    settings = place.settings
    options = StoreOptions(settings.claim_ttl, settings.retention, settings.dedup_timeout)
    store = open_store(settings.dedup_url, options)
    if not store.shared:
        store.close()
        raise ConfigurationError(
            f"{settings.dedup_url} lives in the process of the service, where this command cannot"
            " make it forget an id: what is sent back would be dropped as a duplicate"
        )
    return store


def _nothing(box: Box, choice: Filter, mistyped: Mistyped) -> str:
    if not box.depth:
        return f"{box.queue} is empty"
    return f"none of {count(box.depth, 'message')} in {box.queue} is meant{mistyped.hint()}"


def _tell_unread(box: Box) -> None:
    if box.unread:
        note(f"{count(box.unread, 'message')} of {box.queue} could not be read: others hold them,"
             " or there are too many")  # fmt: skip


def _progress(returned: int) -> None:
    if sys.stderr.isatty():
        click.echo(f"\r{returned} sent back", nl=False, err=True)
