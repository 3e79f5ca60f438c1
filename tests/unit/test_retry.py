"""When a failed message runs again is computed, by tenacity's strategies; nothing sleeps."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tenacity import stop_after_attempt, stop_after_delay, wait_fixed, wait_random_exponential

from worker import Retry, RetryPolicy

ERROR = ValueError("no")


def waits(policy: RetryPolicy, error: BaseException = ERROR) -> list[float]:
    """Return the waits between the attempts, until the policy gives up."""
    random = Random(0)
    found: list[float] = []
    for attempt in range(1, 100):
        wait = policy.next_wait(attempt, error, random)
        if wait is None:
            return found
        found.append(wait)
    raise AssertionError("it never gives up")


def test_by_default_a_message_is_tried_five_times() -> None:
    assert len(waits(RetryPolicy())) == 4


def test_exponential_doubles_up_to_the_maximum() -> None:
    policy = RetryPolicy(attempts=6, first_wait=1.0, max_wait=5.0, jitter=0)

    assert waits(policy) == [1, 2, 4, 5, 5]


def test_linear_grows_by_the_first_wait() -> None:
    policy = RetryPolicy(attempts=5, wait="linear", first_wait=2.0, max_wait=5.0, jitter=0)

    assert waits(policy) == [2, 4, 5, 5]


def test_fixed_stays_the_same() -> None:
    policy = RetryPolicy(attempts=4, wait="fixed", first_wait=0.5, jitter=0)

    assert waits(policy) == [0.5, 0.5, 0.5]


@pytest.mark.parametrize("given_as", [(0.1, 1.0, 10.0), [0.1, 1.0, 10.0]])
def test_a_sequence_is_followed_and_its_last_repeats(given_as: Any) -> None:
    policy = RetryPolicy(attempts=6, wait=given_as, jitter=0)

    assert waits(policy) == [0.1, 1.0, 10.0, 10.0, 10.0]


def test_any_wait_strategy_of_tenacity_serves() -> None:
    policy = RetryPolicy(attempts=3, wait=wait_fixed(3) + wait_fixed(4), jitter=0)

    assert waits(policy) == [7, 7]


def test_no_wait_is_longer_than_the_maximum() -> None:
    policy = RetryPolicy(attempts=9, wait=wait_random_exponential(100), max_wait=10.0, jitter=0)

    assert max(waits(policy)) <= 10


def test_a_stop_strategy_of_tenacity_can_end_it_sooner() -> None:
    assert len(waits(RetryPolicy(attempts=9, stop=stop_after_attempt(3)))) == 2


def test_one_attempt_is_no_retry() -> None:
    assert waits(RetryPolicy(attempts=1)) == []


def test_some_errors_are_not_worth_another_attempt() -> None:
    policy = RetryPolicy(give_up_on=(LookupError,))

    assert waits(policy, KeyError("gone")) == []
    assert len(waits(policy, ValueError("busy"))) == 4


def test_a_retry_that_the_handler_asks_for_counts_as_an_attempt() -> None:
    assert len(waits(RetryPolicy(attempts=3), Retry(delay=5))) == 2


@given(st.floats(0, 1), st.floats(0, 100), st.integers(1, 10), st.integers())
def test_jitter_spreads_within_its_fraction_and_is_never_negative(
    jitter: float, first: float, attempt: int, seed: int
) -> None:
    policy = RetryPolicy(attempts=20, wait="fixed", first_wait=first, max_wait=1000, jitter=jitter)
    wait = policy.next_wait(attempt, ERROR, Random(seed))

    assert wait is not None
    assert max(0, first * (1 - jitter) - 1e-9) <= wait <= first * (1 + jitter) + 1e-9


@given(st.integers(1, 30), st.floats(0, 100), st.floats(0, 1))
def test_all_waits_together_take_no_longer_than_the_policy_says(
    attempts: int, max_wait: float, jitter: float
) -> None:
    policy = RetryPolicy(attempts=attempts, max_wait=max_wait, jitter=jitter)

    assert sum(waits(policy)) <= policy.longest() + 1e-9


def test_a_reconnect_that_goes_on_for_weeks_does_not_overflow() -> None:
    policy = RetryPolicy(attempts=2**31, first_wait=0.1, max_wait=5.0, jitter=0)

    assert policy.next_wait(5000, ERROR, Random(0)) == 5.0


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"attempts": 0}, "at least 1"),
        ({"wait": "quadratic"}, "exponential, fixed, linear"),
        ({"wait": ()}, "at least one"),
        ({"wait": 5.0}, "a sequence of seconds"),
        ({"wait": None}, "a sequence of seconds"),
        ({"wait": ("1",)}, "seconds"),
        ({"wait": (-1.0,)}, "seconds"),
        ({"first_wait": -1}, "zero or more"),
        ({"max_wait": -1}, "zero or more"),
        ({"jitter": 1.5}, "0 to 1"),
        ({"jitter": float("nan")}, "0 to 1"),
        ({"stop": stop_after_delay(60)}, "no times"),
        ({"exhausted": "drop"}, "dead_letter, park_key, halt_shard"),
    ],
)
def test_what_cannot_be_meant_is_refused_at_once(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        RetryPolicy(**wrong)


@pytest.mark.parametrize("delay", [-1, float("inf"), float("nan")])
def test_a_handler_cannot_ask_for_a_delay_that_is_none(delay: float) -> None:
    with pytest.raises(ValueError, match="seconds"):
        Retry(delay=delay)
