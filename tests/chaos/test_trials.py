"""Short trials of everything, each with a seed of its own: what `make test` has time for."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from chaos.nemesis import left_out, possible
from chaos.stage import Stage
from chaos.trial import Plan, run
from chaos.workloads import Bank, Ledger, Workload

Tell = Callable[[str], None]


LEDGER, BANK = (Ledger(1), False), (Bank(2), True)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("place", "workload", "transactional"),
    [
        pytest.param("servers", *LEDGER, id="ledger on servers"),
        pytest.param("embedded", *BANK, id="transactional bank on a file"),
        pytest.param("embedded", *LEDGER, id="ledger on a file", marks=pytest.mark.long),
        pytest.param("servers", *BANK, id="transactional bank on servers", marks=pytest.mark.long),
    ],
)
def test_a_short_trial_of_everything(
    stage: Callable[..., Stage], place: str, workload: Workload, *, transactional: bool, tell: Tell
) -> None:
    made = stage(place, workload, transactional=transactional)
    if place == "embedded" and (missing := left_out()):
        tell(f"  left out, since no disk can be mounted here: {', '.join(missing)}")
    verdict = run(made, Plan(seed=4711, faults=possible(made.place), seconds=20))
    tell(f"  {place}, {type(workload).__name__}: {verdict.line}")
    assert verdict.held, "\n".join(verdict.story)
