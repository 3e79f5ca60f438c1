"""Worlds in which the fallible handler has revisions: what is published, and what must hold then.

The order of a key is that of its revisions, whatever order it was published in, and nothing runs
that is not above a revision that was recorded.
"""

from __future__ import annotations

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


def with_revisions(posts: Sequence[Post], random: Random) -> list[Post]:
    """Return the posts with revisions; some tell what another one told, some change places."""
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
    for at in range(1, len(made)):
        if random.random() < 0.3:
            made[at - 1], made[at] = made[at], made[at - 1]
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
    """Yield what is wrong about the beginning of a handler: nothing that is not below is done."""
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


def check_superseded(world: World, event: RevisionSuperseded) -> Iterator[str]:
    """Yield what is wrong where a message is said to have no effect."""
    effects = (each for each in world.ledger.attempts if each.effect is not None)
    done = [world.posts[each.id].revision or 0 for each in effects if each.key == event.key]
    if all(revision < event.revision for revision in done):
        yield f"superseded by nothing: {event.message_id}, revision {event.revision}"
