"""Events a second and CPU an event, by the real command line, on servers of its own.

    python benchmarks/throughput.py [--events 40000] [--processes 1] [--shards 8] [--rounds 3]
        [--dedup redis] [--dedup postgresql] [--dedup memory]

Each round publishes the events first, then starts ``qworker start --burst`` on the full queues and
reads what its handlers noted; so for each dedup store, in turn. The bare kombu loop, which
acknowledges in batches and does nothing else, is measured in turn on the same server, so that a
noisy machine shows in both.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import amqp
from counting import NOTES, Tick, app
from kombu.connection import Connection
from kombu.entity import Queue
from kombu.messaging import Consumer

from servers import Guard, PostgreSQL, RabbitMQ, Redis

ROOT = Path(__file__).resolve().parent.parent


class Rate(NamedTuple):
    """What one run did."""

    per_second: float
    cpu_microseconds: float


def publish(events: int, keys: int) -> float:
    """Publish ``events``; return confirmed events a second."""
    began = time.perf_counter()
    with app.publisher() as out:
        for number in range(events):
            out.publish(Tick(key=f"key-{number % keys}", number=number))
    return events / (time.perf_counter() - began)


def qworker(*arguments: str, notes: Path | None = None) -> None:
    """Run the command line."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "benchmarks")}
    if notes is not None:
        environment["QWORKER_BENCH_NOTES"] = str(notes)
    command = [sys.executable, "-m", "worker.cli", *arguments]
    subprocess.run(command, check=True, env=environment, cwd=notes or ROOT)


def consume(broker: str, dedup: str, shards: int, processes: int) -> Rate:
    """Drain the queues by the real supervisor and return what its processes did together."""
    with tempfile.TemporaryDirectory() as folder:
        qworker(
            "start", "--app", "counting", "--broker", broker, "--dedup", dedup,
            "--shards", str(shards), "--processes", str(processes), "--burst",
            "--log-level", "warning",
            notes=Path(folder),
        )  # fmt: skip
        noted = [NOTES.unpack(file.read_bytes()) for file in Path(folder).glob("*.notes")]
    noted = [note for note in noted if note[0]]
    count = sum(note[0] for note in noted)
    seconds = max(note[2] for note in noted) - min(note[1] for note in noted)
    cpu = sum(note[4] - note[3] for note in noted)
    return Rate(count / seconds, cpu / count * 1e6)


def bare_loop(url: str, events: int) -> Rate:
    """Consume as many messages with nothing but kombu and one ack for every fifty."""
    with Connection(url) as connection:
        channel = connection.channel()
        arguments = {"x-queue-type": "quorum"}
        channel.queue_declare("bare", durable=True, auto_delete=False, arguments=arguments)
        body = json.dumps({"key": "key-1", "number": 1, "padding": "." * 60}).encode()
        for number in range(events):
            message = amqp.Message(
                body, content_type="application/json", delivery_mode=2, message_id=f"{number:036}",
                type="bench.tick", application_headers={"qw-key": "key-1"},
            )  # fmt: skip
            channel.basic_publish(message, "", "bare")
        while channel.queue_declare("bare", passive=True).message_count < events:
            time.sleep(0.05)
        seen = 0

        def receive(message: amqp.Message) -> None:
            nonlocal seen
            seen += 1
            if seen % 50 == 0 or seen == events:
                message.channel.basic_ack(message.delivery_tag, multiple=True)

        channel.basic_qos(0, 256, False)
        began, cpu = time.perf_counter(), time.process_time()
        queue = Queue("bare", channel=channel, no_declare=True)
        with Consumer(channel, [queue], on_message=receive):
            while seen < events:
                connection.drain_events(timeout=30)
        seconds = time.perf_counter() - began
        return Rate(events / seconds, (time.process_time() - cpu) / events * 1e6)


class Durable(PostgreSQL):
    """One that has on disk what it answered, as nobody needs it in tests."""

    def command(self) -> Sequence[str | Path]:
        """Return the command that runs it."""
        return [*super().command(), "-c", "fsync=on"]


@contextmanager
def stores(names: Collection[str], folder: Path, guard: Guard) -> Iterator[dict[str, str]]:
    """Start what these dedup stores need; give the URL of each."""
    with ExitStack() as stack:
        found = {"memory": "memory://bench"}
        for name, server in (("redis", Redis), ("postgresql", Durable)):
            if name in names:
                (folder / name).mkdir()
                found[name] = stack.enter_context(server(folder / name, guard)).url
        yield {name: found[name] for name in names}


def summary(name: str, rates: Sequence[Rate], bare: Sequence[Rate]) -> str:
    """Return the medians of what was measured with a store."""
    per_second = statistics.median(rate.per_second for rate in rates)
    cpu = statistics.median(rate.cpu_microseconds for rate in rates)
    pairs = zip(rates, bare, strict=True)
    ratio = statistics.median(o.cpu_microseconds / b.cpu_microseconds for o, b in pairs)
    return (
        f"{name} dedup: {per_second:,.0f} events/s, {cpu:.1f} us CPU an event, {ratio:.2f} times"
        " the bare kombu loop's"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--events", type=int, default=40_000)
    parser.add_argument("--keys", type=int, default=1_000)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dedup", action="append", choices=["redis", "postgresql", "memory"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, Guard() as guard:
        folder = Path(name)
        (folder / "rabbitmq").mkdir()
        with (
            RabbitMQ(folder / "rabbitmq", guard) as rabbitmq,
            stores(options.dedup or ["redis"], folder, guard) as urls,
        ):
            app.configure({"broker": rabbitmq.url})
            qworker(
                "start", "--app", "counting", "--broker", rabbitmq.url, "--dedup", "memory://bench",
                "--shards", str(options.shards), "--burst", "--log-level", "warning",
            )  # declares the queues  # fmt: skip
            measured: dict[str, list[Rate]] = {store: [] for store in urls}
            bare: list[Rate] = []
            for number in range(1, options.rounds + 1):
                for store, url in urls.items():
                    published = publish(options.events, options.keys)
                    rate = consume(rabbitmq.url, url, options.shards, options.processes)
                    measured[store].append(rate)
                    print(
                        f"round {number}: published {published:,.0f}/s confirmed; {store}"
                        f" {rate.per_second:,.0f} events/s {rate.cpu_microseconds:.1f} us CPU",
                        flush=True,
                    )
                limit = bare_loop(rabbitmq.url, options.events)
                bare.append(limit)
                print(
                    f"round {number}: bare kombu loop {limit.per_second:,.0f}/s"
                    f" {limit.cpu_microseconds:.1f} us",
                    flush=True,
                )
            app.close()
    print(
        f"RabbitMQ, {options.processes} process(es), {options.shards} shards,"
        f" {options.events:,} events of {options.keys:,} keys, medians of {options.rounds}:"
    )
    for store, rates in measured.items():
        print(summary(store, rates, bare))


if __name__ == "__main__":
    main()
