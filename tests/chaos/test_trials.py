"""Short trials of everything, each with a seed of its own: what `make test` has time for."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from chaos.nemesis import FAULTS
from chaos.stage import Stage
from chaos.trial import Plan, run
from chaos.workloads import Bank, Ledger, Workload

Tell = Callable[[str], None]


@pytest.mark.parametrize("place", ["servers", "embedded"])
@pytest.mark.parametrize(
    ("workload", "transactional"),
    [(Ledger(1), False), (Bank(2), True)],
    ids=["ledger", "transactional bank"],
)
def test_a_short_trial_of_everything(
    stage: Callable[..., Stage], place: str, workload: Workload, *, transactional: bool, tell: Tell
) -> None:
    plan = Plan(seed=4711, faults=[*FAULTS], seconds=20)
    verdict = run(stage(place, workload, transactional=transactional), plan)
    tell(f"  {place}, {type(workload).__name__}: {verdict.line}")
    assert verdict.held, "\n".join(verdict.story)
