"""A private RabbitMQ node with its own name service, no plugins, and virtual hosts to give away."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from time import monotonic, sleep

from servers.certificates import Certificates, certify
from servers.guard import Guard
from servers.process import Server, ServerFailed, find_program, free_ports

#: Seconds within which a node takes a connection, and between two tries.
_CONNECTING, _PAUSE = 10.0, 0.1
#: Debian's scripts in PATH switch to the user rabbitmq and her folders; these do not.
_SCRIPTS = [Path("/usr/lib/rabbitmq/bin")]

_CONFIGURATION = """\
[{rabbit, [{tcp_listeners, [%(listeners)s]},
           {ssl_listeners, [{"127.0.0.1", %(tls_port)d}]},
           {ssl_options, [{cacertfile, "authority.pem"}, {certfile, "server.pem"},
                          {keyfile, "server.pem"}, {verify, verify_peer},
                          {fail_if_no_peer_cert, false}]},
           {loopback_users, []},
           {default_user, <<"guest">>}, {default_pass, <<"guest">>}]}].
"""

_ADD_VHOST = """\
ok = rabbit_vhost:add(<<"%(name)s">>, <<"tests">>),
rabbit_auth_backend_internal:set_permissions(
    <<"guest">>, <<"%(name)s">>, <<".*">>, <<".*">>, <<".*">>, <<"tests">>).
