"""Were the promises held? ``chaos.checker`` judges; here is what it is given, and its limits."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from chaos import checker
from chaos.checker import Case
from chaos.executions import Execution, Fault, Kind
from simulation import revisions
from simulation.ledger import SERVICE, Attempt, Finding
from simulation.service import ATTEMPTS, FALLIBLE, Post
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
    # The handlers of a message without a key do not wait for each other.
    everything = [replace(_execution(each, sequence=0), key=each.key or "") for each in attempts]
    alone = world.shape.single_active
    overlaps = checker.check(_case(world, everything, faults, single_active=alone))
    keys = {str(e.key) for e in overlaps.unfinished}
    for pairs, what in (
        (overlaps.key_overlaps, "two handlers of a key at once"),
        (overlaps.owner_overlaps, f"two processes of a {'service' if alone else 'shard'} at once"),
        (overlaps.fallen_fences, "a fence that fell"),
        (overlaps.shared_fences, "one fence for two owners"),
    ):
        found += [_pair(what, first, second) for first, second in pairs]
    found += [Finding(key, "a handler ended without an end") for key in sorted(keys)]
    found += world.crashes.check(FALLIBLE, sorted(dead))
    found += _check_parked(world, dead, faults)
    return found + _check_others(world) + _check_outlived(world) + _check_queues(world)


def _check_others(world: World) -> list[Finding]:
    """What has the id of another message, and not its payload, is set aside."""
    letters = world.broker.bodies_in(dead_letter_queue(SERVICE))
    return [
        Finding(post.key, f"lost: the other payload of {post.id}", (post.id,))
        for post in world.confirmed
        if post.is_other and post.body not in letters
    ]


def _case(
    world: World, executions: Sequence[Execution], faults: Sequence[Fault], **facts: Any
) -> Case:
    return Case(
        executions=executions,
        faults=faults,
        lease_ttl=world.shape.lease_ttl,
        claim_ttl=world.claim_ttl,
        **{"wanted": (), **facts},
    )


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
    effects = [each for each in attempts if each.effect is not None]
    posts = [post for post in world.due(handler) if not post.is_other]
    done = {each.id for each in effects}
    places = _places(posts, dead - done)
    found = _check_ids(effects, places)
    effects = [each for each in effects if each.id in places]
    kept = [_execution(each, sequence=places[each.id][1], effect=each.effect) for each in effects]
    of = {id(execution): each for execution, each in zip(kept, effects, strict=True)}
    passed_over = dead - done | revisions.passed_over(world, handler, done)
    judged = checker.check(
        _case(
            world,
            kept,
            faults,
            wanted={(handler, post.id) for post in posts if post.id not in passed_over},
            parked=_culprits(world),
            published=places,
            unordered=[handler] if revisions.orders(world, handler) else [],
        )
    )
    found += _lost(world, posts, judged.lost)
    found += [Finding(e.key, f"out of order: {e.id}, {e}", (e.id,)) for e in judged.out_of_order]
    for pair in [*judged.repeated, *judged.explained]:
        first, second = sorted(pair, key=lambda e: e.begin)
        # That the first was not recorded is known: the second began under a claim of its own.
        excused = world.was_troubled(of[id(first)].child, first.begin, second.begin)
        if world.shape.once or not excused:
            found.append(_pair("a second effect", first, second))
    for id_ in sorted(dead & done):
        effect = next(each for each in effects if each.id == id_)
        # It may have been set aside before, by who made its last attempt.
        last = [e for e in attempts if e.id == id_ and e.begin < effect.begin][-1:]
        set_aside = any(
            world.was_troubled(each.child, each.begin, effect.begin)
            for each in last
            if each.number >= ATTEMPTS
        )
        if not (set_aside or world.was_troubled(effect.child, effect.begin, math.inf)):
            text = f"both done and a dead letter: {effect.id}, {effect}"
            found.append(Finding(effect.key, text, (effect.id,)))
    return found


def _check_parked(world: World, dead: set[str], faults: Sequence[Fault]) -> list[Finding]:
    """What is parked was not done, nor anything of its key behind it; it lies there in order."""
    parked = _culprits(world)
    if not parked:
        return []
    handlers = [*world.app.handlers]
    places = _places(world.confirmed, set())
    case = _case(
        world,
        [
            _execution(each, sequence=places[each.id][1], effect=each.effect)
            for each in world.ledger.attempts
        ],
        [*faults, *_lost_connections(world)],
        wanted={(handler, post.id) for handler in handlers for post in world.confirmed},
        set_aside=[(FALLIBLE, id_) for id_ in dead],
        parked=parked,
        published=places,
        published_again=world.published_again,
    )
    judged = checker.check(case)
    found = [
        Finding(e.key, f"done past what is parked: {e.id}, {e}; {what}", (e.id,))
        for e, what in judged.past_parked
    ]
    found += [Finding(e.key, f"done and parked: {e.id}, {e}", (e.id,)) for e in judged.twofold]
    return found + [Finding(None, f"parked in no order: {e}") for e in judged.parked_in_no_order]


def _culprits(world: World) -> list[tuple[str, str]]:
    """Return what is parked, in order, each with the handler that could not do it, if one could."""
    return [(FALLIBLE if world.posts[id_].is_poison else "", id_) for id_ in world.parked()]


def _check_ids(effects: Sequence[Attempt], known: Collection[str]) -> list[Finding]:
    """A child has one id, whoever publishes it: by another one its effect is a second one."""
    ids = defaultdict[str, set[str]](set)
    for each in effects:
        ids[each.of or each.id].add(each.id)
    return [
        Finding(None, f"a second effect: of {of}, as {' and '.join(sorted(some))}", (of, *some))
        for of, some in ids.items()
        if not some <= {*known} or len(some) > 1
    ]


def _lost_connections(world: World) -> list[Fault]:
    """Return what makes the broker deliver once more what was acknowledged, and excuses no more."""
    return [Fault(Kind.BROKER, "", since, until) for since, until in world.breaks]


def _lost(world: World, posts: Sequence[Post], missing: Sequence[str]) -> list[Finding]:
    """Tell apart what is nowhere any more from what is there and was not done in time."""
    bodies = {post.id: post.body for post in posts}
    found = []
    for each in missing:
        id_ = each.rpartition(" ")[2]
        there = world.broker.queues_with(bodies[id_])
        text = f"left undone: {each}, in {', '.join(there)}" if there else f"lost: {each}"
        found.append(Finding(None, text, (id_,)))
    return found


def _pair(what: str, first: Execution, second: Execution) -> Finding:
    text = f"{what}: {first.id}, {first} then {second.id}, {second}"
    return Finding(second.key, text, (first.id, second.id))


def _places(posts: Sequence[Post], dead: set[str]) -> dict[str, tuple[str, int]]:
    """Return key and place of each message in the order of its key, but for those without one."""
    found: dict[str, tuple[str, int]] = {}
    last: dict[str, int] = defaultdict(lambda: -1)
    for post in posts:
        if post.id not in dead and post.id not in found:
            key = post.key or post.id
            last[key] += 1
            found[post.id] = key, last[key]
    return found


def _dead(world: World) -> set[str]:
    """Return the ids of the dead letters."""
    posts = {post.body: post.id for post in world.confirmed if not post.is_other}
    letters = world.broker.bodies_in(dead_letter_queue(SERVICE))
    return {posts[body] for body in letters if body in posts}


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
