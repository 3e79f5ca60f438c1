"""Numbers and lengths of time on the command line: none that nothing can be done with."""

from __future__ import annotations

import click
import pytest

from worker.cli.archive import trim
from worker.cli.demo import demo
from worker.cli.dlq_replay import replay as dlq_replay
from worker.cli.moments import Duration, Moment
from worker.cli.options import Number, Seconds
from worker.cli.outbox import outbox
from worker.cli.replay import replay

ENDLESS = ["nan", "inf", "-inf", "1e300", "-1", "-0.1", "soon", ""]


@pytest.mark.parametrize("text", ENDLESS)
def test_seconds_are_a_number_that_can_be_waited_for(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is not a number of seconds, zero or more"):
        Seconds().convert(text, None, None)


@pytest.mark.parametrize("text", [*ENDLESS, "0"])
def test_a_rate_is_a_number_above_zero(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is not a number, above zero"):
        Number(positive=True).convert(text, None, None)


def test_all_others_are_taken() -> None:
    assert [Seconds().convert(text, None, None) for text in ("0", "0.5", "1e9")] == [0, 0.5, 1e9]
    assert Number(positive=True).convert("1e-9", None, None) == 1e-9
    assert Duration().convert("500000w", None, None) == 500_000 * 7 * 86400


@pytest.mark.parametrize("text", ["999999999w", "99999999w", "600000w"])
def test_a_length_of_time_is_one_that_calendars_have(text: str) -> None:
    with pytest.raises(click.BadParameter, match="too long"):
        Duration().convert(text, None, None)
    with pytest.raises(click.BadParameter, match="is no time"):
        Moment().convert(text, None, None)


@pytest.mark.parametrize(
    ("command", "option", "kind"),
    [
        (outbox, "pause", Seconds),
        (outbox, "grace", Seconds),
        (replay, "rate", Number),
        (dlq_replay, "wait", Seconds),
        (demo, "seconds", Seconds),
        (trim, "age", Duration),
    ],
)
def test_every_such_option_is_one_of_these(command: click.Command, option: str, kind: type) -> None:
    (found,) = (each for each in command.params if each.name == option)

    assert isinstance(found.type, kind)
