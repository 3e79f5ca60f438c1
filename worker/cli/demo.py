"""``qworker demo``: a service at work while its processes are killed, with no server."""

from __future__ import annotations

import click

from worker.cli.options import Seconds, example
from worker.demo.run import EVENTS, SECONDS, run_demo


@click.command(epilog=example("qworker demo", "qworker demo --events 2000 --kills 3 --no-live"))
@click.option(
    "--events",
    type=click.IntRange(1),
    default=EVENTS,
    show_default=True,
    metavar="N",
    help="How many events to publish.",
)
@click.option(
    "--seconds",
    type=Seconds(positive=True),
    default=SECONDS,
    show_default=True,
    metavar="S",
    help="How long publishing takes, about.",
)
@click.option(
    "--kills",
    type=click.IntRange(0),
    metavar="N",
    help="How often a process is killed. [default: about once a second]",
)
@click.option("--live/--no-live", default=None, help="Show it live. [default: on a terminal]")
@click.option("--seed", type=int, metavar="N", help="Choose the same copies and victims again.")
def demo(
    *, events: int, seconds: float, kills: int | None, live: bool | None, seed: int | None
) -> int:
    """Stream a history of files through a service whose processes are killed; check the result.

    Needs nothing but qworker. Exit code 0 says that every promise was held.
    """
    return run_demo(events=events, seconds=seconds, kills=kills, live=live, seed=seed)
