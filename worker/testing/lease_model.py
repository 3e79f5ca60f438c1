"""A model of a lease store, and random calls that compare a store with it."""
# ruff: noqa: S101, D102 - a test; its rules say what they do

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from worker.leases.base import Document, Held, Sync

if TYPE_CHECKING:
    from collections.abc import Sequence

    from worker.leases.base import LeaseOptions, LeaseStore, View

#: The names of leases come in the order of two generations of shards.
NAMES = ("g1.0", "g1.1", "g2.0")
MEMBERS = ("ann", "bob", "eve")
#: The owner of a lease that was released.
_NOBODY = ""
#: An epoch that the clock of a store comes to in 140,000 years.
_AHEAD = 2**52


class Model:
    """The rules of one service in the fewest words, without time: nothing ends by itself.

    Which epochs a store grants is its own affair, as long as each is above all before: the model
    learns them from the answer.
    """

    def __init__(self) -> None:
        self.members: dict[str, str] = {}
        self.leases: dict[str, tuple[str, int]] = {}
        self.documents: dict[str, Document] = {}
        #: Every epoch that there was, of whatever lease.
        self.epochs: list[int] = []

    def sync(self, sync: Sync, told: View) -> None:
        """Apply ``sync``, to which the store answered ``told``."""
        for name, epoch in sync.release:
            if self.leases.get(name) == (sync.member, epoch):
                self.leases[name] = (_NOBODY, epoch)
        for name, epoch in sync.renew:
            if name not in self.leases:  # the store forgot
                self.leases[name] = (sync.member, epoch)
                self.epochs.append(epoch)
        highest = max(self.epochs, default=0)
        for name in sync.acquire:
            if self.owner(name) == _NOBODY:
                epoch = told.leases[name].epoch
                assert epoch > highest, "an epoch is above all that were before"
                self.leases[name] = (sync.member, epoch)
                self.epochs.append(epoch)
        self.members[sync.member] = sync.facts
        if sync.leaving:
            del self.members[sync.member]

    def write(self, name: str, version: int, text: str) -> bool:
        before = self.documents.get(name, Document(0, ""))
        if before.version != version:
            return False
        self.documents[name] = Document(version + 1, text)
        return True

    def owner(self, name: str) -> str:
        return self.leases.get(name, (_NOBODY, 0))[0]

    def is_as(self, view: View, ttl: float) -> None:
        """Check that a store knows the same."""
        assert view.members == self.members
        assert view.documents == self.documents
        owned = {name: lease for name, lease in self.leases.items() if lease[0] != _NOBODY}
        assert {name: tuple(lease[:2]) for name, lease in view.leases.items()} == owned
        assert all(0 < lease.left <= ttl for lease in view.leases.values())


def compare_with_model(stores: Sequence[LeaseStore], options: LeaseOptions) -> None:
    """Make random calls over all connections; every answer must be the model's."""
    names, members = st.sampled_from(NAMES), st.sampled_from(MEMBERS)
    # Which epoch is said of a lease: the one that it has, or an earlier or a later one.
    offsets = st.sampled_from([0, 0, 0, -1, 1])
    held = st.lists(st.tuples(names, offsets), max_size=3)
    texts = st.sampled_from(["", "x", '{"host": "münchen"}', "a b\nc"])

    class Machine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            own = os.urandom(8).hex()
            self.models = {f"{own}.{name}": Model() for name in ("bank", "mailer")}
            self.watched = dict.fromkeys(self.models, 0.0)
            self.last = Sync("ann")

        @rule(
            store=st.sampled_from(stores),
            service=st.integers(0, 1),
            member=members,
            facts=texts,
            release=held,
            renew=held,
            acquire=st.lists(names, max_size=3, unique=True),
            leaving=st.sampled_from([False, False, False, True]),
        )
        def sync(  # noqa: PLR0913, PLR0917 - the parts of a call
            self,
            store: LeaseStore,
            service: int,
            member: str,
            facts: str,
            release: list[tuple[str, int]],
            renew: list[tuple[str, int]],
            acquire: list[str],
            *,
            leaving: bool,
        ) -> None:
            name = self.named(service)
            released, renewed = (
                [Held(each, self.epoch(name, each) + offset) for each, offset in says]
                for says in (release, renew)
            )
            self.last = Sync(member, facts, released, renewed, acquire, leaving)
            self.sync_again(store, service)

        @rule(store=st.sampled_from(stores), service=st.integers(0, 1))
        def sync_again(self, store: LeaseStore, service: int) -> None:
            name = self.named(service)
            view = store.sync(name, self.last)
            self.models[name].sync(self.last, view)
            self.check(name, view)

        @rule(store=st.sampled_from(stores), service=st.integers(0, 1))
        def look(self, store: LeaseStore, service: int) -> None:
            name = self.named(service)
            self.check(name, store.look(name))

        @rule(
            store=st.sampled_from(stores),
            service=st.integers(0, 1),
            document=st.sampled_from(["plan", "pauses"]),
            version=st.integers(0, 3),
            text=texts,
        )
        def write(
            self, store: LeaseStore, service: int, document: str, version: int, text: str
        ) -> None:
            name = self.named(service)
            written = store.write(name, document, version, text)
            assert written is self.models[name].write(document, version, text)

        def named(self, service: int) -> str:
            return list(self.models)[service]

        def epoch(self, service: str, lease: str) -> int:
            """Return the epoch of a lease; where there is none, one that was forgotten."""
            forgotten = _AHEAD if service.endswith("mailer") else 1000
            return self.models[service].leases.get(lease, (_NOBODY, forgotten))[1]

        def check(self, name: str, view: View) -> None:
            self.models[name].is_as(view, options.ttl)
            assert view.watched >= self.watched[name]
            self.watched[name] = view.watched

    run_state_machine_as_test(
        Machine, settings=settings(max_examples=25, stateful_step_count=25, deadline=None)
    )
