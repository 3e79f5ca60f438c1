"""``qworker check`` and ``qworker topology``: what is there against what an app asks for."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from acceptance.commands import Shell, depth
from acceptance.conftest import Place, long_on
from waiting import until
from worker.transport.capabilities import connect

_PATIENCE = 60.0

_APP = """\
from worker import App, Command, RetryPolicy
from worker.sharding import vacancy

# How long nothing may come back to old queues before they go. The brokers of tests are well.
vacancy.CALM = 1.0
app = App("bank")


class SendEmail(Command, name="mailer.send_email", to="mailer"):
    text: str


@app.on("user.*")
def record(event: dict) -> None:
    pass
"""


class Service(Shell):
    """A shell beside an app."""

    def __init__(self, folder: Path, place: Place) -> None:
        super().__init__(folder)
        self.broker = place.broker
        self.environ |= {
            "QWORKER_APP": "handlers",
            "QWORKER_BROKER_URL": place.broker,
            "QWORKER_DEDUP_URL": place.dedup,
            "QWORKER_LEASE_TTL": "3",
        }
        self.write("handlers.py", _APP)

    def check(self, *options: str, code: int = 0) -> dict[str, list[dict[str, str]]]:
        """The findings, by their check."""
        result = self.run("check", "--json", *options, code=code).json
        assert result["ok"] is (code == 0)
        found: dict[str, list[dict[str, str]]] = {}
        for finding in result["checks"]:
            found.setdefault(finding["check"], []).append(finding)
        return found

    def topology(self, *options: str) -> Any:
        return self.run("topology", "--json", *options).json


@pytest.fixture
def service(tmp_path: Path, place: Place) -> Iterator[Service]:
    """On RabbitMQ and Redis, and on SQLite."""
    with closing(Service(tmp_path, place)) as service:
        yield service


@pytest.fixture
def on_servers(tmp_path: Path, servers: Place) -> Iterator[Service]:
    """On RabbitMQ and Redis."""
    with closing(Service(tmp_path, servers)) as service:
        yield service


@pytest.fixture
def on_sqlite(tmp_path: Path, embedded: Place) -> Iterator[Service]:
    """On SQLite."""
    with closing(Service(tmp_path, embedded)) as service:
        yield service


def level(findings: list[dict[str, str]]) -> set[str]:
    return {finding["level"] for finding in findings}


def texts(findings: list[dict[str, str]]) -> str:
    return "\n".join(finding["text"] for finding in findings)


# check


def relay(service: Service) -> list[str]:
    """Return the queue that a service has besides where the broker has no ring of its own."""
    return ["bank.g1.relay"] if service.broker.startswith("amqp") else []


def test_all_is_well_before_the_first_start_and_nothing_is_declared(service: Service) -> None:
    found = service.check("--shards", "4")

    for name in ("app", "settings", "horizons", "broker", "spreading", "declarations", "dedup"):
        assert level(found[name]) == {"ok"}, name
    assert "'bank' has 1 handler: record" in texts(found["app"])
    assert "4 shards" in texts(found["settings"])
    assert "will be declared at the next start" in texts(found["declarations"])
    queues = service.topology("--shards", "4")["queues"]
    assert [queue["there"] for queue in queues] == [False] * (6 + len(relay(service)))


def test_all_is_well_while_the_service_is_there(service: Service) -> None:
    service.run("topology", "--shards", "4", "--declare")

    found = service.check("--shards", "4")

    assert "are as they should be" in texts(found["declarations"])
    assert "will be declared" not in texts(found["declarations"])


def test_a_line_tells_each_finding(on_sqlite: Service) -> None:
    lines = on_sqlite.run("check").out.splitlines()

    assert lines[0].split()[:2] == ["ok", "app"]
    assert any(line.startswith("warning  recipients") for line in lines)


@long_on("servers")
def test_another_number_of_shards_is_an_error(service: Service) -> None:
    service.run("topology", "--shards", "4", "--declare")

    fewer = service.check("--shards", "2", code=3)
    more = service.check("--shards", "8", code=3)

    assert "bank has 4 shards, and 2 are asked for" in texts(fewer["shards"])
    assert "start with --shards 4" in texts(more["shards"])
    assert "qworker reshard --to 8" in texts(more["shards"])
    refused = service.run("topology", "--shards", "2", code=3).err
    assert "qworker reshard --to 2" in refused
    assert depth(service.broker, "bank.g1.3") == 0, "nothing was removed"
    there = [q["name"] for q in service.topology("--shards", "4")["queues"] if q["there"]]
    assert len(there) == 6 + len(relay(service))


def test_a_queue_that_is_declared_otherwise_is_an_error(on_servers: Service) -> None:
    on_servers.run("topology", "--declare")

    found = on_servers.check("--queue-type", "classic", code=3)

    assert "the broker has the queue 'bank.g1.0' with other properties" in texts(
        found["declarations"]
    )


@pytest.mark.parametrize("type_", ["topik", "x-of-a-plugin"])
def test_a_type_of_an_exchange_that_the_broker_does_not_know_is_an_error_also_of_a_start(
    service: Service, type_: str
) -> None:
    service.write("handlers.py", f'{_APP}\napp.bind(exchange="shop.orders", type="{type_}")\n')

    found = service.check(code=3)

    said = f"does not know the type {type_!r} of the exchange 'shop.orders'"
    assert said in texts(found["declarations"])
    for command in (("start", "--burst"), ("topology", "--declare")):
        assert said in service.run(*command, code=3).err


def test_how_keys_reach_their_shards_is_told(on_servers: Service, on_sqlite: Service) -> None:
    found = on_servers.check("--shards", "2")
    one = on_servers.check()
    embedded = on_sqlite.check("--shards", "2")

    assert "what others publish goes through 'bank.g1.relay'" in texts(found["spreading"])
    assert "spreading" not in one
    assert "the embedded broker spreads keys" in texts(embedded["spreading"])


def test_a_command_without_a_recipient_is_a_warning(on_sqlite: Service) -> None:
    warned = on_sqlite.check()["recipients"]
    on_sqlite.write("mailer.py", 'from worker import App\n\napp = App("mailer")\n')
    on_sqlite.run("topology", "--app", "mailer", "--declare")

    assert level(warned) == {"warning"}
    assert "no service 'mailer' was ever started" in texts(warned)
    assert level(on_sqlite.check()["recipients"]) == {"ok"}


def test_the_lease_store_and_the_generation_that_it_knows_are_told(service: Service) -> None:
    before = service.check("--shards", "2")["leases"]
    service.run("start", "--shards", "2", "--burst")
    after = service.check("--shards", "2")["leases"]

    reach = "redis: for every supervisor" if service.broker.startswith("amqp") else "sqlite:"
    assert level(before) == level(after) == {"ok"}
    assert reach in texts(before)
    assert "generation" not in texts(before)
    assert texts(after).endswith("; generation 1")


def test_leases_that_one_process_knows_are_a_warning_where_others_share_the_queues(
    on_sqlite: Service,
) -> None:
    warned = on_sqlite.check("--leases", "memory://")["leases"]
    alone = on_sqlite.check("--broker", "memory://", "--dedup", "memory://")["leases"]

    assert level(warned) == {"warning"}
    assert "set --leases to a store that all of them reach" in texts(warned)
    assert level(alone) == {"ok"}


def test_a_lease_store_that_does_not_answer_is_an_error(on_sqlite: Service) -> None:
    away = ("--leases", "redis://127.0.0.1:1/0")

    assert level(on_sqlite.check(*away, code=4)["leases"]) == {"error"}
    shown = on_sqlite.run("topology", *away)
    assert "which generation of the queues it has is not known" in shown.err
    on_sqlite.run("topology", "--declare", *away, code=4)


@long_on("servers")
def test_what_changes_is_shown_and_checked_as_the_plan_has_it(service: Service) -> None:
    service.run("start", "--shards", "2", "--burst")
    service.run("reshard", "--to", "3", "--no-wait")

    begun = service.check("--shards", "3")
    third = service.check("--shards", "4", code=3)

    assert "on its way from generation 1 with 2 shards to 2 with 3" in texts(begun["leases"])
    assert "are as they should be" in texts(begun["declarations"])
    assert "it is on its way to 3 shards" in texts(third["shards"])
    told = service.topology("--shards", "2")
    assert (told["generation"], told["consumed"], told["phase"]) == (1, 1, "declare")

    service.run("start", "--shards", "2", "--burst")  # whoever runs carries it out
    service.start("start", "--shards", "3")
    service.run("reshard", "--to", "3")

    told = service.topology("--shards", "3")
    assert (told["generation"], told["consumed"], told["phase"]) == (2, 2, None)
    assert [q["name"] for q in told["queues"] if q["shard"] is not None] == [
        "bank.g2.0", "bank.g2.1", "bank.g2.2",
    ]  # fmt: skip
    assert "generation 2" in service.run("topology", "--shards", "3").out
    refused = service.run("topology", "--shards", "2", code=3).err
    assert "qworker reshard --to 2" in refused


@long_on("servers")
def test_after_a_change_a_start_that_sets_no_number_has_the_new_one(service: Service) -> None:
    service.run("start", "--burst")
    process = service.start("start")
    changed = service.run("reshard", "--to", "3")
    again = service.run("reshard", "--to", "3")
    process.terminate()
    assert process.wait(_PATIENCE) == 0

    hint = "--shards (QWORKER_SHARDS), where it is set, has to be 3 at the next start"
    assert hint in changed.err
    assert hint not in again.err
    assert "later as many as there are" in texts(service.check()["settings"])
    shards = [q for q in service.topology()["queues"] if q["shard"] is not None]
    assert len(shards) == 3
    service.run("start", "--burst")
    assert "start with --shards 3" in service.run("start", "--shards", "1", code=3).err


def test_an_app_that_cannot_be_imported_is_an_error(on_sqlite: Service) -> None:
    on_sqlite.write("broken.py", "raise RuntimeError('no')\n")

    found = on_sqlite.check("--app", "broken", code=3)

    assert "line 1, in <module>" in texts(found["app"])
    assert "there is no module 'absent'" in texts(on_sqlite.check("--app", "absent", code=3)["app"])


def test_retries_that_outlive_the_memory_of_ids_are_an_error(on_sqlite: Service) -> None:
    text = _APP.replace('"user.*"', '"user.*", retry=RetryPolicy(attempts=50, max_wait=60.0)')
    on_sqlite.write("handlers.py", text)

    found = on_sqlite.check("--retention", "120", code=3)

    assert "longer than ids are remembered" in texts(found["settings"])


def test_servers_that_do_not_answer_are_told_both(on_sqlite: Service) -> None:
    away = ("--broker", "amqp://127.0.0.1:1", "--dedup", "redis://127.0.0.1:1/0")

    found = on_sqlite.check(*away, "--connect-timeout", "1", code=4)

    assert level(found["broker"]) == {"error"}
    assert level(found["dedup"]) == {"error"}


def test_what_a_start_would_refuse_is_an_error(on_sqlite: Service) -> None:
    found = on_sqlite.check("--http", "here", code=3)
    assert "'here' is not HOST:PORT" in texts(found["http"])


@long_on("servers")
@pytest.mark.parametrize(("runs", "asks"), [((), ("--single-active",)), (("--single-active",), ())])
def test_the_other_mode_is_an_error_where_a_start_refuses_it(
    service: Service, runs: tuple[str, ...], asks: tuple[str, ...]
) -> None:
    running = service.start("start", *runs)
    until(lambda: service.run("check", "--ready", code=None).code == 0, _PATIENCE, "it is ready")

    found = texts(service.check(*asks, code=3)["mode"])
    assert found in service.run("start", *asks, code=3).err
    assert "mode" not in service.check(*runs)

    os.kill(running.pid, signal.SIGTERM)
    assert running.wait(_PATIENCE) == 0
    assert "mode" not in service.check(*asks), "nobody runs it: it may go over"
    service.run("start", *asks, "--burst")


def test_a_weak_memory_is_a_warning(on_sqlite: Service) -> None:
    found = on_sqlite.check("--dedup", "memory://")

    assert "warning" in level(found["dedup"])


def test_looking_makes_no_file(on_sqlite: Service) -> None:
    on_sqlite.environ |= {"QWORKER_BROKER_URL": "sqlite:///typo.db", "QWORKER_DEDUP_URL": ""}
    for options in ((), ("--dedup", "sqlite:///ids.db", "--leases", "sqlite:///leases.db")):
        found = on_sqlite.check(*options)
        told = on_sqlite.run("topology", *options)

        assert "there is no sqlite:///typo.db yet; the first start makes it" in texts(
            found["broker"]
        )
        assert level(found["dedup"]) == level(found["leases"]) == {"ok"}
        assert "there is no sqlite:///typo.db yet" in told.err
        assert told.out.startswith("bank at sqlite:///typo.db, generation 1\n")
        assert not [*on_sqlite.folder.glob("*.db*")]
    assert "its folder must exist" in texts(
        on_sqlite.check("--broker", "sqlite:///no/a.db", code=3)["leases"]
    )

    on_sqlite.run("topology", "--declare")
    assert (on_sqlite.folder / "typo.db").exists()
    assert "answers at sqlite:///typo.db" in texts(on_sqlite.check()["broker"])


# Probes


def test_probes_tell_how_the_service_beside_does(on_sqlite: Service) -> None:
    nobody = on_sqlite.run("check", "--live", code=1)
    assert "no supervisor runs here" in nobody.out

    running = on_sqlite.start("start")
    until(lambda: on_sqlite.run("check", "--ready", code=None).code == 0, _PATIENCE, "it is ready")

    both = on_sqlite.run("check", "--live", "--ready", "--service", "bank", "--json").json
    assert (both["ok"], both["live"]["ok"], both["ready"]["ok"]) == (True, True, True)
    other = on_sqlite.run("check", "--live", "--service", "another", code=1)
    assert "no supervisor of 'another' runs here" in other.out

    os.kill(running.pid, signal.SIGTERM)
    assert running.wait(_PATIENCE) == 0
    on_sqlite.run("check", "--live", code=1)


def test_a_probe_imports_neither_the_app_nor_the_clients_of_servers(on_sqlite: Service) -> None:
    on_sqlite.write("handlers.py", "raise RuntimeError('imported')\n")
    on_sqlite.environ["PYTHONPROFILEIMPORTTIME"] = "1"

    result = on_sqlite.run("check", "--live", code=1)

    imported = {line.rpartition("|")[2].strip() for line in result.err.splitlines()}
    assert "worker.supervisor.status" in imported
    assert not imported & {"kombu", "amqp", "redis", "msgspec", "tenacity", "rich", "worker.app"}


# topology


def test_topology_shows_what_there_is_and_how_full(service: Service) -> None:
    before = service.run("topology", "--shards", "2").out
    queues, exchanges = 4 + len(relay(service)), 3 + len(relay(service))
    assert before.count("not there") == queues + exchanges
    there = {x["there"] for x in service.topology("--shards", "2")["exchanges"]}
    assert there == {False}

    service.run("topology", "--shards", "2", "--declare")
    assert "not there" not in service.run("topology", "--shards", "2").out
    for number in range(3):
        service.run("publish", "user.deposited", f"n={number}", "--key", "u1")

    told = service.topology("--shards", "2")
    assert told["service"] == "bank"
    assert sum(queue["ready"] for queue in told["queues"]) == 3
    assert [q["name"] for q in told["queues"]] == [
        "bank.g1.0", "bank.g1.1", *relay(service), "bank.dlq", "bank.parked",
    ]  # fmt: skip
    assert {"qw.events", "qw.commands", "bank.g1"} <= {x["name"] for x in told["exchanges"]}
    slots = [b for b in told["bindings"] if b["routing_key"].startswith("qw-slot-")]
    assert len({b["routing_key"] for b in slots}) == len(slots) == 1024 * len(relay(service))
    (bound,) = [b for b in told["bindings"] if b["source"] == "qw.events"]
    assert (bound["routing_key"], bound["target"]) == ("user.*", "bank.g1")


def test_topology_shows_a_binding_of_two_handlers_once(on_sqlite: Service) -> None:
    both = _APP.replace('@app.on("user.*")', '@app.on("user.*", name="a")\n@app.on("user.*")')
    on_sqlite.write("handlers.py", both)

    told = on_sqlite.topology()
    assert [b["routing_key"] for b in told["bindings"]].count("user.*") == 1


def test_topology_is_shown_where_no_broker_answers(on_sqlite: Service) -> None:
    result = on_sqlite.run("topology", "--broker", "amqp://127.0.0.1:1", "--connect-timeout", "1")

    assert "bank.g1.0" in result.out
    assert "not asked: what a first start would declare" in result.out.splitlines()[0]
    assert "generation" not in result.out
    assert "is not known, and what is shown is what a first start would declare" in result.err
    assert "the depths are not known" in result.err
    away = on_sqlite.topology("--broker", "amqp://127.0.0.1:1", "--connect-timeout", "1")
    assert (away["generation"], away["consumed"]) == (None, None)


def test_declaring_what_is_there_otherwise_is_refused(on_servers: Service) -> None:
    connection = connect(on_servers.broker, heartbeat=0, timeout=10, name="test")
    connection.channel().queue_declare("bank.dlq", durable=True, auto_delete=False)
    connection.release()

    result = on_servers.run("topology", "--declare", code=3)

    assert "the broker has the queue 'bank.dlq' with other properties" in result.err
    assert "Traceback" not in result.err


def test_a_terminal_gets_tables(on_sqlite: Service) -> None:
    shown = on_sqlite.on_terminal("topology")

    assert shown.code == 0
    assert "bank.parked" in shown.out
