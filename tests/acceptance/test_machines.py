"""Supervisors on machines of their own work as on this one, and outlast links that are cut."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import pytest

from acceptance.running import STEPS, eventually, some_more
from machines.network import Network, Way
from machines.site import Site, To
from machines.supervisor import Part, Supervisor
from processes import state_of
from waiting import until

pytestmark = pytest.mark.usefixtures("needs_links")

OPTIONS = ("--shards", "4", "--processes", "2", "--concurrency", "8")
#: Notices a silent server within two seconds, and a lost claim within two.
EAGER: dict[str, Any] = {"heartbeat": 1, "dedup_timeout": 0.5, "claim_ttl": 2}

#: Sends each line that it reads to a server and says whether it came back.
TALKER = """
import socket, sys
connection = socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)
connection.settimeout(0.3)
print("connected", flush=True)
for line in sys.stdin:
    try:
        connection.sendall(line.encode())
        print("heard" if connection.recv(100) else "closed", flush=True)
    except TimeoutError:
        print("silence", flush=True)
"""


class Talker:
    """A connection from a machine to a server here that knows what came."""

    def __init__(self, stack: ExitStack, entrance: tuple[str, ...], address: str) -> None:
        server = stack.enter_context(socket.create_server((address, 0)))
        self.port = server.getsockname()[1]
        self._process = stack.enter_context(
            subprocess.Popen(
                [*entrance, sys.executable, "-c", TALKER, address, str(self.port)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                bufsize=1,
            )
        )
        stack.callback(self._process.kill)
        self._connection = stack.enter_context(server.accept()[0])
        self._connection.setblocking(False)
        self._answer()

    def say(self) -> tuple[bool, str]:
        """Say something and answer; return whether it came here, and what came there."""
        assert self._process.stdin is not None
        self._process.stdin.write("hello\n")
        try:
            until(self._heard, 0.2)
        except AssertionError:
            return False, self._answer()
        return True, self._answer()

    def _heard(self) -> bool:
        try:
            heard = self._connection.recv(100)
        except BlockingIOError:
            return False
        self._connection.sendall(b"answer")
        return bool(heard)

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


directions = pytest.mark.parametrize(
    ("way", "heard"),
    [(Way.TO, (False, "silence")), (Way.FROM, (True, "silence")), (Way.BOTH, (False, "silence"))],
)


@directions
def test_a_link_is_cut_in_one_direction_for_one_server_of_one_machine(
    network: Network, way: Way, heard: tuple[bool, str]
) -> None:
    with network.machines("one", "other") as (one, other), ExitStack() as stack:
        talk = partial(Talker, stack, address=network.address)
        cut_off, elsewhere, neighbour = talk(one.entrance), talk(one.entrance), talk(other.entrance)

        with one.without(cut_off.port, way):
            assert cut_off.say() == heard
            assert elsewhere.say() == neighbour.say() == (True, "heard")

        until(lambda: cut_off.say() == (True, "heard"), message="what was dropped is sent again")


@directions
def test_a_machine_is_cut_off_from_everything(
    network: Network, way: Way, heard: tuple[bool, str]
) -> None:
    with network.machines("one", "other") as (one, other), ExitStack() as stack:
        talk = partial(Talker, stack, address=network.address)
        cut_off, elsewhere, neighbour = talk(one.entrance), talk(one.entrance), talk(other.entrance)

        with one.without(None, way):
            assert cut_off.say() == elsewhere.say() == heard
            assert neighbour.say() == (True, "heard")


def test_two_networks_do_not_meet(network: Network) -> None:
    with Network() as second, second.machines("a"), network.machines("a") as (machine,):
        assert second.address != network.address
        with ExitStack() as stack:
            assert Talker(stack, machine.entrance, network.address).say() == (True, "heard")


def test_a_network_leaves_nothing_behind_when_its_maker_is_killed() -> None:
    code = """
import sys, time
from machines.network import Network
with Network() as network, network.machines("a", "b"):
    print(network.address, flush=True)
    time.sleep(60)
"""
    maker = subprocess.Popen(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": ":".join(sys.path), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        stdout=subprocess.PIPE,
        text=True,
    )
    with maker:
        assert maker.stdout is not None
        address = maker.stdout.readline().strip()
        assert f"{address}/" in addresses()
        maker.kill()

    until(lambda: f"{address}/" not in addresses(), message="the kernel removes the links")


def addresses() -> str:
    return subprocess.run(["ip", "address"], capture_output=True, text=True, check=True).stdout


@contextmanager
def at_work(site: Site) -> Iterator[Supervisor]:
    """Give a supervisor under load, to be troubled while it works; afterwards it has to work on.

    In the end everything is done, in order and, but for what a fault explains, once.
    """
    (one,) = site.started("one", options=OPTIONS, **EAGER)
    load = site.load()
    with load.running():
        some_more(one)
        yield one
        some_more(one)
    assert site.judge(load, one).effects >= len(load.confirmed) * len(STEPS)


@pytest.mark.long
@pytest.mark.parametrize("way", Way)
@pytest.mark.parametrize("to", [To.REDIS, To.RABBITMQ])
def test_a_supervisor_outlasts_a_cut_link(site: Site, to: To, way: Way) -> None:
    sign = "StoreAway" if to is To.REDIS else "BrokerLost"
    with at_work(site) as one, site.cut(one, to, way):
        eventually(lambda: len(one.events(sign)) >= 2, "both processes notice")


@pytest.mark.long
def test_a_supervisor_outlasts_the_loss_of_its_whole_link(site: Site) -> None:
    with at_work(site) as one, site.cut(one, To.ALL):
        eventually(lambda: len(one.events("BrokerLost")) >= 2, "both processes notice")


@pytest.mark.long
@pytest.mark.parametrize("part", Part)
def test_what_stood_still_goes_on(site: Site, part: Part) -> None:
    with at_work(site) as one:
        with one.paused(part) as pids:
            assert len(pids) == {Part.SUPERVISOR: 1, Part.CHILD: 1, Part.GROUP: 3}[part]
        eventually(lambda: "T" not in map(state_of, pids), "they run")


@pytest.mark.long
def test_what_was_killed_is_replaced(site: Site) -> None:
    with at_work(site) as one:
        one.kill(Part.CHILD)
        some_more(one)
        one.kill(Part.GROUP)
        assert one.exit_code() < 0
        one.start_ready(*OPTIONS)


@pytest.mark.long
def test_two_supervisors_of_two_services_mind_their_own(site: Site) -> None:
    (ours,) = site.started("ours", options=OPTIONS, **EAGER)
    (other,) = site.started("other", options=(), app="family", **EAGER)
    load = site.load()

    with load.running():
        some_more(ours)
        with site.cut(other, To.ALL):
            some_more(ours, 500)
            assert not ours.events("BrokerLost")

    site.until_done(load)
    assert ours.drain() == 0
