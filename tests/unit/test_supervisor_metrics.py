"""What each metric means is said once, in the code; the page of operators says the same."""

from __future__ import annotations

import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from worker.supervisor.metrics import METRICS, Described, exposition
from worker.supervisor.status import Status

PAGE = Path(__file__).parents[2] / "docs" / "operations.md"


def row(metric: Described) -> str:
    """Return the line of the page's table for a metric."""
    kind = "counter" if metric.counts else "gauge"
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    return f"| `{metric.shown}` | {kind} | {labels} | {metric.help} |"


def test_the_page_of_operators_lists_every_metric_as_the_code_describes_it() -> None:
    listed = re.findall(r"^\| `qworker_.*$", PAGE.read_text(), re.MULTILINE)

    assert listed == [row(metric) for metric in METRICS]


def test_prometheus_is_told_what_every_metric_means() -> None:
    empty = Status("bank", 1, "running", live=True, ready=True, at=0.0)
    families = text_string_to_metric_families(exposition(empty).decode())
    told = {family.name: family.documentation for family in families}

    assert told == {m.shown.removesuffix("_total"): m.help for m in METRICS}


def test_no_two_metrics_have_a_name_or_a_meaning_in_common() -> None:
    assert len({metric.shown for metric in METRICS}) == len(METRICS)
    assert len({metric.help for metric in METRICS}) == len(METRICS)
