"""Steps on the broker are taken by the plan of now, or not at all."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

import pytest

from waiting import until
from worker.sharding.generations import Generation, Phase, Plan
from worker.supervisor.control import Followed, Stepped
from worker.supervisor.stepper import Stepper

OLD = Plan(Generation(1, 2))
NEW = Plan(Generation(1, 2), Generation(2, 3), Phase.SEAL)

T = TypeVar("T")


class Broker:
    """What was declared, and which steps were taken; each may take long."""

    def __init__(self) -> None:
        self.declared: list[Plan] = []
        self.taken: list[Plan] = []
        self.free = threading.Event()
        self.free.set()

    def declare(self, plan: Plan) -> None:
        self.declared.append(plan)
        assert self.free.wait(10)

    def take(self, plan: Plan) -> bool:
        self.taken.append(plan)
        assert self.free.wait(10)
        return True


class Desk:
    """A stepper, and whether its process is trusted."""

    def __init__(self) -> None:
        self.trusted = True
        self.broker = Broker()
        self.stepper = Stepper(self.broker, trusted=lambda: self.trusted, wake=lambda: None)
        self._answers: list[Followed | Stepped] = []

    def answers(self, number: int) -> list[Followed | Stepped]:
        """Return the first answers, once there are so many."""

        def enough() -> bool:
            self._answers += self.stepper.answers()
            return len(self._answers) >= number

        until(enough)
        return self._answers


@pytest.fixture
def desk() -> Iterator[Desk]:
    made = Desk()
    yield made
    made.broker.free.set()


def test_who_is_trusted_declares_and_takes_steps(desk: Desk) -> None:
    desk.stepper.follow(NEW, 7)
    desk.stepper.step(NEW, 7)

    assert desk.answers(2) == [Followed(7), Stepped(7, True)]
    assert (desk.broker.declared, desk.broker.taken) == ([NEW], [NEW])


@pytest.mark.parametrize("ask", [Stepper.follow, Stepper.step])
def test_who_is_not_trusted_brings_nothing_back(
    desk: Desk, ask: Callable[[Stepper, Plan, int], None]
) -> None:
    desk.trusted = False
    ask(desk.stepper, OLD, 6)

    (answer,) = desk.answers(1)
    assert answer.version == 6
    assert "not trusted" in answer.error
    assert answer != Stepped(6, True, answer.error)
    assert (desk.broker.declared, desk.broker.taken) == ([], [])

    desk.trusted = True
    ask(desk.stepper, NEW, 7)
    assert desk.answers(2)[1].error == ""


def test_what_waited_behind_a_long_step_while_another_plan_came_is_not_declared(desk: Desk) -> None:
    desk.broker.free.clear()
    desk.stepper.step(OLD, 6)
    until(lambda: desk.broker.taken)
    desk.stepper.follow(OLD, 6)
    desk.stepper.follow(NEW, 7)
    desk.broker.free.set()

    first, second, third = desk.answers(3)
    assert first == Stepped(6, True)
    assert second.version == 6
    assert "another plan" in second.error
    assert third == Followed(7)
    assert desk.broker.declared == [NEW]
