"""The number of shards changes while publishers publish, whoever leads the change is killed.

Nothing is lost and every key stays in order: from 4 shards to 8 to 3, with ``kill -9`` of the
leading supervisor, and all of its processes, in every step: as soon as it is seen, and again when
all of it is done and not yet written down.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest

from acceptance.running import eventually
from chaos.gate import VARIABLE, Gate
from machines.load import SteadyLoad
from machines.site import Site
from machines.supervisor import Part, Supervisor
from worker.leases.base import LeaseOptions, LeaseStore, View
from worker.leases.open import open_leases
from worker.sharding.generations import PLAN, Phase, Plan
from worker.supervisor.course import RESHARD
from worker.supervisor.facts import Facts

SERVICE = "steps"
SETTINGS: dict[str, Any] = {"lease_ttl": 3.0, "claim_ttl": 3.0}
OPTIONS = ("--processes", "2", "--concurrency", "8")
#: Seconds that a change may take, with a death in each of its steps.
PATIENCE = 90.0
_LOOK = 0.002
#: All of them, in their order; the other phase is before a service's first change.
_STEPS = [phase for phase in Phase if phase is not Phase.REPLAY]

Tell = Callable[[str], None]


class Change:
    """The change of the number of shards of a site's service, watched in the lease store."""

    def __init__(self, site: Site, store: LeaseStore, gate: Path | None) -> None:
        self._site = site
        self._store = store
        #: Where no step ends before it is opened for it.
        self._gate = gate
        self._names = (f"member{number}" for number in count(1))
        self.members: dict[int, Supervisor] = {}

    def start(self, shards: int) -> None:
        """Start one more supervisor; the number is what it is told to expect."""
        member = self._site.supervisor(next(self._names), **SETTINGS)
        if self._gate is not None:
            member.environ[VARIABLE] = str(self._gate)
        member.start("--shards", str(shards), *OPTIONS)
        self.members[member.pid] = member

    def look(self) -> tuple[View, Plan | None]:
        view = self._store.look(SERVICE)
        document = view.documents.get(PLAN)
        return view, Plan.load(document.text) if document is not None else None

    def plan(self) -> Plan:
        _, plan = self.look()
        assert plan is not None
        return plan

    def until_shared(self, shards: int) -> None:
        """Wait until every shard has an owner, and every member is there."""

        def shared() -> bool:
            view, plan = self.look()
            wanted = plan.current.leases if plan is not None else []
            return (
                len(wanted) == shards
                and {*wanted} <= {*view.leases}
                and len(view.members) == len(self.members)
            )

        eventually(shared, f"{shards} shards are shared")

    def ask(self, shards: int) -> None:
        """Have the command ask for the change."""
        anybody = next(iter(self.members.values()))
        done = anybody.run("reshard", "--to", str(shards), "--no-wait")
        assert done.returncode == 0, done.stderr

    def leader(self, view: View) -> Supervisor | None:
        """Return who leads the change; None where nobody does that still lives."""
        lease = view.leases.get(RESHARD)
        facts = view.members.get(lease.owner) if lease is not None else None
        return None if facts is None else self.members.get(Facts.load(facts).pid)

    def kill_leaders(self, shards: int, instead: int, *, when_done: bool) -> list[Phase]:
        """Kill who leads each step, as soon as it is seen or done, until the change is done."""
        assert self._gate is not None, "a step may be over before it is seen"
        gate = Gate(self._gate)
        killed: list[Phase] = []
        deadline = monotonic() + PATIENCE
        while True:
            assert monotonic() < deadline, f"not done; killed in {killed}"
            view, plan = self.look()
            if plan is not None and plan.target is None and plan.current.shards == shards:
                return killed
            leader = self.leader(view)
            if (
                plan is not None
                and plan.phase
                and plan.phase not in killed
                and leader is not None
                and (gate.is_done(plan) or not when_done)
            ):
                leader.kill(Part.GROUP)
                del self.members[leader.pid]
                killed.append(plan.phase)
                gate.open(plan)
                self.start(instead)
            sleep(_LOOK)


@contextmanager
def changing(site: Site, members: int, gate: Path | None = None) -> Iterator[Change]:
    """Open the lease store; so many supervisors share four shards."""
    options = LeaseOptions(SETTINGS["lease_ttl"], 2.0)
    with closing(open_leases(site.dedup or site.broker, options)) as store:
        change = Change(site, store, gate)
        for _ in range(members):
            change.start(4)
        change.until_shared(4)
        yield change


@pytest.fixture
def load(any_site: Site) -> SteadyLoad:
    return any_site.load(keys=200, rate=200.0)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_leader_is_killed_in_every_step(
    any_site: Site, load: SteadyLoad, tmp_path_factory: pytest.TempPathFactory, tell: Tell
) -> None:
    gate = tmp_path_factory.mktemp("gate")
    with changing(any_site, members=3, gate=gate) as change:
        with load.running():
            for before, shards, when_done in (
                (4, 8, False), (8, 3, False), (3, 8, True), (8, 3, True),
            ):  # fmt: skip
                began = monotonic()
                change.ask(shards)
                killed = change.kill_leaders(shards, before, when_done=when_done)
                took = monotonic() - began
                tell(f"  {before} to {shards} shards in {took:.1f} s, {len(killed)} leaders killed")
                assert killed == _STEPS
                change.until_shared(shards)

        any_site.judge(load, *change.members.values())


@pytest.mark.parametrize(
    "any_site",
    [
        pytest.param("site", id="machines"),
        pytest.param("file_site", id="file", marks=pytest.mark.long),
    ],
    indirect=True,
)
def test_nobody_dies_and_nothing_is_run_again(any_site: Site, load: SteadyLoad, tell: Tell) -> None:
    with changing(any_site, members=2) as change:
        with load.running():
            for shards in (1, 3):  # to fewer, to one, from one, to more
                began = monotonic()
                change.ask(shards)
                eventually(lambda: change.plan().target is None, "the change is done")
                tell(f"  to {shards} shards in {monotonic() - began:.1f} s")
                change.until_shared(shards)

        any_site.judge(load, *change.members.values(), undisturbed=True)
