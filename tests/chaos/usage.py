"""The options of a campaign, and what ``--help`` says of it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

#: Exit codes.
HELD, BROKEN, INTERRUPTED = 0, 1, 130

_ABOUT = """\
Runs trial after trial, each of another seed, until the time is over or enough processes were
killed.

A trial starts one to three supervisors of a service, lets publishers send events to it, throws
faults at all of it for a while (processes killed, paused, drained; servers stopped, hung, full;
links cut; clocks that jump), heals everything, waits until all is done (90 s at most) and judges
what happened: nothing lost, nothing out of order, no second effect that no fault explains.
Workload, place (RabbitMQ with Redis, or one SQLite file), tier and schedule follow from the seed;
whom a fault meets does not. RabbitMQ and Redis are started by the campaign, for itself alone.

Each trial is told in a line when it begins ("runs") and in one when it is over ("held", or
"BROKEN", with the story of what is wrong); a table of all of them is the end. The folder of a
broken trial is kept, with its history, timeline, schedule and logs.
"""

_MORE = """\
examples:
  campaign.py --minutes 1                               a trial or two, of which half are storms
  campaign.py --storms 1 --seconds 120 --kills 10000 --minutes 120
                                                        storms of kills, until 10,000 processes died
  campaign.py --minutes 240 --record campaign.jsonl     a line of JSON is kept for each trial
  campaign.py --again 1234567 --story                   one trial once more, and all of it told
  campaign.py --table campaign.jsonl                    only sum up what was kept

exit codes:
  0    every trial held every promise
  1    one did not, or the harness itself failed, or there is no trial in the record
  2    an option is wrong
  130  interrupted by Ctrl-C; the table is of the trials before

docs/reliability.md (Faults at random) says what the faults are and what is judged.
"""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options. Exits with 2 where they are wrong."""
    parser = argparse.ArgumentParser(
        prog="campaign.py",
        description=_ABOUT,
        epilog=_MORE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    ends = parser.add_argument_group("when it ends (after the trial that is under way)")
    ends.add_argument(
        "--minutes",
        type=_positive,
        default=20.0,
        metavar="N",
        help="after so many minutes (%(default)g)",
    )
    ends.add_argument(
        "--kills",
        type=int,
        metavar="N",
        help="once so many processes were killed, if that is earlier",
    )
    trials = parser.add_argument_group("what the trials are")
    trials.add_argument(
        "--seconds",
        type=_positive,
        default=30.0,
        metavar="N",
        help="seconds of faults in each (%(default)g)",
    )
    trials.add_argument(
        "--storms",
        type=_share,
        default=0.5,
        metavar="SHARE",
        help="how many are storms, of kills alone, several a second: from 0, none, to 1, all of"
        " them (%(default)g)",
    )
    which = trials.add_mutually_exclusive_group()
    which.add_argument(
        "--seed",
        type=int,
        metavar="N",
        help="of the first trial, from which the others follow (any)",
    )
    which.add_argument(
        "--again",
        type=int,
        metavar="SEED",
        help="this trial alone, once more: its schedule, given the --seconds and --storms it had",
    )
    told = parser.add_argument_group("what is told")
    told.add_argument(
        "--story",
        nargs="?",
        const="-",
        metavar="FILE",
        help="tell of each trial, held or broken, its schedule, what was struck when, and the"
        " effects of each second; here, or appended to a file",
    )
    told.add_argument(
        "--record", type=Path, metavar="FILE", help="append a line of JSON for each trial"
    )
    told.add_argument(
        "--table", type=Path, metavar="RECORD", help="run nothing: sum up what --record has kept"
    )
    options = parser.parse_args(arguments)
    if options.table is not None and not options.table.is_file():
        parser.error(f"argument --table: there is no file {options.table}")
    return options


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def _share(text: str) -> float:
    number = float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to 1")
    return number
