"""``qworker status``: who runs a service, who has which shard, and how it goes."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

import click

from worker.cli.leasing import SETTINGS, Leasing, leasing, never_ran
from worker.cli.loading import service_option, target
from worker.cli.options import SettingsCommand, example, json_option, settings_options
from worker.cli.output import clean, emit, emit_json, emit_table, is_terminal, note
from worker.cli.overview import footlines, headlines, member_table, overview, shard_table
from worker.cli.parked import ParkedKeys
from worker.config import mask_url
from worker.errors import LeasesUnavailable, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from worker.cli.loading import Target

_PAUSE = 1.0
#: Lines of a terminal that are not rows of shards: headings, and the tables' own.
_AROUND = 12


@click.command(
    cls=SettingsCommand,
    epilog=example(
        "qworker status --app handlers",
        "qworker status --app handlers --watch",
        "qworker status --service bank --leases redis://host/0 --json",
    ),
)
@settings_options(*SETTINGS, "handlers")
@service_option
@click.option("--watch", is_flag=True, help="Show it anew each second, until Ctrl-C.")
@json_option
def status(options: dict[str, Any], *, service: str | None, watch: bool, as_json: bool) -> int:
    """Show the members of a service, its shards, and what is paused, held or parked.

    It asks the lease store, where members tell about themselves, and the dedup store for parked
    keys; the broker and the processes are not asked. Of a shard: its owner, the epoch of its lease
    and the seconds that are left of it; the backlog, which is what waits in its queue (as of
    some seconds ago, where there are many shards) and what is here and not settled; what is in
    flight; for how long the oldest message has been here; and the keys that are held, for a retry
    say.

    Exit codes: 0 shown; 2 wrong usage, or a --service that never ran there; 3 the app or its
    settings are wrong, or the leases are in the memory of another process; 4 the lease store is not
    reachable.
    """
    place = target(options, service)
    with ExitStack() as stack:
        store = stack.enter_context(leasing(place))
        _check_name(place, store)
        parked = ParkedKeys(place)
        stack.callback(parked.close)
        if watch:
            with suppress(KeyboardInterrupt):
                _watch(store, parked, as_json=as_json)
            return 0
        told = _overview(store, parked)
    if as_json:
        emit_json(told)
    else:
        _show(told)
    if parked.problem:
        note(f"qworker: the parked keys are not known: {parked.problem}")
    return 0


def _check_name(place: Target, store: Leasing) -> None:
    """Raise UsageError for a name that nobody knows: with --service it may be mistyped."""
    known = store.look()
    if place.app is None and known.is_unknown:
        raise UsageError(
            f"{never_ran(place.service, known.where)}: look at that name, and at --leases (or"
            " --dedup, --broker)"
        )


def _overview(store: Leasing, parked: ParkedKeys) -> dict[str, Any]:
    return overview(store.service, store.look(), parked.look(), time.time())


def _show(told: Mapping[str, Any]) -> None:
    for line in headlines(told):
        emit(clean(line))
    for columns, rows in (member_table(told), shard_table(told)):
        if rows:
            emit()
            emit_table(columns, rows)
    emit()
    for line in footlines(told):
        emit(clean(line))


def _watch(store: Leasing, parked: ParkedKeys, *, as_json: bool) -> None:
    """Show it until somebody presses Ctrl-C. Raises LeasesUnavailable at the first look alone."""
    first = _overview(store, parked)
    if not as_json and is_terminal():
        # Costs as much time as all of a short command.
        from worker.cli.screen import live

        with live(_AROUND) as show:
            _again(store, parked, first, show)
    else:
        _again(store, parked, first, _line if as_json else _page)


def _again(
    store: Leasing,
    parked: ParkedKeys,
    first: dict[str, Any],
    show: Callable[[Mapping[str, Any]], None],
) -> None:
    show(first)
    for told in _looks(store, parked, first):
        show(told)


def _looks(store: Leasing, parked: ParkedKeys, last: dict[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield what is known, once a second; while the store is away, what was known last."""
    while True:
        time.sleep(_PAUSE)
        try:
            last = _overview(store, parked)
        except LeasesUnavailable as error:
            yield {**last, "problem": mask_url(str(error))}
        else:
            yield last


def _line(told: Mapping[str, Any]) -> None:
    emit(json.dumps(told, ensure_ascii=False, default=str))


def _page(told: Mapping[str, Any]) -> None:
    if told.get("problem"):
        note(f"qworker: {told['problem']}")
    else:
        _show(told)
        emit()
