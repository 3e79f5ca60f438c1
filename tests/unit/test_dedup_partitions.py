"""Room for done ids: partitions are added where they are missing, and never overlap."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from worker.dedup.partitions import Span, missing

WEEK = 7 * 86400
NOW = 1_800_000_000


def test_the_first_user_gets_room_of_the_width_of_its_retention() -> None:
    first = NOW + WEEK
    (span,) = missing([], first, first + 1, WEEK)
    assert span.lower % WEEK == 0
    assert span.upper - span.lower == WEEK
    assert span.lower <= first < first + 1 < span.upper


def test_nothing_is_added_where_there_is_room() -> None:
    spans = [Span(0, 100), Span(100, 200)]
    assert missing(spans, 50, 199, 10) == []


def test_the_next_one_follows_where_the_last_one_ends() -> None:
    assert missing([Span(0, 100)], 90, 100, 100) == [Span(100, 200)]
    assert missing([Span(0, 130)], 120, 140, 100) == [Span(130, 200)]


def test_a_gap_is_filled_and_no_more() -> None:
    assert missing([Span(0, 130), Span(170, 300)], 150, 150, 100) == [Span(130, 170)]


spans = st.lists(st.integers(0, 10_000), unique=True, max_size=12).map(
    lambda ends: [Span(*pair) for pair in list(pairwise(sorted(ends)))[::2]]
)


@given(spans, st.integers(0, 10_000), st.integers(0, 3000), st.integers(1, 2000))
def test_whatever_there_is_there_is_room_afterwards_and_no_overlap(
    there: list[Span], first: int, more: int, width: int
) -> None:
    added = missing(there, first, first + more, width)
    together = sorted(there + added)
    assert all(one.upper <= other.lower for one, other in pairwise(together))
    for at in (first, first + more // 2, first + more):
        assert any(span.lower <= at < span.upper for span in together)
    assert all(0 < span.upper - span.lower <= width for span in added)
    assert missing(together, first, first + more, width) == []
