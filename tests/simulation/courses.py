"""The kinds of schedules that are run."""

from __future__ import annotations

from simulation.schedule import Course
from simulation.world import Shape

_CHILDREN = ("doom", "doom", "doom", "kill", "connections", "pause", "cut", "term")
_MEMBERS = (
    *("doom", "kill", "connections", "pause", "cut", "term"),
    *("doom member", "kill member", "pause member", "cut member", "join", "leave", "reload"),
)

COURSES = {
    # Two processes of one supervisor that die at any call.
    "short": Course(
        length=50, messages=8, troubles=("doom", "doom", "doom", "kill", "connections"), rarity=10
    ),
    # The same with everything that can happen to a process, and handlers that outlive claims.
    "processes": Course(
        Shape(concurrency=3, durations=(0.0, 0.02, 0.1, 0.3, 1.0, 3.0)), troubles=_CHILDREN
    ),
    # Supervisors that come, go, die, sleep and are cut off.
    "members": Course(
        Shape(members=2, processes=1, shards=4),
        length=140,
        troubles=_MEMBERS,
        rarity=12,
        most_members=3,
    ),
    "machines": Course(
        Shape(members=2, processes=2, shards=5, durations=(0.0, 0.02, 0.1, 0.3, 1.0, 3.0)),
        length=160,
        messages=24,
        troubles=_MEMBERS,
        rarity=12,
        most_members=3,
    ),
    # 4 shards become 8, then 3, while all of this goes on.
    "reshard": Course(
        Shape(members=2, processes=1, shards=4),
        length=220,
        messages=30,
        troubles=(*_MEMBERS, *["reshard"] * 8),
        reshards=(8, 3),
        rarity=10,
        most_members=3,
    ),
}
