"""When a failed message runs again, and when the runtime gives up: tenacity's strategies.

tenacity only computes here; it never sleeps. The lanes wait, not a thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

from tenacity import (
    Future,
    RetryCallState,
    Retrying,
    stop_after_attempt,
    wait_chain,
    wait_exponential,
    wait_fixed,
    wait_incrementing,
)

if TYPE_CHECKING:
    from random import Random

    from tenacity.stop import stop_base
    from tenacity.wait import wait_base

#: What happens to a message, and to its key, when its attempts are used up.
Exhausted = Literal["dead_letter", "park_key", "halt_shard"]

_WAITS = ("exponential", "fixed", "linear")
_EXHAUSTED = ("dead_letter", "park_key", "halt_shard")


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often and how soon a failing handler runs again.

    ``attempts`` counts the first one. ``wait`` is ``"exponential"`` (``first_wait`` doubling),
    ``"linear"`` (``first_wait`` more each time), ``"fixed"``, a sequence of seconds (the last one
    repeats), or any wait strategy of tenacity; none waits longer than ``max_wait`` seconds.
    ``jitter`` spreads each wait by up to that fraction, up or down. ``stop`` takes a stop
    strategy of tenacity beside ``attempts``. ``exhausted`` says what happens at the end: the
    message is set aside, or its key with all that comes after it, or its shard is consumed no
    longer until the process is replaced or connects anew (``--burst`` ends with exit code 75 then).

    While so many messages fail that it is an outage (``worker/outage.py``), attempts count too, but
    the last one is given back and the end does not come; probes take the place of the waits.

    Raises ValueError for values that cannot be meant.
    """

    attempts: int = 5
    wait: str | tuple[float, ...] | wait_base = "exponential"
    first_wait: float = 1.0
    max_wait: float = 60.0
    jitter: float = 0.1
    stop: stop_base | None = None
    exhausted: Exhausted = "dead_letter"
    #: Exceptions that are not worth another attempt: dead-lettered at once.
    give_up_on: tuple[type[BaseException], ...] = ()

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if self.attempts < 1:
            raise ValueError(f"RetryPolicy(attempts={self.attempts}): at least 1, the first run")
        if isinstance(self.wait, list):
            object.__setattr__(self, "wait", tuple(self.wait))
        if not (self.wait in _WAITS or isinstance(self.wait, tuple) or callable(self.wait)):
            raise ValueError(
                f"RetryPolicy(wait={self.wait!r}): one of {', '.join(_WAITS)}, a sequence of"
                " seconds, or a wait strategy of tenacity"
            )
        if isinstance(self.wait, tuple) and not (self.wait and all(map(_is_seconds, self.wait))):
            raise ValueError(
                f"RetryPolicy(wait={self.wait!r}): at least one number of seconds, none below zero"
            )
        if self.first_wait < 0 or self.max_wait < 0:
            raise ValueError("RetryPolicy: first_wait and max_wait are seconds, zero or more")
        if not 0 <= self.jitter <= 1:
            raise ValueError(f"RetryPolicy(jitter={self.jitter}): a fraction from 0 to 1")
        if self.exhausted not in _EXHAUSTED:
            raise ValueError(
                f"RetryPolicy(exhausted={self.exhausted!r}): one of {', '.join(_EXHAUSTED)}"
            )
        self._try_strategies()

    def _try_strategies(self) -> None:
        """Refuse now what would fail at the first failure of a handler."""
        state = _call_state(1, Exception())
        try:
            if self.stop is not None:
                self.stop(state)
            self._strategy()(state)
        except Exception as error:
            raise ValueError(
                f"RetryPolicy: a strategy raises {type(error).__name__}: {error}; it has the number"
                " of the attempt and its error to go by, and no times: attempts may lie in"
                " different processes"
            ) from error

    def next_wait(self, attempt: int, error: BaseException, random: Random) -> float | None:
        """Return the seconds until the next attempt, or None to give up.

        ``attempt`` is the one that just failed, 1 for the first.
        """
        if attempt >= self.attempts or isinstance(error, self.give_up_on):
            return None
        state = _call_state(attempt, error)
        if self.stop is not None and self.stop(state):
            return None
        seconds = min(float(self._strategy()(state)), self.max_wait)
        return max(0.0, seconds * (1 + self.jitter * (2 * random.random() - 1)))

    def longest(self) -> float:
        """Return the most seconds that all waits together can take."""
        return self.max_wait * (1 + self.jitter) * max(0, self.attempts - 1)

    def _strategy(self) -> wait_base:
        if isinstance(self.wait, tuple):
            return wait_chain(*(wait_fixed(seconds) for seconds in self.wait))
        if self.wait == "exponential":
            return wait_exponential(multiplier=self.first_wait, max=self.max_wait)
        if self.wait == "linear":
            return wait_incrementing(self.first_wait, self.first_wait, self.max_wait)
        if self.wait == "fixed":
            return wait_fixed(self.first_wait)
        return cast("wait_base", self.wait)


def _is_seconds(value: object) -> bool:
    return isinstance(value, int | float) and value >= 0


def _call_state(attempt: int, error: BaseException) -> RetryCallState:
    state = RetryCallState(Retrying(stop=stop_after_attempt(attempt + 1)), None, (), {})
    state.attempt_number = attempt
    outcome = Future(attempt)
    outcome.set_exception(error)
    state.outcome = outcome
    return state
