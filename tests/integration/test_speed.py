"""`make bench` measures: one small run of it, on the broker that needs no server."""

from __future__ import annotations

from pathlib import Path

from speed.__main__ import run
from speed.contenders import SQLITE, qworker
from speed.load import Load
from speed.scenario import Case
from speed.scenarios import SCENARIOS
from speed.site import Servers


def test_a_worker_on_a_full_queue_is_measured(tmp_path: Path) -> None:
    contender = qworker("sqlite", broker=SQLITE, shards=1, processes=1)
    case = Case(name="ours", contender=contender, load=Load(events=200))

    with Servers(tmp_path) as servers:
        (result,) = run(servers, SCENARIOS["throughput"], [case], rounds=1)

    assert result.finished, result.told
    assert result.metrics["per_second"] > 0
    assert result.metrics["cpu"] >= 0
