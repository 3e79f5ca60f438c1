"""What a fake systemd hears on its socket."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from worker.supervisor.systemd import Systemd, without_notify


@pytest.fixture(params=["path", "abstract"])
def notify(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    """The value of NOTIFY_SOCKET, and the socket behind it."""
    abstract = request.param == "abstract"
    name = f"@qworker-{secrets.token_hex(8)}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("\0" + name[1:] if abstract else name)
        sock.settimeout(5)
        yield name, sock


def test_systemd_hears_of_every_state(notify: tuple[str, socket.socket]) -> None:
    address, sock = notify
    systemd = Systemd({"NOTIFY_SOCKET": address}, 1)

    systemd.ready()
    systemd.stopping(25.0)
    systemd.alive()

    assert sock.recv(1000) == b"READY=1"
    assert sock.recv(1000) == b"STOPPING=1\nEXTEND_TIMEOUT_USEC=35000000"
    assert sock.recv(1000) == b"WATCHDOG=1"


def test_a_reload_carries_the_time_that_systemd_compares(
    notify: tuple[str, socket.socket],
) -> None:
    address, sock = notify

    Systemd({"NOTIFY_SOCKET": address}, 1).reloading()

    state, stamp = sock.recv(1000).decode().split("\n")
    assert state == "RELOADING=1"
    assert stamp.startswith("MONOTONIC_USEC=")
    assert int(stamp.partition("=")[2]) > 0


def test_a_status_is_sent_when_it_changes(notify: tuple[str, socket.socket]) -> None:
    address, sock = notify
    systemd = Systemd({"NOTIFY_SOCKET": address}, 1)

    for text in ("one", "one", "two"):
        systemd.status(text)

    assert [sock.recv(1000), sock.recv(1000)] == [b"STATUS=one", b"STATUS=two"]


def test_without_systemd_nothing_happens() -> None:
    systemd = Systemd({}, 1)

    systemd.ready()

    assert systemd.interval is None


def test_a_systemd_that_is_gone_is_no_error(tmp_path: Path) -> None:
    Systemd({"NOTIFY_SOCKET": str(tmp_path / "gone")}, 1).ready()


@pytest.mark.parametrize(
    ("variables", "interval"),
    [
        ({"WATCHDOG_USEC": "60000000"}, 30.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}, 30.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "2"}, None),
        ({"WATCHDOG_USEC": "nonsense"}, None),
        ({}, None),
    ],
)
def test_signs_of_life_come_twice_as_often_as_demanded(
    variables: dict[str, str], interval: float | None
) -> None:
    assert Systemd({"NOTIFY_SOCKET": "/run/notify", **variables}, 1).interval == interval


def test_children_do_not_speak_to_systemd() -> None:
    environ = {"NOTIFY_SOCKET": "x", "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1", "PATH": "/bin"}

    assert without_notify(environ) == {"PATH": "/bin"}
