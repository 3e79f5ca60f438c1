"""What every lease store must do, as tests that authors of backends run against their own.

::

    from worker.testing.lease_suite import LeaseStoreSuite

    class TestMyLeases(LeaseStoreSuite):
        @pytest.fixture
        def lease_url(self, my_server):
            return f"mine://localhost:{my_server.port}/{uuid4()}"

Each test gets a URL under which nothing is known yet, and opens it as often as it likes.
"""
# ruff: noqa: S101, D102 - tests: asserts, sentences for names, examples

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from worker.leases.base import MAX_TEXT, Held, LeaseOptions, Sync
from worker.leases.open import open_leases
from worker.testing.lease_model import compare_with_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from worker.leases.base import LeaseStore, View

SERVICE = "bank"
#: Leases that outlast any test, and some that a test can watch end.
LONG, SHORT = LeaseOptions(ttl=3600.0, timeout=10.0), LeaseOptions(ttl=0.4, timeout=10.0)
_PATIENCE = 20.0


class Peer:
    """One member, and its connection."""

    def __init__(self, store: LeaseStore, name: str) -> None:
        self.store = store
        self.name = name

    def sync(self, *, service: str = SERVICE, **says: Any) -> View:
        return self.store.sync(service, Sync(self.name, **says))

    def acquire(self, *names: str) -> dict[str, int]:
        """Ask for leases; return the epochs of all that it owns."""
        return self.sync(acquire=names).held_by(self.name)


