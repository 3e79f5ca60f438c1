"""What is told of a replay: what it would send, how far it is, how it ended."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from worker.archive.journal import State
from worker.cli.moments import shown
from worker.cli.output import Interrupted, clean, count, emit, emit_table, note
from worker.errors import LeasesUnavailable
from worker.patience import patiently
from worker.sharding.generations import Phase

if TYPE_CHECKING:
    from collections.abc import Mapping

    from worker.archive.base import Tally
    from worker.archive.journal import Replay
    from worker.archive.replayer import Told
    from worker.archive.seam import Seam

_WIPE = "\r\x1b[K"
#: Seconds between two lines where nobody sits at a terminal.
_SELDOM = 10.0
_LOOK = 0.1


class Teller:
    """Tells how far a replay is: a line that is written anew, one now and then, or one of JSON."""

    def __init__(self, replay_id: str, total: int | None, before: int, *, as_json: bool) -> None:
        """``total``: how many are to be sent, where that is known; ``before``: were sent before."""
        self._id = replay_id
        self._total = total
        self._before = before
        self._as_json = as_json
        self._began = time.monotonic()
        self._next = 0.0
        self._waits = ""
        self._rewrites = sys.stderr.isatty() and not as_json

    def __call__(self, told: Told) -> None:
        """Tell it."""
        seconds = max(time.monotonic() - self._began, 1e-3)
        rate = (told.sent - self._before) / seconds
        if self._as_json:
            self._emit(told, rate)
            return
        of = f" of {self._total}" if self._total is not None else ""
        line = f"{told.sent}{of} sent, {rate:.0f}/s"
        if told.waits:
            line += f"; waits for {clean(told.waits)}"
        if self._rewrites:
            click.echo(f"{_WIPE}{line}", nl=False, err=True)
        elif time.monotonic() >= self._next or told.waits != self._waits:
            self._next = time.monotonic() + _SELDOM
            note(line)
        self._waits = told.waits

    def end(self) -> None:
        """Leave the line to what is told next."""
        if self._rewrites:
            click.echo(_WIPE, nl=False, err=True)

    def _emit(self, told: Told, rate: float) -> None:
        facts = {
            "replay": self._id,
            "sent": told.sent,
            "of": self._total,
            "place": told.position,
            "upto": told.upto,
            "rate": round(rate, 1),
            "waits_for": told.waits or None,
        }
        emit(json.dumps(facts))


def summary(tallies: Mapping[str, Tally]) -> dict[str, Any]:
    """Return what would be sent, ready for JSON."""
    return {
        "events": sum(tally.events for tally in tallies.values()),
        "names": {
            name: {"events": t.events, "first": shown(t.first), "last": shown(t.last)}
            for name, t in tallies.items()
        },
    }


def emit_summary(tallies: Mapping[str, Tally]) -> None:
    """Print what would be sent."""
    rows = [(n, t.events, shown(t.first), shown(t.last)) for n, t in tallies.items()]
    if rows:
        emit_table(("name", "events", "first", "last"), rows)
    emit(f"{count(sum(t.events for t in tallies.values()), 'event')} would be sent")


def tell_forgotten(tallies: Mapping[str, Tally], retention: float) -> None:
    """Say where some events are older than ids are remembered."""
    edge = (time.time() - retention) * 1_000_000
    if any(tally.first < edge for tally in tallies.values()):
        note(
            f"some are older than ids are remembered ({retention / 86400:g} days): a handler that"
            " has done them, and keeps no ids of its own that go back as far, does them again"
        )


def facts(replay: Replay, *, alive: bool) -> dict[str, Any]:
    """Return what a list tells of a replay, for JSON."""
    state = replay.state.value
    if replay.state is State.RUNNING and not alive:
        state = "interrupted"
    return {
        "id": replay.id,
        "service": replay.service,
        "handlers": ", ".join(replay.handlers) or "all",
        "state": state,
        "sent": replay.sent,
        "place": replay.position,
        "of": replay.upto,
        "again": replay.again,
        "hold_live": replay.holds,
        "owner": replay.owner.partition("/")[0] or None,
    }


def how_to(do: str, replay: Replay, app: str) -> str:
    """Return the command that does ``do`` to a replay; ``app`` is the app, where it is known."""
    # Only the code tells what a service observes that has not run yet.
    needs = f" --app {app or 'MODULE'}" if replay.holds else ""
    return f"qworker replay{needs} --{do} {replay.id}"


def wait_until_live(seam: Seam, service: str, patience: float, *, quiet: bool) -> None:
    """Tell how the service goes over from the past to what is live, until it is there.

    Raises LeasesUnavailable where the lease store is away for longer than ``patience`` seconds.
    """
    by_itself = f"all is sent; {service} goes over to what is live by itself, as soon as it runs"
    try:
        _wait_until_live(seam, service, patience, quiet=quiet)
    except KeyboardInterrupt:
        raise Interrupted(by_itself) from None
    except LeasesUnavailable as error:
        raise LeasesUnavailable(f"{error}\n{by_itself}") from None
    if not quiet:
        emit(f"{service} is live")


def _wait_until_live(seam: Seam, service: str, patience: float, *, quiet: bool) -> None:
    told = quiet
    while patiently(seam.phase, patience) not in (None, Phase.REMOVE):
        if not told:
            note(
                f"{service} handles the rest of the past, then goes over to what is live, as soon"
                " as it runs: start it now (in another terminal). This command waits until it is"
                " live; Ctrl-C ends the waiting alone"
            )
        told = True
        time.sleep(_LOOK)
