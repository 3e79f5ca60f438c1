"""Were the promises held? ``chaos.checker`` judges; here is what it is given, and its limits."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

from chaos import checker
from chaos.checker import Case
from chaos.executions import Execution, Fault, Kind
from simulation import revisions
from simulation.ledger import SERVICE, Attempt, Finding
from simulation.service import FALLIBLE
from simulation.world import Trouble, World
from worker.topology import dead_letter_queue


def check(world: World) -> list[Finding]:
    """Return what is wrong."""
    dead = _dead(world)
    faults = [_fault(trouble) for trouble in world.troubles]
    found = [*world.ledger.wrong]
    attempts = world.ledger.attempts
    for handler in world.app.handlers:
        found += _check_effects(world, handler, dead if handler == FALLIBLE else set(), faults)
    everything = [_execution(each, sequence=0) for each in attempts]
    overlaps = checker.check(Case(executions=everything, wanted=(), faults=faults))
    keys = {str(e.key) for e in overlaps.unfinished}
    for pairs, what in (
        (overlaps.key_overlaps, "two handlers of a key at once"),
        (overlaps.owner_overlaps, "two processes of a shard at once"),
        (overlaps.fallen_fences, "a fence that fell"),
    ):
        found += [_pair(what, first, second) for first, second in pairs]
    found += [Finding(key, "a handler ended without an end") for key in sorted(keys)]
    return found + _check_outlived(world) + _check_queues(world)


def _check_outlived(world: World) -> list[Finding]:
    """Who comes back after the lease of its shard ended, hears that its fence is stale."""
    return [
        Finding(each.key, f"outlived its lease unsaid: {each}", (each.id,))
        for each in world.ledger.attempts
        if each.outlived and each.end is not None and not world.ledger.is_said(each)
        if not world.was_killed(each.child, each.end)
    ]


def _check_queues(world: World) -> list[Finding]:
    """When a change of the number of shards is over, nothing is left of the earlier ones."""
    plan = world.plan()
    if plan.target is not None:
        return []
    front = f"{SERVICE}.g"
    now = f"{front}{plan.current.number}."
    names = [*world.broker.names("queues"), *world.broker.names("exchanges")]
    left = [n for n in names if n.startswith(front) and not f"{n}.".startswith(now)]
    return [Finding(None, f"left of an earlier generation: {', '.join(left)}")] if left else []


def _check_effects(
    world: World, handler: str, dead: set[str], faults: Sequence[Fault]
) -> list[Finding]:
    """Lost, repeated, out of order: the effects of one handler."""
    attempts = [each for each in world.ledger.attempts if each.handler == handler]
    effects = [each for each in attempts if each.effect]
    done = {each.id for each in effects}
    sequences = _sequences(world, dead - done)
    kept = [_execution(each, sequence=sequences[each.id], effect=each.end) for each in effects]
    of = {id(execution): each for execution, each in zip(kept, effects, strict=True)}
    passed_over = dead - done | revisions.passed_over(world, handler, done)
    wanted = {(handler, post.id) for post in world.confirmed if post.id not in passed_over}
    unordered = [handler] if revisions.orders(world, handler) else []
    judged = checker.check(Case(executions=kept, wanted=wanted, faults=faults, unordered=unordered))
    found = [Finding(None, f"lost: {each}", (each.rpartition(" ")[2],)) for each in judged.lost]
    found += [Finding(e.key, f"out of order: {e.id}, {e}", (e.id,)) for e in judged.out_of_order]
    for pair in [*judged.repeated, *judged.explained]:
        first, second = sorted(pair, key=lambda e: e.begin)
        # That the first was not recorded is known: the second began under a claim of its own.
        if not world.was_troubled(of[id(first)].child, first.begin, second.begin):
            found.append(_pair("a second effect", first, second))
    for id_ in sorted(dead & done):
        effect = next(each for each in effects if each.id == id_)
        if not world.was_troubled(effect.child, effect.begin, math.inf):
            text = f"both done and a dead letter: {effect.id}, {effect}"
            found.append(Finding(effect.key, text, (effect.id,)))
    return found


def _pair(what: str, first: Execution, second: Execution) -> Finding:
    text = f"{what}: {first.id}, {first} then {second.id}, {second}"
    return Finding(second.key, text, (first.id, second.id))


def _sequences(world: World, dead: set[str]) -> dict[str, int]:
    """Return the place of each message in the sequence of its key, without those that have none."""
    found: dict[str, int] = {}
    last: dict[str, int] = defaultdict(lambda: -1)
    for post in world.confirmed:
        if post.id not in dead and post.id not in found:
            key = post.key or post.id
            last[key] += 1
            found[post.id] = last[key]
    return found


def _dead(world: World) -> set[str]:
    """Return the ids of the dead letters."""
    posts = {post.body: post.id for post in world.confirmed}
    return {posts[body] for body in world.broker.bodies_in(dead_letter_queue(SERVICE))}


def _execution(each: Attempt, *, sequence: int, effect: float | None = None) -> Execution:
    return Execution(
        handler=each.handler,
        id=each.id,
        key=each.key or each.id,
        sequence=sequence,
        attempt=each.number,
        shard=each.shard,
        fence=each.fence,
        supervisor=each.child.member,
        pid=each.child.pid,
        begin=each.begin,
        effect=effect,
        end=each.end,
    )


def _fault(trouble: Trouble) -> Fault:
    kind, pids = Kind[trouble.kind], trouble.pids
    if pids is None:
        # What befalls a supervisor alone stops none of its processes, but nobody renews for them.
        # Those of a dead one end by themselves, before their leases do.
        kind, pids = (kind, frozenset()) if kind is Kind.KILL else (Kind.LAPSE, None)
    return Fault(kind, trouble.member, trouble.since, trouble.until, pids)
