"""What ``qworker status`` tells: facts out of what the lease store knows. Pure."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from worker.cli.leasing import never_ran
from worker.cli.output import count
from worker.cli.pause import facts as paused_facts
from worker.sharding.generations import Phase
from worker.sharding.pauses import Pauses

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from worker.cli.leasing import Known
    from worker.leases.base import Lease
    from worker.sharding.generations import Plan
    from worker.supervisor.facts import Facts

#: The lengths of its leases without a sign of life after which a member is called silent. They are
#: over after one; the other is for the clocks of machines, which differ.
_SILENT_LENGTHS = 2
_SHOWN_KEYS = 5

_DOING = {
    Phase.DECLARE: "declares the new queues",
    Phase.REPLAY: "handles the past, while what is published is held",
    Phase.BIND: "binds the new queues, so that what is published goes to both",
    Phase.SEAL: "seals the old queues",
    Phase.DRAIN: "drains the old queues",
    Phase.REMOVE: "consumes the new queues, and removes the old ones",
}


def overview(
    service: str, known: Known, parked: Mapping[str, int] | None, now: float
) -> dict[str, Any]:
    """Return all that is known of a service, ready for JSON.

    ``parked`` are the parked keys, None where they are not known. ``now`` is in seconds since 1970.
    """
    plan = known.plan
    generation = plan.consumed if plan is not None else None
    pauses = known.pauses.of(generation.number) if generation is not None else known.pauses
    members = [_member(id_, told, known, now) for id_, told in known.members.items()]
    shards = [] if plan is None else _shards(known, plan, {m["id"]: m for m in members})
    return {
        "service": service,
        "leases": known.where,
        "generation": None if generation is None else generation.number,
        "single_active": plan is not None and plan.single_active,
        "reshard": None if plan is None else _reshard(plan, known, shards),
        "paused": paused_facts(pauses),
        "outages": _outages(known, members),
        "members": sorted(members, key=lambda member: (member["host"], member["pid"])),
        "shards": shards,
        "parked": None if parked is None else {"keys": len(parked), "first": _first(parked)},
    }


def _first(parked: Mapping[str, int]) -> list[str]:
    """Return the keys that were parked first."""
    return sorted(parked, key=lambda key: (parked[key], key))[:_SHOWN_KEYS]


def _member(id_: str, told: Facts, known: Known, now: float) -> dict[str, Any]:
    since = now - told.at if told.at else 0.0
    silent = since if since > told.lease_ttl * _SILENT_LENGTHS else 0.0
    # The store watches leases when it is called; where all members are dead, nobody calls it.
    left = [lease.left - silent for lease in known.view.leases.values() if lease.owner == id_]
    return {
        "id": id_,
        "host": told.host,
        "pid": told.pid,
        "state": told.state,
        "silent_for": round(silent, 1),
        "waits": told.waits,
        "processes": len(told.processes),
        "shards": len(told.shards),
        "lease_left": max(0.0, round(min(left), 1)) if left else None,
        "has_paused": told.paused == known.version,
    }


def _outages(known: Known, members: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Return the handlers with an outage, each with the number of processes that see it."""
    silent = {member["id"] for member in members if member["silent_for"]}
    seen = Counter[str]()
    for id_, facts in known.members.items():
        if id_ not in silent:
            seen.update(facts.outages)
    return dict(sorted(seen.items()))


def _shards(known: Known, plan: Plan, members: Mapping[str, Any]) -> list[dict[str, Any]]:
    generation = plan.consumed
    numbers = {name: n for facts in known.members.values() for name, n in facts.shards.items()}
    found = []
    for shard, name in enumerate(generation.leases):
        lease = known.view.leases.get(generation.lease if plan.single_active else name)
        paused = known.pauses.covers(generation.number, shard)
        found.append(_shard(shard, lease, numbers.get(name), members, paused=paused))
    return found


def _shard(
    shard: int,
    lease: Lease | None,
    numbers: Mapping[str, Any] | None,
    members: Mapping[str, Any],
    *,
    paused: bool,
) -> dict[str, Any]:
    owner = None if lease is None else members.get(lease.owner)
    told = numbers or {}
    depth = told.get("depth")
    unsettled = told.get("unsettled", 0)
    left = None if lease is None else lease.left - (owner["silent_for"] if owner else 0.0)
    return {
        "shard": shard,
        "owner": None if owner is None else f"{owner['host']}:{owner['pid']}",
        "epoch": None if lease is None else lease.epoch,
        "lease_left": None if left is None else max(0.0, round(left, 1)),
        "process": told.get("pid"),
        "backlog": None if depth is None else depth + unsettled,
        "depth": depth,
        "unsettled": unsettled,
        "in_flight": told.get("in_flight", 0),
        "waiting": told.get("waiting", 0),
        "oldest": told.get("oldest", 0.0),
        "held": told.get("held", 0),
        "halted": bool(told.get("halted")),
        "paused": paused,
        "consumed": numbers is not None,
    }


