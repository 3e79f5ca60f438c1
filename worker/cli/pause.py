"""``qworker pause`` and ``qworker resume``: a service, some shards, some handlers."""

from __future__ import annotations

from functools import partial
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, TypeVar

import click

from worker.cli.leasing import SETTINGS, Leasing, leasing, never_ran
from worker.cli.loading import no_handler, service_option, target
from worker.cli.options import (
    Seconds,
    SettingsCommand,
    WholeNumber,
    example,
    json_option,
    settings_options,
)
from worker.cli.output import count, emit, emit_json, interruptible, note
from worker.errors import UsageError
from worker.supervisor.facts import Facts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from worker.cli.leasing import Known
    from worker.cli.loading import Target
    from worker.sharding.pauses import Pauses

F = TypeVar("F", bound="Callable[..., Any]")

_LOOK = 0.1
_PATIENCE = 60.0
_EXIT_NOT_YET = 1
#: Seconds in which a member that goes on says something new, however short its leases are.
_SIGN = 1.0

_OPTIONS = (
    click.option(
        "--shard", "shards", type=WholeNumber(0), multiple=True, metavar="N",
        help="This shard (repeatable).",
    ),
    click.option(
        "--handler", "handlers", multiple=True, metavar="NAME", help="This handler (repeatable).",
    ),
    click.option(
        "--wait/--no-wait", default=True,
        help="Wait until every living member has carried it out. [default: on]",
    ),
    click.option(
        "--timeout", type=Seconds(), default=_PATIENCE, show_default=True,
        metavar="SECONDS", help="Wait no longer than this.",
    ),
    json_option,
)  # fmt: skip


