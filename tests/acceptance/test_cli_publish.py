"""``qworker publish``: what arrives, and what is said where something cannot be published."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from acceptance.commands import Result, Shell, depth, messages
from acceptance.conftest import Place
from acceptance.desk import PATIENCE
from waiting import until
from worker.config import mask_url
from worker.ids import time_of_id
from worker.stores.sqlite import path_of

_APP = """\
from decimal import Decimal

from worker import App, Command, Event

app = App("bank")


class UserDeposited(Event, name="user.deposited", key="user_id"):
    user_id: str
    amount: Decimal
    note: str = ""
    times: int = 0


class Charge(Command, name="bank.charge", to="bank", key=lambda command: command.card.upper()):
    card: str


@app.on(UserDeposited)
@app.on(Charge, name="charge")
@app.on("file.changed", name="changed")
def handle(event):
    pass
"""


class Bench(Shell):
    """A shell beside an app, and what arrived in the queue of its service."""

    def __init__(self, folder: Path, place: Place) -> None:
        super().__init__(folder)
        self.environ |= {"QWORKER_BROKER_URL": place.broker, "QWORKER_DEDUP_URL": place.dedup}
        self.broker = place.broker
        self.write("handlers.py", _APP)

    def declare(self) -> None:
        """Have the queues of the service, which does not run."""
        self.run("topology", "--app", "handlers", "--declare")

    def publish(self, *arguments: str, stdin: str | bytes = "", code: int | None = 0) -> Result:
        return self.run("publish", *arguments, stdin=stdin, code=code)

    def arrived(self) -> list[Any]:
        return messages(self.broker, "bank.g1.0")

    def payloads(self) -> list[Any]:
        return [json.loads(message.body) for message in self.arrived()]


@pytest.fixture
def bench(tmp_path: Path, place: Place) -> Bench:
    """On RabbitMQ, and on the embedded broker."""
    bench = Bench(tmp_path, place)
    bench.declare()
    return bench


@pytest.fixture
def embedded_bench(tmp_path: Path, embedded: Place) -> Bench:
    """On the embedded broker."""
    bench = Bench(tmp_path, embedded)
    bench.declare()
    return bench


@pytest.fixture
def bare_bench(tmp_path: Path, embedded: Place) -> Bench:
    """For what is refused before anybody connects to the broker, whose file is empty."""
    bench = Bench(tmp_path, embedded)
    path_of(bench.broker, "broker").touch()
    return bench


def line(**facts: Any) -> str:
    return json.dumps({"name": "user.deposited", **facts}) + "\n"


def deposits(number: int) -> str:
    return "".join(line(id=f"d-{n}", key="u1", payload={"n": n}) for n in range(number))


def test_an_event_arrives_as_the_wire_format_says_and_its_id_is_printed(bench: Bench) -> None:
    payload = '{"user_id":"u1","amount":"10"}'

    result = bench.publish(
        "user.deposited", "--key", "u1", "--json", payload, "--header", "tenant=acme"
    )

    (message,) = bench.arrived()
    properties = message.properties
    assert bytes(message.body) == payload.encode()
    assert properties["message_id"] == result.out.strip()
    assert time_of_id(properties["message_id"]) is not None
    assert properties["type"] == "user.deposited"
    assert properties["app_id"] == "cli"
    assert properties["content_type"] == "application/json"
    assert properties["delivery_mode"] == 2
    assert properties["application_headers"]["qw-key"] == "u1"
    assert properties["application_headers"]["tenant"] == "acme"


def test_fields_are_text_or_json(embedded_bench: Bench) -> None:
    embedded_bench.publish("user.deposited", "amount=10", "tags:=[1,null]", "a=b=c", "n:=1.10")

    (message,) = embedded_bench.arrived()
    expected = '{"amount": "10", "tags": [1,null], "a": "b=c", "n": 1.10}'
    assert bytes(message.body).decode() == expected


def test_what_a_message_may_carry_can_be_said(tmp_path: Path, servers: Place) -> None:
    bench = Bench(tmp_path, servers)
    bench.declare()

    bench.publish("user.deposited", "--id", "d-1", "--priority", "3", "--transient")
    bench.publish(
        "-",
        "--header", "a=1", "--header", "b=1",
        stdin=line(id=7, key=5, headers={"b": 2}, priority=1, transient=True),
    )  # fmt: skip

    first, second = (message.properties for message in bench.arrived())
    assert (first["message_id"], first["priority"], first["delivery_mode"]) == ("d-1", 3, 1)
    assert (second["message_id"], second["priority"], second["delivery_mode"]) == ("7", 1, 1)
    assert second["application_headers"] == {"qw-key": "5", "a": "1", "b": 2}


def test_a_command_goes_to_its_recipient(bench: Bench) -> None:
    bench.publish("bank.charge", "--command", "--to", "bank", "card=x")

    assert bench.payloads() == [{"card": "x"}]


def test_a_command_that_nobody_receives_is_an_error(bench: Bench) -> None:
    result = bench.publish("mailer.send", "--to", "mailer", "user_id=u1", code=1)

    assert result.out == ""
    assert "no queue is bound to exchange 'qw.commands' for 'mailer'" in result.err
    assert f"(on {mask_url(bench.broker)})" in result.err


def test_an_event_that_nobody_observes_is_published_and_told(bench: Bench) -> None:
    result = bench.publish("nobody.cares", "a=b")

    assert result.out.strip()
    assert f"no service observes it on {mask_url(bench.broker)}, so it went nowhere" in result.err
    assert "qworker topology --declare" in result.err


def test_the_app_gives_the_key_and_the_recipient(embedded_bench: Bench) -> None:
    deposit = ("user.deposited", "user_id=u1", "amount=10")
    embedded_bench.publish("--app", "handlers", *deposit)
    embedded_bench.publish("--app", "handlers", "bank.charge", "card=x")

    first, second = embedded_bench.arrived()
    assert first.properties["application_headers"]["qw-key"] == "u1"
    assert second.properties["application_headers"]["qw-key"] == "X"
    assert second.properties["app_id"] == "bank"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("user.deposted", "user_id=u1"), "did you mean 'user.deposited'?"),
        (("user.deposited", "user_id=u1"), "missing required field `amount`"),
        (("user.deposited", "user_id=u1", "amount=x"), "$.amount"),
        (("user.deposited", "user_id=", "amount=1"), "its key is ''"),
        (("user.deposited", "--to", "mailer", "user_id=u1", "amount=1"), "is an event"),
        (("bank.charge", "--to", "mailer", "card=x"), "is a command to 'bank'"),
    ],
)
def test_the_app_refuses_what_its_handlers_could_not_take(
    bare_bench: Bench, arguments: tuple[str, ...], said: str
) -> None:
    result = bare_bench.publish("--app", "handlers", *arguments, code=2)

    assert said in result.err
    assert "Traceback" not in result.err
    assert not path_of(bare_bench.broker, "broker").stat().st_size, "nobody has connected"


def test_a_field_that_the_class_does_not_have_is_sent_and_told(embedded_bench: Bench) -> None:
    fields = ("user_id=u1", "amount=1", "nots=x")

    one = embedded_bench.publish("--app", "handlers", "user.deposited", *fields)
    lines = b'{"user_id": "u1", "amount": 1, "mood": "good"}\n' * 2
    two = embedded_bench.publish("--app", "handlers", "-", "--name", "user.deposited", stdin=lines)

    assert "its class UserDeposited has no field 'nots'" in one.err
    assert "did you mean note?" in one.err
    assert "no field 'mood'" in two.err
    assert "(2 times)" in two.err
    assert len(embedded_bench.arrived()) == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "name an event, or say --file"),
        (("a.b", "--file", "x"), "either the event"),
        (("a.b", "--command"), "--to SERVICE"),
        (("a.b", "--json", "{}", "a=b"), "either fields or --json"),
        (("a.b", "nothing"), "write NAME=TEXT"),
        (("a.b", "--json", "{"), "--json: '{' is not JSON"),
        (("a.b", "n:=NaN"), "is not JSON"),
        (("a.b", "n:=x"), "is not JSON"),
        (("a b",), "white space"),
        (("-", "--key", "u1"), "--key is for one event"),
        (("-", "--key-field", "u"), "say their --name"),
        (("a.b", "--from-line", "2"), "--from-line is for lines"),
        (("--file", "absent.jsonl"), "No such file"),
    ],
)
def test_what_cannot_be_meant_is_a_usage_error(
    bare_bench: Bench, arguments: tuple[str, ...], said: str
) -> None:
    assert said in bare_bench.publish(*arguments, code=2).err


def test_lines_arrive_in_order_and_are_counted(bench: Bench) -> None:
    bench.write("events.jsonl", deposits(3000))

    result = bench.publish("--file", "events.jsonl")

    assert result.out.startswith("published 3000 in ")
    assert result.out.rstrip().endswith("/s")
    assert bench.payloads() == [{"n": n} for n in range(3000)]


def test_lines_come_from_standard_input_and_compressed_files_too(embedded_bench: Bench) -> None:
    (embedded_bench.folder / "events.jsonl.gz").write_bytes(gzip.compress(deposits(2).encode()))

    embedded_bench.publish("-", stdin=deposits(1) + "\n\n" + deposits(1))
    embedded_bench.publish("--file", "events.jsonl.gz")

    assert embedded_bench.payloads() == [{"n": 0}, {"n": 0}, {"n": 0}, {"n": 1}]


def test_a_payload_arrives_byte_for_byte(embedded_bench: Bench) -> None:
    payload = b'{"amount": 10.10, "big": 123456789012345678901234567890, "z":"\\u00e9"}'

    embedded_bench.publish("-", stdin=b'{"name": "user.deposited", "payload":' + payload + b"}")

    (message,) = embedded_bench.arrived()
    assert bytes(message.body) == payload


def test_bare_payloads_become_events_of_one_name(embedded_bench: Bench) -> None:
    rows = [{"path": f"p{n}", "of": {"rev": n}} for n in range(3)]

    embedded_bench.publish(
        "-", "--name", "file.changed", "--key-field", "path", "--id-field", "of.rev",
        stdin="".join(json.dumps(row) + "\n" for row in rows),
    )  # fmt: skip

    arrived = embedded_bench.arrived()
    assert [json.loads(m.body) for m in arrived] == rows
    assert [m.properties["message_id"] for m in arrived] == ["0", "1", "2"]
    keys = [m.properties["application_headers"]["qw-key"] for m in arrived]
    assert keys == ["p0", "p1", "p2"]


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ('{"name": "user.deposited"', "not JSON"),
        ('{"payload": {}}', "missing required field `name`"),
        ('{"name": "user.deposited", "keys": "u1"}', "did you mean 'key'?"),
        ('{"user_id": "u1"}', "for lines that are bare payloads say --name NAME"),
        ('{"name": "user deposited"}', "white space"),
        (json.dumps({"name": "user.deposited", "id": "x" * 256}), "longer than 255 bytes"),
    ],
)
def test_a_broken_line_is_told(bare_bench: Bench, broken: str, said: str) -> None:
    result = bare_bench.publish("-", stdin=broken, code=2)

    assert result.err.startswith("qworker: line 1: ")
    assert said in result.err
    assert "Traceback" not in result.err


def test_a_broker_that_is_not_there_is_not_made(tmp_path: Path, embedded: Place) -> None:
    bench = Bench(tmp_path, embedded)
    for arguments in (("user.deposited",), ("bank.close", "--command", "--to", "bank"), ("-",)):
        result = bench.publish(*arguments, stdin=line(), code=2)
        assert "there is no such file, so no service has ever run there" in result.err
    assert not path_of(bench.broker, "broker").exists()


def test_a_field_that_is_text_is_told_how_it_becomes_a_number(bare_bench: Bench) -> None:
    fields = ("user_id=u1", "amount=10", "times=two")
    result = bare_bench.publish("--app", "handlers", "user.deposited", *fields, code=2)

    assert "(FIELD=TEXT is text; a number, say, is FIELD:=JSON, as in amount:=10)" in result.err


def test_a_text_is_what_the_class_says_that_it_is(embedded_bench: Bench) -> None:
    """A number where it has a number, as it was written; else the text, however it looks."""
    fields = ("user_id=1", "amount=12.50", "note=null", "times=2", "more=3")
    embedded_bench.publish("--app", "handlers", "user.deposited", *fields)
    embedded_bench.publish("user.deposited", *fields, "--key", "1")

    as_texts = {"user_id": "1", "amount": "12.50", "note": "null", "times": "2", "more": "3"}
    assert embedded_bench.payloads() == [as_texts | {"times": 2}, as_texts]


def test_a_broken_line_stops_after_all_before_it_are_confirmed_and_tells_how_to_go_on(
    bench: Bench,
) -> None:
    bench.write("events.jsonl", f"{deposits(1500)}\n{{broken\n{deposits(7)}")

    result = bench.publish("--file", "events.jsonl", code=2)

    assert result.err.startswith("qworker: line 1502: not JSON")
    assert "Everything before line 1502 is published; go on with --from-line 1502" in result.err
    assert depth(bench.broker, "bank.g1.0") == 1500
    bench.publish("--file", "events.jsonl", "--from-line", "1503")
    assert depth(bench.broker, "bank.g1.0") == 1507


def test_lines_are_checked_against_the_app(embedded_bench: Bench) -> None:
    good = line(payload={"user_id": "u1", "amount": "1"})

    result = embedded_bench.publish(
        "-", "--app", "handlers", stdin=good + line(payload={"user_id": "u1"}), code=2
    )

    assert "line 2: user.deposited: the payload does not fit" in result.err
    (message,) = embedded_bench.arrived()
    assert message.properties["application_headers"]["qw-key"] == "u1"


def test_a_line_that_the_broker_does_not_take_is_named(bench: Bench) -> None:
    lines = deposits(2) + line(to="mailer", name="mailer.send") + deposits(2)

    result = bench.publish("-", stdin=lines, code=1)

    assert "line 3: " in result.err
    assert "'mailer'" in result.err
    assert "--from-line 6" in result.err
    assert len(bench.arrived()) == 4


def test_events_that_nobody_observes_are_counted(bench: Bench) -> None:
    lines = deposits(2) + "".join(line(name="nobody.cares") for _ in range(3))

    result = bench.publish("-", stdin=lines)

    assert result.out.startswith("published 5 in ")
    assert "3 of them: no service observes it" in result.err


def test_a_terminal_shows_progress_and_the_count(embedded_bench: Bench) -> None:
    embedded_bench.write("events.jsonl", deposits(3000))

    result = embedded_bench.on_terminal("publish", "--file", "events.jsonl")

    assert result.code == 0
    assert "publishing" in result.out
    assert "published 3000 in " in result.out
    assert depth(embedded_bench.broker, "bank.g1.0") == 3000


def test_a_file_that_is_no_database_is_told_at_once_as_it_was_named(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    shell.write("README.md", "# No database\n" * 100)

    result = shell.run("publish", "--broker", "sqlite:///README.md", "user.deposited", code=3)

    (said,) = result.err.splitlines()
    assert said.startswith(f"qworker: sqlite:///README.md: {tmp_path}/README.md: the file is no")


def test_a_broker_that_is_not_there_is_told(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    broker = ("--broker", "amqp://127.0.0.1:1", "--connect-timeout", "0.5")

    result = shell.run("publish", *broker, "user.deposited", code=4)

    assert "the broker does not answer" in result.err
    assert "Traceback" not in result.err


def test_a_pipe_that_pauses_keeps_nothing_back(bench: Bench) -> None:
    bench.declare()
    stream = bench.start("publish", "-")

    def give(line: dict[str, Any], number: int) -> None:
        assert stream.stdin is not None
        stream.stdin.write(json.dumps(line).encode() + b"\n")
        stream.stdin.flush()
        until(lambda: depth(bench.broker, "bank.g1.0") == number, PATIENCE, "it is there already")

    for number in (1, 2, 3):
        give({"name": "file.changed", "key": "k"}, number)
    out, _ = stream.communicate(timeout=PATIENCE)
    assert out.startswith(b"published 3 in ")


_PRICES = """\
from worker import App, Event

app = App("bank")


class PriceChanged(Event, name="price.changed", key="article", revision="number"):
    article: str
    number: int


@app.on(PriceChanged)
def handle(event):
    pass
"""


def test_the_revision_is_what_its_class_says(embedded_bench: Bench) -> None:
    embedded_bench.write("prices.py", _PRICES)
    embedded_bench.run("topology", "--app", "prices", "--declare")
    price = ("--app", "prices", "price.changed", "article=a")
    embedded_bench.publish(*price, "number:=7")
    refused = embedded_bench.publish(*price, "number:=-1", code=2).err
    other = ("number:=8", "--header", "qw-revision=3")
    contrary = embedded_bench.publish(*price, *other, code=2).err

    assert "its revision is -1; an integer from 0" in refused
    assert "its class says revision 8, and the header qw-revision '3': leave that out" in contrary
    (message,) = embedded_bench.arrived()
    assert message.properties["application_headers"]["qw-revision"] == 7
