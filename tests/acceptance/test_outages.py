"""Servers, connections and processes that go away under load: work resumes by itself."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import partial
from itertools import count

import pytest

from acceptance.apps.events import Step
from acceptance.apps.family import Stray
from acceptance.conftest import Place
from acceptance.running import (
    SCALE,
    STEPS,
    ForeignLoad,
    Load,
    Service,
    eventually,
    forever,
    is_consumed,
    letters,
    some_more,
    steps,
)
from servers import PostgreSQL, RabbitMQ, Redis, Server

Serve = Callable[..., Service]


def check_all_done_once(service: Service, load: Load) -> None:
    """What was confirmed took effect once, and in the order of its key."""
    eventually(lambda: service.ledger.has(load.confirmed, *STEPS), "all is done")
    assert service.drain() == 0
    assert service.ledger.twice("effect") == {}
    assert service.ledger.twice("begin") == {}
    assert service.ledger.disorder() == {}


def is_ready(service: Service, wanted: bool) -> bool:
    """Tell whether the service says of itself that it is, or is not, ready."""
    return service.status().get("ready") is wanted


def is_told(service: Service, sign: str, times: int) -> bool:
    """Tell whether the log holds a runtime event so often."""
    return len(service.events(sign)) >= times


def relaying(service: Service) -> int:
    """Return the process that has passed messages on since it was started, and goes on so."""

    def relayed() -> dict[int, int]:
        return {p["pid"]: p["statistics"].get("relayed", 0) for p in service.status()["processes"]}

    before = relayed()

    def found() -> list[int]:
        return [pid for pid, number in relayed().items() if number > before.get(pid, 0)]

    eventually(found, "one of them passes messages on")
    return found()[0]


def has_retried(service: Service, more_than: int) -> bool:
    return service.counter("retried") > more_than


@pytest.mark.parametrize("end", [pytest.param("stop", marks=pytest.mark.long), "kill"])
def test_a_broker_that_goes_away_and_comes_back(
    servers: Place, serve: Serve, load: Load, rabbitmq: RabbitMQ, end: str
) -> None:
    service = serve(servers, "steps")
    service.start_ready(*SCALE)

    with load.in_background(forever(keys=20, seconds=0.01)):
        some_more(service)
        {"stop": rabbitmq.stop, "kill": rabbitmq.kill}[end]()
        eventually(lambda: len(service.events("BrokerLost")) == 2, "both processes notice")
        eventually(partial(is_ready, service, False), "it is not ready")
        assert "waiting for the broker" in service.status()["text"]
        rabbitmq.start()
        some_more(service)
        eventually(partial(is_ready, service, True), "it is ready again")

    check_all_done_once(service, load)
    assert len(service.events("BrokerLost")) == len(service.events("BrokerRegained")) == 2


@pytest.mark.parametrize(
    "keyed",
    [pytest.param(True, id="header", marks=pytest.mark.long), pytest.param(False, id="class")],
)
def test_foreign_messages_keep_their_order_while_all_around_them_is_killed(
    servers: Place, serve: Serve, load: Load, rabbitmq: RabbitMQ, keyed: bool
) -> None:
    service = serve(servers, "steps")
    service.start_ready(*SCALE)
    foreign = ForeignLoad(servers.broker, keyed=keyed)
    ours = (Step(key=f"ours-{n % 20}", sequence=n // 20, seconds=0.01) for n in count())

    with load.in_background(ours), foreign.in_background(forever(keys=20, seconds=0.01)):
        for _ in range(3):
            some_more(service)
            os.kill(relaying(service), signal.SIGKILL)
            some_more(service)
        rabbitmq.kill()
        rabbitmq.start()
        some_more(service, 500)

    confirmed = load.confirmed | foreign.confirmed
    eventually(lambda: service.ledger.has(confirmed, *STEPS), "all is done")
    assert service.counter("relayed") > 0
    assert service.drain() == 0
    assert service.ledger.disorder() == {}
    assert service.ledger.overlaps() == []


@pytest.mark.parametrize("end", [pytest.param("stop", marks=pytest.mark.long), "kill"])
def test_what_waits_in_retry_queues_outlasts_the_broker(
    servers: Place, serve: Serve, load: Load, rabbitmq: RabbitMQ, end: str
) -> None:
    service = serve(servers, "family")
    service.start_ready("--shards", "4", "--processes", "2", "--prefetch", "16")

    with load.in_background(Stray(number=number) for number in count()):
        for _ in range(2):
            enough = service.counter("retried") + 100
            eventually(partial(has_retried, service, enough), "some wait")
            {"stop": rabbitmq.stop, "kill": rabbitmq.kill}[end]()
            rabbitmq.start()

    eventually(lambda: service.ledger.has(load.confirmed, "family.take_in"), "all is done")
    assert service.drain() == 0
    assert service.ledger.twice("effect") == {}


def test_servers_that_speak_tls_go_away_and_come_back(
    secured: Place, serve: Serve, load: Load, rabbitmq: RabbitMQ, redis_server: Redis
) -> None:
    service = serve(secured, "steps")
    service.start_ready(*SCALE)
    load.publish([Step(key="long", sequence=n, fault="x" * 50_000) for n in range(50)])

    with load.in_background(forever(keys=20, seconds=0.01)):
        for server in (rabbitmq, redis_server):
            some_more(service)
            server.stop()
            eventually(partial(is_ready, service, False), "it is not ready")
            server.start()
            eventually(partial(is_ready, service, True), "it is ready again")
        some_more(service)

    check_all_done_once(service, load)


def test_connections_that_an_operator_closes(
    servers: Place, serve: Serve, load: Load, rabbitmq: RabbitMQ
) -> None:
    service = serve(servers, "steps")
    service.start_ready(*SCALE)

    with load.in_background(forever(keys=20, seconds=0.01)):
        for round_ in (1, 2, 3):
            some_more(service)
            rabbitmq.ctl("close_all_connections", "--global", "an operator's whim")
            eventually(partial(is_told, service, "BrokerRegained", 2 * round_), "it is back")
        some_more(service)

    check_all_done_once(service, load)


def test_a_queue_that_an_operator_deletes_is_declared_and_consumed_again(
    servers: Place, serve: Serve, load: Load, rabbitmq: RabbitMQ
) -> None:
    service = serve(servers, "steps")
    service.start_ready(*SCALE)
    vhost = servers.broker.rpartition("/")[2]
    before = load.publish(steps(keys=20, each=5))
    eventually(lambda: service.ledger.has(before, *STEPS), "it works")

    for shard in range(4):
        rabbitmq.ctl("delete_queue", "--vhost", vhost, f"steps.g1.{shard}")
    for shard in range(4):
        queue = f"steps.g1.{shard}"
        eventually(partial(is_consumed, servers.broker, queue), f"{queue} is there again")

    load.publish(steps(keys=20, each=5, begin=5))
    check_all_done_once(service, load)


def test_a_dead_letter_queue_that_an_operator_deletes_costs_no_dead_letter(
    servers: Place, serve: Serve, load: Load, rabbitmq: RabbitMQ
) -> None:
    service = serve(servers, "failing:dead_letter")
    service.start_ready()
    vhost = servers.broker.rpartition("/")[2]
    rabbitmq.ctl("delete_queue", "--vhost", vhost, "failing-dead_letter.dlq")

    poison = Step(key="key-0", sequence=0, fault="always")
    load.publish([poison, *steps(keys=2, each=2, begin=1)])

    eventually(lambda: len(service.ledger.entries("effect")) == 4, "the others go on")
    eventually(lambda: len(service.dead_letters()) == 1, "the queue is there again, and the letter")
    assert service.drain() == 0
    assert [letter.id for letter in letters(servers.broker, "failing-dead_letter.dlq")] == [
        poison.event_id
    ]


def test_servers_that_hang_without_a_word(
    servers: Place, serve: Serve, load: Load, rabbitmq: RabbitMQ, redis_server: Redis
) -> None:
    service = serve(servers, "steps", heartbeat=1, dedup_timeout=0.5)
    service.start_ready(*SCALE)

    with load.in_background(forever(keys=20, seconds=0.01)):
        for server, sign in ((redis_server, "StoreAway"), (rabbitmq, "BrokerLost")):
            some_more(service)
            before = len(service.events(sign))
            with server.standing_still():
                eventually(partial(is_told, service, sign, before + 2), "both processes notice")
        some_more(service)

    check_all_done_once(service, load)


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_dedup_store_that_goes_away_and_comes_back(
    servers: Place, serve: Serve, load: Load, redis_server: Redis, end: str
) -> None:
    check_that_it_goes_on(serve(servers, "steps", claim_ttl=2), load, redis_server, end)


def test_a_postgresql_that_is_killed_under_load_and_comes_back(
    on_postgresql: Place, serve: Serve, load: Load, postgres: PostgreSQL
) -> None:
    check_that_it_goes_on(serve(on_postgresql, "steps", claim_ttl=2), load, postgres, "kill")


def check_that_it_goes_on(service: Service, load: Load, store: Server, end: str) -> None:
    """While its store is away nothing is begun, and when that is back all is done once."""
    service.start_ready(*SCALE)

    with load.in_background(forever(keys=20, seconds=0.01)):
        some_more(service)
        {"stop": store.stop, "kill": store.kill}[end]()
        eventually(lambda: len(service.events("StoreAway")) == 2, "both processes notice")
        begun = len(service.ledger.entries("begin"))
        more = len(load.confirmed) + 500
        eventually(lambda: len(load.confirmed) >= more, "publishing goes on")
        assert len(service.ledger.entries("begin")) <= begun + 2 * 8, "nothing new is begun"
        store.start()
        some_more(service)

    check_all_done_once(service, load)
    assert len(service.events("StoreAway")) == len(service.events("StoreBack")) == 2


def test_a_process_that_stood_still_longer_than_its_claims_begins_nothing_that_another_took(
    servers: Place, serve: Serve, load: Load
) -> None:
    settings = {"claim_ttl": 1, "lease_ttl": 2, "heartbeat": 1}
    one = serve(servers, "steps", folder="one", **settings)
    one.start_ready("--concurrency", "4")
    other = serve(servers, "steps", folder="other", **settings)
    other.start_ready("--concurrency", "4")

    load.publish(steps(keys=12, each=4, seconds=0.3))
    eventually(lambda: len(one.ledger.entries("effect")) >= 8, "one of them works")
    os.killpg(one.pid, signal.SIGSTOP)
    begun = one.ledger.executions()
    eventually(
        lambda: other.ledger.has(load.confirmed - done(one), *STEPS[:1]), "the other goes on"
    )
    os.killpg(one.pid, signal.SIGCONT)

    eventually(lambda: one.events("BrokerRegained"), "the first one is back")
    load.publish(steps(keys=12, each=2, begin=4))
    eventually(lambda: load.confirmed <= done(one) | done(other), "all is done")
    assert one.drain() == other.drain() == 0

    twice = one.ledger.executions().keys() & other.ledger.executions().keys()
    assert twice <= begun.keys(), "what had not begun when it stopped was not begun when it woke"


def done(service: Service) -> set[str]:
    """Return the ids that took effect at the plain handler."""
    return {e.id for e in service.ledger.entries("effect", STEPS[0])}