def _options(function: F) -> F:
    """Give a command what both have."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


@click.command(
    cls=SettingsCommand,
    left="what is paused now, 'qworker status' shows",
    epilog=example(
        "qworker pause --app handlers                       # the whole service",
        "qworker pause --app handlers --handler send_mail",
        "qworker pause --app handlers --shard 3 --shard 5",
    ),
)
@settings_options(*SETTINGS)
@service_option
@_options
def pause(options: dict[str, Any], service: str | None, **asked: Any) -> int:
    """Pause a service, shards or handlers, on every machine, until 'qworker resume'.

    What runs finishes; nothing of it begins once this command has returned, also after restarts.
    Its messages wait: those of a service or a shard in the broker, those of a handler in the
    processes, where they use up the prefetch of their shard.

    With --app it may be paused before it ever ran, but not where the lease store is a file of
    SQLite that is not there; by its name alone only where the lease store knows it.

    Exit codes: 0 done; 1 not every member has carried it out in time, it stays asked for; 2 there
    is no such service, shard or handler; 3 the app or its settings are wrong, or the leases are in
    the memory of another process; 4 the lease store is not reachable.
    """
    return _carry_out(target(options, service), resume=False, **asked)


@click.command(
    cls=SettingsCommand,
    left="what is paused now, 'qworker status' shows",
    epilog=example(
        "qworker resume --app handlers                      # everything",
        "qworker resume --app handlers --handler send_mail",
    ),
)
@settings_options(*SETTINGS)
@service_option
@_options
def resume(options: dict[str, Any], service: str | None, **asked: Any) -> int:
    """Resume what 'qworker pause' has paused: some shards or handlers, or everything.

    Messages that waited are handled in their order. Exit codes: as of 'qworker pause'.
    """
    return _carry_out(target(options, service), resume=True, **asked)


def _carry_out(  # noqa: PLR0913 - _OPTIONS
    place: Target,
    *,
    resume: bool,
    shards: Sequence[int],
    handlers: Sequence[str],
    wait: bool,
    timeout: float,
    as_json: bool,
) -> int:
    with leasing(place) as store:
        before = store.look()
        known = store.change(partial(_changed, place, shards, handlers, resume=resume))
        if before.is_unknown:
            note(_before_its_time(place.service, before, resume=resume))
        with interruptible("it stays asked for; the same command waits again"):
            if not as_json:
                emit(f"{store.service}: {_resumed(before, known)}{_told(known.pauses)}")
            members = _Members(store, known.version)
            late = members.wait(timeout) if wait else []
        if as_json:
            emit_json(
                {
                    "service": store.service,
                    "paused": facts(known.pauses),
                    "members": members.number,
                    "waits_for": late,
                }
            )
        elif wait:
            members.tell(late, timeout)
    return _EXIT_NOT_YET if late else 0


def facts(pauses: Pauses) -> dict[str, Any]:
    """Return what is paused, ready for JSON."""
    return {
        "service": pauses.service,
        "shards": [*pauses.shards],
        "handlers": [*pauses.handlers],
    }


def _before_its_time(service: str, known: Known, *, resume: bool) -> str:
    """Return what to tell where a service is paused, or resumed, that nobody ever started."""
    then = "there is nothing to resume" if resume else "what is paused holds from its first start"
    return f"qworker: {never_ran(service, known.where)}: {then}. Is it the store that is meant?"


def _resumed(before: Known, known: Known) -> str:
    """Return what of what was paused is not any more, in words that go on with what still is."""
    generation = 1 if known.plan is None else known.plan.consumed.number
    resumed = before.pauses.of(generation).without(known.pauses)
    return f"resumed {resumed}; " if resumed else ""


def _told(pauses: Pauses) -> str:
    verb = "are" if len(pauses.shards) + len(pauses.handlers) + pauses.service > 1 else "is"
    return f"{pauses} {verb} paused"


def _changed(
    place: Target, shards: Sequence[int], handlers: Sequence[str], known: Known, *, resume: bool
) -> Pauses:
    """Return what shall be paused. Raises UsageError for what the service does not have."""
    plan = known.plan
    if known.is_missing and not resume:  # a typo, or another folder: it would be made, for nobody
        raise UsageError(
            f"{never_ran(place.service, known.where)}, of which there is no file here: nothing is"
            " paused. Look at the folder, and at --leases (or --dedup, --broker)"
        )
    generation, number = 1, place.settings.first_shards
    if plan is not None:
        generation, number = plan.consumed.number, plan.consumed.shards
    elif place.app is None and known.is_unknown:
        raise UsageError(
            f"{never_ran(place.service, known.where)}: look at that name, and at --leases (or"
            " --dedup, --broker). To pause it before it ever ran, say --app instead of --service"
        )
    elif shards and place.app is None:
        raise UsageError(f"{never_ran(place.service, known.where)}: it has no shards yet")
    pauses = known.pauses.of(generation)
    for shard in shards:
        if shard >= number and shard not in pauses.shards:
            counted = f"{count(number, 'shard is', 'shards are')} counted from 0"
            raise UsageError(f"{place.service} has no shard {shard}: its {counted}")
    if handlers:
        _check_handlers(place, handlers, pauses)
    change = pauses.resumed if resume else pauses.paused
    return change(generation, shards, handlers)


def _check_handlers(place: Target, handlers: Sequence[str], pauses: Pauses) -> None:
    if place.app is None:
        raise UsageError("which handlers there are, the code tells: say --app instead of --service")
    for name in handlers:
        if name not in pauses.handlers and (mistake := no_handler(place.app, name)):
            raise UsageError(mistake)


class _Members:
    """Who carries out what is paused, up to this version of the document.

    A member that tells more than the document's own version speaks of one that the lease store
    forgot, and has not heard of this. One that gives no sign of life for as long as its leases live
    begins nothing any more: how long that is, it tells itself, because this command may be run with
    other settings than the service.
    """

    def __init__(self, store: Leasing, version: int) -> None:
        self._store = store
        self._version = version
        self._heard: dict[str, tuple[str, float]] = {}
        #: Who is silent, and for how long they may be.
        self._silent: dict[str, float] = {}
        #: How many there are.
        self.number = 0

    def wait(self, timeout: float) -> list[str]:
        """Wait until all have; return those that have not in time."""
        deadline = monotonic() + timeout
        while late := self._late():
            if monotonic() >= deadline:
                return late
            sleep(_LOOK)
        return []

    def tell(self, late: Sequence[str], timeout: float) -> None:
        """Say how it went."""
        for name, silence in sorted(self._silent.items()):
            note(f"{name} has given no sign of life for {silence:g} s: it begins nothing")
        if late:
            note(
                f"qworker: not carried out within {timeout:g} s by {', '.join(late)}: something of"
                " it still runs there, or it does not hear. It holds all the same; the same command"
                " waits again"
            )
        elif self.number:
            emit(f"carried out by {count(self.number, 'member')}")
        else:
            emit("nobody runs this service now; it holds for whoever starts")

    def _late(self) -> list[str]:
        known = self._store.look()
        now = monotonic()
        late, self._silent = [], {}
        for member, text in known.view.members.items():
            if self._heard.get(member, ("", now))[0] != text:
                self._heard[member] = (text, now)
            told = Facts.load(text)
            if self._version <= told.paused <= known.version:
                continue
            name = f"{told.host}:{told.pid}"
            silence = max(told.lease_ttl, _SIGN)
            if now - self._heard[member][1] > silence:
                self._silent[name] = silence
            else:
                late.append(name)
        self.number = len(known.view.members) - len(self._silent)
        return sorted(late)
