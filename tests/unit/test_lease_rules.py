"""A service's book of leases: what it grants while clocks step, and what of it can be read."""

from __future__ import annotations

import json

import pytest

from worker.errors import StoreCorrupt
from worker.leases.base import MEMORY_LENGTHS, STEP_SHARE, Held, LeaseOptions, Sync
from worker.leases.rules import Book

OPTIONS = LeaseOptions(ttl=8.0)
#: Readings of the wall clock, in milliseconds: before it was stepped back, and after.
BEFORE, AFTER = 5_000, 1_000


def granted(book: Book, name: str, *, floor: int, now: float = 0.0) -> int:
    return book.sync(Sync("ann", acquire=[name]), OPTIONS, now=now, floor=floor).leases[name].epoch


def test_a_clock_that_steps_back_lowers_no_epoch_also_of_a_new_name() -> None:
    book = Book()
    assert granted(book, "g1.0", floor=BEFORE) == BEFORE

    assert granted(Book.load(book.dump(), "here"), "g2.0", floor=AFTER) == BEFORE + 1


def test_an_epoch_is_not_forgotten_with_its_lease() -> None:
    book = Book()
    epoch = granted(book, "g1.0", floor=BEFORE)
    book.sync(Sync("ann", release=[Held("g1.0", epoch)]), OPTIONS, now=0.0, floor=AFTER)
    for call in range(MEMORY_LENGTHS * STEP_SHARE + 1):
        book.sync(Sync("bob"), OPTIONS, now=call * OPTIONS.ttl, floor=AFTER)
    assert not book.leases

    assert granted(Book.load(book.dump(), "here"), "g2.0", floor=AFTER) > BEFORE


def test_leases_that_are_granted_together_do_not_run_ahead_of_the_clock() -> None:
    """A store that forgot everything goes by the clock alone."""
    names = [f"g1.{shard}" for shard in range(256)]

    view = Book().sync(Sync("ann", acquire=names), OPTIONS, now=0.0, floor=BEFORE)

    assert {lease.epoch for lease in view.leases.values()} == {BEFORE}


def test_a_book_of_before_that_number_was_kept_goes_on_from_its_leases() -> None:
    book = Book()
    granted(book, "g1.0", floor=BEFORE)
    old = json.loads(book.dump())
    del old["granted"]

    assert granted(Book.load(json.dumps(old), "here"), "g2.0", floor=AFTER) == BEFORE + 1


@pytest.mark.parametrize(
    ("of", "name", "value"),
    [
        ("watched", None, "soon"),
        ("read_at", None, []),
        ("granted", None, None),
        ("members", "ann", ["facts", "soon"]),
        ("members", "ann", 5),
        ("members", None, [["ann", 5.0]]),
        ("leases", "g1.0", ["ann", "first", 5.0]),
        ("leases", "g1.0", ["ann", 1]),
        ("documents", "plan", ["1", "{}"]),
        ("documents", "plan", [1, {}]),
    ],
)
def test_a_book_that_cannot_be_read_is_refused_and_named(
    of: str, name: str | None, value: object
) -> None:
    book = Book()
    granted(book, "g1.0", floor=BEFORE)
    book.write("plan", 0, "{}")
    told = json.loads(book.dump())
    if name is None:
        told[of] = value
    else:
        told[of][name] = value

    with pytest.raises(StoreCorrupt, match=r"^here: no book of leases"):
        Book.load(json.dumps(told), "here")
