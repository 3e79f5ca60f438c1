"""The part of the suite of dedup stores that is about revisions."""
# ruff: noqa: S101, D102 - tests: asserts, sentences for names, examples

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TYPE_CHECKING, ClassVar

import pytest

from worker.dedup.base import MOST_REVISION, Batch, Claim, Complete, Mark
from worker.testing.dedup_peer import DUPLICATE, PAYLOAD, STALE, Peer, new_record, wait_until

if TYPE_CHECKING:
    from worker.testing.dedup_races import Features, Peers


def mark(peer: Peer, place: bytes, *revisions: int) -> None:
    """Tell that the effects of these revisions happened."""
    peer.store.apply(Batch(marks=[Mark(place, revision) for revision in revisions]))


def look(peer: Peer, *places: bytes) -> list[int | None]:
    """Return the last revisions."""
    return [*peer.store.apply(Batch(looks=[*places])).revisions]


class DedupRevisions:
    """The last revision of a key is known, and never falls."""

    features: ClassVar[Features]

    def restart(self) -> None:
        """Restart what keeps the records: a server, where there is one."""

    @pytest.fixture
    def keeps_revisions(self) -> None:
        """Leave out what a store without revisions cannot do; it must not claim to keep them."""
        if not self.features.revisions:
            pytest.skip("this store says that it keeps no revisions")

    def test_a_store_says_whether_it_keeps_revisions(self, peers: Peers) -> None:
        (peer,) = peers()
        assert getattr(peer.store, "keeps_revisions", False) is self.features.revisions

    @pytest.mark.usefixtures("keeps_revisions")
    def test_the_last_revision_of_a_place_never_falls(self, peers: Peers) -> None:
        (peer, other), (place, unknown) = peers(2), (new_record(), new_record())
        assert look(other, place) == [None]
        for revision, last in ((0, 0), (2, 2), (1, 2), (2, 2), (0, 2), (3, 3)):
            mark(peer, place, revision)
            assert look(other, place, unknown, place) == [last, None, last]

    @pytest.mark.usefixtures("keeps_revisions")
    def test_revisions_are_compared_as_numbers_to_the_last_digit(self, peers: Peers) -> None:
        (peer,), place = peers(), new_record()
        rising = [9, 10, 255, 256, 2**31, 2**32 - 1, 2**32, 2**53, 2**53 + 1, 2**60 + 1]
        for revision in (*rising, MOST_REVISION):
            mark(peer, place, revision)
            mark(peer, place, revision - 1)
            assert look(peer, place) == [revision]

    @pytest.mark.usefixtures("keeps_revisions")
    def test_a_batch_looks_after_it_has_marked_and_in_any_order_of_marks(
        self, peers: Peers
    ) -> None:
        (peer,), places = peers(), [new_record() for _ in range(300)]
        marks = [Mark(place, number) for place in places for number in (5, 7, 6)]
        records = [new_record() for _ in range(300)]
        answers = peer.store.apply(
            Batch(
                completes=[Complete(record, peer.token, PAYLOAD) for record in records],
                claims=[Claim(record, peer.token, PAYLOAD) for record in records],
                marks=marks,
                looks=[*reversed(places), new_record()],
            )
        )
        assert [verdict.answer for verdict in answers.claims] == [DUPLICATE] * 300
        assert [*answers.revisions] == [7] * 300 + [None]
        assert [*peer.store.apply(Batch()).revisions] == []

    @pytest.mark.usefixtures("keeps_revisions")
    def test_a_revision_is_marked_whoever_owns_the_record_by_now(self, peers: Peers) -> None:
        (owner, other), record, place = peers(2), new_record(), new_record()
        owner.claim(record)
        late = Batch(completes=[Complete(record, other.token, PAYLOAD)], marks=[Mark(place, 5)])
        assert other.store.apply(late).completes == [STALE]
        assert look(owner, place) == [5]

    @pytest.mark.usefixtures("keeps_revisions")
    def test_a_batch_that_is_applied_again_after_others_lowers_nothing(self, peers: Peers) -> None:
        (peer, other), place = peers(2), new_record()
        batch = Batch(marks=[Mark(place, 1)], looks=[place])
        assert [*peer.store.apply(batch).revisions] == [1]
        mark(other, place, 2)
        assert [*peer.store.apply(batch).revisions] == [2]

    @pytest.mark.usefixtures("keeps_revisions")
    def test_of_many_that_mark_at_once_the_highest_stands(self, peers: Peers) -> None:
        racers, places = peers(4), [new_record() for _ in range(50)]
        start = Barrier(len(racers))

        def race(number: int) -> None:
            start.wait()
            for step in range(20):
                order = places if number % 2 else [*reversed(places)]
                revision = (step * 7 + number * 5) % 100
                racers[number].store.apply(Batch(marks=[Mark(p, revision) for p in order]))

        with ThreadPoolExecutor(len(racers)) as pool:
            list(pool.map(race, range(len(racers))))
        highest = max((step * 7 + number * 5) % 100 for step in range(20) for number in range(4))
        assert look(racers[0], *places) == [highest] * 50

    @pytest.mark.usefixtures("keeps_revisions")
    def test_a_revision_outlives_the_ids_and_is_forgotten_in_the_end(self, peers: Peers) -> None:
        (peer,), kept = peers(retention=0.2, revision_retention=1.5), 1.5
        record, place = new_record(), new_record()
        peer.complete(record)
        begun = time.monotonic()
        mark(peer, place, 7)
        wait_until(lambda: peer.claim(record).answer is not DUPLICATE)
        assert look(peer, place) == [7] or time.monotonic() - begun >= kept
        wait_until(lambda: look(peer, place) == [None])
        assert time.monotonic() - begun >= kept - 0.01
        mark(peer, place, 3)
        assert look(peer, place) == [3]

    @pytest.mark.usefixtures("keeps_revisions")
    def test_a_revision_that_is_marked_again_is_remembered_from_then_on(self, peers: Peers) -> None:
        (peer,), kept = peers(retention=0.2, revision_retention=1.5), 1.5
        place, other = new_record(), new_record()
        mark(peer, place, 7)
        mark(peer, other, 7)
        begun = time.monotonic()
        wait_until(lambda: time.monotonic() - begun > kept / 2)
        again = time.monotonic()
        mark(peer, place, 7)
        wait_until(lambda: look(peer, other) == [None])
        assert look(peer, place) == [7] or time.monotonic() - again >= kept
        wait_until(lambda: look(peer, place) == [None])
        assert time.monotonic() - again >= kept - 0.01

    @pytest.mark.usefixtures("keeps_revisions")
    def test_revisions_survive_what_the_store_says_it_survives(self, peers: Peers) -> None:
        (peer,), place = peers(), new_record()
        mark(peer, place, 7)
        peer.store.close()
        if self.features.survives_restart:
            self.restart()
        (later,) = peers()
        assert look(later, place) == [7]
