"""Servers, connections and processes that go away under load: work resumes by itself."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import partial

import pytest

from acceptance.conftest import Place
from acceptance.running import Load, Service, eventually, forever, steps
from servers import RabbitMQ, Redis

Serve = Callable[..., Service]
STEPS = ("steps.count", "steps.observe")
SCALE = ("--shards", "4", "--processes", "2", "--concurrency", "8")


def some_more(service: Service, number: int = 100) -> None:
    """Wait until the service has done some more work."""
    target = len(service.ledger.entries("effect")) + number
    eventually(lambda: len(service.ledger.entries("effect")) >= target, "work goes on")


def regained(service: Service, times: int) -> bool:
    """Tell whether the broker was found again so often."""
    return len(service.events("BrokerRegained")) >= times


def check_all_done_once(service: Service, load: Load) -> None:
    """What was confirmed took effect once, and in the order of its key."""
    eventually(lambda: service.ledger.has(load.confirmed, *STEPS), "all is done")
    assert service.drain() == 0
    assert service.ledger.twice("effect") == {}
    assert service.ledger.twice("begin") == {}
    assert service.ledger.disorder() == {}


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_broker_that_goes_away_and_comes_back(
    servers: Place, serve: Serve, load: Load, rabbitmq: RabbitMQ, end: str
) -> None:
    service = serve(servers, "steps")
    service.start_ready(*SCALE)

    with load.in_background(forever(keys=20, seconds=0.01)):
        some_more(service)
        {"stop": rabbitmq.stop, "kill": rabbitmq.kill}[end]()
        eventually(lambda: len(service.events("BrokerLost")) == 2, "both processes notice")
        rabbitmq.start()
        some_more(service)

    check_all_done_once(service, load)
    assert len(service.events("BrokerLost")) == len(service.events("BrokerRegained")) == 2


def test_connections_that_an_operator_closes(
    servers: Place, serve: Serve, load: Load, rabbitmq: RabbitMQ
) -> None:
    service = serve(servers, "steps")
    service.start_ready(*SCALE)

    with load.in_background(forever(keys=20, seconds=0.01)):
        for round_ in (1, 2, 3):
            some_more(service)
            rabbitmq.ctl("close_all_connections", "--global", "an operator's whim")
            eventually(partial(regained, service, 2 * round_), "it is back")
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
    eventually(lambda: len(service.events("BrokerRegained")) >= 2, "both processes are back")
    eventually(lambda: len(service.processes()) == 2, "both processes consume")

    load.publish(steps(keys=20, each=5, begin=5))
    check_all_done_once(service, load)


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_dedup_store_that_goes_away_and_comes_back(
    servers: Place, serve: Serve, load: Load, redis_server: Redis, end: str
) -> None:
    service = serve(servers, "steps", claim_ttl=2)
    service.start_ready(*SCALE)

    with load.in_background(forever(keys=20, seconds=0.01)):
        some_more(service)
        {"stop": redis_server.stop, "kill": redis_server.kill}[end]()
        eventually(lambda: len(service.events("StoreAway")) == 2, "both processes notice")
        begun = len(service.ledger.entries("begin"))
        more = len(load.confirmed) + 500
        eventually(lambda: len(load.confirmed) >= more, "publishing goes on")
        assert len(service.ledger.entries("begin")) <= begun + 2 * 8, "nothing new is begun"
        redis_server.start()
        some_more(service)

    check_all_done_once(service, load)
    assert len(service.events("StoreAway")) == len(service.events("StoreBack")) == 2


def test_a_process_that_stood_still_longer_than_its_claims_begins_nothing_that_another_took(
    servers: Place, serve: Serve, load: Load
) -> None:
    one = serve(servers, "steps", folder="one", claim_ttl=1, heartbeat=1)
    one.start_ready("--concurrency", "4")
    other = serve(servers, "steps", folder="other", claim_ttl=1, heartbeat=1)
    other.start_ready("--concurrency", "4")

    load.publish(steps(keys=12, each=4, seconds=0.3))
    eventually(lambda: len(one.ledger.entries("effect")) >= 8, "one of them works")
    (stopped,) = one.processes()
    os.kill(stopped, signal.SIGSTOP)
    begun = one.ledger.executions()
    eventually(
        lambda: other.ledger.has(load.confirmed - done(one), *STEPS[:1]), "the other goes on"
    )
    os.kill(stopped, signal.SIGCONT)

    eventually(lambda: one.events("BrokerRegained"), "the first one is back")
    load.publish(steps(keys=12, each=2, begin=4))
    eventually(lambda: load.confirmed <= done(one) | done(other), "all is done")
    assert one.drain() == other.drain() == 0

    twice = one.ledger.executions().keys() & other.ledger.executions().keys()
    assert twice <= begun.keys(), "what had not begun when it stopped was not begun when it woke"


def done(service: Service) -> set[str]:
    """Return the ids that took effect at the plain handler."""
    return {e.id for e in service.ledger.entries("effect", STEPS[0])}