def _reshard(plan: Plan, known: Known, shards: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return how far a change of the number of shards is, and what it waits for."""
    if plan.target is None or plan.phase is None:
        return None
    drained = {name for facts in known.members.values() for name in facts.drained}
    drains = plan.phase is Phase.DRAIN
    waits = [n for n, name in enumerate(plan.current.leases) if name not in drained]
    if plan.phase is Phase.REMOVE:
        waits = []
    stuck = [n for n in waits if shards[n]["paused"] or shards[n]["halted"]] if drains else []
    return {
        "from": plan.current.shards,
        "to": plan.target.shards,
        "phase": plan.phase.value,
        "drained": plan.current.shards - len(waits),
        "waits_for": {
            "shards": stuck,
            "handlers": [*known.pauses.handlers] if drains and waits else [],
        },
    }


Table = tuple[tuple[str, ...], list[tuple[object, ...]]]


def headlines(told: Mapping[str, Any]) -> list[str]:
    """Return what is said of the service as a whole, a line each."""
    service, members = told["service"], told["members"]
    if told["generation"] is None:
        lines = [never_ran(service, told["leases"])]
    else:
        mode = ", one process at a time" if told["single_active"] else ""
        number = count(len(told["shards"]), "shard")
        lines = [f"{service}: {number}, generation {told['generation']}{mode}"]
    if not members:
        lines.append("nobody runs it now")
    elif all(member["silent_for"] for member in members):
        lines.append("nobody who runs it has given a sign of life lately")
    if (reshard := told["reshard"]) is not None:
        lines.append(progress(reshard))
    if any(told["paused"].values()):
        lines.append(_paused_line(told))
    for name, number in told["outages"].items():
        seen = count(number, "process", "processes")
        lines.append(f"outage: handler {name} waits for a probe to succeed (in {seen})")
    return lines


def footlines(told: Mapping[str, Any]) -> list[str]:
    """Return what is said below the tables, a line each."""
    parked = told["parked"]
    if parked is None:
        return ["parked keys: not known"]
    more = ", …" if parked["keys"] > len(parked["first"]) else ""
    keys = f": {', '.join(parked['first'])}{more}" if parked["keys"] else ""
    return [f"parked keys: {parked['keys']}{keys}"]


def progress(reshard: Mapping[str, Any]) -> str:
    """Return how far a change of the number of shards is, in words."""
    phase = Phase(reshard["phase"])
    change = f"reshard from {reshard['from']} to {count(reshard['to'], 'shard')}"
    if reshard["from"] == reshard["to"]:  # to the same number of shards nothing else leads
        change = "from the past to what is live"
    line = f"{change}: {_DOING[phase]}"
    if phase is not Phase.DRAIN:
        return line
    line += f", {reshard['drained']} of {reshard['from']} done"
    waits = reshard["waits_for"]
    for noun, names in (("shard", waits["shards"]), ("handler", waits["handlers"])):
        if names:
            told = ", ".join(map(str, names))
            kind = "paused or halted" if noun == "shard" else "paused"
            line += f"; waits for {noun}{'' if len(names) == 1 else 's'} {told}: {kind}"
    return line


def _paused_line(told: Mapping[str, Any]) -> str:
    paused = told["paused"]
    pauses = Pauses(paused["service"], 0, (*paused["shards"],), (*paused["handlers"],))
    late = [m for m in told["members"] if not m["has_paused"]]
    rest = f" (not yet carried out by {count(len(late), 'member')})" if late else ""
    return f"paused: {pauses}{rest}"


def member_table(told: Mapping[str, Any]) -> Table:
    """Return the columns and rows of the members."""
    columns = ("member", "state", "processes", "shards", "lease", "waits for")
    rows: list[tuple[object, ...]] = []
    for m in told["members"]:
        silent = f"silent for {m['silent_for']:.0f} s" if m["silent_for"] else m["state"]
        name = f"{m['host']}:{m['pid']}"
        rows.append(
            (name, silent, m["processes"], m["shards"], _seconds(m["lease_left"]), m["waits"])
        )
    return columns, rows


def shard_table(told: Mapping[str, Any], most: int = 0) -> Table:
    """Return the columns and rows of the shards; of more than ``most``, those to look at first."""
    columns = (
        "shard", "owner", "epoch", "lease", "backlog", "in flight", "oldest", "held", "state",
    )  # fmt: skip
    shards = told["shards"]
    if most and len(shards) > most:
        shards = sorted(sorted(shards, key=_urgency)[:most], key=lambda s: int(s["shard"]))
    rows: list[tuple[object, ...]] = [
        (
            s["shard"],
            s["owner"] or "nobody",
            s["epoch"],
            _seconds(s["lease_left"]),
            "" if s["backlog"] is None else s["backlog"],
            s["in_flight"] if s["consumed"] else "",
            _seconds(s["oldest"] or None),
            s["held"] if s["consumed"] else "",
            _state(s),
        )
        for s in shards
    ]
    return columns, rows


def _urgency(shard: Mapping[str, Any]) -> tuple[object, ...]:
    return not _state(shard), -shard["oldest"], -(shard["backlog"] or 0), shard["shard"]


def _state(shard: Mapping[str, Any]) -> str:
    told = [name for name in ("halted", "paused") if shard[name]]
    if shard["owner"] is None:
        told.append("free")
    elif not told and not shard["consumed"]:
        told.append("not consumed")
    return ", ".join(told)


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} s"
