"""Machines: network namespaces with addresses of their own, and links to cut and to mend.

::

    this machine ── link ── router ─┬─ link ── machine
    (the servers)                   ├─ link ── machine
                                    └─ link ── machine

A packet is dropped by a rule of the router's routing policy (``ip rule … blackhole``, which takes
addresses and ports), so nobody learns of it: no refusal, no ICMP, just silence, as where a switch
dies. That needs iproute2 and no firewall. It works because the router only forwards: on a machine
itself such a rule would come too late for what arrives, and be told to who sends.

Servers listen on the network's address too, rather than behind a forwarder or a translation of
addresses: what is cut is then the very connection of client and server, with both kernels' idea of
it, and nothing stands between them that could go on acknowledging.

The namespaces have no names. Each belongs to a process that waits for the end of a pipe, so the
kernel removes them, and the links with them, however the test run ends.
"""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from enum import Enum
from functools import cache
from typing import Self

#: Set apart for tests of network equipment (RFC 2544): 512 networks of up to 62 machines.
_NETWORKS = [f"198.{18 + n // 256}.{n % 256}" for n in range(512)]
_MACHINES = range(1, 63)
_ATTEMPTS = 20


class CannotMakeMachines(Exception):
    """This process may not make namespaces, or iproute2 is not installed."""


class Way(Enum):
    """Which packets of a link are dropped, as seen from the machine."""

    TO = "to"  #: what the machine sends to the server
    FROM = "from"  #: what the server sends to the machine
    BOTH = "both"


class _Namespace:
    """A network namespace that lives as long as this process, and as anybody in it."""

    def __init__(self) -> None:
        self._holder = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "echo; exec cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # Ctrl-C at a terminal is for pytest, which then takes down what it made.
            start_new_session=True,
        )
        assert self._holder.stdout is not None
        if not self._holder.stdout.readline():
            raise CannotMakeMachines(_told(self._holder.communicate()[1]))
        self.pid = self._holder.pid
        #: Put this before a command, and it runs there, under the same pid.
        self.entrance = ("nsenter", f"--net=/proc/{self.pid}/ns/net")
        self.configure("link set lo up")

    def configure(self, *lines: str) -> None:
        """Run commands of ``ip`` in it."""
        _ip(*lines, entrance=self.entrance)

    def close(self) -> None:
        """Remove it, unless somebody is still in it."""
        self._holder.communicate()


class Machine:
    """A place with an address of its own, whose links can be cut."""

    def __init__(self, name: str, address: str, entrance: tuple[str, ...], link: Link) -> None:
        self.name = name
        self.address = address
        #: Put this before a command, and it runs there, under the same pid.
        self.entrance = entrance
        self.link = link

    @contextmanager
    def without(self, port: int | None = None, way: Way = Way.BOTH) -> Iterator[None]:
        """Cut the link to the server at ``port`` (or to all) while the block runs."""
        self.cut(port, way)
        try:
            yield
        finally:
            self.mend(port, way)

    def cut(self, port: int | None = None, way: Way = Way.BOTH) -> None:
        """Drop every packet to, or from, the server at ``port``; to and from all, if None."""
        self.link.change("add", port, way)

    def mend(self, port: int | None = None, way: Way = Way.BOTH) -> None:
        """Undo a ``cut``, which must have been made by the same words."""
        self.link.change("del", port, way)


class Link:
    """The way between a machine and the servers, as the router sees it."""

    def __init__(self, router: _Namespace, server: str, machine: str) -> None:
        self._router = router
        self._server = server
        self._machine = machine

    def change(self, verb: str, port: int | None, way: Way) -> None:
        """Add or delete the rules that drop packets."""
        port_there = f"ipproto tcp dport {port}" if port else ""
        port_here = f"ipproto tcp sport {port}" if port else ""
        there = f"from {self._machine} to {self._server} {port_there} blackhole"
        here = f"from {self._server} to {self._machine} {port_here} blackhole"
        chosen = {Way.TO: [there], Way.FROM: [here], Way.BOTH: [there, here]}[way]
        self._router.configure(*(f"rule {verb} priority 100 {rule}" for rule in chosen))


