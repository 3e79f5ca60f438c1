"""``qworker check`` and ``qworker topology --declare``: the sources of a service."""

from __future__ import annotations

from pathlib import Path

import amqp

from acceptance.commands import Shell, depth
from acceptance.conftest import Place
from waiting import until
from worker.transport.capabilities import connect

_PATIENCE = 60.0

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
