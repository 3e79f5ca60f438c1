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
from typing import Any

import pytest

from acceptance.commands import Result, Shell, depth, messages
from acceptance.conftest import Place
from waiting import until
from worker.transport.capabilities import connect

_PATIENCE = 60.0
_KILLS = 5

_APP = """\
import os
from pathlib import Path

from worker import App, Context, Event, RetryPolicy

once, patient = App("once"), App("patient")


class Step(Event, name="test.step", key="key"):
    key: str
    number: int
    fault: str = ""


def note(event, context):
    line = f"{context.handler} {event.key} {event.number}\\n"
    descriptor = os.open("effects", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(descriptor, line.encode())
    os.close(descriptor)


def count(event: Step, context: Context):
    if event.fault and not Path("mended").exists():
        raise LookupError(f"{event.fault}: no account {event.key}")
    note(event, context)


once.on(Step, retry=RetryPolicy(attempts=1))(count)
patient.on(Step, retry=RetryPolicy(attempts=1, exhausted="park_key"))(count)


@once.on(Step)
def observe(event: Step, context: Context):
    note(event, context)
"""


class Desk(Shell):
    """A shell beside a service, and what its handlers did."""

    def __init__(self, folder: Path, place: Place, app: str = "once") -> None:
        super().__init__(folder)
        self.service, self.broker = app, place.broker
        self.environ |= {
            "QWORKER_APP": f"handlers:{app}",
            "QWORKER_BROKER_URL": place.broker,
            "QWORKER_DEDUP_URL": place.dedup,
            "QWORKER_OUTAGE_AFTER": "1000000",
        }
        self.write("handlers.py", _APP)

    def serve(self) -> None:
        """Start the service and wait until it consumes."""
        self.start("start", "--shards", "2", "--processes", "1", "--log-level", "error")
        until(lambda: self.run("check", "--ready", code=None).code == 0, _PATIENCE, "it is ready")

    def fail_five(self) -> None:
        """Start the service; let one handler fail for five of six steps."""
        self.serve()
        faults = [step(f"k{n}", n, "declined" if n % 2 else "unknown") for n in range(5)]
        self.publish(step("k9", 9), *faults)
        until(lambda: self.dead() == 5, _PATIENCE, "five are dead")
        until(lambda: len(self.effects("observe")) == 6, _PATIENCE, "the other handler did all")

    def stop(self) -> None:
        """Drain the service."""
        process = self._started[-1]
        process.send_signal(signal.SIGTERM)
        assert process.wait(_PATIENCE) == 0

    def publish(self, *steps: dict[str, Any]) -> None:
        lines = [
            json.dumps({"name": "test.step", "key": s["key"], "id": step_id(s), "payload": s})
            for s in steps
        ]
        self.run("publish", "-", stdin="\n".join(lines))

    def dlq(self, *arguments: str, code: int | None = 0) -> Result:
        return self.run("dlq", *arguments, code=code)

    def listed(self, *arguments: str) -> list[str]:
        """The ids that the list shows, in its order."""
        return [letter["id"] for letter in self.dlq("list", "--json", *arguments).json]

    def effects(self, handler: str) -> list[str]:
        """What the handler did, in its order."""
        file = self.folder / "effects"
        lines = file.read_text().splitlines() if file.exists() else []
        prefix = f"{self.service}.{handler} "
        return [x.removeprefix(prefix).replace(" ", "-") for x in lines if x.startswith(prefix)]

    def dead(self) -> int:
        return depth(self.broker, f"{self.service}.dlq")

    def parked(self) -> int:
        return depth(self.broker, f"{self.service}.parked")

    def mend(self) -> None:
        """Let faults be no faults any more."""
        self.write("mended", "")


def step(key: str, number: int, fault: str = "") -> dict[str, Any]:
    return {"key": key, "number": number, "fault": fault}


def step_id(step: dict[str, Any]) -> str:
    return f"{step['key']}-{step['number']}"


@pytest.fixture
def desk(tmp_path: Path, place: Place) -> Iterator[Desk]:
    """On RabbitMQ and Redis, and on SQLite: five dead letters."""
    with closing(Desk(tmp_path, place)) as desk:
        desk.fail_five()
        yield desk


@pytest.fixture
def embedded_desk(tmp_path: Path, embedded: Place) -> Iterator[Desk]:
    """On SQLite alone: five dead letters."""
    with closing(Desk(tmp_path, embedded)) as desk:
        desk.fail_five()
        yield desk


@pytest.fixture
def patient(tmp_path: Path, place: Place) -> Iterator[Desk]:
    """The same places; a service that parks the keys of what fails, with one key parked."""
    with closing(Desk(tmp_path, place, "patient")) as desk:
        desk.serve()
        desk.publish(step("k", 0), step("k", 1, "declined"), step("k", 2), step("other", 0))
        desk.publish(step("k", 3))
        until(lambda: desk.parked() == 3, _PATIENCE, "the failed one and its successors are parked")
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
    assert "3 more" in embedded_desk.dlq("list", "--limit", "2").err


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
    until(lambda: embedded_desk.dead() == 6, _PATIENCE, "it is dead")

    for shown in (embedded_desk.dlq("list").out, embedded_desk.dlq("show", "k\x1b[2J\nk-7").out):
        assert "\x1b" not in shown
        assert "k\\x1b[2J\\nk" in shown


