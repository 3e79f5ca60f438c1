"""Compares qworker with its peers under faults: what `make peers` runs.

PYTHONPATH=benchmarks:tests .venv-peers/bin/python -m peers [--seed 7] [--only qworker …]
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import redis as redis_client

from peers.contenders import Contender, contenders
from peers.judge import judge
from peers.nemesis import Fault, kinds, plan, torment
from peers.report import Row, line, report
from peers.site import Site
from servers import Guard, RabbitMQ, Redis

_RESULTS = Path(__file__).resolve().parent.parent / "results" / "peers.md"


def main() -> None:
    """Run everyone, print the table and keep it."""
    options = _options()
    faults = plan(options.seed, options.rounds, options.faults)
    print(f"seed {options.seed}: {', '.join(fault.kind for fault in faults)}", flush=True)
    rows: list[Row] = []
    with ExitStack() as stack:
        folder = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        guard = stack.enter_context(Guard())
        for server in ("rabbitmq", "redis"):
            (folder / server).mkdir(parents=True)
        rabbitmq = stack.enter_context(RabbitMQ(folder / "rabbitmq", guard))
        redis = stack.enter_context(Redis(folder / "redis", guard))
        rabbitmq.start()
        redis.start()
        facts = {
            "Seed": options.seed,
            "rate": f"{options.rate:g}/s",
            "keys": options.keys,
            "RabbitMQ": rabbitmq.eval("rabbit_misc:version().").strip('"'),
            "Redis": _redis_version(redis),
        }
        for contender in options.only:
            place = folder / contender.slug
            place.mkdir()
            site = Site(contender, place, rabbitmq, redis, guard)
            rows.append(run(site, faults, options))
            print(line(rows[-1]), flush=True)
            options.results.parent.mkdir(exist_ok=True)
            options.results.write_text(report(rows, faults, facts, options.bound))
    print(options.results.read_text())


def run(site: Site, faults: Sequence[Fault], options: argparse.Namespace) -> Row:
    """Run one contender through all faults, and judge it."""
    began = time.monotonic()

    def tell(text: str) -> None:
        print(f"  {site.contender.slug} {time.monotonic() - began:6.1f} s: {text}", flush=True)

    with site.at_work():
        tell("consumes")
        with site.published_to(options.rate, options.keys, options.seed):
            load = time.monotonic()
            done = torment(site, faults, tell)
            time.sleep(options.calm)
            seconds = time.monotonic() - load
        drained = site.drain(options.bound)
        queues = site.queues()
        held = site.held() if queues.waiting or queues.aside else frozenset[str]()
        return Row(
            site.contender,
            judge(site.history.entries()),
            held,
            queues.waiting,
            queues.aside,
            seconds,
            drained,
            site.unit.ends,
            site.unit.overruns,
            load,
            done,
            len(faults) - len(done),
            os.getloadavg()[1],
        )


def _options() -> argparse.Namespace:
    everyone = {contender.slug: contender for contender in contenders()}

    def named(slug: str) -> Contender:
        if slug not in everyone:
            raise argparse.ArgumentTypeError(f"{slug!r} is none of {', '.join(everyone)}")
        return everyone[slug]

    parser = argparse.ArgumentParser(
        prog="python -m peers",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--seed", type=int, default=random.randrange(10_000))
    parser.add_argument("--rounds", type=int, default=1, help="of faults, about two minutes each")
    parser.add_argument("--faults", nargs="+", choices=kinds(), default=kinds())
    parser.add_argument("--rate", type=float, default=100, help="messages a second")
    parser.add_argument("--keys", type=int, default=50)
    parser.add_argument("--calm", type=float, default=5, help="seconds of load after the faults")
    parser.add_argument("--bound", type=float, default=90, help="seconds to work the rest off in")
    parser.add_argument("--only", type=named, nargs="+", default=list(everyone.values()))
    parser.add_argument("--keep", type=Path, help="a new folder for the histories and the logs")
    parser.add_argument("--results", type=Path, default=_RESULTS)
    return parser.parse_args()


def _redis_version(server: Redis) -> str:
    with redis_client.Redis.from_url(server.url) as client:
        return str(client.info("server")["redis_version"])


if __name__ == "__main__":
    main()
