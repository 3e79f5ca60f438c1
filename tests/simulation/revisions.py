"""Worlds in which the fallible handler has revisions: what is published, and what must hold then.

The order of a key is that of its revisions, whatever order it was published in. Nothing runs that
is not above a revision that was recorded; nor what is above the next one, unless it, or a later one
of its key, has waited for as long as it may.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from simulation.ledger import Attempt
    from simulation.service import Post
    from simulation.world import World
    from worker.telemetry import RevisionSuperseded


#: By how many seconds times may be rounded.
_ROUNDED = 1e-6


def with_revisions(posts: Sequence[Post], random: Random, astray: int) -> list[Post]:
    """Return the posts with revisions; some tell what another one told, some change places.

    ``astray``: with one that is so many places away.
    """
    last = Counter[str]()
    made = []
    for post in posts:
        if post.key is None:
            made.append(post)
        elif last[post.key] and random.random() < 0.25:
            made.append(replace(post, revision=random.randint(1, last[post.key])))
        else:
            last[post.key] += 1
            made.append(replace(post, revision=last[post.key]))
    for at in range(astray, len(made)):
        if random.random() < 0.3:
            made[at - astray], made[at] = made[at], made[at - astray]
    return made


def orders(world: World, handler: str) -> bool:
    """Tell whether revisions order what this handler does."""
    return world.app.handlers[handler].revisions is not None


def passed_over(world: World, handler: str, done: Collection[str]) -> set[str]:
    """Return the ids that need no effect, since a revision that is not below theirs had one."""
    if not orders(world, handler):
        return set()
    reached = Counter[str]()
    for post in map(world.posts.__getitem__, done):
        if post.key is not None and post.revision is not None:
            reached[post.key] = max(reached[post.key], post.revision)
    return {
        post.id
        for post in world.posts.values()
        if post.key is not None and (post.revision or 0) <= reached[post.key]
    }


def check_begin(world: World, attempt: Attempt) -> Iterator[str]:
    """Yield what is wrong about the beginning of a handler."""
    if not orders(world, attempt.handler) or attempt.key is None:
        return
    handler, done = world.app.handlers[attempt.handler], world.memory.records.done
    revision = world.posts[attempt.id].revision or 0
    for each in world.ledger.attempts:
        if (
            each.effect is not None
            and each.key == attempt.key
            and handler.record_id(each.id) in done
        ):
            other = world.posts[each.id].revision or 0
            if other >= revision:
                yield f"begins and is superseded: {attempt}, of {revision}; {each.id}, of {other}"
                return
    last = _known(world, attempt, handler.place_of(attempt.key))
    if last < revision - 1 and not _has_waited(world, attempt.key, revision):
        yield f"begins past a gap: {attempt}, of {revision}; the last was {last}"


def _known(world: World, attempt: Attempt, place: bytes) -> float:
    """Return the last revision of a key that its process has to know of; infinite: it knows none.

    What is in the store; and what it did itself, which may be on its way there.
    """
    reached = world.memory.records.reached.get(place)
    known = [] if reached is None else [reached.revision]
    known += [
        world.posts[each.id].revision or 0
        for each in world.ledger.attempts
        if each.effect is not None and (each.child, each.key) == (attempt.child, attempt.key)
    ]
    return max(known, default=math.inf)


def _has_waited(world: World, key: str, revision: int) -> bool:
    """Tell whether one of ``key`` that is not below ``revision`` began to wait so long ago."""
    long_ago = world.clock() - world.shape.patience + _ROUNDED
    waited = [world.posts[id_] for id_, began in world.ledger.early.items() if began <= long_ago]
    return any(post.key == key and (post.revision or 0) >= revision for post in waited)


def check_superseded(world: World, event: RevisionSuperseded) -> Iterator[str]:
    """Yield what is wrong where a message is said to have no effect."""
    effects = (each for each in world.ledger.attempts if each.effect is not None)
    done = [world.posts[each.id].revision or 0 for each in effects if each.key == event.key]
    if all(revision < event.revision for revision in done):
        yield f"superseded by nothing: {event.message_id}, revision {event.revision}"
