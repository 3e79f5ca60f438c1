"""``qworker replay``: send archived events to one service again."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from worker.archive.journal import Journal, Replay, State, Stopped
from worker.archive.replayer import Overtaken, Replayer
from worker.archive.seam import Lost, Seam
from worker.archive.walk import count_all
from worker.cli.archive import ArchiveCommand, opened, selection_options
from worker.cli.options import (
    Number,
    WholeNumber,
    example,
    json_option,
    settings_options,
)
from worker.cli.output import Interrupted, count, emit, emit_json, emit_table, note
from worker.cli.recipient import Recipient, recipient
from worker.cli.replaying import (
    Teller,
    emit_summary,
    facts,
    how_to,
    summary,
    tell_forgotten,
    wait_until_live,
)
from worker.config import load_settings
from worker.deadletters import require_broker
from worker.errors import QworkerError
from worker.ids import new_id

if TYPE_CHECKING:
    from collections.abc import Mapping

    from worker.archive.base import Archive
    from worker.archive.journal import Stint
    from worker.archive.selection import Selection

SETTINGS = (
    "app", "broker", "dedup", "leases", "archive", "shards", "connect_timeout", "confirm_timeout",
    "dedup_timeout",
)  # fmt: skip
_GIVEN = ParameterSource.COMMANDLINE
_AHEAD = 5000
_EXIT_STOPPED = 1
_LOOK = 0.1
_COLUMNS = ("id", "service", "handlers", "state", "sent", "place", "of")
#: What is asked of replays that there are, and the options that mean something with it.
_CONTROLS = {
    "list": {"as_json"}, "resume": {"as_json", "rate", "ahead"}, "pause": set[str](),
    "cancel": set[str](),
}  # fmt: skip


@click.command(
    cls=ArchiveCommand,
    epilog=example(
        "qworker replay --to bank --handler audit --name 'user.*' --since 7d --dry-run",
        "qworker replay --to bank --handler audit --name 'user.*' --since 7d",
        "qworker replay --app reports --hold-live      # a new service begins with the past",
        "qworker replay --resume 01969d8e               # or all of its id; --list shows them",
        "qworker replay --app reports --resume 01969d8e # one with --hold-live",
    ),
)
@settings_options(*SETTINGS)
@click.option("--to", "service", metavar="SERVICE", help="Which service. [default: the app's]")
@click.option(
    "--handler",
    "handlers",
    metavar="NAME",
    multiple=True,
    help="Only for this handler (repeatable). [default: all that observe the event]",
)
@selection_options
@click.option("--again", is_flag=True, help="Also what is done already, once in this replay.")
@click.option(
    "--hold-live",
    "holds",
    is_flag=True,
    help="The service is new, and gets what is published when it has handled the past.",
)
@click.option("--rate", type=Number(positive=True), metavar="N", help="At most N/s.")
@click.option(
    "--ahead",
    type=WholeNumber(0),
    default=_AHEAD,
    show_default=True,
    metavar="N",
    help="Let at most so many messages wait in a shard; 0: all.",
)
@click.option("--dry-run", is_flag=True, help="Only tell what would be sent.")
@click.option("--id", "replay_id", metavar="ID", help="What to call it. [default: a new id]")
@click.option("--resume", metavar="ID", help="Go on with one that was paused, or has died.")
@click.option("--pause", metavar="ID", help="Pause one that is under way, wherever.")
@click.option("--cancel", metavar="ID", help="End one for good. (How an ID begins will do.)")
@click.option("--list", "list", is_flag=True, help="List the replays.")
@json_option  # fmt: skip
def replay(options: dict[str, Any], *, as_json: bool, **asked: Any) -> int:
    """Send events of the archive to one service again: past the exchange, into its own queues.

    Events of a key are sent in their order. They have the ids that they were published under, so a
    handler drops what it remembers to have done; with --again each replay has a memory of its own.
    Ids are remembered for --retention: a handler that did something longer ago does it again.
    Commands are not archived, and never replayed.

    It can be interrupted, paused and killed at any moment, and resumed: what is sent twice is
    dropped. With --hold-live, and --app, a service that never ran handles the past first, then what
    was published meanwhile, without a gap, and each key in order; --resume and --cancel of such a
    replay need --app too.

    Exit codes: 0 all is sent; 1 paused or cancelled by somebody, or not everything could be sent; 2
    wrong usage, no such service, handler or replay; 3 the app or its settings are wrong; 4 a server
    is not reachable; 130 interrupted, and paused.
    """
    control = _control(click.get_current_context())
    if control == "list":
        return _list(options, as_json=as_json)
    if control == "pause":
        return _pause(options, asked["pause"])
    if control == "cancel":
        return _cancel(options, asked["cancel"])
    with opened(options) as archive:
        journal = Journal(archive, time.time)
        if control == "resume":
            _, found = journal.find(journal.meant(asked["resume"]))
            to = recipient(options, found.service, is_new=found.holds, replay=found.id)
            with _seam(to, holds=found.holds) as seam:
                stint = journal.resume(found.id)
                return _carry_out(archive, stint, to, seam, asked, as_json=as_json)
        to = recipient(options, asked["service"], is_new=asked["holds"])
        wanted = to.chosen(asked["handlers"], asked["selection"])
        if asked["holds"] and wanted.until is not None:
            raise click.UsageError("--until would leave a gap between the past and what is live")
        if asked["holds"] and asked["again"]:
            raise click.UsageError(
                "--again would do twice what is both archived and held: the live copy is remembered"
                " by another memory. A service that is new remembers nothing, and does all of it"
            )
        if asked["dry_run"]:
            return _rehearse(archive, wanted, to, asked, as_json=as_json)
        if not asked["holds"]:
            require_broker(to.place.service, to.place.settings.broker)
        with _seam(to, holds=asked["holds"]) as seam:
            stint = journal.begin(_new(archive, to, wanted, asked, seam))
            return _carry_out(archive, stint, to, seam, asked, as_json=as_json)


def _control(context: click.Context) -> str | None:
    """Return what is asked of a replay that there is.

    Raises UsageError for an option that says something else: what was begun stays as it was meant.
    """
    given = {
        parameter.name: parameter.opts[0]
        for parameter in context.command.params
        if parameter.name and context.get_parameter_source(parameter.name) is _GIVEN
    }
    control = next((name for name in _CONTROLS if name in given), None)
    if control is None:
        return None
    for name, option in given.items():
        if name not in (*SETTINGS, *_CONTROLS[control], control):
            raise click.UsageError(f"--{control} and {option} do not go together")
    return control


def _seam(to: Recipient, *, holds: bool) -> AbstractContextManager[Seam | None]:
    app = to.place.app
    return Seam(app, to.place.settings) if holds and app is not None else nullcontext()


def _new(
    archive: Archive, to: Recipient, wanted: Selection, asked: Mapping[str, Any], seam: Seam | None
) -> Replay:
    """Return a replay that nobody is at yet."""
    position, upto = (0, None) if seam is not None else archive.span(wanted)
    if seam is not None:
        seam.check_new()
    return Replay(
        id=asked["replay_id"] or new_id(),
        service=to.place.service,
        handlers=asked["handlers"],
        selection=wanted,
        again=asked["again"],
        holds=asked["holds"],
        position=position,
        upto=upto,
    )


def _carry_out(  # noqa: PLR0913 - all that there is to it
    archive: Archive,
    stint: Stint,
    to: Recipient,
    seam: Seam | None,
    asked: Mapping[str, Any],
    *,
    as_json: bool,
) -> int:
    """Do a replay that is noted as being done here; return the exit code."""
    replay, settings = stint.replay, to.place.settings
    total = None
    if replay.upto is not None:
        tallies = count_all(archive, replay.selection, replay.position, replay.upto)
        total = replay.sent + sum(tally.events for tally in tallies.values())
        if not replay.again:
            tell_forgotten(tallies, settings.retention)
    note(f"replay {replay.id} to {replay.service}")
    teller = Teller(replay.id, total, replay.sent, as_json=as_json)
    goes_on = f"go on with: {how_to('resume', replay, settings.app)}"
    try:
        with Replayer(
            archive,
            stint,
            settings,
            to.place.app,
            seam=seam,
            rate=asked["rate"] or 0.0,
            ahead=asked["ahead"],
            tell=teller,
        ) as replayer:
            replayer.run()
        teller.end()
    except Stopped as stopped:
        teller.end()
        if stopped.replay.state is State.DONE:
            return _tell_done(stint, as_json=as_json)
        note(f"qworker: {stopped}")
        return _EXIT_STOPPED
    except KeyboardInterrupt:
        teller.end()
        with suppress(Stopped, QworkerError):
            stint.leave(State.PAUSED)
        raise Interrupted(f"the replay is paused; {goes_on}") from None
    except QworkerError as error:
        teller.end()
        with suppress(Stopped, QworkerError):
            stint.leave(State.PAUSED)
        if isinstance(error, Lost | Overtaken):  # to go on mends nothing
            raise
        raise type(error)(f"{error}\n{goes_on}") from None
    code = _tell_done(stint, as_json=as_json)
    if seam is not None:
        wait_until_live(seam, replay.service, settings.connect_timeout, quiet=as_json)
    return code


def _tell_done(stint: Stint, *, as_json: bool) -> int:
    replay = stint.replay
    if as_json:
        emit_json({"replay": replay.id, "state": State.DONE.value, "sent": replay.sent})
    else:
        emit(f"{count(replay.sent, 'event')} sent")
        if replay.sent and not replay.again and not replay.holds:
            note("what a handler remembers to have done it drops; --again does it once more")
    return 0


def _rehearse(
    archive: Archive, wanted: Selection, to: Recipient, asked: Mapping[str, Any], *, as_json: bool
) -> int:
    """Tell what would be sent. Raises UsageError where it would be refused."""
    with _seam(to, holds=asked["holds"]) as seam:
        if seam is not None:
            seam.check_new()
    tallies = count_all(archive, wanted, *archive.span(wanted))
    if as_json:
        emit_json(summary(tallies))
    else:
        emit_summary(tallies)
    if not asked["again"] and not asked["holds"]:
        tell_forgotten(tallies, to.place.settings.retention)
    return 0


def _list(options: Mapping[str, object], *, as_json: bool) -> int:
    with opened(options) as archive:
        journal = Journal(archive, time.time)
        found = journal.all()
        rows = [facts(replay, alive=journal.is_alive(replay)) for replay in found]
    if as_json:
        emit_json(rows)
    elif rows:
        emit_table(_COLUMNS, [[row[name] for name in _COLUMNS] for row in rows])
    else:
        note("nothing was replayed from this archive")
    return 0


def _pause(options: Mapping[str, object], replay_id: str) -> int:
    with opened(options) as archive:
        journal = Journal(archive, time.time)
        replay_id = journal.meant(replay_id)
        paused = journal.ask(replay_id, State.PAUSED)
        _wait_for_owner(journal, replay_id)
    emit(f"{replay_id} is paused; {how_to('resume', paused, load_settings(options).app)} goes on")
    return 0


def _cancel(options: Mapping[str, object], replay_id: str) -> int:
    with opened(options) as archive:
        journal = Journal(archive, time.time)
        replay_id = journal.meant(replay_id)
        _, found = journal.find(replay_id)
        if not found.holds:
            journal.ask(replay_id, State.CANCELLED)
            _wait_for_owner(journal, replay_id)
        else:
            to = recipient(options, found.service, is_new=True, replay=found.id)
            with _seam(to, holds=True) as seam:
                journal.ask(replay_id, State.CANCELLED)
                _wait_for_owner(journal, replay_id)  # what it sends after the end has no order
                if seam is not None:
                    with suppress(Lost):  # it does so already, or never was held for this one
                        seam.end(found.id)
                        live = "goes on with what is live, without the rest of the past"
                        note(f"{found.service} {live}")
    emit(f"{replay_id} is cancelled")
    return 0


def _wait_for_owner(journal: Journal, replay_id: str) -> None:
    """Wait until whoever is at a replay has heard, or is known to be gone."""
    while journal.is_alive(journal.find(replay_id)[1]):
        time.sleep(_LOOK)
