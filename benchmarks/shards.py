"""Throughput by the number of shards, on one supervisor: what many of them cost.

    python benchmarks/shards.py [--events 40000] [--keys 10000] [--shards 8 256] [--rounds 3]

In every round each number of shards has its turn on the same servers, in a virtual host and a
database of its own, so that a noisy machine shows in all of them; what counts is the ratio.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path

from counting import app
from throughput import Rate, consume, publish, qworker

from servers import Guard, RabbitMQ, Redis


def main() -> None:
    """Measure, and print each round and the medians."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--events", type=int, default=40_000)
    parser.add_argument("--keys", type=int, default=10_000)
    parser.add_argument("--shards", type=int, nargs="+", default=[8, 256])
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    rates: dict[int, list[Rate]] = {shards: [] for shards in options.shards}
    with tempfile.TemporaryDirectory() as name, Guard() as guard, ExitStack() as stack:
        folder = Path(name)
        for server in ("rabbitmq", "redis"):
            (folder / server).mkdir()
        rabbitmq = stack.enter_context(RabbitMQ(folder / "rabbitmq", guard))
        redis = stack.enter_context(Redis(folder / "redis", guard))
        rabbitmq.start()
        redis.start()
        places = {}
        for number, shards in enumerate(rates):
            broker = stack.enter_context(rabbitmq.vhost())
            places[shards] = broker, f"{redis.url.rpartition('/')[0]}/{number + 1}"
            declare(*places[shards], shards)
        for number in range(1, options.rounds + 1):
            for shards, (broker, dedup) in places.items():
                with app.configured({"broker": broker}):
                    publish(options.events, options.keys)
                rate = consume(broker, dedup, shards, options.processes)
                rates[shards].append(rate)
                print(f"round {number}: {told(shards, rate)}", flush=True)
    tell(rates, options.keys)


def declare(broker: str, dedup: str, shards: int) -> None:
    """Make the queues: an event that nobody has a queue for is not kept."""
    places = ("--broker", broker, "--dedup", dedup, "--shards", str(shards))
    qworker("start", "--app", "counting", *places, "--burst", "--log-level", "warning")


def told(shards: int, rate: Rate) -> str:
    """Return one rate in words."""
    cpu = rate.cpu_microseconds
    return f"{shards} shards {rate.per_second:,.0f} events/s, {cpu:.1f} us CPU an event"


def tell(rates: dict[int, list[Rate]], keys: int) -> None:
    """Print the medians, and how each number of shards compares with the first."""
    first = next(iter(rates.values()))
    for shards, own in rates.items():
        median = Rate(*(statistics.median(numbers) for numbers in zip(*own, strict=True)))
        ratio = statistics.median(
            rate.per_second / other.per_second for rate, other in zip(own, first, strict=True)
        )
        print(f"{told(shards, median)}, {ratio:.2f} times the first ({keys:,} keys)")


if __name__ == "__main__":
    main()
