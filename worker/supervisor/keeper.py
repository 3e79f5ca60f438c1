"""The supervisor's talk with the lease store, in a thread of its own.

So a store that is slow, or away, holds up neither signals nor watchdogs. Each round is one call:
what this member renews, gives back and asks for goes there, what everybody has comes back. Rounds
follow each other within milliseconds while something moves, quickly for a while after, and else
once a second. What comes of a round is *news* for the supervisor's loop.

What is wrong before the first round succeeded is a mistake of the start, and told as one. What is
wrong later was right before, and may be so again (a password that is being changed, a table that is
restored, a document that somebody spoilt): the store is away then, for as long as that lasts.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections import deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from worker.errors import ConfigurationError, LeasesUnavailable, QworkerError, StoreCorrupt
from worker.leases.base import (
    STEP_SHARE,
    LeaseOptions,
    Sync,
    View,
    lease_clock,
    trusted_until,
)
from worker.leases.open import open_leases
from worker.patience import patiently
from worker.sharding.generations import PLAN
from worker.sharding.ownership import Grant, Ownership
from worker.sharding.pauses import PAUSED, Pauses
from worker.supervisor.course import Course, Proposal, Refused
from worker.supervisor.facts import Facts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from worker.leases.base import Document, LeaseStore
    from worker.sharding.generations import Generation, Plan
    from worker.supervisor.control import Terms

logger = logging.getLogger("worker.supervisor")

#: Seconds between two rounds: at once, while something moves, and in peace.
_AT_ONCE, _LIVELY, _CALM = 0.02, 0.25, 1.0
#: Seconds for which rounds stay lively after something moved.
_LIVELY_FOR = 3.0
_MEMBER_BYTES = 8
_EXIT_FAILED = 1


@dataclass(frozen=True, slots=True)
class News:
    """What came of a round. ``error`` says that the store did not answer; then nothing is known."""

    view: View = field(default_factory=View)
    plan: Plan | None = None
    #: The version of its document.
    version: int = 0
    #: Leases that became ours; those to give up; those that somebody else may have by now.
    take: dict[str, Grant] = field(default_factory=dict)
    give: Sequence[str] = ()
    lost: Sequence[str] = ()
    #: Until when all that is ours may be trusted, by the ``lease_clock``.
    trusted_until: float = 0.0
    #: What is paused, with the version of the document; None where there is none.
    paused: tuple[int, Pauses] | None = None
    #: Nothing is ours any more, and everybody knows.
    gone: bool = False
    error: str = ""
    #: There is no plan yet: what the broker has is to be looked for, and told.
    blank: bool = False
    #: The service cannot go on like this; with the exit code that says so.
    refused: Refused | None = None


class Keeper:
    """Keeps the leases of one supervisor. Its methods are for the supervisor's loop."""

    def __init__(self, terms: Terms, wake: Callable[[], None]) -> None:
        self.member = secrets.token_hex(_MEMBER_BYTES)
        self._terms = terms
        self._wake = wake
        self._ownership = Ownership(self.member, terms.lease_ttl, _is_able)
        self._course = Course(terms, self.member)
        self._news: deque[News] = deque()
        self._given: deque[tuple[str, int | None]] = deque()
        self._writes: deque[tuple[str, int, str]] = deque()
        self._facts = Facts(able=False, lease_ttl=terms.lease_ttl).dump()
        self._leaving = False
        self._closed = False
        #: What is to be given up because of that, until the news tell.
        self._letting_go: list[str] = []
        #: What the last round asked for.
        self._wanted: list[str] = []
        self._plan: Plan | None = None
        self._version = 0
        self._refused = False
        #: A round succeeded, so what this member was started with is right.
        self._proven = False
        #: The store does not answer; and what it complained of last.
        self._away, self._complaint = False, ""
        #: What is paused, by the last document that could be read; and the last that could not.
        self._paused: tuple[int, Pauses] | None = None
        self._unreadable: Document | None = None
        #: The store forgot, and what it says of others does not count yet.
        self._settles = False
        self._lively_until = lease_clock() + _LIVELY_FOR
        self._poke = threading.Event()
        self._thread = threading.Thread(target=self._run, name="qworker-leases", daemon=True)

    def start(self) -> None:
        """Begin to talk."""
        self._thread.start()

    def news(self) -> list[News]:
        """Return what came of the rounds since the last call."""
        found = []
        while self._news:
            found.append(self._news.popleft())
        return found

    def tell(self, facts: str, *, at_once: bool = False) -> None:
        """Let the other members know these facts, with the next round; which may begin at once."""
        self._facts = facts
        if at_once:
            self._poke.set()

    def found(self, generations: Sequence[Generation]) -> None:
        """Make the first plan of these generations, which the broker has."""
        self._course.found = generations
        self._poke.set()

    def given(self, name: str, epoch: int | None = None) -> None:
        """Nothing of this lease is consumed any more, as it was granted with ``epoch``."""
        self._given.append((name, epoch))
        self._poke.set()

    def write(self, name: str, version: int, text: str) -> None:
        """Change a document, if its version is still this one. The next news tell."""
        self._writes.append((name, version, text))
        self._poke.set()

    def leave(self) -> None:
        """Own nothing from now on, and be gone as soon as all is given."""
        self._leaving = True
        self._poke.set()

    def close(self, timeout: float = 1.0) -> None:
        """Stop talking; what is still owned expires."""
        self._closed = True
        self._poke.set()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def _run(self) -> None:
        """Do what the thread does; what is called from here is called by no other."""
        try:
            store = self._open()
        except QworkerError as error:
            self._report(News(refused=Refused(error.exit_code, str(error))))
            return
        try:
            self._keep(store)
        except QworkerError as error:
            self._report(News(refused=Refused(error.exit_code, str(error))))
        except Exception as error:
            logger.exception("the talk with the lease store cannot go on")
            text = f"the lease store: {type(error).__name__}: {error}"
            self._report(News(refused=Refused(_EXIT_FAILED, text)))
        finally:
            store.close()

    def _open(self) -> LeaseStore:
        options = LeaseOptions(self._terms.lease_ttl, self._terms.lease_timeout)
        url, origin = self._terms.leases, self._terms.leases_origin
        return patiently(lambda: open_leases(url, options, origin), self._terms.connect_timeout)

    def _keep(self, store: LeaseStore) -> None:
        while not self._closed:
            self._poke.wait(self._turn(store))

    def _turn(self, store: LeaseStore) -> float:
        """Make a round; return the seconds after which the next is due, unless somebody pokes."""
        self._poke.clear()
        began = lease_clock()
        try:
            moved = self._round(store, began)
        except (LeasesUnavailable, ConfigurationError, StoreCorrupt) as error:
            if not (self._proven or isinstance(error, LeasesUnavailable)):
                raise
            moved = False
            self._miss(error)
        else:
            if self._away:
                logger.info("the lease store is back")
            self._away, self._complaint, self._proven = False, "", True
        if moved:
            self._lively_until = began + _LIVELY_FOR
            pause = _AT_ONCE
        else:
            pause = _LIVELY if self._away or began < self._lively_until else _CALM
        return min(pause, self._terms.lease_ttl / STEP_SHARE)

    def _miss(self, error: QworkerError) -> None:
        """The store is away; say so once, and once for each thing that somebody has to mend."""
        text = str(error)
        if not isinstance(error, LeasesUnavailable):
            if text != self._complaint:
                logger.warning("nothing is known of the leases until this is mended: %s", text)
            self._complaint = text
        elif not self._away:
            logger.warning("the lease store is away: %s", text)
        self._away = True
        self._report(News(error=text))

    def _round(self, store: LeaseStore, asked_at: float) -> bool:
        """Make one call; tell whether something moved, so that the next should follow at once."""
        while self._writes:
            store.write(self._terms.queues, *self._writes[0])
            self._writes.popleft()
        ownership = self._ownership
        if self._leaving:
            self._letting_go += ownership.leave()
        while self._given:
            ownership.given(*self._given.popleft())
        view = store.sync(self._terms.queues, ownership.ask(self._facts, asked_at))
        if self._course.forgotten(view):
            ownership.forgotten()
        if self._course.asks(view):
            if self._leaving:
                store.sync(self._terms.queues, Sync(self.member, leaving=True))
                self._closed = True
            self._report(News(view=view, blank=not self._leaving))
            return False
        known = self._follow(store, view)
        if known is None:
            return False
        if isinstance(known, Proposal):  # whoever is first
            store.write(self._terms.queues, PLAN, known.version, known.text)
            return True
        leases, jobs = self._course.leases(known, view), self._course.jobs(known)
        version, before = view.documents[PLAN].version, self._version
        self._plan, self._version = known, version
        orders = ownership.hear(view, asked_at, leases, jobs)
        leaving, self._letting_go = self._letting_go, []
        self._report(
            News(
                self._settling(view, asked_at),
                known,
                version,
                orders.take,
                [*leaving, *orders.give],
                orders.lost,
                trusted_until(asked_at, self._terms.lease_ttl),
                paused=self._pauses(view),
                gone=ownership.gone,
            )
        )
        wanted, self._wanted = self._wanted, [*ownership.wanted]
        moved = version != before or leaving or orders.take or orders.give or orders.lost
        leaves = self._leaving and not (ownership.grants or ownership.gone)
        return bool(moved) or leaves or wanted != self._wanted

    def _follow(self, store: LeaseStore, view: View) -> Plan | Proposal | None:
        """Return what to go by; None where this member cannot take part and owns nothing.

        One that owns something leaves in order, renewing its leases meanwhile.
        """
        try:
            known = self._course.follow(view)
        except StoreCorrupt as error:
            if self._plan is not None:
                raise  # somebody spoilt what could be read before
            known = Refused(ConfigurationError.exit_code, str(error))
        if not isinstance(known, Refused):
            return known
        if not self._refused:
            self._refused = self._leaving = True
            self._report(News(view=view, refused=known))
        if self._plan is not None and self._ownership.grants:
            return self._plan
        store.sync(self._terms.queues, Sync(self.member, leaving=True))
        self._closed = True
        return None

    def _settling(self, view: View, now: float) -> View:
        """Return ``view`` with the time for which this member wants nothing new, if that is longer.

        The supervisor then leads no change of the number of shards: the members that are known may
        not be all.
        """
        settling = self._ownership.settling(now)
        if settling and not self._settles:
            logger.warning("the lease store forgot who owns what: nothing new is taken for a while")
        self._settles = bool(settling)
        return replace(view, settling=max(view.settling, settling))

    def _pauses(self, view: View) -> tuple[int, Pauses] | None:
        """Return what is paused; what could be read last, where the document cannot be."""
        said = view.documents.get(PAUSED)
        if said is None:
            self._paused = None
        elif said != self._unreadable:
            try:
                self._paused = said.version, Pauses.load(said.text)
            except StoreCorrupt as error:
                self._unreadable = said
                logger.warning("%s; what was paused before stays so, and nothing else", error)
        return self._paused

    def _report(self, news: News) -> None:
        self._news.append(news)
        self._wake()


def _is_able(facts: str) -> bool:
    return Facts.load(facts).able
