"""The rate of a replay holds in each second, whatever came between."""

from __future__ import annotations

import pytest

from worker.archive.pace import Pace


class Clock:
    now = 1000.0


def most_in_a_second(sent: list[tuple[float, int]]) -> int:
    return max(sum(n for at, n in sent if start <= at < start + 1) for start, _ in sent)


@pytest.mark.parametrize("rate", [0.5, 2, 7, 100, 1000])
def test_in_no_second_there_is_more_than_a_page_above_the_rate(rate: float) -> None:
    clock, sent = Clock(), list[tuple[float, int]]()
    pace, pauses = Pace(rate, lambda: clock.now), {1003.0: 1.0, 1007.0: 10.0}
    while clock.now < 1040:
        if pauses and clock.now > (at := min(pauses)):  # the broker is slow, a shard is full
            clock.now += pauses.pop(at)
        if (left := pace.left()) > 0:
            clock.now += left
            continue
        page = pace.page(1000)
        clock.now += 0.0005
        pace.note(page)
        sent.append((clock.now, page))
    page = max(1, int(rate / 4))
    assert most_in_a_second(sent) <= max(rate, 1) + page
    total = sum(n for _, n in sent)
    assert total == pytest.approx(rate * (40 - 11), rel=0.05, abs=4 * page)


def test_without_a_rate_all_may_follow_at_once() -> None:
    pace = Pace(0, lambda: 5.0)
    assert pace.page(1000) == 1000
    pace.note(1000)
    assert pace.left() <= 0
