"""``qworker dlq``: dead letters are read without a trace, and return without a loss."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from acceptance.commands import messages
from acceptance.conftest import Place, long_on
from acceptance.desk import PATIENCE, Desk, step
from waiting import until
from worker.transport.capabilities import connect

_KILLS = 5


@pytest.fixture
def embedded_desk(tmp_path: Path, embedded: Place) -> Iterator[Desk]:
    """On SQLite alone: five dead letters."""
    with closing(Desk(tmp_path, embedded)) as desk:
        desk.fail_five()
        yield desk


ALL = ["k0-0", "k1-1", "k2-2", "k3-3", "k4-4"]

# Reading


def test_the_list_tells_what_failed_where_and_why(desk: Desk) -> None:
    letters = {letter["id"]: letter for letter in desk.dlq("list", "--json").json}

    assert sorted(letters) == ALL
    letter = letters["k1-1"]
    assert (letter["name"], letter["key"], letter["handler"]) == ("test.step", "k1", "count")
    assert letter["attempts"] == 1
    assert "LookupError: declined: no account k1" in letter["reason"]
    assert letter["queue"].startswith("once.g1.")
    assert letter["time"]

    table = desk.dlq("list").out.splitlines()
    assert table[0].split() == ["ID", "NAME", "KEY", "HANDLER", "REASON", "TIME", "ATTEMPTS"]
    assert len(table) == 6


def test_reading_takes_nothing_away_and_reorders_nothing(desk: Desk) -> None:
    before = desk.listed()

    desk.dlq("show", before[2])
    desk.dlq("list", "--limit", "1")
    desk.dlq("replay", "--dry-run")

    assert desk.listed() == before
    assert desk.dead() == 5


def test_filters_choose(embedded_desk: Desk) -> None:
    assert sorted(embedded_desk.listed("--reason", "DECLINED")) == ["k1-1", "k3-3"]
    assert embedded_desk.listed("--key", "k2") == ["k2-2"]
    assert len(embedded_desk.listed("--name", "test.*", "--handler", "count")) == 5
    assert len(embedded_desk.listed("--limit", "2")) == 2
    assert embedded_desk.listed("--name", "user.*") == []

    nothing = embedded_desk.dlq("list", "--handler", "cuont")
    assert "did you mean --handler count?" in nothing.err
    mistyped = "App('once') has no handler 'cuont'; did you mean count?"
    assert mistyped in nothing.err
    for command in (("replay",), ("replay", "--dry-run"), ("purge", "--yes")):
        assert mistyped in embedded_desk.dlq(*command, "--handler", "cuont").err
    assert "3 more" in embedded_desk.dlq("list", "--limit", "2").err


@pytest.mark.parametrize("command", [("list",), ("show", "x"), ("replay",), ("purge", "--yes")])
def test_a_service_that_was_never_started_is_a_usage_error_however_it_is_named(
    tmp_path: Path, embedded: Place, command: tuple[str, ...]
) -> None:
    with closing(Desk(tmp_path, embedded)) as desk:
        for options in ((), ("--service", "once")):
            said = desk.dlq(*command, *options, code=2).err
            assert "was the service 'once' ever started on it?" in said
        assert not (tmp_path / "qworker.db").exists()


def test_show_has_everything(embedded_desk: Desk) -> None:
    shown = embedded_desk.dlq("show", "k1-1").out

    assert 'raise LookupError(f"{event.fault}: no account {event.key}")' in shown
    assert '"fault": "declined"' in shown
    assert "qw-key" in shown

    (facts,) = embedded_desk.dlq("show", "k1-1", "--json").json
    assert facts["body"] == step("k1", 1, "declined")
    assert facts["properties"]["type"] == "test.step"
    assert "Traceback" in facts["detail"]
    assert "no message 'k9-9'" in embedded_desk.dlq("show", "k9-9", code=2).err


def test_a_service_can_be_named_where_its_code_is_not(embedded_desk: Desk) -> None:
    embedded_desk.environ["QWORKER_APP"] = "not.here"

    assert sorted(embedded_desk.listed("--service", "once")) == ALL
    assert "no queue 'nobody.dlq'" in embedded_desk.dlq("list", "--service", "nobody", code=2).err


def test_text_of_strangers_cannot_move_the_cursor(embedded_desk: Desk) -> None:
    embedded_desk.publish(step("k\x1b[2J\nk", 7, "unknown"))
    until(lambda: embedded_desk.dead() == 6, PATIENCE, "it is dead")

    for shown in (embedded_desk.dlq("list").out, embedded_desk.dlq("show", "k\x1b[2J\nk-7").out):
        assert "\x1b" not in shown
        assert "k\\x1b[2J\\nk" in shown


# Replaying


def test_replay_runs_the_handler_that_failed_again_and_no_other(desk: Desk) -> None:
    desk.mend()

    result = desk.dlq("replay")

    assert result.out == "5 messages sent back\n"
    until(lambda: len(desk.effects("count")) == 6, PATIENCE, "all are done")
    desk.stop()
    assert Counter(desk.effects("count")) == Counter([*ALL, "k9-9"])
    assert Counter(desk.effects("observe")) == Counter([*ALL, "k9-9"])
    assert desk.dead() == 0


def test_replay_of_some_leaves_the_others(embedded_desk: Desk) -> None:
    embedded_desk.mend()

    assert "would go to once.g1." in embedded_desk.dlq("replay", "--dry-run", "k0-0").out
    assert embedded_desk.dlq("replay", "k0-0").out == "1 message sent back\n"
    assert embedded_desk.dlq("replay", "--reason", "declined").out == "2 messages sent back\n"

    until(lambda: len(embedded_desk.effects("count")) == 4, PATIENCE, "three are done")
    assert sorted(embedded_desk.listed()) == ["k2-2", "k4-4"]


def test_what_fails_again_is_a_dead_letter_again(embedded_desk: Desk) -> None:
    embedded_desk.dlq("replay")

    until(lambda: embedded_desk.dead() == 5, PATIENCE, "all are dead again")
    assert sorted(embedded_desk.listed()) == ALL


def test_a_message_returns_byte_for_byte(desk: Desk) -> None:
    desk.stop()
    before = {id_: desk.dlq("show", id_, "--json").json[0] for id_ in ALL}

    desk.dlq("replay")

    returned = [m for shard in (0, 1) for m in messages(desk.broker, f"once.g1.{shard}")]
    assert len(returned) == 5
    for message in returned:
        properties = dict(message.properties)
        headers = properties.pop("application_headers")
        was = before[properties["message_id"]]
        assert bytes(message.body) == json.dumps(was["body"]).encode()
        assert headers.pop("qw-dead-handler") == "count"  # for which alone it returns
        assert headers == {"qw-key": was["key"]}
        assert json.loads(json.dumps(properties, default=str)) == was["properties"]


def test_what_a_replay_and_a_purge_did_is_told_in_json(embedded_desk: Desk) -> None:
    planned = json.loads(embedded_desk.dlq("replay", "--dry-run", "k0-0", "--json").out)
    assert [letter["id"] for letter in planned] == ["k0-0"]

    done = json.loads(embedded_desk.dlq("replay", "k0-0", "--json").out)
    assert done == {"returned": 1, "stay": []}

    assert json.loads(embedded_desk.dlq("purge", "k1-1", "--yes", "--json").out) == {"removed": 1}


def test_an_id_that_is_not_there_is_told_and_the_others_return(embedded_desk: Desk) -> None:
    replayed = embedded_desk.dlq("replay", "k0-0", "no-such", code=1)
    assert replayed.out == "1 message sent back\n"
    assert replayed.err == "qworker: there is no message 'no-such' in once.dlq\n"

    purged = embedded_desk.dlq("purge", "k1-1", "no-such", "--yes", code=1)
    assert purged.out == "1 message removed\n"
    assert "there is no message 'no-such'" in purged.err


def test_a_message_whose_queue_is_gone_stays_and_is_told(desk: Desk) -> None:
    desk.stop()
    for shard in (0, 1):
        _delete_queue(desk.broker, f"once.g1.{shard}")

    result = desk.dlq("replay", "k0-0", code=1)

    assert "stays: k0-0" in result.err
    assert desk.dead() == 5


def test_a_memory_that_no_command_can_reach_is_refused(embedded_desk: Desk) -> None:
    result = embedded_desk.dlq("replay", "--dedup", "memory://", code=3)

    assert "would be dropped as a duplicate" in result.err
    assert embedded_desk.dead() == 5


@long_on("embedded")
def test_a_replay_that_is_killed_loses_nothing(tmp_path: Path, place: Place) -> None:
    with closing(Desk(tmp_path, place)) as desk:
        desk.serve()
        desk.publish(*(step(f"k{n % 50}", n, "declined") for n in range(1500)))
        until(lambda: desk.dead() == 1500, PATIENCE, "all are dead")
        desk.mend()
        done = {f"k{n % 50}-{n}" for n in range(1500)}
        kills = 0
        while set(desk.effects("count")) != done:
            replay = desk.start("dlq", "replay")
            if kills < _KILLS:
                _wait_until_begun(desk, replay)
                time.sleep(random.uniform(0, 0.05))  # any moment will do
                kills += replay.poll() is None
                with suppress(ProcessLookupError):
                    os.killpg(replay.pid, signal.SIGKILL)
            replay.wait(PATIENCE)

    assert kills, "none was killed"


def _wait_until_begun(desk: Desk, replay: subprocess.Popen[bytes]) -> None:
    before = desk.dead()
    until(lambda: replay.poll() is not None or desk.dead() < before, PATIENCE, "it has begun")


# Purging


@long_on("servers")
def test_purge_removes_what_is_chosen_and_nothing_else(desk: Desk) -> None:
    assert "say --yes" in desk.dlq("purge", code=2).err
    assert desk.dead() == 5

    assert desk.dlq("purge", "--reason", "declined", "--yes").out == "2 messages removed\n"
    assert sorted(desk.listed()) == ["k0-0", "k2-2", "k4-4"]
    assert desk.dlq("purge", "--yes").out == "3 messages removed\n"
    assert desk.dead() == 0


def test_purge_asks_at_a_terminal(embedded_desk: Desk) -> None:
    refused = embedded_desk.on_terminal("dlq", "purge", typed="n\n")
    assert "Remove 5 messages of once.dlq for good?" in refused.out
    assert refused.code == 1
    assert embedded_desk.dead() == 5

    assert embedded_desk.on_terminal("dlq", "purge", typed="y\n").code == 0
    assert embedded_desk.dead() == 0


def test_a_terminal_gets_a_table(embedded_desk: Desk) -> None:
    shown = embedded_desk.on_terminal("dlq", "list")

    assert shown.code == 0
    assert "test.step" in shown.out


def _delete_queue(url: str, queue: str) -> None:
    connection = connect(url, heartbeat=0, timeout=10, name="test")
    connection.channel().queue_delete(queue)
    connection.release()
