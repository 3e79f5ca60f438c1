"""Supervisors that talk with one lease store: members that take, give and lose."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from supervised.terms import TERMS as BANK
from worker.errors import LeasesUnavailable
from worker.leases.base import LeaseOptions, Sync, View
from worker.leases.memory import MemoryLeases
from worker.supervisor.facts import Facts
from worker.supervisor.keeper import Keeper, News

TERMS = replace(BANK, lease_ttl=2.0)
ABLE, UNABLE = Facts(able=True).dump(), Facts(able=False).dump()
SHARDS = {"g1.0", "g1.1", "g1.2", "g1.3"}


class Store(MemoryLeases):
    """One that all keepers of a test share; it can be away, and remembers what was said."""

    def __init__(self) -> None:
        super().__init__(LeaseOptions(TERMS.lease_ttl, 1.0))
        self.away = False
        self.broken: Exception | None = None
        self.said: list[Sync] = []

    def sync(self, service: str, sync: Sync) -> View:
        self._reach()
        self.said.append(sync)
        return super().sync(service, sync)

    def write(self, service: str, name: str, version: int, text: str) -> bool:
        self._reach()
        return super().write(service, name, version, text)

    def _reach(self) -> None:
        if self.away:
            raise LeasesUnavailable("it was unplugged")
        if self.broken is not None:
            raise self.broken

    def forget(self, *documents: str) -> None:
        """Forget these documents; everything, where none is named."""
        book = self._books["bank"]
        for name in documents:
            del book.documents[name]
        if not documents:
            self._books.clear()

    def spoil(self, document: str, text: str) -> None:
        """Put this in the place of a document."""
        version = self.look("bank").documents[document].version
        assert super().write("bank", document, version, text)

    @property
    def owners(self) -> dict[str, str]:
        """The owners of all leases."""
        return {name: lease.owner for name, lease in self.look("bank").leases.items()}


class Member:
    """A keeper, and what a supervisor would do: it takes, and gives when it is asked to."""

    def __init__(self, **terms: Any) -> None:
        self.woken = threading.Event()
        self.keeper = Keeper(replace(TERMS, **terms), self.woken.set)
        self.keeper.found(())  # a broker without queues
        self.name = self.keeper.member
        self.fences: dict[str, int] = {}
        #: What it was asked to give and has not given.
        self.giving: list[str] = []
        self.gives = True
        self.heard: list[News] = []
        self.keeper.tell(ABLE)
        self.keeper.start()

    def listen(self) -> None:
        """Act on what came."""
        for news in self.keeper.news():
            self.heard.append(news)
            for name in news.lost:
                del self.fences[name]
                self.giving = [other for other in self.giving if other != name]
            for name, grant in news.take.items():
                assert name not in self.fences
                self.fences[name] = grant.epoch
            assert not set(news.give) & set(self.giving), "asked for twice"
            self.giving += [name for name in news.give if name in self.fences]
        if self.gives:
            for name in self.giving:
                del self.fences[name]
                self.keeper.given(name)
            self.giving = []

    @property
    def last(self) -> News:
        return self.heard[-1] if self.heard else News()

    @property
    def gone(self) -> bool:
        self.listen()
        return self.last.gone

    @property
    def refused(self) -> str:
        self.listen()
        return self.last.refused.text if self.last.refused is not None else ""


def listened(*members: Member) -> bool:
    """Let these act on what came."""
    for member in members:
        member.listen()
    return True


def has(member: Member, number: int) -> Callable[[], bool]:
    def check() -> bool:
        member.listen()
        return len(member.fences) == number

    return check
