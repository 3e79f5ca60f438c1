"""What `make bench` makes of its numbers."""

from __future__ import annotations

import pytest
from speed.arithmetic import growth, percentile, ratio
from speed.results import Result
from speed.scenario import Bar, Metric
from speed.table import Table, markdown, told

RATE = Metric("per_second", "events/s", ratio=True)


def result(case: str, number: int, rate: float | None, x: float | None = None) -> Result:
    """Make the result of a round; None: it did not finish."""
    return Result(
        case=case,
        group="",
        contender=case,
        x=x,
        round=number,
        finished=rate is not None,
        metrics={} if rate is None else {"per_second": rate},
        told="" if rate is not None else "ended with code 1",
    )


@pytest.mark.parametrize(
    ("share", "expected"), [(0.5, 50), (0.99, 99), (0.999, 100), (1.0, 100), (0.0, 1)]
)
def test_a_percentile_is_the_value_that_so_many_do_not_exceed(share: float, expected: int) -> None:
    assert percentile(range(1, 101), share) == expected


def test_the_percentiles_of_one_value_are_that_value() -> None:
    assert percentile([7.0], 0.5) == percentile([7.0], 0.999) == 7.0


def test_a_ratio_is_the_median_of_the_rounds_and_not_the_ratio_of_the_medians() -> None:
    ours = {1: 10.0, 2: 40.0, 3: 30.0}
    theirs = {1: 5.0, 2: 10.0, 3: 15.0}

    assert ratio(ours, theirs) == 2.0


def test_a_round_that_one_of_both_did_not_finish_is_left_out_of_the_ratio() -> None:
    assert ratio({1: 10.0, 2: 40.0}, {2: 10.0}) == 4.0
    assert ratio({1: 10.0}, {2: 10.0}) is None


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
def test_growth_finds_the_exponent(exponent: float) -> None:
    sizes = [10.0, 100.0, 1000.0]

    assert growth(sizes, [3 * size**exponent for size in sizes]) == pytest.approx(exponent)


def test_a_size_of_nothing_counts_as_one() -> None:
    assert growth([0, 10, 100], [5.0, 5.0, 5.0]) == pytest.approx(0.0)


def test_the_table_has_a_row_for_each_case_and_tells_what_did_not_finish() -> None:
    rates = {"ours": (2000, 4000), "theirs": (500, None), "never": (None, None)}
    table = Table(
        [
            result(case, number, rate)
            for case, each in rates.items()
            for number, rate in enumerate(each, 1)
        ]
    )

    assert markdown(table, [RATE], base="ours").splitlines() == [
        "| case | events/s | times ours |",
        "| --- | --: | --: |",
        "| ours | 3,000 | 1.00 |",
        "| theirs (did not finish 1 of 2) | 500 | 0.25 |",
        "| never (did not finish 2 of 2) | - | - |",
    ]


def test_the_best_is_that_with_the_highest_or_the_least_median() -> None:
    table = Table([result("a", 1, 1), result("b", 1, 3), result("c", 1, 2), result("d", 1, None)])

    assert table.best("", "per_second", lambda case: case != "b") == "c"
    assert table.best("", "per_second", lambda _: True, least=True) == "a"
    assert table.best("", "per_second", lambda case: case == "d") is None


def test_a_line_has_the_medians_in_the_order_of_x() -> None:
    table = Table([result("b", 1, 8, x=4), result("a", 1, 2, x=1), result("b", 2, 10, x=4)])

    assert table.line("", "per_second") == [(1, 2), (4, 9)]
    assert table.growth("", "per_second") == pytest.approx(1.085, abs=0.001)


def test_a_bar_is_reached_from_one_side() -> None:
    assert Bar("fast", 5.0, 5).reached
    assert not Bar("small", 2.1, 2, at_least=False).reached
    assert Bar("unknown", None, 2).reached is None
    assert told([Bar("fast", 5.0, 5)]) == "- fast: 5.00, at least 5: **reached**"
