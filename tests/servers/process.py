"""What the private servers have in common: a process, a port, a folder, and deadlines."""

from __future__ import annotations

import os
import pwd
import random
import resource
import shutil
import signal
import socket
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import cycle
from pathlib import Path
from typing import ClassVar, Self

from processes import stands_still
from servers.guard import Guard
from waiting import until

#: More than any run has.
_WORKERS = 8
_START_SECONDS = 60.0
_STOP_SECONDS = 30.0
#: A broker holds a file for each queue and connection; the usual soft limit of 1024 starves it.
_OPEN_FILES = 65_536
_LOG_LINES_SHOWN = 30


class MissingServer(Exception):
    """A server's program is not installed. Tests fail on it; they never skip."""


class ServerFailed(Exception):
    """A server ended while it should have been starting; the text has the end of its log."""


class Server(ABC):
    """A server of this test run's own. ``start`` and ``stop`` as often as a test likes.

    The port and the data stay the same from one start to the next. Not thread-safe.
    RabbitMQ and Redis can be had at another address of this machine as well.
    """

    #: The signal that the server takes as "end in good order".
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM

    def __init__(self, folder: Path, guard: Guard, *, also_at: str = "") -> None:
        self.folder = folder
        #: Where to listen: on this machine, and for others where they have an address to reach.
        self.addresses = ["127.0.0.1", also_at] if also_at else ["127.0.0.1"]
        self.log = folder / "server.log"
        self._guard = guard
        self._process: subprocess.Popen[bytes] | None = None
        self._prepared = False
        (self.port,) = free_ports(1)

    @property
    @abstractmethod
    def url(self) -> str:
        """Where clients connect to."""

    @abstractmethod
    def command(self) -> Sequence[str | Path]:
        """Return the command that runs the server in the foreground, as one process."""

    @abstractmethod
    def answers(self) -> bool:
        """Tell whether a client would be served now."""

    def environment(self) -> Mapping[str, str]:
        """Return the server's environment."""
        return os.environ

    def user(self) -> str | None:
        """Return the user to run as, or None for the user of the tests."""
        return None

    @abstractmethod
    def prepare(self) -> None:
        """Do what has to be done once, before the first start."""

    @property
    def pid(self) -> int | None:
        """The process id while the server runs."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def start(self) -> None:
        """Start the server unless it runs, and wait until it answers."""
        if self.pid is not None:
            return
        if not self._prepared:
            self.prepare()
            self._prepared = True
        self._process = self.spawn(self.command())
        try:
            until(self._is_up, _START_SECONDS)
        except AssertionError:
            raise ServerFailed(self.report(f"ran {_START_SECONDS:g} s without answering")) from None

    def stop(self) -> None:
        """Stop in good order: everything that was acknowledged is on disk."""
        self._end(self.stop_signal)

    def kill(self) -> None:
        """End at once with SIGKILL, as the kernel does to a process when memory is short."""
        self._end(signal.SIGKILL)

    @contextmanager
    def standing_still(self) -> Iterator[None]:
        """Let the server hang without a word (SIGSTOP) while the block runs.

        Its kernel goes on: it accepts connections and takes bytes.
        """
        pid = self.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        try:
            until(lambda: stands_still(pid), message="the server stands still")
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def restart(self) -> None:
        """Stop in good order and start with the same data."""
        self.stop()
        self.start()

    def close(self) -> None:
        """End the server for good and remove its data; the log stays."""
        self._end(signal.SIGKILL)
        for entry in self.folder.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def spawn(self, command: Sequence[str | Path]) -> subprocess.Popen[bytes]:
        """Run ``command`` in a session of its own, which the guard watches."""
        user = self.user()
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        limit = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                ["sh", "-c", f'ulimit -n {limit}; exec "$@"', "sh", *command],
                cwd=self.folder,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C at a terminal is for pytest, which then ends the servers in its order.
                start_new_session=True,
                user=user,
                group=pwd.getpwnam(user).pw_gid if user else None,
                extra_groups=[] if user else None,
            )
        self._guard.watch(process.pid)
        return process

    def end(self, process: subprocess.Popen[bytes], how: signal.Signals) -> None:
        """Signal ``process`` and wait for its end; past a deadline, kill it."""
        process.send_signal(how)
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise ServerFailed(self.report(f"ignored {how.name}")) from None
        finally:
            self._guard.forget(process.pid)

    def report(self, what: str) -> str:
        """Return an error text: what went wrong, and what the server said last."""
        lines = self.log.read_text(errors="replace").splitlines()[-_LOG_LINES_SHOWN:]
        return f"{type(self).__name__} {what}. The end of {self.log}:\n" + "\n".join(lines)

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None:
            self.end(process, how)

    def _is_up(self) -> bool:
        assert self._process is not None
        if (code := self._process.poll()) is not None:
            self._guard.forget(self._process.pid)
            raise ServerFailed(self.report(f"ended with code {code} instead of starting"))
        return self.answers()


def free_ports(count: int) -> list[int]:
    """Return ports of the loopback interface that nobody listens on, all different.

    They lie below the range that the kernel takes the ports of outgoing connections from.
    Otherwise, while a server is stopped, another socket could take its port, or a client that
    keeps trying to reconnect could reach itself (both ends of a loopback connection being equal).
    So does the port 10,000 above each, which is free too: there is the bus of a Redis Cluster.
    Workers of one run take theirs from sets of their own, and take each once in a long while: a
    server that was given one may not listen before some seconds have passed.
    """
    ports: list[int] = []
    with ExitStack() as held:
        while len(ports) < count:
            port = next(_PORTS)
            try:
                for number in (port, port + 10_000):
                    held.enter_context(socket.socket()).bind(("127.0.0.1", number))
            except OSError:
                continue
            ports.append(port)
    return ports


def _own_ports() -> Iterator[int]:
    """Yield the ports of this worker, again and again, from one at random on."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _WORKERS
    ports = range(15_000 + worker, 22_000, _WORKERS)
    first = random.randrange(len(ports))
    return cycle([*ports[first:], *ports[:first]])


_PORTS = _own_ports()


def find_program(name: str, *, package: str, places: Sequence[Path] = ()) -> Path:
    """Return the program ``name`` from ``places`` (first wins) or from PATH.

    Raises MissingServer, whose text says how to install the Debian ``package``.
    """
    for place in places:
        if os.access(place / name, os.X_OK):
            return place / name
    if found := shutil.which(name):
        return Path(found)
    raise MissingServer(
        f"{name} is not installed. Run `make servers`, or: apt-get install {package}"
    )
