"""Poison, children, parked keys, payloads and transactions, broken one by one."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import count
from typing import Any
from unittest.mock import patch

from simulation.breaking import mutation
from worker import inbox
from worker.dedup import memory
from worker.dedup.base import Verdict, judge_claim
from worker.detour import Detour
from worker.dialogue import Dialogue
from worker.dispatch import Dispatcher
from worker.ids import derived_id
from worker.parkedlanes import ParkedLanes
from worker.parking import Parking
from worker.sharding.generations import Generation
from worker.supervisor.course import Course

# -- who dies, and what is left of it


@mutation("poison", off="suspects run alone", sees="taken for poison")
def suspects_run_beside_others() -> Iterator[None]:
    """Each claim takes a suspect too, so that a culprit takes the same innocent ones along."""

    def claim(self: Dialogue, run: Any, *, solo: bool = False) -> None:
        before(self, run, solo=True)

    before = Dialogue.claim
    with patch.object(Dialogue, "claim", claim):
        yield


@mutation("poison", off="count of crashes", sees="kills on")
def a_crash_is_not_counted() -> Iterator[None]:
    def judge(*given: Any) -> Verdict:
        return judge_claim(*given)._replace(crashes=0)

    with patch("worker.dedup.memory.judge_claim", judge):
        yield


@mutation("poison", off="crash limit", sees="kills on")
def nobody_looks_how_often_it_crashed() -> Iterator[None]:
    def sort(self: Dispatcher, run: Any, verdicts: list[Verdict], now: float) -> Any:
        return before(self, run, [verdict._replace(crashes=0) for verdict in verdicts], now)

    before = Dispatcher._sort
    with patch.object(Dispatcher, "_sort", sort):
        yield


@mutation("short", 34, off="take-over from the dead", sees="waits for the dead")
def nobody_hears_who_is_dead() -> Iterator[None]:
    with patch.object(Dialogue, "bury", lambda *_: None):
        yield


# -- children


@mutation("children", off="children confirmed, then done", sees=("recorded before", "lost"))
def a_parent_is_recorded_before_its_children_are_confirmed() -> Iterator[None]:
    def publish(self: Detour, task: Any, children: tuple[Any, ...], resume: Any) -> None:
        self._dialogue.complete(task)
        resume()
        for child in children:
            self._later(0.3, partial(self._link.send, child, lambda _error: None, again=False))

    with patch.object(Detour, "publish_children", publish):
        yield


@mutation("children", off="ids of children", sees="a second effect")
def a_child_has_another_id_each_time() -> Iterator[None]:
    numbers = count()

    def derived(parent: str, handler: str, position: int) -> str:
        return derived_id(parent, f"{handler} {next(numbers)}", position)

    with patch("worker.context.derived_id", derived):
        yield


# -- parked keys

#: What successors that are not held come to.
_PAST = ("done past what is parked", "out of order")


@mutation("parked", off="a parked key holds its successors", sees=_PAST)
def only_what_failed_is_parked() -> Iterator[None]:
    with patch.object(ParkedLanes, "holds", lambda _, task: bool(task.given_up)):
        yield


@mutation("parked", 17, off="a parked key is remembered", sees=_PAST)
def who_takes_a_shard_over_knows_no_parked_keys() -> Iterator[None]:
    with patch.object(Parking, "load", lambda _: True):
        yield


# -- the rest


@mutation("others", off="fingerprints", sees="lost: the other payload")
def another_payload_is_taken_for_a_duplicate() -> Iterator[None]:
    with patch("worker.dedup.memory._CONFLICT", memory._DUPLICATE):
        yield


@mutation("transactions", 6, off="context.once", sees="a second effect")
def a_transaction_does_not_remember_its_id() -> Iterator[None]:
    with patch.object(inbox, "record", lambda connection, *_: connection.execute("BEGIN")):
        yield


@mutation("alone", 9, off="single active", sees="two processes of a service")
def a_single_active_service_is_shared_out() -> Iterator[None]:
    def shared(_: Course, plan: Any, __: Any) -> list[str]:
        generation: Generation = plan.consumed
        return generation.leases

    with patch.object(Course, "leases", shared):
        yield
