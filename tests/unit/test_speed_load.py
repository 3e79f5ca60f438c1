"""What `make bench` publishes, and what its processes tell each other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from speed.load import Load
from speed.page import filled
from speed.sharedmemory import Counts, Moments
from speed.stream import Stream, keys_of
from speed.tree import Tree


@pytest.mark.parametrize("body", [100, 120, 1024, 65536])
def test_a_body_is_as_long_as_the_load_says(body: int) -> None:
    load = Load(events=400, body=body, keys=1_000)

    message = [*Stream(load)][200]

    whole = json.dumps(message._asdict(), separators=(",", ":"))
    assert len(whole) == body


def test_a_load_that_crosses_to_another_process_is_the_same() -> None:
    load = Load(events=7, skew=1.0, ordered=False, rate=20.0)

    assert Load.read(load.dump()) == load


def test_all_keys_come_as_often_as_each_other() -> None:
    assert Counter(keys_of(Load(events=30, keys=3))) == {"key-0": 10, "key-1": 10, "key-2": 10}


def test_skewed_keys_are_the_same_for_everyone_and_the_first_comes_most() -> None:
    load = Load(events=2_000, keys=100, skew=1.0)

    assert [*keys_of(load)] == [*keys_of(load)]
    assert Counter(keys_of(load)).most_common(1)[0][0] == "key-0"


def test_every_message_has_an_id_and_a_number_of_its_own() -> None:
    messages = [*Stream(Load(events=50))]

    assert len({message.ident for message in messages}) == 50
    assert [message.number for message in messages] == [*range(50)]


def test_a_paced_stream_notes_when_each_message_left_and_is_never_early(tmp_path: Path) -> None:
    sent = Moments.create(tmp_path / "sent", 5)
    began = time.monotonic()

    assert len([*Stream(Load(events=5, rate=500.0), sent)]) == 5

    assert all(moment >= began + number / 500 for number, moment in enumerate(sent.all()))


def test_threads_and_processes_lose_no_count(tmp_path: Path) -> None:
    path = tmp_path / "counts"
    counts = Counts.create(path)

    def count() -> None:
        for _ in range(5_000):
            counts.count()

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    program = (
        "import pathlib, sys; from speed.sharedmemory import Counts;"
        " counts = Counts(pathlib.Path(sys.argv[1]));"
        " [counts.count() for _ in range(5_000)]"
    )
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", program, str(path)], check=True, env=environ)
    for thread in threads:
        thread.join()

    assert counts.total() == 25_000
    assert counts.processes() == 2


def test_a_forked_child_counts_in_a_slot_of_its_own(tmp_path: Path) -> None:
    counts = Counts.create(tmp_path / "counts")
    counts.count()

    if not (child := os.fork()):
        counts.count()
        os._exit(0)
    os.waitpid(child, 0)

    assert counts.total() == 2
    assert counts.processes() == 2


def test_the_cpu_of_a_child_that_ended_is_counted() -> None:
    tree = Tree(os.getpid())
    before = tree.cpu()
    burn = "import time\nwhile time.process_time() < 0.2: pass"

    subprocess.run([sys.executable, "-S", "-E", "-c", burn], check=True)

    # Linux tells four times, user's and system's, its own and its children's, each in whole ticks.
    assert tree.cpu() - before >= 0.2 - 4 / os.sysconf("SC_CLK_TCK")


def test_the_memory_of_a_child_is_counted_while_it_lives() -> None:
    alone = Tree(os.getpid()).pss()
    wait = "big = bytearray(64 << 20); big[::4096] = b'x' * len(big[::4096]); print(flush=True)"
    command = [sys.executable, "-c", f"{wait}; input()"]

    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        both = Tree(os.getpid()).pss()
        child.kill()

    assert both - alone > 60 << 20


def test_a_block_without_results_stays_as_it_is() -> None:
    page = "a\n<!-- speed: one -->\nold\n<!-- end -->\nb\n<!-- speed: two -->\nold\n<!-- end -->\n"

    text = filled(page, lambda name: "new" if name == "two" else None)

    assert text == page.replace("two -->\nold", "two -->\nnew")
