"""What tests of the judge are made of: executions of two processes, and what befell these."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from chaos.checker import Case, check
from chaos.executions import Execution, Fault, Kind
from chaos.findings import Findings

ALICE, BOB = 11, 22  # two processes, each of a supervisor of its own
NAMES = {ALICE: "alice", BOB: "bob"}


def ran(  # noqa: PLR0913 - what a row of the ledger tells
    sequence: int,
    pid: int,
    begin: float,
    end: float | None,
    *,
    key: str = "a",
    shard: int = 0,
    fence: int = 1,
) -> Execution:
    """Return an execution of the handler ``h``; the id is that of key and sequence."""
    facts: dict[str, Any] = {"handler": "h", "id": f"{key}#{sequence}", "key": key, "attempt": 1}
    return Execution(
        **facts,
        sequence=sequence,
        shard=shard,
        fence=fence,
        supervisor=NAMES[pid],
        pid=pid,
        begin=begin,
        effect=end,
        end=end,
    )


def killed(pid: int, at: float) -> Fault:
    return Fault(Kind.KILL, NAMES[pid], at, pids=frozenset({pid}))


def paused(pid: int, since: float, until: float) -> Fault:
    return Fault(Kind.PAUSE, NAMES[pid], since, until, frozenset({pid}))


def judge(executions: Iterable[Execution], *faults: Fault, single_active: bool = False) -> Findings:
    """Judge with everything confirmed that had an effect."""
    executions = list(executions)
    confirmed = {("h", e.id) for e in executions if e.end is not None}
    return check(
        Case(executions=executions, wanted=confirmed, faults=faults, single_active=single_active)
    )


def outage(since: float, until: float) -> Fault:
    return Fault(Kind.OUTAGE, "", since, until)


def gone(pid: int, since: float, until: float) -> Fault:
    return Fault(Kind.GONE, NAMES[pid], since, until, frozenset({pid}))
