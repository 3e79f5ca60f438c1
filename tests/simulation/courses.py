"""The kinds of schedules that are run."""

from __future__ import annotations

from simulation.incidents import Menu
from simulation.schedule import Course
from simulation.service import FAIL, HOPELESS, KILLER, PARENT, REJECT
from simulation.shapes import Shape

_CHILDREN = ("doom", "doom", "doom", "kill", "connections", "pause", "cut", "term")
_MEMBERS = (
    *("doom", "kill", "connections", "pause", "cut", "term"),
    *("doom member", "kill member", "pause member", "cut member", "join", "leave", "reload"),
)
_LONG = (0.0, 0.02, 0.1, 0.3, 1.0, 3.0)

COURSES = {
    # Two processes of one supervisor that die at any call.
    "short": Course(length=50, messages=8, rarity=10),
    # The same with everything that can happen to a process, and handlers that outlive claims.
    "processes": Course(Shape(handlers=2, durations=_LONG), menu=Menu(_CHILDREN), rarity=14),
    # Supervisors that come, go, die, sleep and are cut off.
    "members": Course(
        Shape(members=2, processes=1, shards=4),
        length=140,
        menu=Menu(_MEMBERS, most_members=3),
    ),
    # Those that sleep, or are cut off, past their claims and leases, and wake up.
    "sleepers": Course(
        Shape(members=2, processes=1, shards=2, durations=(0.02, 1.0, 3.0, 3.0)),
        length=90,
        messages=12,
        menu=Menu(
            (
                "pause",
                "pause member",
                "pause member",
                "cut",
                "cut",
                "cut member",
                *["connections"] * 2,
            ),
            pauses=(2.5, 5.0, 5.0),
            cuts=(1.5, 4.0, 4.0),
            most_members=2,
        ),
        rarity=16,
    ),
    # Supervisors that do not reach the lease store for as long as others may take what they have.
    "naps": Course(
        Shape(members=2, processes=1, shards=2, durations=(0.02, 0.1, 0.3)),
        length=120,
        messages=24,
        menu=Menu(("pause member", "cut member", "cut member"), pauses=(1.0, 2.5), cuts=(1.5, 4.0)),
        rarity=16,
    ),
    # Processes that do not reach the dedup store for longer than their claims live.
    "cuts": Course(
        Shape(processes=1, shards=2, concurrency=(1, 2), durations=(1.0, 3.0)),
        length=70,
        messages=12,
        menu=Menu(("cut store",), cuts=(1.5, 2.5, 4.0)),
        rarity=20,
    ),
    # Connections that break while handlers run for longer than a claim lives.
    "breaks": Course(
        Shape(processes=1, shards=2, durations=(0.3, 3.0)),
        length=70,
        messages=12,
        menu=Menu(("connections",)),
        rarity=20,
    ),
    # Messages that come before the revisions that precede theirs, or after what follows them.
    # There is room for all of them to wait.
    "revisions": Course(
        Shape(
            members=2,
            processes=1,
            shards=2,
            prefetch=64,
            revisions=True,
            durations=(0.0, 0.02, 0.3),
        ),
        length=120,
        messages=24,
        menu=Menu(_MEMBERS, most_members=3),
    ),
    # The same while the number of shards changes. Nothing is missing in the end, and nothing ends a
    # wait but what it is for; so whoever waited for a wait to end would not be done in time.
    "gaps": Course(
        Shape(
            members=2,
            processes=1,
            shards=2,
            prefetch=64,
            revisions=True,
            astray=6,
            patience=1000.0,
            durations=(0.0, 0.02, 0.3),
        ),
        length=200,
        messages=30,
        plans=(*[()] * 10, (FAIL,), (FAIL, FAIL)),
        menu=Menu((*_MEMBERS, *["reshard"] * 8), reshards=(4, 1, 3), most_members=3),
        rarity=10,
    ),
    # Messages with children, whose handler is another one of the service.
    "children": Course(
        Shape(children=True, durations=(0.0, 0.02, 0.1, 0.3)),
        menu=Menu(_CHILDREN),
        plans=(*[()] * 3, *[(PARENT,)] * 6, (FAIL, PARENT), (REJECT,)),
        rarity=10,
    ),
    # The same where an effect is a transaction, with the id in it: nothing excuses a second one.
    "transactions": Course(
        Shape(children=True, once=True, durations=(0.0, 0.02, 0.3, 3.0)),
        menu=Menu(_CHILDREN),
        plans=(*[()] * 6, *[(PARENT,)] * 3, (FAIL, PARENT), (REJECT,)),
        rarity=10,
    ),
    # Messages that fail to the end, and park their keys at both handlers.
    "parked": Course(
        Shape(handlers=2, parks=True),
        length=160,
        messages=30,
        menu=Menu((*_CHILDREN, "kill", "term")),
        plans=(*[()] * 10, (FAIL,), HOPELESS, (REJECT,)),
        rarity=10,
        steps=(0.02, 0.1, 0.25, 0.25),
    ),
    # Messages that kill their process, each time: two processes at the most.
    "poison": Course(
        Shape(crash_limit=2, concurrency=(2, 3), durations=(0.02, 0.1, 0.3, 1.5)),
        messages=12,
        menu=Menu(("doom", "kill", "connections", "connections")),
        plans=(*[()] * 8, (FAIL,), (REJECT,), (KILLER,), (KILLER,)),
        rarity=20,
    ),
    # Messages with the id of another one, and another payload.
    "others": Course(others=3, rarity=10),
    # One process at a time for all shards.
    "alone": Course(
        Shape(members=3, processes=1, shards=3, single_active=True),
        length=140,
        menu=Menu(_MEMBERS, most_members=4),
    ),
    # Several processes on each machine.
    "machines": Course(
        Shape(members=2, processes=2, shards=5, handlers=2, durations=_LONG),
        length=160,
        messages=24,
        menu=Menu(_MEMBERS, most_members=3),
    ),
    # 4 shards become 8, then 3, while all of this goes on.
    "reshard": Course(
        Shape(members=2, processes=1, shards=4),
        length=220,
        messages=30,
        menu=Menu((*_MEMBERS, *["reshard"] * 8), reshards=(8, 3), most_members=3),
        rarity=10,
    ),
    # The same while one machine runs a newer release, which takes messages from one exchange more.
    # Both stay: what the newer one takes is promised for as long as somebody runs it.
    "releases": Course(
        Shape(members=2, processes=1, shards=2, releases=2),
        length=160,
        messages=40,
        menu=Menu(
            (
                *("doom", "doom", "doom", "kill", "kill", "kill", "connections", "pause"),
                *("cut member", "cut member", "cut member", "pause member", "pause member"),
                *["reshard"] * 8,
            ),
            pauses=(0.4, 1.0),
            cuts=(0.5, 1.0, 1.5),
            reshards=(4, 1, 3),
            most_members=2,
        ),
        rarity=8,
    ),
    # The number of shards changes while one of two machines, mostly the idle one, hears nothing of
    # the end of that, and connects anew. Leases are as long as usual beside what a removal of
    # queues waits for.
    "flickers": Course(
        Shape(members=2, processes=1, shards=1, lease_ttl=10.0),
        length=250,
        messages=10,
        menu=Menu(
            (*["flicker"] * 4, *["reshard"] * 4),
            cuts=(8.4, 9.0, 9.5),
            reshards=(2, 1, 2),
            most_members=2,
        ),
        rarity=10,
        steps=(0.05, 0.1, 0.25, 0.25),
    ),
}
