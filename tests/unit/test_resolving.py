"""Names of servers: what is known of them where the name servers are slow, wrong or away."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from waiting import until
from worker.stores.hosts import Hosts
from worker.stores.resolving import Names

Answer = Callable[[], list[str]]
BRIEFLY, LONG = 0.05, 20.0


class NameServers:
    """What stands in for those of the system: an answer to each name."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.asked = 0
        self.back = threading.Event()

    def look_up(self, name: str, *_: object, **__: object) -> list[tuple[object, ...]]:
        self.asked += 1
        return [(0, 0, 0, "", (address, 0)) for address in self.answers[name]()]

    def away(self) -> list[str]:
        self.back.wait(LONG)
        return ["10.0.0.9"]


def refusing(number: int) -> Answer:
    def refuse() -> list[str]:
        raise socket.gaierror(number, "so it is")

    return refuse


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[NameServers]:
    servers = NameServers()
    monkeypatch.setattr(socket, "getaddrinfo", servers.look_up)
    yield servers
    servers.back.set()


def test_a_name_has_the_addresses_of_now(servers: NameServers) -> None:
    names = Names()
    for address in ("10.0.0.1", "10.0.0.2"):
        servers.answers["db"] = partial(list, [address, "::1"])
        assert names.find(["db"], LONG) == {"db": [address, "::1"]}


@pytest.mark.parametrize("is_silent", [True, False])
def test_it_has_those_of_before_while_nobody_can_be_asked(
    servers: NameServers, *, is_silent: bool
) -> None:
    names = Names()
    servers.answers["db"] = lambda: ["10.0.0.1"]
    names.find(["db"], LONG)
    servers.answers["db"] = servers.away if is_silent else refusing(socket.EAI_AGAIN)
    for _ in range(3):
        assert names.find(["db"], BRIEFLY) == {"db": ["10.0.0.1"]}


def test_a_name_that_nobody_has_any_more_has_none(servers: NameServers) -> None:
    names = Names()
    servers.answers["db"] = lambda: ["10.0.0.1"]
    names.find(["db"], LONG)
    servers.answers["db"] = refusing(socket.EAI_NONAME)
    with pytest.raises(OSError, match=r"failed to resolve host 'db': .*so it is"):
        names.find(["db"], LONG)
    servers.answers["db"] = refusing(socket.EAI_AGAIN)
    with pytest.raises(OSError, match="failed to resolve"):
        names.find(["db"], LONG)


def test_nobody_waits_longer_than_that_and_one_thread_asks(servers: NameServers) -> None:
    names = Names()
    servers.answers["db"] = servers.away
    for _ in range(3):
        began = time.monotonic()
        with pytest.raises(OSError, match="do not answer"):
            names.find(["db"], BRIEFLY)
        assert time.monotonic() - began < LONG / 2
    assert servers.asked == 1


def test_an_answer_that_came_late_counts_only_until_the_next_one(servers: NameServers) -> None:
    names = Names()
    servers.answers["db"] = servers.away
    with pytest.raises(OSError, match="do not answer"):
        names.find(["db"], BRIEFLY)
    servers.back.set()
    servers.answers["db"] = lambda: ["10.0.0.1"]
    until(lambda: names.find(["db"], LONG) == {"db": ["10.0.0.1"]})


def test_one_of_several_names_is_enough(servers: NameServers) -> None:
    servers.answers.update(one=servers.away, two=lambda: ["10.0.0.2"])
    assert Names().find(["one", "two"], 10 * BRIEFLY) == {"two": ["10.0.0.2"]}


def test_each_address_is_told_with_its_name_and_port(servers: NameServers) -> None:
    servers.answers.update(one=lambda: ["10.0.0.1", "::1"], two=lambda: ["10.0.0.2"])
    hosts = Hosts({"host": "one,/run/here,10.0.0.7,two", "port": "1,2,3,4"})
    assert hosts.parameters(LONG) == {
        "host": "one,one,/run/here,10.0.0.7,two",
        "hostaddr": "10.0.0.1,::1,,10.0.0.7,10.0.0.2",
        "port": "1,1,2,3,4",
    }


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"host": "/run/postgresql"},
        {"host": "10.0.0.1,::1", "port": "1"},
        {"host": "db", "hostaddr": "10.0.0.1"},
        {"host": "one,two,three", "port": "1,2"},
    ],
)
def test_what_needs_no_look_up_is_left_to_libpq(servers: NameServers, said: dict[str, str]) -> None:
    assert Hosts(said).parameters(LONG) == {}
    assert servers.asked == 0
