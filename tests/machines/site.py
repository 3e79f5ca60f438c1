"""A site: supervisors of one service, each on a machine of its own, under a steady load."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from enum import Enum
from itertools import product
from pathlib import Path
from time import monotonic
from typing import Any, Self

from acceptance.running import STEPS, TESTS, Ledger, eventually
from chaos.checker import Case, check
from chaos.clerk import STARTUP, VARIABLE, recorded
from chaos.deaths import Watch
from chaos.executions import Execution, Fault, Kind, gaps, join, owners
from chaos.findings import Findings
from machines.load import SteadyLoad
from machines.network import Machine, Network, Way
from machines.supervisor import Supervisor
from servers import Guard
from worker.transport.capabilities import sqlite_path

_LOCAL = "127.0.0.1"
#: Seconds that a lease and a claim live, where nothing is set.
_TTL = 10.0
#: Seconds within which a shard under steady load begins something.
_LATELY = 2.0
#: Seconds that a shard may stand still while it changes hands, beside the handler that runs.
_HAND_OVER = 2.0
#: Seconds that a write to a shared file takes at the most, where its writer runs.
_LONGEST_WRITE = 2.0


class To(Enum):
    """The server that a link leads to."""

    REDIS = "redis"
    RABBITMQ = "rabbitmq"
    ALL = "every server"


class Site:
    """Makes supervisors and remembers what they and the test did. A context manager.

    ``broker`` and ``dedup`` are URLs as seen from here. Without a network each supervisor is a
    process of this machine, with a run folder of its own; then no link can be cut.
    """

    def __init__(
        self, folder: Path, guard: Guard, *, broker: str, dedup: str, network: Network | None
    ) -> None:
        self.broker = broker
        self.dedup = dedup
        self.ledger = Ledger(folder / "ledger")
        self.faults: list[Fault] = []
        self._folder = folder
        self._guard = guard
        self._network = network
        self._machines: dict[str, Machine] = {}
        self._supervisors: list[Supervisor] = []
        self._closing = ExitStack()

    def __enter__(self) -> Self:
        self._closing.enter_context(Watch(self._supervisors.copy, self.faults.append))
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._closing.close()

    # What the test sets up

    def supervisor(self, name: str, app: str = "steps", **settings: object) -> Supervisor:
        """Return a supervisor, not yet started, on a new machine. It is killed at the end."""
        entrance: tuple[str, ...] = ()
        broker, dedup = self.broker, self.dedup
        if self._network is not None:
            (machine,) = self._closing.enter_context(self._network.machines(name))
            self._machines[name] = machine
            entrance = machine.entrance
            broker, dedup = (url.replace(_LOCAL, self._network.address) for url in (broker, dedup))
        made = Supervisor(
            self._folder / name,
            name,
            f"acceptance.apps.{app}",
            broker=broker,
            dedup=dedup,
            ledger=self.ledger,
            note=self.faults.append,
            guard=self._guard,
            entrance=entrance,
            **settings,
        )
        made.environ |= {
            "PYTHONPATH": f"{STARTUP}:{TESTS}",
            VARIABLE: str(self.ledger.file),
        }
        self._closing.callback(made.end)
        self._supervisors.append(made)
        return made

    def started(self, *names: str, options: Sequence[str], **settings: Any) -> list[Supervisor]:
        """Return new supervisors of these names, each ready before the next one is started."""
        made = [self.supervisor(name, **settings) for name in names]
        for supervisor in made:
            supervisor.start_ready(*options)
        return made

    def load(
        self, *, keys: int = 48, rate: float = 100.0, seconds: float = 0.01, publishers: int = 3
    ) -> SteadyLoad:
        """Return publishers to the site's broker."""
        load = SteadyLoad(self.broker, keys=keys, rate=rate, seconds=seconds, publishers=publishers)
        self._closing.callback(load.close)
        return load

    @contextmanager
    def cut(self, supervisor: Supervisor, to: To, way: Way = Way.BOTH) -> Iterator[None]:
        """Drop what goes between a supervisor's machine and a server while the block runs."""
        url = {To.REDIS: self.dedup, To.RABBITMQ: self.broker, To.ALL: ""}[to]
        port = int(url.split("@")[-1].split(":")[-1].split("/")[0]) if url else None
        since = monotonic()
        try:
            with self._machines[supervisor.name].without(port, way):
                yield
        finally:
            self.faults.append(Fault(Kind.CUT, supervisor.name, since, monotonic()))

    # What the test sees

    def executions(self) -> list[Execution]:
        """Return everything that handlers did so far."""
        return join(self.ledger.entries())

    def owners(self) -> dict[int, str]:
        """Return who has each shard, as its last execution tells; none where there was none."""
        oldest = monotonic() - _LATELY
        lately = [entry for entry in self.ledger.entries() if entry.at > oldest]
        return owners(join(entry for entry in lately if entry.what == "begin"))

    def begun_by(self, supervisor: Supervisor, since: float, until: float) -> list[Execution]:
        """Return what a supervisor's processes began in this span."""
        mine = (e for e in self.executions() if e.supervisor == supervisor.name)
        return [execution for execution in mine if since < execution.begin < until]

    def is_locked(self) -> bool:
        """Tell whether all share one file, and somebody stands in the midst of writing to it."""
        if not self.broker.startswith("sqlite:"):
            return False
        file = sqlite_path(self.broker)
        with closing(sqlite3.connect(file, timeout=_LONGEST_WRITE, isolation_level=None)) as db:
            try:
                db.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return True
        return False

    def gaps(self, since: float, until: float) -> dict[int, float]:
        """Return the longest time without a begin of each shard, of those that touch the span."""
        return gaps(self.executions(), since, until)

    def until_shared(self, shards: int, *supervisors: Supervisor) -> None:
        """Wait until these supervisors, and nobody else, have all shards, in fair parts."""
        names = [supervisor.name for supervisor in supervisors]
        parts = {shards // len(names), -(-shards // len(names))}

        def shared() -> bool:
            have = list(self.owners().values())
            return len(have) == shards and all(have.count(name) in parts for name in names)

        eventually(shared, f"the shards are shared by {', '.join(names)}")

    def until_done(self, load: SteadyLoad) -> None:
        """Wait until everything that was confirmed has its effects."""
        confirmed = load.confirmed
        eventually(lambda: self.ledger.has(confirmed, *STEPS), "all is done")

    @contextmanager
    def hand_over(
        self, what: str, *, shards: int, handler: float, tell: Callable[[str], None]
    ) -> Iterator[None]:
        """Fail where a shard stands still in the block for longer than a hand-over may take.

        ``handler`` is how many seconds a handler takes; ``tell`` hears how long it was.
        """
        since = monotonic()
        yield
        gaps = self.gaps(since, monotonic())
        tell(f"  {what}: a shard stood still for {max(gaps.values()):.2f} s at most")
        assert len(gaps) == shards
        assert max(gaps.values()) <= _HAND_OVER + handler, gaps

    def judge(
        self,
        load: SteadyLoad,
        *supervisors: Supervisor,
        undisturbed: bool = False,
        single_active: bool = False,
    ) -> Findings:
        """Wait until all is done, end these supervisors in order, and judge everything.

        Fails where a promise was broken; ``undisturbed``, also where something was done twice or in
        vain that a fault explains.
        """
        self.until_done(load)
        for supervisor in supervisors:
            assert supervisor.drain() == 0, supervisor.name
        assert load.confirmed, "something was published"
        struck = [fault for fault in self.faults if fault.kind is not Kind.GONE]
        assert undisturbed or struck, "some fault met somebody"
        kept = recorded(self.ledger.entries())
        assert kept, "somebody notes what the dedup store recorded"
        found = check(
            Case(
                executions=self.executions(),
                wanted={*product(STEPS, load.confirmed)},
                recorded=kept,
                faults=self.faults,
                single_active=single_active,
                lease_ttl=min(s.setting("lease_ttl", _TTL) for s in self._supervisors),
                claim_ttl=min(s.setting("claim_ttl", _TTL) for s in self._supervisors),
            )
        )
        assert found.undisturbed if undisturbed else found.held, found.summary
        return found
