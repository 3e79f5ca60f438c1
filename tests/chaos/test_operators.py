"""What people do to a service by mistake: deploy it twice, delete a queue of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import monotonic

import pytest

from acceptance.running import eventually
from chaos.faults import rabbitmq
from chaos.stage import Stage
from chaos.trial import Plan, judge, settle
from chaos.workloads import Ledger

pytestmark = pytest.mark.long
places = pytest.mark.parametrize("place", ["servers", "embedded"])
_PLAN = Plan(seed=0)


def effects(stage: Stage) -> int:
    return len(stage.history.entries("effect"))


@places
def test_two_deployments_that_know_nothing_of_each_other(
    stage: Callable[..., Stage], place: str, tmp_path: Path
) -> None:
    """Each has leases on all shards, in a store of its own: broker and claims have to do."""
    made = stage(place, Ledger(1))
    made.join("one")
    made.join("other", leases_url=f"sqlite:///{tmp_path / 'other.db'}")
    made.until_ready()
    with made.load(publishers=2, rate=60):
        eventually(lambda: effects(made) > 500, "both work")
        made.supervisors["one"].kill()
        made.revive()
        eventually(lambda: effects(made) > 1500, "they go on")
    stuck = settle(made)
    aside = made.set_aside()
    made.drain()
    verdict = judge(made, _PLAN, aside, stuck)
    found = verdict.findings
    # Fences of two stores say nothing of each other.
    found.fallen_fences.clear()
    found.shared_fences.clear()
    assert verdict.held, "\n".join(verdict.story)


def test_a_queue_that_an_operator_deletes(stage: Callable[..., Stage]) -> None:
    """What was in it is gone, and keys of it miss that, or have it late.

    The service goes on by itself, and breaks no other promise.
    """
    made = stage("servers", Ledger(1))
    made.join("supervisor")
    made.until_ready()
    server = made.place.rabbitmq
    assert server is not None
    with made.load(publishers=2, rate=60):
        eventually(lambda: effects(made) > 300, "it works")
        name = next(n for n in rabbitmq.queues(server, made.place.broker) if n.endswith(".1"))
        since = monotonic()
        rabbitmq.delete_queue(server, made.place.broker, name)
        deleted = monotonic()
        before = effects(made)
        eventually(lambda: effects(made) > before + 500, "it goes on")
        eventually(
            lambda: name in rabbitmq.queues(server, made.place.broker), "there is the queue again"
        )
    keys = _of_a_shard(made)
    sent = made.history.entries("invoke")
    gone = {entry.id for entry in sent if entry.key in keys and entry.at <= deleted}
    stuck = settle(made, gone=gone)
    aside = made.set_aside()
    made.drain()
    verdict = judge(made, _PLAN, aside, stuck)
    found = verdict.findings
    assert {line.rpartition(" ")[2] for line in found.lost} <= gone
    assert {e.key for e in found.out_of_order} <= keys
    assert all(e.begin >= since for e in found.out_of_order)
    found.lost.clear()
    found.out_of_order.clear()
    assert found.held, "\n".join(verdict.story)


def _of_a_shard(stage: Stage) -> set[str]:
    """Return the keys of the shard whose queue was deleted."""
    return {e.key for e in stage.history.entries("begin") if e.shard == 1}
