"""A schedule: what a seed lets happen to a world, then its healing, then the judgement.

While it lasts, whoever can do something is chosen at random, time passes in small steps, and
something is published, or a trouble comes, now and then. No process that is not paused goes without
a turn for longer than a moment (``_LONGEST_SILENCE``): a longer silence would be a pause.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from random import Random

from simulation.children import Child
from simulation.incidents import Incidents, Menu
from simulation.judge import check
from simulation.ledger import Finding
from simulation.members import Member
from simulation.revisions import with_revisions
from simulation.seams import CLOCK
from simulation.service import EXCHANGE, PARTNER, Post
from simulation.shapes import Shape
from simulation.troubles import Process
from simulation.world import World

_LONGEST_SILENCE = 0.25
#: Seconds within which everything has to be done once the troubles are over.
_PATIENCE = 90.0
_ROUNDS_AT_ONCE = 10
#: Worlds between two collections of garbage, which is not collected by itself.
_TIDIED = 32
_KEYS = ("a", "a", "b", "c", None)
_PLANS: tuple[tuple[str, ...], ...] = (
    *[()] * 10,
    *[("fail",), ("fail", "fail"), ("reject",), ("reject",)],
)


@dataclass(frozen=True, slots=True)
class Course:
    """What kind of schedule it is: the world, how long it goes, and what happens in it."""

    shape: Shape = field(default_factory=Shape)
    #: Choices that are made before the world is healed.
    length: int = 90
    messages: int = 16
    #: What comes of messages, one of these each.
    plans: Sequence[tuple[str, ...]] = _PLANS
    #: One message with a key of so many has another one behind it, with its id and not its payload.
    #: 0: none has.
    others: int = 0
    menu: Menu = field(default_factory=Menu)
    #: One choice of so many is an incident.
    rarity: int = 12
    #: The seconds that pass at once, one of these.
    steps: Sequence[float] = (0.0, 0.001, 0.005, 0.02, 0.02, 0.1, 0.25, 0.25)


@dataclass(slots=True)
class Result:
    """What came of a seed."""

    seed: int
    findings: list[Finding]
    trace: list[str]
    attempts: int
    seconds: float


class Schedule:
    """One seed's way through a world."""

    def __init__(self, seed: int, course: Course) -> None:
        self._random = Random(seed)
        self._seed = seed
        self._course = course
        self.world = World(self._random, course.shape)
        self._posts = self._make_posts()
        self.world.know(self._posts)
        #: What the publisher does not know to be there, which it publishes once more first.
        self._unsure: list[Post] = []
        self._incidents = Incidents(self.world, self._random, course.menu)

    def run(self) -> Result:
        """Go through all of it."""
        world = self.world
        try:
            for _ in range(self._course.shape.members):
                world.join()
            self._start()
            for _ in range(self._course.length):
                self._step()
            self._run_out()
            self._heal()
            findings = check(world)
        finally:
            world.close()
        return Result(self._seed, findings, world.trace, len(world.ledger.attempts), CLOCK.now)

    # -- what happens

    def _start(self) -> None:
        """Let the first members come up: most of what can happen, happens later."""
        for _ in range(self._random.choice((2, 12, 12))):
            self._go_round()
            self._pass_time(0.02)
        # What a release takes is promised from when the service knows of it.
        while self._course.shape.releases > 1 and not self.world.all_known:
            self._go_round()
            self._pass_time(0.02)

    def _step(self) -> None:
        random = self._random
        choice = random.random()
        if choice < 1 / self._course.rarity:
            self._incidents.happen()
        elif choice < 0.2 and self._posts:
            self._publish()
        elif choice < 0.45:
            self._pass_time(random.choice(self._course.steps))
        else:
            self._let_one()

    def _let_one(self) -> None:
        """Let somebody do something."""
        awake = [process for process in self.world.processes.values() if not process.paused]
        while awake:
            process = self._random.choice(awake)
            if turns := _turns(process):
                self.world.act(process, self._random.choice(turns))
                return
            awake.remove(process)

    def _pass_time(self, seconds: float) -> None:
        """Let time pass; whoever was silent for long does something then."""
        CLOCK.now += seconds
        now = CLOCK.now
        self._incidents.pass_on(now)
        late = now - _LONGEST_SILENCE
        for process in [*self.world.processes.values()]:
            if not (process.paused or process.dead) and _ran_at(process) <= late:
                self._all_of(process)
        if not self.world.members:
            self.world.join()

    def _go_round(self) -> bool:
        """Let everybody do something; tell whether anybody had something to do."""
        some = False
        for process in [*self.world.processes.values()]:
            if not (process.paused or process.dead):
                some = self._all_of(process) or some
        return some

    def _all_of(self, process: Process) -> bool:
        """Let a process do all that it can do now."""
        turns = _turns(process)
        for turn in turns:
            if not process.dead:
                self.world.act(process, turn)
        return bool(turns)

    def _publish(self) -> None:
        """Publish the next few, in order; some confirms do not come."""
        random, world = self._random, self.world
        number = random.randint(1, 4)
        posts, self._posts = self._posts[:number], self._posts[number:]
        posts = [*self._unsure, *posts]
        self._unsure = []
        fate = random.random()
        if fate < 0.1:  # nothing of it came, and is known to be there
            self._unsure = posts
            world.note("publishing fails")
        elif fate < 0.2:  # it came, and the confirm did not
            world.publish(posts)
            self._unsure = posts
            world.note("published unconfirmed", *(post.id for post in posts))
        else:
            world.publish(posts, random.choice((1, 1, 1, 2)))
            world.confirm(posts)

    # -- the end

    def _run_out(self) -> None:
        """Let the troubles that there are take their time, mostly."""
        if self._random.random() < 0.2:
            return
        while self._incidents.under_way:
            self._go_round()
            if self._posts and self._random.random() < 0.3:
                self._publish()
            self._pass_time(self._random.choice((0.05, 0.1, 0.2)))

    def _heal(self) -> None:
        """End all troubles, publish what is left, and let the service get through with it."""
        world = self.world
        world.note("the troubles end")
        self._incidents.pass_on(math.inf)
        for process in world.processes.values():
            process.doom = 0
        left = [*self._unsure, *self._posts]
        if left:
            world.publish(left)
            world.confirm(left)
        deadline = CLOCK.now + _PATIENCE
        while backlog := world.backlog():
            if CLOCK.now > deadline:
                text = f"not done in time: {', '.join(backlog[:5])}"
                world.ledger.complain(None, text, backlog[0].partition(" ")[0])
                return
            rounds = 0
            while self._go_round() and rounds < _ROUNDS_AT_ONCE:
                rounds += 1
            self._pass_time(0.1)

    def _make_posts(self) -> list[Post]:
        random = self._random
        posts = [
            Post(f"p{n}", random.choice(_KEYS), random.choice(self._course.plans))
            for n in range(self._course.messages)
        ]
        if self._course.shape.releases > 1:
            posts = [replace(post, exchange=random.choice((EXCHANGE, PARTNER))) for post in posts]
        if self._course.shape.revisions:
            posts = with_revisions(posts, random, self._course.shape.astray)
        if self._course.others:
            for post in [*posts]:
                if post.key is not None and not random.randrange(self._course.others):
                    place = random.randint(posts.index(post) + 1, len(posts))
                    posts.insert(place, replace(post, is_other=True))
        return posts


def _turns(process: Process) -> list[Callable[[], None]]:
    assert isinstance(process, Member | Child)
    return process.turns()


def _ran_at(process: Process) -> float:
    assert isinstance(process, Member | Child)
    return process.ran_at


def simulate(seed: int, course: Course) -> Result:
    """Run one seed. Must be called inside of ``seams.in_place()``."""
    if seed % _TIDIED == 0:
        gc.collect()
    return Schedule(seed, course).run()
