"""Handlers with revisions, through the real command line, while their processes are killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest

from acceptance.apps.events import Step
from acceptance.commands import Shell
from acceptance.conftest import Place, long_on
from acceptance.running import Load, Service, eventually

Serve = Callable[..., Service]
KEYS, LAST = 8, 40


def shuffled(random: Random) -> Iterator[Step]:
    """Yield steps of several keys, each revision in two messages, up to eight places out of order.

    The first of each key comes first: which revision a key begins with, nobody knows.
    """
    yield from (Step(key=f"key-{k}", sequence=0) for k in range(KEYS))
    late = [(n + random.uniform(0, 8), k, n) for k in range(KEYS) for n in [*range(1, LAST)] * 2]
    for _, k, n in sorted(late):
        yield Step(key=f"key-{k}", sequence=n)


def has_effects(service: Service, number: int) -> bool:
    return len(service.ledger.entries("effect")) >= number


@long_on("embedded")
def test_revisions_keep_their_order_whatever_comes_late_and_whoever_dies(
    place: Place, serve: Serve, load: Load
) -> None:
    random = Random(7)
    service = serve(place, "revised", claim_ttl=1)
    service.start_ready("--shards", "4", "--processes", "2")

    with load.in_background(shuffled(random), batch=20, pause=0.1):
        for number in range(4):
            enough = (number + 1) * KEYS * LAST // 6
            eventually(partial(has_effects, service, enough), "it goes on")
            os.kill(random.choice(service.processes()), signal.SIGKILL)
        eventually(lambda: len(load.confirmed) == KEYS * (2 * LAST - 1), "all is published")
    places = {(f"revised.{name}", f"key-{k}") for name in ("every", "latest") for k in range(KEYS)}
    eventually(
        lambda: {p for p, each in service.ledger.sequences().items() if LAST - 1 in each} == places,
        "each key came to its last revision",
    )
    assert service.drain() == 0

    for (handler, key), found in service.ledger.sequences().items():
        repeated = sum(one >= other for one, other in pairwise(found))
        assert repeated <= 4, f"{handler} {key}: more goes back than processes died: {found}"
        if handler == "revised.every":
            assert sorted({*found}) == [*range(LAST)], f"{key}: {found}"
            assert all(other <= one + 1 for one, other in pairwise(found)), f"{key}: {found}"


@long_on("embedded")
def test_what_waits_for_a_revision_holds_up_no_change_of_the_number_of_shards(
    place: Place, serve: Serve, load: Load
) -> None:
    """It waits for five minutes where it has to; the command for one."""
    service = serve(place, "revised")
    service.start_ready("--shards", "2", "--processes", "2")
    keys = [f"key-{k}" for k in range(KEYS)]
    load.publish(Step(key=key, sequence=n) for n in (0, 2, 3) for key in keys)
    early = 2 * KEYS
    eventually(lambda: service.counter("early") == early, "they wait for their predecessors")

    changed = service.run("reshard", "--to", "3")
    assert (changed.returncode, changed.stdout) == (0, "revised has 3 shards, generation 2\n")
    load.publish(Step(key=key, sequence=1) for key in keys)

    def orders() -> list[list[int]]:
        return [service.ledger.sequences().get(("revised.every", key), []) for key in keys]

    eventually(lambda: orders() == [[0, 1, 2, 3]] * KEYS, "they run in their order")
    assert service.dead_letters() == []
    assert service.drain() == 0


APP = """
from worker import App

app = App("shop")
app.on("price", revision="revision")(print)
"""
OLD_STORE = """
from worker.dedup.memory import MemoryStore


class Old(MemoryStore):
    keeps_revisions = False

    @classmethod
    def open(cls, url, options):
        return cls(options)
"""


@pytest.fixture
def shell(tmp_path: Path, embedded: Place) -> Iterator[Shell]:
    place = replace(embedded, dedup="old:Old")
    environ = {"QWORKER_BROKER_URL": place.broker, "QWORKER_APP": "handlers"}
    with closing(Shell(tmp_path, environ)) as shell:
        shell.write("handlers.py", APP)
        shell.write("old.py", OLD_STORE)
        yield shell


def test_check_tells_for_how_long_revisions_are_remembered(shell: Shell) -> None:
    checks = shell.run("check", "--json").json["checks"]
    (told,) = [each["text"] for each in checks if each["check"] == "dedup"]
    assert told.endswith("revisions are remembered for 90 days")


def test_a_store_that_keeps_none_is_refused_by_check_and_start(shell: Shell) -> None:
    store = ("--dedup", "old:Old", "--leases", "sqlite:///leases.db")
    checks = shell.run("check", "--json", *store, code=3).json["checks"]
    (told,) = [each["text"] for each in checks if each["check"] == "dedup"]
    assert told.startswith("shop.print: revision= needs a dedup store that keeps revisions")
    started = shell.run("start", "--burst", *store, code=3)
    assert "shop.print: revision= needs a dedup store" in started.err
    assert "Traceback" not in started.err
