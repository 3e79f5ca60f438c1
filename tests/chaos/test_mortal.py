"""A publisher that is killed leaves what nobody heard of, and only that."""

from __future__ import annotations

from pathlib import Path

from chaos.executions import Kind, faults
from chaos.places import Place
from chaos.stage import Stage
from chaos.workloads import Bank
from servers import Guard
from waiting import until


def test_what_a_publisher_left_in_its_midst_is_abandoned(tmp_path: Path) -> None:
    place = Place(broker=f"sqlite:///{tmp_path / 'qworker.db'}")
    with (
        Guard() as guard,
        Stage(tmp_path / "s", guard, Bank(1), place, transactional=False, options=()) as stage,
    ):
        mortal = stage.mortal("stray-1")
        with mortal.running():
            until(lambda: mortal.has_published, message="it publishes")
            until(lambda: mortal.is_amidst, message="it is in the midst of it")
        stage.abandon(mortal)

        entries = stage.history.entries()
    sent, confirmed, abandoned = (
        {entry.id for entry in entries if entry.what == what}
        for what in ("invoke", "confirmed", "abandoned")
    )
    assert abandoned == sent - confirmed
    assert {entry.detail for entry in entries if entry.what != "fault"} == {"bank.transfer"}
    (gone,) = faults(entries)
    assert (gone.kind, gone.pids) == (Kind.GONE, frozenset({mortal.pid})), "it may have left a line"
