"""The archive: how fast events are stored, and how fast a replay goes beside normal consuming.

    .venv/bin/python benchmarks/archive.py [--events 50000] [--broker rabbitmq|sqlite]
        [--store sqlite|postgresql] [--record results/archive.jsonl]

Three measurements on one machine, with servers of their own:

* *archiving*: the events lie in the archive's queues; its service stores them, 2 processes
* *consuming*: the events lie in the queues of a service whose handler only counts, 2 processes
* *replay*: the same service is idle; ``qworker replay --again`` sends it all of the archive. The
  clock runs from the start of the command to the last event that was handled

and the memory (PSS) of the replay and of the service, each second of the replay. A rate of a replay
that is at least half of that of consuming, and memory that is flat, is what was promised.

``--record`` keeps it all: a line of what it depends on, and one of what was measured.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

_HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(_HERE), str(_HERE.parent / "tests")]

import orjson
from peers.unit import spawn
from speed.contenders import RABBITMQ, SQLITE, Contender, qworker
from speed.draining import worked_off
from speed.load import Load
from speed.results import environment
from speed.site import Servers, Site
from speed.stream import Stream
from speed.tree import Tree

from worker.archive.base import Archive
from worker.archive.entry import Entry
from worker.archive.open import open_archive

_BATCH = 1000
_MEBI = 1024 * 1024
_SERVICE = "worker.archive.service"


def entries(load: Load) -> Iterator[Entry]:
    """Yield the events of a load as they are archived."""
    at = time.time_ns() // 1000
    for ident, key, number, padding in Stream(load):
        body = orjson.dumps({"key": key, "number": number, "padding": padding})
        headers = orjson.dumps({"qw-key": key}).decode()
        yield Entry(ident, "speed.tick", key, at, headers, "{}", body, at=at)


def fill(archive: Archive, load: Load) -> None:
    """Put a load into an archive."""
    batch: list[Entry] = []
    for entry in entries(load):
        batch.append(entry)
        if len(batch) == _BATCH:
            archive.add(batch)
            batch.clear()
    archive.add(batch)


def store_of(servers: Servers, site: Site, store: str) -> str:
    """Return the URL of an archive for a run."""
    if store == "postgresql":
        return servers.postgresql.fresh_url()
    return f"sqlite:///{site.place.folder / 'archive.db'}"


def archiving(servers: Servers, contender: Contender, load: Load, store: str) -> float:
    """Return the events a second that the archive's service stores."""
    with servers.site(contender, load) as site:
        url = store_of(servers, site, store)
        environ = {**site.environ, "QWORKER_ARCHIVE_URL": url}
        words = [sys.executable, "-m", "worker.cli"]
        own = [*words, "start", "--app", _SERVICE, "--shards", "8", "--processes", "2"]
        declare = [*words, "topology", "--declare", "--app", _SERVICE, "--shards", "8"]
        log_file = site.place.folder / "archive.log"
        with log_file.open("wb") as log:
            spawn(declare, site.place.folder, environ, log).wait()
            site.fill()
            service = spawn(own, site.place.folder, environ, log)
            with closing(open_archive(url)) as archive:
                while (first := archive.size().events) < load.events * 0.05:
                    time.sleep(0.01)
                began = time.monotonic()
                while (last := archive.size().events) < load.events:
                    time.sleep(0.05)
                seconds = time.monotonic() - began
            service.terminate()
            service.wait()
    return (last - first) / seconds


def consuming(servers: Servers, contender: Contender, load: Load) -> float:
    """Return the events a second of a service whose queues are full."""
    with servers.site(contender, load) as site:
        site.fill()
        return worked_off(site)["per_second"]


class Memory:
    """Notes what processes hold, each second."""

    def __init__(self) -> None:
        self.noted: list[tuple[float, ...]] = []
        self._ended = threading.Event()

    @contextmanager
    def watching(self, *trees: Tree) -> Iterator[None]:
        """Note it while the block runs."""

        def work() -> None:
            while not self._ended.wait(1.0):
                self.noted.append(tuple(tree.pss() / _MEBI for tree in trees))

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()


def replaying(
    servers: Servers, contender: Contender, load: Load, store: str
) -> tuple[float, Memory]:
    """Return the events a second of a replay, and what it and the service held."""
    memory = Memory()
    with servers.site(contender, load) as site:
        url = store_of(servers, site, store)
        with closing(open_archive(url)) as archive:
            fill(archive, load)
        environ = {**site.environ, "QWORKER_ARCHIVE_URL": url}
        command = [sys.executable, "-m", "worker.cli", "replay", "--app", contender.app, "--again"]
        one = load.events // 1000 or 1
        with site.at_work() as worker, (site.place.folder / "replay.log").open("wb") as log:
            # It is known to be there when it has handled a few events.
            site.fill(Load(events=one, keys=load.keys))
            worker.reach(one)
            began = time.monotonic()
            replay = spawn(command, site.place.folder, environ, log)
            with memory.watching(Tree(replay.pid), worker.tree):
                last = worker.reach(one + load.events)
            if code := replay.wait():
                raise SystemExit(f"the replay ended with {code}")
    return load.events / (last.at - began), memory


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--events", type=int, default=50_000)
    parser.add_argument("--broker", choices=("rabbitmq", "sqlite"), default="rabbitmq")
    parser.add_argument("--store", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--record", type=Path, help="a file for the figures")
    asked = parser.parse_args()
    load = Load(events=asked.events)
    contender = qworker("redis", broker=RABBITMQ)
    if asked.broker == "sqlite":
        contender = qworker("sqlite", broker=SQLITE)
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="qworker-archive-"))
        servers = stack.enter_context(Servers(Path(folder)))
        stored = archiving(servers, contender, load, asked.store)
        print(f"archiving  {stored:8,.0f} events/s, into {asked.store}", flush=True)
        consumed = consuming(servers, contender, load)
        print(f"consuming  {consumed:8,.0f} events/s", flush=True)
        replayed, memory = replaying(servers, contender, load, asked.store)
        print(f"replay     {replayed:8,.0f} events/s, {replayed / consumed:.2f} of consuming")
        if asked.record is not None:
            facts = {"events": asked.events, "broker": asked.broker, "store": asked.store}
            figures = {
                "archived_per_second": stored,
                "consumed_per_second": consumed,
                "replayed_per_second": replayed,
                "replay_mebibytes": [sender for sender, _ in memory.noted],
                "service_mebibytes": [service for _, service in memory.noted],
                "busy": os.getloadavg()[0],
            }
            lines = [environment(servers, facts), figures]
            asked.record.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    print("MiB of the replay and of the service, by the second:")
    step = max(1, len(memory.noted) // 20)
    for second, (sender, service) in enumerate(memory.noted, 1):
        if second % step == 0:
            print(f"  {second:5} s  {sender:7.1f}  {service:7.1f}")


if __name__ == "__main__":
    main()
