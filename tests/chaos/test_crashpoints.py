"""Every crash point is a place of the runtime that there is, and that processes come by."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from time import monotonic

import pytest

from acceptance.running import eventually
from chaos.crashpoints import (
    DJANGO_POINTS,
    IN_HANDLERS,
    OUTBOX_POINTS,
    POINTS,
    RELAY_POINTS,
    Point,
    resolve,
)
from chaos.executions import faults
from chaos.stage import Stage
from chaos.trial import Plan, Verdict, judge, settle, settle_shards
from chaos.workloads import Bank, Ledger

#: A tour ends when it has been everywhere: nobody knows how much is to be done by then.
_PLAN = Plan(seed=0, seconds=0.0, supervisors=2)
_RESHARD = [name for name in POINTS if name.startswith("reshard")]
_ON_THE_WAY = [name for name in (*POINTS, IN_HANDLERS[0], IN_HANDLERS[2]) if name not in _RESHARD]
#: No frames are sent there: an acknowledgement is a transaction of SQLite's.
_NOT_EMBEDDED = ["in the midst of an acknowledgement"]
#: Seconds after which shards change hands, where nobody came by a point: some are seen only then.
_MOVE = 3.0

places = pytest.mark.parametrize("place", ["servers", "embedded"])


@pytest.mark.parametrize("points", [POINTS, OUTBOX_POINTS, DJANGO_POINTS, RELAY_POINTS])
def test_a_point_names_a_function_that_there_is(points: Mapping[str, Point]) -> None:
    for point in points.values():
        _, _, function = resolve(point)
        assert callable(function)


@pytest.mark.long
@pytest.mark.timeout(600)
@places
def test_processes_die_at_each_point(stage: Callable[..., Stage], place: str) -> None:
    made = stage(place, Ledger(1))
    with touring(made) as verdicts:
        for name in _ON_THE_WAY:
            if place == "servers" or name not in _NOT_EMBEDDED:
                kill_at(made, name)
    assert verdicts[0].held, "\n".join(verdicts[0].story)


@pytest.mark.long
@places
def test_processes_die_in_the_transactions_of_their_handlers(
    stage: Callable[..., Stage], place: str
) -> None:
    made = stage(place, Bank(1), transactional=True)
    with touring(made) as verdicts:
        for name in (*IN_HANDLERS, "before the record", "after the record"):
            kill_at(made, name)
    assert verdicts[0].findings.repeated == []
    assert verdicts[0].held, "\n".join(verdicts[0].story)


@pytest.mark.long
@pytest.mark.timeout(600)
@places
def test_who_leads_a_reshard_dies_at_each_point(stage: Callable[..., Stage], place: str) -> None:
    """Once at each of them, while the number of shards changes again and again."""
    made = stage(place, Ledger(1), options=("--processes", "2"), shards=4)
    with touring(made) as verdicts:
        for turn, name in enumerate(_RESHARD):
            reshard(made, name, 3 if turn % 2 else 6)
    assert verdicts[0].held, "\n".join(verdicts[0].story)


@contextmanager
def touring(stage: Stage) -> Iterator[list[Verdict]]:
    """Run two supervisors under load while the block runs; then put the verdict into the list."""
    verdicts: list[Verdict] = []
    for number in range(_PLAN.supervisors):
        stage.join(f"supervisor-{number}")
    stage.until_ready()
    with stage.load(publishers=2, rate=60):
        yield verdicts
        shards = stage.shards()
    healed = monotonic()
    stuck = [*settle(stage, healed), *settle_shards(stage, healed)]
    assert stage.shards() == shards, "nobody asked for another number since"
    aside = stage.set_aside()
    stage.drain()
    verdicts.append(judge(stage, _PLAN, aside, stuck))


def kill_at(stage: Stage, name: str) -> None:
    """Wait until a process dies at a point; move shards now and then."""
    move_at = monotonic() + _MOVE

    def is_dead() -> bool:
        nonlocal move_at
        stage.revive()
        if monotonic() > move_at:
            move_at += _MOVE
            _move(stage)
        return died(stage, name)

    with stage.armed({name: 1.0}):  # some points are rarely come by
        eventually(is_dead, f"a process dies: {name}")
    if "mover" in stage.supervisors:
        stage.leave("mover")


def _move(stage: Stage) -> None:
    """Let shards change hands: one more supervisor joins, or leaves once it has some."""
    mover = stage.supervisors.get("mover")
    if mover is None:
        stage.join("mover")
    elif any(process["shards"] for process in mover.status().get("processes", [])):
        stage.leave("mover")


def reshard(stage: Stage, name: str, shards: int) -> None:
    """Change the number of shards, wait until somebody dies at a point, and until it is done.

    Whoever dies is replaced, and who asked is told of nothing but the end: the command is a process
    of its own, which reads in the lease store how far it is. So it has to end as though nobody had
    died; nobody else asks for another number, and no server is away.
    """
    with ExitStack() as stack:
        says = stack.enter_context(tempfile.TemporaryFile())
        with stage.armed({name: 1.0}):
            asked = stage.reshard(next(iter(stage.supervisors.values())), shards, says=says)
            stack.callback(asked.wait)
            stack.callback(asked.kill)
            eventually(lambda: _alive(stage) and died(stage, name), f"a process dies: {name}")
        eventually(lambda: _alive(stage) and asked.poll() is not None, "the reshard is over")
        stage.resharded(asked)
        says.seek(0)
        assert asked.returncode == 0, says.read().decode()
    assert stage.shards() == shards


def died(stage: Stage, name: str) -> bool:
    """Tell whether a process has died at a point."""
    told = faults(stage.history.entries("fault"))
    return any(fault.what == f"kill -9, {name}" for fault in told)


def _alive(stage: Stage) -> bool:
    stage.revive()
    return True
