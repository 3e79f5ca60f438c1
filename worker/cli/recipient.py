"""To whom a replay goes: the service, and those of its handlers that observe something."""

from __future__ import annotations

from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING

import click

from worker.cli.leasing import leasing, never_ran
from worker.cli.loading import Target, target
from worker.config import load_settings
from worker.errors import UsageError
from worker.routing import overlap
from worker.sharding.generations import Phase

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from worker.archive.selection import Selection


@dataclass(frozen=True, slots=True)
class Recipient:
    """A service that events are sent to."""

    place: Target
    #: Its handlers of events, with what they observe: as the app says, or whoever runs it. None
    #: where neither is there.
    handlers: Mapping[str, str] | None

    def chosen(self, names: Sequence[str], selection: Selection) -> Selection:
        """Return what of ``selection`` these handlers observe; all of them, where none is named.

        What none observes would be set aside as dead. Raises UsageError for a handler that is not
        there, and where nothing is left.
        """
        service = self.place.service
        if self.handlers is None:
            raise UsageError(
                f"what {service} observes its code tells, or whoever runs it: say --app instead of"
                " --to, or start it first"
            )
        for name in names:
            if name not in self.handlers:
                raise UsageError(self._unknown(name))
        patterns = [p for name, p in self.handlers.items() if not names or name in names]
        if not patterns:
            raise UsageError(f"{service} has no handler of events")
        wanted = selection.names or ("#",)
        if not any(overlap(one, other) for one in wanted for other in patterns):
            raise UsageError(
                f"no event is meant: of {service} only {', '.join(sorted({*patterns}))} is observed"
            )
        return replace(selection, observed=tuple(sorted({*patterns})))

    def _unknown(self, name: str) -> str:
        known = self.handlers or {}
        app = self.place.app
        if app is not None and name in app.handlers:
            return f"the handler {name!r} takes commands, and these are never replayed"
        near = get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(sorted(known))}"
        return f"{self.place.service} has no handler of events {name!r}; {hint}"


def _held(service: str, replay: str) -> str:
    """Say why nothing else is sent to a service that begins with the past.

    It would come into the queues of the past, before what is older of its keys.
    """
    return (
        f"{service} is held by the replay {replay}, which sends it the past: what another replay"
        " sends meanwhile would be handled before what is older of its keys. Let that one end"
        f" ('qworker replay --list' shows how far it is), or end it (--cancel {replay}, with --app)"
    )


def recipient(
    options: Mapping[str, object], service: str | None, *, is_new: bool, replay: str = ""
) -> Recipient:
    """Return the service that ``--to`` names, or the ``replay`` that there is, or that of the app.

    ``is_new``: it need not have run. Raises ConfigurationError; UsageError for a service that is
    not known, or not that of the app, or is held by a replay while this one holds nothing.
    """
    has_app = options.get("app") or (is_new and load_settings(options).app)
    place = target(options, None if has_app else service, "--to")
    if service is not None and place.service != service:
        meant = f"the replay {replay} is to {service}" if replay else f"--to {service}"
        raise UsageError(f"{meant}: the app is {place.service}")
    if is_new:
        if place.app is None:
            holds = f"the replay {replay} holds what is live" if replay else "--hold-live"
            raise click.UsageError(
                f"{holds}: that declares what the code of {service} observes; say --app"
                f" MODULE[:ATTRIBUTE] of {service}"
            )
        return Recipient(place, place.app.observers())
    with leasing(place) as store:
        known = store.look()
        if known.plan is not None and known.plan.phase is Phase.REPLAY:
            raise UsageError(_held(place.service, known.plan.replay))
        if known.is_unknown:
            near = store.near()
            hint = f"; did you mean {near}?" if near else ""
            how = "--hold-live" if place.app is not None else "--app and --hold-live"
            raise UsageError(
                f"{never_ran(place.service, known.where)}{hint}\nA new service begins with the past"
                f" by {how}; for one that runs elsewhere, say its --leases (or --dedup, --broker)"
            )
    if place.app is not None:
        return Recipient(place, place.app.observers())
    told: dict[str, str] = {}
    for member in known.members.values():
        told |= member.handlers
    return Recipient(place, told or None)
