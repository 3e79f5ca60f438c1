"""Probes and metrics over HTTP, as kubelet, Prometheus and the ill-behaved ask for them."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from http.client import HTTPConnection

import pytest
from prometheus_client.parser import text_string_to_metric_families

from worker.errors import ConfigurationError
from worker.supervisor.probes import Probes, parse_address
from worker.supervisor.status import STALE_AFTER, Status


class Served:
    """A server of probes, and the status that it serves."""

    def __init__(self) -> None:
        self.status = Status(
            service="bank",
            pid=4711,
            state="running",
            live=True,
            ready=True,
            at=time.monotonic(),
            text="running, 2 of 2 processes ready",
            restarts=3,
            processes=[{}, {}],
            counters={"received": 120, "dead_lettered": 1},
            gauges={"in_flight": 4},
        )
        self.probes = Probes("127.0.0.1:0", lambda: self.status)
        host, _, port = self.probes.address.rpartition(":")
        self.address = (host, int(port))

    def get(self, path: str, method: str = "GET") -> tuple[int, str]:
        connection = HTTPConnection(*self.address, timeout=5)
        connection.request(method, path)
        response = connection.getresponse()
        body = response.read().decode()
        connection.close()
        return response.status, body


@pytest.fixture
def served() -> Iterator[Served]:
    """A running server on a free port of the loopback."""
    server = Served()
    yield server
    server.probes.close()


def test_a_service_that_consumes_is_live_and_ready(served: Served) -> None:
    assert served.get("/live")[0] == 200
    assert served.get("/ready") == (200, "bank (pid 4711): running, 2 of 2 processes ready\n")
    assert served.get("/ready", "HEAD") == (200, "")


def test_a_service_that_drains_is_live_but_not_ready(served: Served) -> None:
    served.status = replace(served.status, ready=False)

    assert served.get("/live")[0] == 200
    assert served.get("/ready")[0] == 503


def test_a_loop_that_stands_is_not_live(served: Served) -> None:
    served.status = replace(served.status, at=time.monotonic() - STALE_AFTER - 1)

    assert served.get("/live")[0] == 503


def test_an_unknown_path_says_which_ones_there_are(served: Served) -> None:
    assert served.get("/") == (404, "/live, /ready or /metrics\n")


def test_prometheus_can_read_the_metrics(served: Served) -> None:
    code, text = served.get("/metrics")

    samples = {
        sample.name: (sample.value, sample.labels)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert code == 200
    assert samples["qworker_received_total"] == (120, {"service": "bank"})
    assert samples["qworker_dead_lettered_total"][0] == 1
    assert samples["qworker_in_flight"][0] == 4
    assert samples["qworker_processes"][0] == 2
    assert samples["qworker_process_ends_total"][0] == 3
    assert samples["qworker_live"][0] == samples["qworker_ready"][0] == 1


def test_an_outage_and_the_depth_of_a_shard_reach_prometheus(served: Served) -> None:
    numbers = {"0": {"depth": 9, "oldest": 2.5, "unsettled": 3}, "1": {}}
    process = {
        "generation": 1,
        "shards": [0, 1],
        "statistics": {"outages": ["mail"], "shards": numbers},
    }
    served.status = replace(served.status, processes=[process, {**process, "shards": []}])
    samples = {
        (sample.name, *(v for k, v in sample.labels.items() if k != "service")): sample.value
        for family in text_string_to_metric_families(served.get("/metrics")[1])
        for sample in family.samples
    }

    assert samples["qworker_outages", "mail"] == 2
    assert samples["qworker_shard_depth", "1", "0"] == 9
    assert samples["qworker_shard_oldest_seconds", "1", "0"] == 2.5
    assert samples["qworker_shard_unsettled", "1", "0"] == 3
    assert samples["qworker_shard_unsettled", "1", "1"] == 0
    assert ("qworker_shard_depth", "1", "1") not in samples, "it is not known yet"


def test_clients_that_connect_and_say_nothing_do_not_keep_others_out(served: Served) -> None:
    with ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(socket.create_connection(served.address))

        assert served.get("/live")[0] == 200


def test_a_port_that_is_taken_is_told_in_plain_words(served: Served) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot listen on .* in use"):
        Probes(served.probes.address, lambda: served.status)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("0.0.0.0:8080", ("0.0.0.0", 8080)),  # noqa: S104 - what a pod needs
        (":8080", ("127.0.0.1", 8080)),
        ("[::1]:9", ("::1", 9)),
        ("localhost:0", ("localhost", 0)),
    ],
)
def test_addresses_are_host_and_port_on_the_loopback_unless_told(
    text: str, address: tuple[str, int]
) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["8080", "localhost:", "localhost:http", "x:65536", "x:-1", ""])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="HOST:PORT"):
        parse_address(text)