# Replaying


def test_replay_runs_the_handler_that_failed_again_and_no_other(desk: Desk) -> None:
    desk.mend()

    result = desk.dlq("replay")

    assert result.out == "5 messages sent back\n"
    until(lambda: len(desk.effects("count")) == 6, _PATIENCE, "all are done")
    desk.stop()
    assert Counter(desk.effects("count")) == Counter([*ALL, "k9-9"])
    assert Counter(desk.effects("observe")) == Counter([*ALL, "k9-9"])
    assert desk.dead() == 0


def test_replay_of_some_leaves_the_others(embedded_desk: Desk) -> None:
    embedded_desk.mend()

    assert "would go to once.g1." in embedded_desk.dlq("replay", "--dry-run", "k0-0").out
    assert embedded_desk.dlq("replay", "k0-0").out == "1 message sent back\n"
    assert embedded_desk.dlq("replay", "--reason", "declined").out == "2 messages sent back\n"

    until(lambda: len(embedded_desk.effects("count")) == 4, _PATIENCE, "three are done")
    assert sorted(embedded_desk.listed()) == ["k2-2", "k4-4"]


def test_what_fails_again_is_a_dead_letter_again(embedded_desk: Desk) -> None:
    embedded_desk.dlq("replay")

    until(lambda: embedded_desk.dead() == 5, _PATIENCE, "all are dead again")
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
        assert headers == {"qw-key": was["key"]}
        assert json.loads(json.dumps(properties, default=str)) == was["properties"]


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


def test_a_replay_that_is_killed_loses_nothing(tmp_path: Path, place: Place) -> None:
    with closing(Desk(tmp_path, place)) as desk:
        desk.serve()
        desk.publish(*(step(f"k{n % 50}", n, "declined") for n in range(1500)))
        until(lambda: desk.dead() == 1500, _PATIENCE, "all are dead")
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
            replay.wait(_PATIENCE)

    assert kills, "none was killed"


def _wait_until_begun(desk: Desk, replay: subprocess.Popen[bytes]) -> None:
    before = desk.dead()
    until(lambda: replay.poll() is not None or desk.dead() < before, _PATIENCE, "it has begun")


# Parked keys


def test_parked_messages_are_listed_in_their_order(patient: Desk) -> None:
    assert patient.listed("--parked") == ["k-1", "k-2", "k-3"]
    assert patient.listed() == []
    assert "1 key is parked, with 3 messages" in patient.dlq("replay").err


def test_a_parked_key_returns_in_order_and_is_free(patient: Desk) -> None:
    patient.mend()

    result = patient.dlq("replay", "--key", "k")

    assert "3 parked messages sent back" in result.out
    assert result.out.endswith("'k' is free\n")
    patient.publish(step("k", 4))
    until(lambda: "k-4" in patient.effects("count"), _PATIENCE, "the key is handled as before")
    assert [e for e in patient.effects("count") if e.startswith("k-")] == [
        "k-0", "k-1", "k-2", "k-3", "k-4",
    ]  # fmt: skip
    assert patient.parked() == 0


def test_a_key_that_fails_again_stays_parked_in_its_order(patient: Desk) -> None:
    result = patient.dlq("replay", "--key", "k", code=1)

    assert "'k' stays parked: k-1 (test.step) failed again" in result.err
    until(lambda: patient.parked() == 3, _PATIENCE, "all are parked again")
    assert patient.listed("--parked") == ["k-1", "k-2", "k-3"]

    patient.mend()
    patient.dlq("replay", "--key", "k")
    assert [e for e in patient.effects("count") if e.startswith("k-")] == [
        "k-0", "k-1", "k-2", "k-3",
    ]  # fmt: skip


def test_a_key_returns_when_its_service_comes_back(patient: Desk) -> None:
    patient.stop()
    patient.mend()

    result = patient.dlq("replay", "--key", "k", "--wait", "0.5", code=1)

    assert "Does the service run?" in result.err
    patient.serve()
    until(lambda: "k-3" in patient.effects("count"), _PATIENCE, "they are handled")
    assert "'k' is free" in patient.dlq("replay", "--key", "k").out or not patient.parked()
    patient.publish(step("k", 4))
    until(lambda: "k-4" in patient.effects("count"), _PATIENCE, "the key is free")


def test_what_is_parked_during_the_return_follows_in_order(patient: Desk) -> None:
    patient.mend()
    stream = patient.start("publish", "-")
    assert stream.stdin is not None

    returning = patient.start("dlq", "replay", "--key", "k")
    for number in range(4, 200):
        one = step("k", number)
        line = {"name": "test.step", "key": "k", "id": step_id(one), "payload": one}
        stream.stdin.write(json.dumps(line).encode() + b"\n")
        stream.stdin.flush()
        time.sleep(0.01)  # so that some come before, some amid and some after the return
    _, err = stream.communicate(timeout=_PATIENCE)
    assert stream.returncode == 0, err
    out, err = returning.communicate(timeout=_PATIENCE)
    assert returning.returncode == 0, (out, err)

    expected = [f"k-{number}" for number in range(200)]
    until(
        lambda: len([e for e in patient.effects("count") if e.startswith("k-")]) == 200,
        _PATIENCE,
        "all are done",
    )
    assert [e for e in patient.effects("count") if e.startswith("k-")] == expected


# Purging


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
