"""What commands see of the members of a service: their lease store, read and changed."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TYPE_CHECKING

from worker.config import mask_url
from worker.errors import ConfigurationError
from worker.leases.base import LeaseOptions, View
from worker.leases.open import known_services, open_leases
from worker.sharding.generations import PLAN, Plan
from worker.sharding.pauses import PAUSED, Pauses
from worker.stores.sqlite import path_of
from worker.supervisor.facts import Facts
from worker.topology import queue_prefix

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from worker.cli.loading import Target
    from worker.leases.base import LeaseStore

#: The settings that say where the leases are.
SETTINGS = ("app", "broker", "dedup", "leases", "connect_timeout", "dedup_timeout")


@dataclass(frozen=True, slots=True)
class Known:
    """What the lease store knows of a service at one moment."""

    view: View = field(default_factory=View)
    #: None where no supervisor ever ran.
    plan: Plan | None = None
    pauses: Pauses = field(default_factory=Pauses)
    #: The version of the document that says what is paused; 0 where there is none.
    version: int = 0
    #: The URL of the lease store, as it may be shown.
    where: str = ""
    #: The store is a file that is not there.
    is_missing: bool = False

    @property
    def is_unknown(self) -> bool:
        """Whether the store has nothing of the service at all."""
        return self.plan is None and not self.version and not self.members

    @property
    def members(self) -> Mapping[str, Facts]:
        """The facts of each member that the store counts as living."""
        return {member: Facts.load(text) for member, text in self.view.members.items()}


def never_ran(service: str, where: str) -> str:
    """Return what is said of a service of which this lease store knows no plan."""
    return f"{service} never ran with the lease store {where}"


class Leasing:
    """The lease store of one service. Raises LeasesUnavailable while it is away."""

    def __init__(self, place: Target) -> None:
        """Know where it is. Raises ConfigurationError where no other process can see it."""
        settings = place.settings
        #: What the leases are kept under.
        self.service = queue_prefix(place.service, settings.handlers)
        self._url, self._origin = settings.leases_url, settings.leases_origin
        self._where = mask_url(self._url)
        self._options = LeaseOptions(settings.lease_ttl, settings.dedup_timeout)
        self._store: LeaseStore | None = None
        if self._url.startswith("memory:"):
            raise ConfigurationError(
                f"{self.service} keeps its leases in {self._url}: they live and end with its own"
                " process, and no other can see them. With a broker, a dedup store or --leases that"
                " processes share, sqlite:///file at least, this command works"
            )

    def close(self) -> None:
        """Let go of the connection."""
        if self._store is not None:
            self._store.close()

    def look(self) -> Known:
        """Return what is known, and make nothing. Raises StoreCorrupt."""
        if self._store is None and self._is_missing():
            return Known(where=self._where, is_missing=True)
        view = self._open().look(self.service)
        plan, paused = view.documents.get(PLAN), view.documents.get(PAUSED)
        return Known(
            view,
            None if plan is None else Plan.load(plan.text),
            Pauses() if paused is None else Pauses.load(paused.text),
            0 if paused is None else paused.version,
            self._where,
        )

    def near(self) -> str:
        """Return another service of this lease store with a name like this one's; else nothing."""
        if self._is_missing():
            return ""
        known = known_services(self._open())
        names = [name for name in known if ".only." not in name and name != self.service]
        return next(iter(get_close_matches(self.service, names, n=1)), "")

    def change(self, change: Callable[[Known], Pauses]) -> Known:
        """Pause what ``change`` says, whoever else does so meanwhile; return what is known then.

        ``change`` may be asked more than once. Nothing is made where it changes nothing, or raises.
        """
        while True:
            known = self.look()
            wanted = change(known)
            if wanted == known.pauses:
                return known
            if self._open().write(self.service, PAUSED, known.version, wanted.dump()):
                return self.look()

    def reshard(self, change: Callable[[Known], Plan]) -> Plan | None:
        """Make what ``change`` says the plan, whoever else changes it meanwhile.

        Returns the plan that there was before.
        """
        while True:
            known = self.look()
            wanted = change(known)
            document = known.view.documents.get(PLAN)
            version = 0 if document is None else document.version
            if wanted == known.plan:
                return known.plan
            if self._open().write(self.service, PLAN, version, wanted.dump()):
                return known.plan

    def _is_missing(self) -> bool:
        """Tell whether it is a file that is not there: looking must not create it."""
        return self._url.startswith("sqlite:") and not path_of(self._url, "lease").exists()

    def _open(self) -> LeaseStore:
        if self._store is None:
            self._store = open_leases(self._url, self._options, self._origin)
        return self._store


@contextmanager
def leasing(place: Target) -> Iterator[Leasing]:
    """Look at the leases of a service while the block runs. Raises as :class:`Leasing` does."""
    opened = Leasing(place)
    try:
        yield opened
    finally:
        opened.close()
