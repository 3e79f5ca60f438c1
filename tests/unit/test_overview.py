"""What status tells of what the lease store knows."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from worker.cli.leasing import Known, Leasing
from worker.cli.loading import Target
from worker.cli.overview import footlines, headlines, overview, shard_table
from worker.config import load_settings
from worker.leases.base import Lease, View
from worker.sharding.generations import Generation, Phase, Plan
from worker.sharding.pauses import Pauses
from worker.supervisor.facts import Facts
from worker.supervisor.supervisor import State

PAGE = Path(__file__).parents[2] / "docs" / "operations.md"
NOW = 1_000_000.0


def facts(pid: int, shards: dict[str, Any] | None = None, **more: Any) -> str:
    told: dict[str, Any] = {"host": "h", "pid": pid, "state": "running", "at": NOW, **more}
    return Facts(shards=shards or {}, **told).dump()


def known(plan: Plan, *, version: int = 0, pauses: Pauses | None = None, **members: str) -> Known:
    leases = {
        name: Lease(member, 7, 9.5)
        for member, text in members.items()
        for name in Facts.load(text).shards
    }
    if plan.single_active and members:
        leases = {plan.consumed.lease: Lease(next(iter(members)), 7, 9.5)}
    return Known(View(members, leases), plan, pauses or Pauses(), version)


def told(known: Known, parked: dict[str, int] | None = None) -> dict[str, Any]:
    return overview("bank", known, parked or {}, NOW)


def test_a_service_that_never_ran_is_said_to_be_so() -> None:
    lines = headlines(told(Known(where="redis://host/0")))

    assert lines == ["bank never ran with the lease store redis://host/0", "nobody runs it now"]


def test_of_the_lease_store_that_is_told_the_password_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = SimpleNamespace(look=lambda _service: View())
    monkeypatch.setattr("worker.cli.leasing.open_leases", lambda *_: store)
    settings = load_settings({"leases": "redis://ann:secret@host/0"}, environ={})

    here = told(Leasing(Target("bank", settings)).look())

    assert here["leases"] == "redis://ann:***@host/0"


def test_a_service_that_nobody_runs_shows_what_is_known() -> None:
    here = told(known(Plan(Generation(1, 2)), pauses=Pauses().paused(1, handlers=["mail"])))

    assert headlines(here) == [
        "bank: 2 shards, generation 1", "nobody runs it now", "paused: handler mail",
    ]  # fmt: skip
    assert [row[1] for row in shard_table(here)[1]] == ["nobody", "nobody"]
    assert here["shards"][0]["owner"] is None


def test_each_shard_has_its_owner_and_its_backlog() -> None:
    one = facts(11, {"g1.0": {"pid": 21, "depth": 100, "unsettled": 7, "oldest": 3.2, "held": 1}})
    two = facts(12, {"g1.1": {"pid": 22, "unsettled": 5, "halted": True}})
    shards = told(known(Plan(Generation(1, 2)), a=one, b=two))["shards"]

    assert [s["owner"] for s in shards] == ["h:11", "h:12"]
    assert [s["backlog"] for s in shards] == [107, None]
    assert [s["process"] for s in shards] == [21, 22]
    assert shards[0]["epoch"] == 7
    assert shards[0]["lease_left"] == 9.5
    assert shards[1]["halted"]


def test_with_one_process_at_a_time_every_shard_has_its_owner() -> None:
    plan = Plan(Generation(1, 3), single_active=True)
    here = told(known(plan, a=facts(11, {"g1.0": {}, "g1.1": {}, "g1.2": {}}), b=facts(12)))

    assert [s["owner"] for s in here["shards"]] == ["h:11"] * 3
    assert headlines(here)[0] == "bank: 3 shards, generation 1, one process at a time"


def test_a_paused_shard_is_owned_and_not_consumed() -> None:
    pauses = Pauses().paused(1, shards=[1])
    here = known(Plan(Generation(1, 2)), pauses=pauses, version=2, a=facts(11, {"g1.0": {}}))
    here.view.leases["g1.1"] = Lease("a", 7, 9.5)  # type: ignore[index] # a dict in truth
    rows = shard_table(told(here))[1]

    assert rows[1][1] == "h:11"
    assert rows[1][-1] == "paused"
    assert headlines(told(here))[-1] == "paused: shard 1 (not yet carried out by 1 member)"


def test_what_is_paused_is_said_as_in_the_log_and_by_the_command() -> None:
    pauses = Pauses().paused(1, shards=[1, 2], handlers=["mail", "audit"])
    lines = headlines(told(known(Plan(Generation(1, 4)), pauses=pauses)))

    assert lines[-1] == f"paused: {pauses}" == "paused: shards 1, 2 and handlers audit, mail"


def test_a_handler_with_an_outage_is_told_with_how_many_processes_see_it() -> None:
    one = facts(11, {"g1.0": {}}, outages={"mail": 2, "audit": 1})
    two = facts(12, {"g1.1": {}}, outages={"mail": 1})
    silent = facts(13, outages={"charge": 4}, at=NOW - 300)
    here = told(known(Plan(Generation(1, 2)), a=one, b=two, c=silent))

    assert here["outages"] == {"audit": 1, "mail": 3}
    assert headlines(here)[1:] == [
        "outage: handler audit waits for a probe to succeed (in 1 process)",
        "outage: handler mail waits for a probe to succeed (in 3 processes)",
    ]


def test_a_reshard_says_what_it_waits_for() -> None:
    plan = Plan(Generation(1, 3), Generation(2, 6), Phase.DRAIN)
    pauses = Pauses().paused(1, shards=[2], handlers=["mail"])
    here = told(known(plan, pauses=pauses, a=facts(1, {"g1.0": {}, "g1.1": {}}, drained=["g1.0"])))

    assert here["reshard"] == {
        "from": 3, "to": 6, "phase": "drain", "drained": 1,
        "waits_for": {"shards": [2], "handlers": ["mail"]},
    }  # fmt: skip
    assert (
        "reshard from 3 to 6 shards: drains the old queues, 1 of 3 done; waits for shard 2: paused"
        " or halted; waits for handler mail: paused"
    ) in headlines(here)


def test_a_member_that_says_nothing_any_more_is_silent_and_its_leases_are_over() -> None:
    silent = facts(11, {"g1.0": {}}, at=NOW - 300)
    here = told(known(Plan(Generation(1, 1)), a=silent))

    assert "nobody who runs it has given a sign of life lately" in headlines(here)
    assert here["members"][0]["silent_for"] == 300.0
    assert here["shards"][0]["lease_left"] == 0.0


def test_how_long_a_member_may_be_silent_goes_by_the_length_of_its_own_leases() -> None:
    long, short = facts(11, at=NOW - 100, lease_ttl=60.0), facts(12, at=NOW - 100)

    here = told(known(Plan(Generation(1, 1)), a=long, b=short))

    assert [member["silent_for"] for member in here["members"]] == [0.0, 100.0]


def test_of_many_shards_those_with_trouble_are_shown_first() -> None:
    shards: dict[str, Any] = {f"g1.{n}": {"depth": n} for n in range(100)}
    shards["g1.42"] = {"halted": True}
    rows = shard_table(told(known(Plan(Generation(1, 100)), a=facts(1, shards))), 3)[1]

    assert [row[0] for row in rows] == [42, 98, 99]


def test_parked_keys_are_counted_and_the_first_shown() -> None:
    parked = {f"k{n}": n for n in range(7)}
    assert footlines(told(Known(), parked)) == ["parked keys: 7: k0, k1, k2, k3, k4, …"]
    assert footlines(told(Known())) == ["parked keys: 0"]
    assert footlines(overview("bank", Known(), None, NOW)) == ["parked keys: not known"]


def test_the_page_of_operators_explains_every_state_of_a_member_and_of_a_shard() -> None:
    table = PAGE.read_text().partition("| where |")[2].partition("\n\n")[0]
    members, _, shards = table.partition("\n| shard |")

    assert [state.value for state in State if f"`{state.value}`" not in members] == []
    states = ("free", "halted", "not consumed", "paused")
    assert [state for state in states if f"`{state}`" not in shards] == []