class Network:
    """A router and its link to this machine. A context manager; so is each machine.

    Raises CannotMakeMachines where that is not allowed.
    """

    def __init__(self) -> None:
        with ExitStack() as stack:
            self._router = _Namespace()
            stack.callback(self._router.close)
            self._prefix, name = _connect(self._router)
            stack.callback(_ip, f"link delete {name}")
            #: Where machines reach the servers: these have to listen on it.
            self.address = f"{self._prefix}.1"
            self._router.configure(
                "link set uplink up",
                f"address add {self._prefix}.2/30 dev uplink",
            )
            _run([*self._router.entrance, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"])
            self._free = list(reversed(_MACHINES))
            self._closing = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._closing.close()

    @contextmanager
    def machines(self, *names: str) -> Iterator[list[Machine]]:
        """Give machines of these names, which are gone after the block."""
        with ExitStack() as stack:
            yield [stack.enter_context(self._machine(name)) for name in names]

    @contextmanager
    def _machine(self, name: str) -> Iterator[Machine]:
        number = self._free.pop()
        near, far = f"{self._prefix}.{4 * number + 1}", f"{self._prefix}.{4 * number + 2}"
        namespace = _Namespace()
        try:
            self._router.configure(
                f"link add m{number} type veth peer name eth0 netns {namespace.pid}",
                f"address add {near}/30 dev m{number}",
                f"link set m{number} up",
            )
            namespace.configure(
                f"address add {far}/30 dev eth0",
                "link set eth0 up",
                f"route add default via {near}",
            )
            yield Machine(name, far, namespace.entrance, Link(self._router, self.address, far))
        finally:
            # The link goes now, whoever may still be in the namespace; its rules drop nobody else.
            self._router.configure(f"link delete m{number}")
            self._router.configure(*_rules_of(self._router, far))
            namespace.close()
            self._free.append(number)


@cache
def can_make_machines() -> bool:
    """Tell whether this process may make namespaces and link them to its own."""
    try:
        with Network() as network, network.machines("trial"):
            return True
    except (CannotMakeMachines, OSError):
        return False


def _connect(router: _Namespace) -> tuple[str, str]:
    """Link the router to this machine by a network of its own.

    Return the network's first three numbers and the link's name.
    """
    for prefix in random.sample(_NETWORKS, _ATTEMPTS):
        name = "qw" + "".join(f"{int(part):03d}" for part in prefix.split(".")[1:])
        try:
            # The name is the claim: another run that chose the same numbers has it already.
            _ip(f"link add {name} type veth peer name uplink netns {router.pid}")
        except CannotMakeMachines as error:
            if "File exists" in str(error):
                continue
            raise
        _ip(
            f"address add {prefix}.1/30 dev {name}",
            f"link set {name} up",
            f"route add {prefix}.0/24 via {prefix}.2",
        )
        return prefix, name
    raise CannotMakeMachines("every network that was tried is in use")


def _rules_of(router: _Namespace, address: str) -> list[str]:
    listed = _run([*router.entrance, "ip", "rule", "list", "priority", "100"])
    rules = (line.partition(":")[2].strip() for line in listed.splitlines())
    return [f"rule delete priority 100 {rule}" for rule in rules if address in rule.split()]


def _ip(*lines: str, entrance: tuple[str, ...] = ()) -> None:
    if lines:
        _run([*entrance, "ip", "-batch", "-"], stdin="\n".join(lines) + "\n")


def _run(command: list[str], stdin: str = "") -> str:
    done = subprocess.run(
        command,
        input=stdin,
        env={**os.environ, "LC_ALL": "C"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    if done.returncode:
        raise CannotMakeMachines(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def _told(text: bytes) -> str:
    return text.decode(errors="replace").strip()
