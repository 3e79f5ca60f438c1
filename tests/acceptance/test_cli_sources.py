"""``qworker check`` and ``qworker topology --declare``: the sources of a service."""

from __future__ import annotations

from pathlib import Path

import amqp

from acceptance.commands import Shell, depth
from acceptance.conftest import Place
from waiting import until
from worker.transport.capabilities import connect

_PATIENCE = 60.0

_THEIRS = """\
from worker import App

app = App("bank")
app.bind(exchange="erp", type="headers", declare=False)
app.source("theirs")
app.source("log", offset="first")
"""

_APP = """\
from worker import App

app = App("bank")


@app.on("user.*")
def record(event: dict) -> None:
    pass


app.source("theirs")
app.source("mine", declare="durable", exchange="partner")
app.source("log", offset="first", declare="stream")
app.source("own", declare="exclusive")
"""


def test_sources_are_declared_and_told_of(tmp_path: Path, servers: Place) -> None:
    shell = Shell(tmp_path)
    shell.environ |= {"QWORKER_APP": "handlers", "QWORKER_BROKER_URL": servers.broker}
    shell.environ["QWORKER_DEDUP_URL"] = servers.dedup
    shell.write("handlers.py", _APP)

    def told() -> str:
        checks = shell.run("check", "--json").json["checks"]
        return "\n".join(each["text"] for each in checks if each["check"] == "sources")

    connection = connect(servers.broker, heartbeat=0, timeout=10, name="test")
    channel = connection.channel()
    channel.exchange_declare("partner", "fanout", durable=True, auto_delete=False)

    before = told()
    shell.run("topology", "--declare")
    channel.queue_declare("theirs", durable=True, auto_delete=False)
    for tag in ("one", "another"):
        channel.basic_consume("theirs", consumer_tag=tag)
    after = told()

    assert "'theirs' is not there: nothing is taken from it until it is" in before
    assert "the queue 'theirs' has 2 consumers" in after
    assert "the queue 'mine' is passed on" in after
    channel.basic_publish(amqp.Message(b"{}"), "partner", "")
    until(lambda: depth(servers.broker, "mine") == 1, _PATIENCE)
    assert depth(servers.broker, "log") == 0, "it is there"
    channel.basic_cancel("another")
    until(lambda: "it has a consumer, which is this service" in told(), _PATIENCE)
    connection.release()


def row(shown: str, name: str) -> str:
    """Return the first line of a table that is about ``name``."""
    return next(line for line in shown.splitlines() if line.startswith(f"{name} "))


def test_what_is_somebody_elses_is_shown_as_it_is(tmp_path: Path, servers: Place) -> None:
    shell = Shell(tmp_path)
    shell.environ |= {"QWORKER_APP": "handlers", "QWORKER_BROKER_URL": servers.broker}
    shell.environ["QWORKER_DEDUP_URL"] = servers.dedup
    shell.write("handlers.py", _THEIRS)

    before = shell.run("topology").out
    connection = connect(servers.broker, heartbeat=0, timeout=10, name="test")
    channel = connection.channel()
    channel.queue_declare("theirs", exclusive=True)
    channel.exchange_declare("erp", "headers", durable=True, auto_delete=False)
    after = shell.run("topology").out
    told = shell.run("topology", "--json").json
    connection.release()

    for name in ("erp", "theirs", "log"):
        assert row(before, name).endswith("not there"), name
    assert row(after, "theirs").split() == ["theirs", "queue", "there"]
    assert row(after, "erp").split()[1:] == ["headers", "somebody", "else's", "there"]
    assert row(after, "log").endswith("not there")
    assert [each["there"] for each in told["sources"]] == [True, False]
    (erp,) = [each for each in told["exchanges"] if each["name"] == "erp"]
    assert (erp["declare"], erp["there"]) == (False, True)


def test_a_stream_that_the_embedded_broker_does_not_have_is_said_to_be_left_out(
    tmp_path: Path, embedded: Place
) -> None:
    shell = Shell(tmp_path, {"QWORKER_APP": "handlers", "QWORKER_BROKER_URL": embedded.broker})
    shell.write("handlers.py", _THEIRS.replace('app.bind(exchange="erp", ', "dict("))

    assert "the source 'log' is left out" in shell.run("topology").err
    checks = shell.run("check", "--json").json["checks"]
    told = [each["text"] for each in checks if each["check"] == "sources"]
    assert any("the source 'log' is left out" in text for text in told)
