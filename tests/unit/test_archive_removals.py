"""What is noted of removals tells the highest place since any moment, or one above it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from worker.archive import removals
from worker.archive.removals import Below, Removals, with_one_more

PLACES = st.lists(st.integers(1, 50), max_size=40)


def noted(places: list[int]) -> Removals:
    below: list[Below] = []
    for number, place in enumerate(places, 1):
        below = with_one_more(below, Below(number, place))
    return Removals(100, len(places), below)


@given(PLACES, st.integers(0, 40))
def test_the_highest_place_since_then_is_known(places: list[int], begun: int) -> None:
    assert noted(places).since(100, begun, 200) == max(places[begun:], default=0)


@given(PLACES, st.integers(0, 40))
def test_what_is_removed_behind_the_end_of_a_replay_counts_to_its_end(
    places: list[int], begun: int
) -> None:
    assert noted(places).since(100, begun, 20) == min(20, max(places[begun:], default=0))
    assert noted(places).since(10, begun, 20) == 20
    assert noted([]).since(30, 0, 20) == 0


def test_of_very_many_the_oldest_count_as_one() -> None:
    most = removals._MOST
    places = [*range(10 * most, 0, -1)]
    found = noted(places)
    assert len(found.below) == most
    for begun in range(len(places)):
        assert found.since(10**6, begun, 10**6) >= places[begun]
    assert found.since(10**6, len(places) - 5, 10**6) == 5