class LeaseStoreSuite:
    """Derive a test class from this and override ``lease_url``, and ``shared`` where needed."""

    #: Whether two that open one URL see the same leases. If not, all members use one store.
    shared = True

    @pytest.fixture
    def lease_url(self) -> str:
        """Return a URL under which nothing is known yet."""
        raise NotImplementedError

    @pytest.fixture
    def open_peer(self, lease_url: str) -> Iterator[Callable[..., Peer]]:
        opened: list[LeaseStore] = []

        def open_one(name: str, options: LeaseOptions = LONG) -> Peer:
            if self.shared or not opened:
                opened.append(open_leases(lease_url, options))
            return Peer(opened[-1], name)

        yield open_one
        for store in opened:
            store.close()

    @pytest.fixture
    def ann(self, open_peer: Callable[..., Peer]) -> Peer:
        return open_peer("ann")

    @pytest.fixture
    def bob(self, open_peer: Callable[..., Peer]) -> Peer:
        return open_peer("bob")

    # Leases

    def test_a_free_lease_is_granted_to_the_first(self, ann: Peer, bob: Peer) -> None:
        owned = ann.acquire("g1.0", "g1.1")
        assert owned.keys() == {"g1.0", "g1.1"}
        assert bob.acquire("g1.0", "g1.2").keys() == {"g1.2"}
        assert bob.sync().leases["g1.0"].owner == "ann"

    def test_asking_twice_gives_the_same_epoch(self, ann: Peer) -> None:
        assert ann.acquire("g1.0") == ann.acquire("g1.0")

    def test_an_epoch_is_at_least_the_time_in_milliseconds(self, ann: Peer) -> None:
        before = (time.time() - 60) * 1000  # the store may have a clock of its own
        assert ann.acquire("g1.0")["g1.0"] > before

    def test_what_is_released_is_free_at_once_with_a_higher_epoch(
        self, ann: Peer, bob: Peer
    ) -> None:
        epoch = ann.acquire("g1.0")["g1.0"]
        assert ann.sync(release=[Held("g1.0", epoch)]).held_by("ann") == {}
        assert bob.acquire("g1.0")["g1.0"] > epoch

    def test_who_takes_back_what_it_released_gets_a_higher_epoch(self, ann: Peer) -> None:
        epoch = ann.acquire("g1.0")["g1.0"]
        again = ann.sync(release=[Held("g1.0", epoch)], acquire=["g1.0"])
        assert again.held_by("ann")["g1.0"] > epoch

    def test_only_the_owner_releases_and_only_its_own_epoch(self, ann: Peer, bob: Peer) -> None:
        epoch = ann.acquire("g1.0")["g1.0"]
        bob.sync(release=[Held("g1.0", epoch)])
        ann.sync(release=[Held("g1.0", epoch - 1)])
        assert bob.sync(acquire=["g1.0"]).leases["g1.0"][:2] == ("ann", epoch)

    def test_a_lease_that_is_not_renewed_ends_and_is_granted_with_a_higher_epoch(
        self, open_peer: Callable[..., Peer]
    ) -> None:
        ann, bob = open_peer("ann", SHORT), open_peer("bob", SHORT)
        epoch = ann.acquire("g1.0")["g1.0"]
        began = time.monotonic()
        assert self._when_granted(bob, "g1.0") > epoch
        assert time.monotonic() - began >= SHORT.ttl * 0.9  # two clocks may differ a little

    def test_a_lease_that_is_renewed_lasts(self, open_peer: Callable[..., Peer]) -> None:
        ann, bob = open_peer("ann", SHORT), open_peer("bob", SHORT)
        epoch = ann.acquire("g1.0")["g1.0"]
        end = time.monotonic() + SHORT.ttl * 3
        while time.monotonic() < end:
            assert ann.sync(renew=[Held("g1.0", epoch)]).held_by("ann") == {"g1.0": epoch}
            assert bob.acquire("g1.0") == {}
            time.sleep(SHORT.ttl / 20)

    def test_a_lease_does_not_end_while_nobody_watches(
        self, open_peer: Callable[..., Peer]
    ) -> None:
        ann, bob = open_peer("ann", SHORT), open_peer("bob", SHORT)
        ann.acquire("g1.0")
        time.sleep(SHORT.ttl * 1.5)
        assert bob.acquire("g1.0") == {}

    def test_who_lost_a_lease_does_not_get_it_back_by_renewing(
        self, open_peer: Callable[..., Peer]
    ) -> None:
        ann, bob = open_peer("ann", SHORT), open_peer("bob", SHORT)
        epoch = ann.acquire("g1.0")["g1.0"]
        taken = self._when_granted(bob, "g1.0")
        view = ann.sync(renew=[Held("g1.0", epoch)], release=[Held("g1.0", epoch)])
        assert view.leases["g1.0"][:2] == ("bob", taken)

    def test_an_ended_lease_that_nobody_took_can_be_renewed(
        self, open_peer: Callable[..., Peer]
    ) -> None:
        ann, bob = open_peer("ann", SHORT), open_peer("bob", SHORT)
        epoch = ann.acquire("g1.0")["g1.0"]
        self._wait(lambda: "g1.0" not in bob.sync().leases)
        assert ann.sync(renew=[Held("g1.0", epoch)]).held_by("ann") == {"g1.0": epoch}

    def test_a_renewal_makes_anew_what_the_store_forgot(self, ann: Peer, bob: Peer) -> None:
        view = ann.sync(renew=[Held("g1.0", 12)])
        assert view.held_by("ann") == {"g1.0": 12}
        assert bob.acquire("g1.0") == {}

    def test_a_new_name_gets_an_epoch_above_all_that_were_granted_before(
        self, ann: Peer, bob: Peer
    ) -> None:
        """Whatever the clock of the store says: keys go over to leases of other names."""
        ahead = int((time.time() + 3600) * 1000)
        ann.sync(renew=[Held("g1.0", ahead)])  # the clock was stepped back after it was granted
        assert bob.acquire("g2.0")["g2.0"] > ahead
        ann.sync(release=[Held("g1.0", ahead)])
        assert bob.acquire("g2.1")["g2.1"] > bob.acquire("g2.0")["g2.0"]

    def test_one_of_many_who_ask_at_once_gets_it(self, open_peer: Callable[..., Peer]) -> None:
        peers = [open_peer(f"peer {number}") for number in range(6)]
        names = [f"g1.{shard}" for shard in range(10)]
        with ThreadPoolExecutor(len(peers)) as pool:
            views = list(pool.map(lambda peer: peer.sync(acquire=names), peers))
        owners = {name: {v.leases[name].owner for v in views if name in v.leases} for name in names}
        assert all(len(found) == 1 for found in owners.values()), owners

    # Members and documents

    def test_members_see_each_other_with_their_facts(self, ann: Peer, bob: Peer) -> None:
        ann.sync(facts='{"host": "münchen"}')
        view = bob.sync(facts="x y\nz")
        assert view.members == {"ann": '{"host": "münchen"}', "bob": "x y\nz"}
        ann.sync(facts="new")
        assert bob.store.look(SERVICE).members["ann"] == "new"

    def test_a_member_that_leaves_is_gone(self, ann: Peer, bob: Peer) -> None:
        epoch = ann.acquire("g1.0")["g1.0"]
        ann.sync(release=[Held("g1.0", epoch)], leaving=True)
        view = bob.sync()
        assert view.members.keys() == {"bob"}
        assert view.leases == {}

    def test_a_member_that_is_silent_ends_as_a_lease_does(
        self, open_peer: Callable[..., Peer]
    ) -> None:
        ann, bob = open_peer("ann", SHORT), open_peer("bob", SHORT)
        ann.sync()
        self._wait(lambda: bob.sync().members.keys() == {"bob"})

    def test_a_document_is_changed_by_whoever_knows_its_version(self, ann: Peer, bob: Peer) -> None:
        assert ann.store.write(SERVICE, "plan", 0, "one") is True
        assert bob.store.write(SERVICE, "plan", 0, "other") is False
        assert bob.store.write(SERVICE, "plan", 1, "two ") is True
        assert bob.store.write(SERVICE, "plan", 1, "again") is False
        assert ann.store.look(SERVICE).documents["plan"] == (2, "two ")
        assert ann.sync().documents["plan"] == (2, "two ")

    def test_watched_time_rises_and_never_falls(self, open_peer: Callable[..., Peer]) -> None:
        ann, bob = open_peer("ann", SHORT), open_peer("bob", SHORT)
        told = []
        for _ in range(5):
            told += [ann.sync().watched, bob.sync().watched, ann.store.look(SERVICE).watched]
            time.sleep(SHORT.ttl / 20)
        assert told == sorted(told)
        assert told[-1] > told[0]
        assert told[-1] <= SHORT.ttl  # seconds: half of that at most went by between calls

    def test_services_know_nothing_of_each_other(self, ann: Peer) -> None:
        ann.acquire("g1.0")
        ann.store.write(SERVICE, "plan", 0, "one")
        other = ann.store.look("other")
        assert (other.members, other.leases, other.documents) == ({}, {}, {})

    def test_looking_changes_nothing(self, ann: Peer, bob: Peer) -> None:
        ann.acquire("g1.0")
        assert bob.store.look(SERVICE).members.keys() == {"ann"}
        assert bob.store.look(SERVICE).leases["g1.0"].owner == "ann"

    def test_a_text_that_is_too_long_is_refused(self, ann: Peer) -> None:
        with pytest.raises(ValueError, match="at most"):
            ann.sync(facts="x" * (MAX_TEXT + 1))
        with pytest.raises(ValueError, match="at most"):
            ann.store.write(SERVICE, "plan", 0, "x" * (MAX_TEXT + 1))

    def test_it_goes_on_after_it_was_closed(self, ann: Peer) -> None:
        epochs = ann.acquire("g1.0")
        ann.store.close()
        assert ann.acquire("g1.0") == epochs

    def test_any_calls_in_any_order_are_answered_as_the_model_answers(
        self, open_peer: Callable[..., Peer]
    ) -> None:
        compare_with_model([open_peer(name).store for name in ("ann", "bob")], LONG)

    def _when_granted(self, peer: Peer, name: str) -> int:
        """Ask until it is granted; return the epoch."""
        self._wait(lambda: name in peer.acquire(name))
        return peer.acquire(name)[name]

    def _wait(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _PATIENCE
        while not condition():
            assert time.monotonic() < deadline, f"not within {_PATIENCE:g} s"
            time.sleep(0.01)
