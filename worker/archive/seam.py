"""Where the past meets what is live: a new service that begins with the archive, without a gap.

A service that never ran gets two generations of queues (:mod:`worker.sharding.generations`):

* the first one, *past*, is bound to nothing. Only the replay puts messages into it, each into the
  shard of its key, in the order of the archive;
* the second one, *live*, is bound to all that the service's code names. What is published gathers
  in it. Nobody consumes it before the first one is consumed up to its markers.

Steps, each of which can be repeated by whoever comes after a crash:

1. *hold*: write the plan, in its step ``replay``; declare both generations. The service may be
   started from here on, and not before: it consumes the past as it comes
2. *send* the archive, from its first event to its last, again and again as it grows
3. *horizon*: at least a second after 1, find the place in the archive before which everything is
   that was published until then (:mod:`worker.archive.horizon`); send all up to it
4. note that the past is complete; then move the plan on. From here on it is a change of shards like
   any other: markers go behind the last message of each queue, the members consume up to them, then
   the live generation; the first one is removed

**No gap.** Take an event that the archive keeps. The broker routes it either when the live
generation was bound: then it is there, and stays there until it is handled. Or before: then it was
in the archive's queues before the barriers of step 3, so its place is not behind the horizon, and
it was sent in 2 or 3. (A broker routes a message, and then puts it into the queues. The second in 3
is for that: a broker that takes longer between the two could put it behind the barrier.)

**No reordering.** The events of a key in the past generation are a prefix of its stream, in order,
with copies behind their first ones (after a crash of whoever sends). Those in the live generation
are the rest, in order, with an overlap: what was bound already and archived before the horizon. All
of the first is handled, or set aside, before any of the second is delivered, since that is what the
plan says who consumes; and what is in both is a duplicate in the second, by its id. So the first
copies come in the order of the stream. (But for what waits for a revision that the past does not
have: it goes on in the live generation, behind what is there, and its handler keeps the order of
revisions: :mod:`worker.onward`.)

**Crashes.** Of the sender: 1 finds the plan, and declares what is there; 2 goes on from the last
position that was saved, and sends some twice, in order; 3 sends barriers of a new name; 4 finds
"complete" and moves the plan on, or finds it moved. Of the service, at any moment: what is promised
of any service. A sender that slept and wakes up after another one has gone through 4 sends copies
of what that one sent: behind the markers, where what is left moves to the live generation when the
first one is removed, and is a duplicate there. One that slept while its replay was cancelled sends
what nobody has sent, up to a batch of it: that is handled there behind what is live, and without
the rest, which is what cancelling means.

**One replay** holds a service: the plan says which, from step 1 to step 4. Of two that find a new
service at the same time one writes it, and the other ends.

The lease store is what remembers the hold. Where it forgot the plan while nobody ran the service,
whoever starts it finds two generations on the broker and goes on as in any change of shards, that
is with 4. The sender then finds the plan gone or moved, and says so (:class:`Lost`).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Self

from worker.archive.service import ARCHIVE
from worker.errors import ConfigurationError, QworkerError, UsageError
from worker.inspector import Inspector
from worker.leases.base import LeaseOptions
from worker.leases.open import open_leases
from worker.names import front_exchange
from worker.patience import patiently
from worker.resharding import Resharding
from worker.sharding.generations import PLAN, Phase, Plan
from worker.topology import queue_prefix, shard_queue

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.app import App
    from worker.config import Settings

#: Seconds that a broker may take from routing a message to having it in the queues.
ROUTED = 1.0


class Lost(QworkerError):
    """What was live is not held any more, although not all of the past was sent."""


class Seam:
    """Holds what is live for one new service, and lets it go. A context manager, for one thread.

    Raises LeasesUnavailable and BrokerUnreachable; then the same call can be made again.
    """

    def __init__(
        self, app: App, settings: Settings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Open the lease store. Raises ConfigurationError where others cannot see it."""
        self._app = app
        self._settings = settings
        self._clock = clock
        self._queues = queue_prefix(app.name, settings.handlers)
        if settings.leases_url.startswith("memory:"):
            raise ConfigurationError(
                f"{app.name} keeps its leases in {settings.leases_url}, which no other process"
                " sees: what is live can only be held by a plan that its supervisors read. Set"
                " --leases"
            )
        options = LeaseOptions(settings.lease_ttl, settings.dedup_timeout)
        url, origin = settings.leases_url, settings.leases_origin
        self._leases = patiently(
            lambda: open_leases(url, options, origin), settings.connect_timeout
        )
        self._held_since = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._leases.close()

    def check_new(self) -> None:
        """Raise UsageError for a service that ran already: its first events would come again."""
        _, plan = self._look()
        if plan is not None and plan.phase is Phase.REPLAY:
            command = f"qworker replay --app {self._settings.app or 'MODULE'}"
            raise UsageError(
                f"{self._app.name} begins with the replay {plan.replay} already: go on with that"
                f" ({command} --resume {plan.replay}; --list shows how far it is), or end it"
                f" ({command} --cancel {plan.replay})"
            )
        if plan is not None or self._is_declared():
            raise UsageError(
                f"{self._app.name} has run already, or was declared, so it has something of what is"
                " live, and cannot begin with the past. Give the new state a service of its own,"
                " with another name; or replay without --hold-live, which keeps no order between"
                " both"
            )

    def hold(self, replay: str, *, begun: bool) -> None:
        """Have what is published held for a replay from now on. ``begun``: it was so before.

        Raises Lost where it was, and is not any more; or where somebody was quicker.
        """
        while True:
            version, plan = self._look()
            if plan is None and not begun:
                shards, alone = self._settings.first_shards, self._settings.single_active
                plan = Plan.held(shards, replay, single_active=alone)
                if not self._leases.write(self._queues, PLAN, version, plan.dump()):
                    continue
            if plan is None or not _is_for(replay, plan):
                raise self.lost() if begun else self._late()
            Resharding(self._app, self._settings).declare(plan)
            self._held_since = self._held_since or self._clock()
            return

    @property
    def is_settled(self) -> bool:
        """Whether all that the broker routed before it was held is in the archive's queues."""
        return self._clock() - self._held_since >= ROUTED

    def end(self, replay: str) -> None:
        """Let the service go over to what is live, once it has handled what is there.

        Raises Lost where it is not held, or for another replay.
        """
        while True:
            version, plan = self._look()
            if plan is None or (plan.phase is Phase.REPLAY and not _is_for(replay, plan)):
                raise self.lost()
            if plan.phase is not Phase.REPLAY:
                return
            if self._leases.write(self._queues, PLAN, version, plan.advanced().dump()):
                return

    def is_archived(self) -> bool:
        """Tell whether somebody runs the archive.

        True also where that is not known: it may keep its leases elsewhere.
        """
        view = self._leases.look(ARCHIVE)
        return bool(view.members) or PLAN not in view.documents

    def phase(self) -> Phase | None:
        """Return what the service does before it is live; None where it is."""
        _, plan = self._look()
        return None if plan is None else plan.phase

    def lost(self) -> Lost:
        """Return the error that says what that means."""
        return Lost(
            f"{self._app.name}: what is live is not held any more, although not all of the past was"
            " sent: somebody changed the plan of its shards, or the lease store forgot it. Its"
            " state has a hole where the past ends; begin anew, with a service of another name"
        )

    def _late(self) -> Lost:
        return Lost(
            f"{self._app.name} was started, or begun with another replay, at the same time: nothing"
            " was sent"
        )

    def _look(self) -> tuple[int, Plan | None]:
        document = self._leases.look(self._queues).documents.get(PLAN)
        return (0, None) if document is None else (document.version, Plan.load(document.text))

    def _is_declared(self) -> bool:
        """Tell whether the broker has queues of the service."""
        with Inspector(self._app.name, self._settings) as inspector:
            if inspector.has_exchange(front_exchange(self._queues)):
                return True
            return inspector.depth(shard_queue(self._queues, 1, 0)) is not None


def _is_for(replay: str, plan: Plan) -> bool:
    """Tell whether a service is held for this replay."""
    return plan.phase is Phase.REPLAY and plan.replay == replay