"""
_DELETE_VHOST = 'rabbit_vhost:delete(<<"%(name)s">>, <<"tests">>).'


class _NotConnected(ServerFailed):
    """The node did not take the connection."""


class RabbitMQ(Server):
    """A start takes six seconds, a virtual host twenty milliseconds: give each test its own."""

    def __init__(self, folder: Path, guard: Guard, *, also_at: str = "") -> None:
        super().__init__(folder, guard, also_at=also_at)
        self._program = find_program("rabbitmq-server", package="rabbitmq-server", places=_SCRIPTS)
        self._distribution_port, self._epmd_port, self._tls_port = free_ports(3)
        self._node = f"qworker-{self.port}@localhost"
        self._names = (f"test-{number}" for number in count(1))
        self._epmd: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The virtual host ``/``."""
        return self._url("%2F")

    def over_tls(self, url: str, host: str = "localhost") -> str:
        """Return the URL of a virtual host by TLS; the certificate is for ``localhost``."""
        return f"amqps://guest:guest@{host}:{self._tls_port}/{url.rpartition('/')[2]}"

    @property
    def certificates(self) -> Certificates:
        """What to trust it by."""
        return certify(self.folder)

    @contextmanager
    def vhost(self) -> Iterator[str]:
        """Give the URL of an empty virtual host, which is deleted afterwards."""
        self.start()
        name = next(self._names)
        self.eval(_ADD_VHOST % {"name": name})
        yield self._url(name)
        if self.pid is not None:
            self.eval(_DELETE_VHOST % {"name": name})

    def ctl(self, *arguments: str) -> str:
        """Run ``rabbitmqctl`` (about a second) and return what it prints."""
        return self._run([self._program.with_name("rabbitmqctl"), "--quiet", *arguments])

    def eval(self, erlang: str) -> str:
        """Run Erlang expressions in the node; return the last one's value as text.

        A hundred times as fast as ``ctl``, because no second Erlang machine has to start. A node
        may refuse a connection for a moment; it has done nothing then, and is asked again.
        """
        deadline = monotonic() + _CONNECTING
        while True:
            try:
                return self._ask(erlang)
            except _NotConnected:
                if monotonic() > deadline:
                    raise
                sleep(_PAUSE)

    def _ask(self, erlang: str) -> str:
        caller = shutil.which("erl_call")
        if caller is None:
            return self.ctl("eval", erlang).strip()
        answer = self._run([caller, "-n", self._node, "-e"], stdin=erlang.strip() + "\n")
        if not answer.startswith("{ok, "):
            raise ServerFailed(f"Erlang answered {answer} to:\n{erlang}")
        return answer.removeprefix("{ok, ").removesuffix("}")

    def command(self) -> Sequence[str | Path]:
        """Run the broker; its script then replaces itself by the Erlang machine."""
        return [self._program]

    def environment(self) -> Mapping[str, str]:
        """Point everything at this folder; what the system or the caller configured is not read."""
        own = {
            "HOME": self.folder,  # of the cookie
            "LC_ALL": "C.UTF-8",
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": self._epmd_port,
            "ERL_CRASH_DUMP_SECONDS": 0,
            "RABBITMQ_ADVANCED_CONFIG_FILE": self.folder / "advanced.config",
            "RABBITMQ_CONFIG_FILE": self.folder / "none.conf",
            "RABBITMQ_CONFIG_FILES": self.folder / "none",
            "RABBITMQ_CONF_ENV_FILE": self.folder / "env.conf",
            "RABBITMQ_DIST_PORT": self._distribution_port,
            "RABBITMQ_ENABLED_PLUGINS_FILE": self.folder / "enabled_plugins",
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_LOG_BASE": self.folder / "log",
            "RABBITMQ_MNESIA_BASE": self.folder / "mnesia",
            "RABBITMQ_NODENAME": self._node,
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            # Makes the script exec the Erlang machine instead of minding it: one process to signal.
            "RUNNING_UNDER_SYSTEMD": "true",
        }
        if (plugins := self.folder / "plugins").exists():
            own["RABBITMQ_PLUGINS_DIR"] = plugins
        rest = {key: value for key, value in os.environ.items() if "RABBITMQ" not in key}
        return rest | {key: str(value) for key, value in own.items()}

    def prepare(self) -> None:
        """Write the configuration and start the name service (epmd) of this node alone."""
        cookie = self.folder / ".erlang.cookie"
        cookie.write_text(secrets.token_hex(16))
        cookie.chmod(0o400)
        listeners = ", ".join(f'{{"{address}", {self.port}}}' for address in self.addresses)
        facts = {"listeners": listeners, "tls_port": self._tls_port}
        (self.folder / "advanced.config").write_text(_CONFIGURATION % facts)
        certify(self.folder)  # where the node runs
        (self.folder / "enabled_plugins").write_text("[].\n")
        (self.folder / "env.conf").touch()
        self._link_plugins()
        # Otherwise the node would start one that stays behind.
        self._epmd = self.spawn([find_program("epmd", package="erlang-base")])

    def answers(self) -> bool:
        """Ask the node itself: its port opens before it has recovered its queues."""
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            return self._ask("rabbit:is_running().") == "true"
        except (OSError, ServerFailed):
            return False

    def kill(self) -> None:
        """Kill the node with what was declared on disk.

        RabbitMQ 3.10 answers a declaration some milliseconds before it is in the file. Killed in
        between, one node in thirteen came back without a queue whose first message was confirmed
        already. Queues are declared long before the faults that the tests are about.
        """
        if self.pid is not None:
            with suppress(ServerFailed):
                self._ask("mnesia:sync_log().")
        super().kill()

    def close(self) -> None:
        """End the name service too."""
        super().close()
        if self._epmd is not None:
            self.end(self._epmd, signal.SIGKILL)

    def _url(self, vhost: str) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}/{vhost}"

    def _run(self, command: Sequence[str | Path], stdin: str = "") -> str:
        done = subprocess.run(
            command,
            input=stdin,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if done.returncode:
            words = " ".join(map(str, command))
            answer = done.stdout + done.stderr
            failed = _NotConnected if "failed to connect" in answer else ServerFailed
            raise failed(f"{words} ended with code {done.returncode}: {answer}")
        return done.stdout

    def _link_plugins(self) -> None:
        """Offer no plugins: the node reads all that it finds, for four seconds."""
        installed = next(Path("/usr/lib/rabbitmq/lib").glob("rabbitmq_server-*/plugins"), None)
        if installed is None:
            return
        (self.folder / "plugins").mkdir()
        for plugin in installed.iterdir():
            if not plugin.name.startswith("rabbitmq_") or plugin.name.startswith(
                "rabbitmq_prelaunch"
            ):
                (self.folder / "plugins" / plugin.name).symlink_to(plugin)
