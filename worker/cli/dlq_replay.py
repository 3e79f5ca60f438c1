"""``qworker dlq replay``: send what was set aside back."""

from __future__ import annotations

import sys
from contextlib import closing
from typing import TYPE_CHECKING, Any

import click

from worker.cli.letters import Filter, facts
from worker.cli.loading import service_option, target
from worker.cli.options import (
    Seconds,
    SettingsCommand,
    example,
    json_option,
    settings_options,
)
from worker.cli.output import count, emit, emit_json, note
from worker.cli.parked import how_to_return
from worker.cli.reading import SETTINGS, Search, filter_options, open_box, tell_handler
from worker.deadletters import require_broker
from worker.dedup.open import open_settled
from worker.errors import ConfigurationError
from worker.ids import new_id
from worker.parking import parked_keys
from worker.places import Places
from worker.replay import Replay, Unparked

if TYPE_CHECKING:
    from worker.cli.loading import Target
    from worker.deadletters import Letter
    from worker.dedup.base import DedupStore
    from worker.replay import Replayed

_WAIT = 30.0
_EXIT_INCOMPLETE = 1
#: Empties the line of a terminal.
_WIPE = "\r\x1b[K"


@click.command(
    cls=SettingsCommand,
    short_help="Send messages back to their shards.",
    epilog=example(
        "qworker dlq replay --app handlers --handler charge --dry-run",
        "qworker dlq replay --app handlers --handler charge",
        "qworker dlq replay --app handlers --key u1       # also the parked messages of u1",
    ),
)
@settings_options(*SETTINGS)
@service_option
@click.argument("ids", metavar="[ID]...", nargs=-1)
@filter_options
@click.option("--dry-run", is_flag=True, help="Only tell what would be sent back.")
@click.option(
    "--wait",
    type=Seconds(),
    default=_WAIT,
    show_default=True,
    metavar="SECONDS",
    help="How long a parked key may take to become free.",
)
@json_option
def replay(  # noqa: PLR0913 - its options
    options: dict[str, Any],
    service: str | None,
    ids: tuple[str, ...],
    wait: float,
    *,
    dry_run: bool,
    as_json: bool,
    **wanted: Any,
) -> int:
    """Send dead letters back to the shards of their keys: all, some ids, or what a filter takes.

    The handler that failed forgets the id and runs again; the others, which are done, do not.
    Killed at any moment it loses nothing: what was not sent for sure is still there.

    With --key alone the parked messages of that key return as well, in order, and the key is free
    again when all of them were handled; the service must run for that.
    """
    place = target(options, service)
    choice = Filter(ids=ids, **wanted)
    tell_handler(place, choice)
    if dry_run:
        return _rehearse(place, choice, as_json=as_json)
    require_broker(place.service, place.settings.broker)
    replay_id = new_id() if choice.only_key else None
    with (
        closing(_store(place)) as store,
        Replay(place.service, place.settings, store, place.app) as sender,
    ):
        with open_box(place) as box:
            search = Search(box, choice)
            done = sender.letters(box, search, header=replay_id, tell=_progress)
        if sys.stderr.isatty():
            click.echo(_WIPE, nl=False, err=True)
        # Of a key that is parked there may be nothing else: that is no answer yet.
        is_answer = not as_json and (done.returned > 0 or replay_id is None)
        code = _tell(done, is_answer=is_answer)
        code = max(code, _EXIT_INCOMPLETE * search.incomplete)
        told = {"returned": done.returned, "stay": [_why(*refused) for refused in done.refused]}
        if replay_id is not None and choice.key is not None:
            unparked = sender.key(choice.key, replay_id, wait)
        else:
            unparked = Unparked(is_parked=False)
        if unparked.is_parked:
            if as_json:
                emit_json({**told, "parked_returned": unparked.returned, "free": unparked.freed})
            return max(code, _tell_unparked(unparked, str(choice.key), wait, as_json=as_json))
        if as_json:
            emit_json(told)
        elif not is_answer:
            emit(_sent(done.returned))
        search.tell(done.returned + len(done.refused))
        if not choice and (parked := parked_keys(store, place.service)):
            keys = count(len(parked), "key is", "keys are")
            note(f"{keys} parked: dlq list --parked, and {how_to_return(parked)}")
        return code


def _rehearse(place: Target, choice: Filter, *, as_json: bool) -> int:
    going: list[Letter] = []
    for parked in (False, True) if choice.only_key else (False,):
        with open_box(place, parked=parked) as box:
            search = Search(box, choice)
            found = list(search)
        search.tell(len(found))
        if parked:
            found.sort(key=lambda letter: letter.place)
        going += found
    if as_json:
        emit_json([facts(letter) for letter in going])
        return 0
    with Places(place.service, place.settings, place.app) as places:
        for letter in going:
            _, queue = places.of(letter)
            emit(f"{letter.id} {letter.name} would go to {queue or 'nowhere'}")
    emit(f"{count(len(going), 'message')} would be sent back")
    return 0


def _tell(done: Replayed, *, is_answer: bool) -> int:
    """Tell what became of dead letters; return the exit code."""
    for letter, why in done.refused:
        note(f"qworker: stays: {letter.id or 'a message without id'}: {why}")
    if is_answer:
        emit(_sent(done.returned))
    return _EXIT_INCOMPLETE if done.refused else 0


def _sent(number: int) -> str:
    return f"{count(number, 'message')} sent back"


def _why(letter: Letter, why: str) -> dict[str, object]:
    return {**facts(letter), "stays": why}


def _tell_unparked(done: Unparked, key: str, wait: float, *, as_json: bool) -> int:
    """Tell what became of the parked messages of a key; return the exit code."""
    if not as_json:
        emit(f"{count(done.returned, 'parked message')} sent back")
    if done.failed is not None:
        note(
            f"qworker: {key!r} stays parked: {done.failed.id} ({done.failed.name}) failed again:"
            f" {done.failed.reason}"
        )
        return _EXIT_INCOMPLETE
    if done.between:
        note(
            f"qworker: {key!r} is still parked after {wait:g} s: the number of shards is being"
            " changed, and what is parked returns when the old queues are drained ('qworker"
            " reshard' shows how far it is). Then give the same command again"
        )
        return _EXIT_INCOMPLETE
    if done.is_read:
        note(
            f"qworker: {key!r} is still parked after {wait:g} s: somebody else is reading what is"
            " parked ('qworker dlq list', say). Give the same command again when that is over"
        )
        return _EXIT_INCOMPLETE
    if not done.freed:
        note(
            f"qworker: {key!r} is still parked after {wait:g} s: its messages wait in their queue."
            " Does the service run? Then give the same command again"
        )
        return _EXIT_INCOMPLETE
    if not as_json:
        emit(f"{key!r} is free")
    return 0


def _store(place: Target) -> DedupStore:
    store = open_settled(place.settings)
    if not store.shared:
        store.close()
        raise ConfigurationError(
            f"{place.settings.dedup_url} lives in the process of the service, where this command"
            " cannot make it forget an id: what is sent back would be dropped as a duplicate"
        )
    return store


def _progress(returned: int) -> None:
    if sys.stderr.isatty():
        click.echo(f"{_WIPE}{returned} sent back", nl=False, err=True)
