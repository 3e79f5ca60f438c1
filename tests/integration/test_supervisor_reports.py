"""What the outside sees of a running service: probes, metrics, status, systemd."""

from __future__ import annotations

import os
import signal
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError

import pytest

from supervised import Supervised
from waiting import until


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Supervised]:
    """A service that is not started yet."""
    supervised = Supervised(tmp_path)
    yield supervised
    supervised.end()


def get(service: Supervised, path: str) -> tuple[int, str]:
    url = f"http://{service.status()['http']}{path}"
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_probes_follow_the_service_from_start_to_drain(service: Supervised) -> None:
    service.behave(only=1, open="hang", drain_takes=1)
    service.start(http="127.0.0.1:0")
    until(lambda: service.status().get("http"))

    assert get(service, "/live")[0] == 200
    assert get(service, "/ready")[0] == 503

    service.behave(drain_takes=1)
    os.kill(service.journal("boot")[-1].pid, signal.SIGKILL)
    until(lambda: get(service, "/ready")[0] == 200)

    service.signal(signal.SIGTERM)
    until(lambda: service.status()["state"] == "draining")
    assert get(service, "/live")[0] == 200
    assert get(service, "/ready")[0] == 503
    assert service.exit_code() == 0


def test_a_process_that_hangs_makes_the_service_not_live_until_it_is_replaced(
    service: Supervised,
) -> None:
    service.start_ready(http="127.0.0.1:0", watchdog=1.0)

    os.kill(service.processes()[0], signal.SIGSTOP)

    until(lambda: get(service, "/live")[0] == 503)
    until(lambda: get(service, "/live")[0] == 200)
    until(lambda: get(service, "/ready")[0] == 200)


def test_counters_do_not_fall_when_a_process_dies(service: Supervised) -> None:
    service.start_ready(http="127.0.0.1:0", shards=2, processes=2)
    until(lambda: "qworker_received_total" in get(service, "/metrics")[1])
    until(lambda: service.status()["counters"].get("received") == 14)

    os.kill(service.processes()[0], signal.SIGKILL)
    until(lambda: service.status()["restarts"] == 1)
    until(lambda: service.status()["ready"])

    until(lambda: service.status()["counters"]["received"] == 21)
    text = get(service, "/metrics")[1]
    assert 'qworker_received_total{service="bank"} 21.0' in text
    assert 'qworker_process_ends_total{service="bank"} 1.0' in text


def test_a_port_that_is_taken_ends_the_start_in_plain_words(service: Supervised) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        service.start(http=f"127.0.0.1:{taken.getsockname()[1]}")

        assert service.exit_code() == 3
    assert "qworker: http: cannot listen on 127.0.0.1:" in service.log
    assert "Traceback" not in service.log


def test_a_run_folder_that_cannot_be_used_is_no_reason_not_to_work(service: Supervised) -> None:
    service.run_folder.write_text("not a folder")

    service.start()
    until(lambda: "ready: 2 processes" in service.log)

    assert "no status file" in service.log
    service.signal(signal.SIGTERM)
    assert service.exit_code() == 0


class Systemd:
    """Hears what a service tells systemd."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self.heard: list[str] = []

    def listen(self) -> list[str]:
        """Return all that was heard until now."""
        while True:
            try:
                self.heard.append(self._socket.recv(4096).decode())
            except BlockingIOError:
                return self.heard

    def states(self) -> list[str]:
        """Return the states that were told, without the texts."""
        firsts = [message.partition("\n")[0] for message in self.listen()]
        return [first for first in firsts if not first.startswith(("STATUS", "WATCHDOG"))]


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    """A socket as systemd has one for each service."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.setblocking(False)
        yield Systemd(sock)


def test_systemd_hears_of_ready_reload_and_stop(
    service: Supervised, systemd: Systemd, tmp_path: Path
) -> None:
    service.start_ready({"NOTIFY_SOCKET": str(tmp_path / "notify")})
    assert systemd.states() == ["READY=1"]

    service.signal(signal.SIGHUP)
    until(lambda: systemd.states() == ["READY=1", "RELOADING=1", "READY=1"], 20)
    service.signal(signal.SIGTERM)
    assert service.exit_code() == 0

    assert systemd.states() == ["READY=1", "RELOADING=1", "READY=1", "STOPPING=1"]
    assert "STATUS=running, 2 of 2 processes ready" in systemd.heard
    assert all("WATCHDOG" not in message for message in systemd.heard)


def test_nobody_hears_of_ready_before_every_process_has_declared(
    service: Supervised, systemd: Systemd, tmp_path: Path
) -> None:
    late = {"open": "late", "declare": "unreachable", "away": True}
    service.behave(**late, only=1)
    service.start({"NOTIFY_SOCKET": str(tmp_path / "notify")}, http="127.0.0.1:0")
    until(lambda: service.log.count("broker.invalid does not answer") >= 2, 20)
    until(lambda: "1 of 2 processes ready" in service.status()["text"])

    status = service.status()
    assert status["text"] == "starting, 1 of 2 processes ready, waiting for the broker"
    assert not status["ready"]
    assert status["live"]
    assert get(service, "/ready")[0] == 503
    assert systemd.states() == []
    assert "ready: 2 processes" not in service.log

    service.behave(open="late")
    until(lambda: service.status()["ready"], 20)
    assert service.status()["text"] == "running, 2 of 2 processes ready"
    assert systemd.states() == ["READY=1"]
    assert "ready: 2 processes" in service.log


def test_the_watchdog_of_systemd_hears_of_life_only_while_every_process_gives_signs_of_it(
    service: Supervised, systemd: Systemd, tmp_path: Path
) -> None:
    environ = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "400000"}
    service.start_ready(environ, watchdog=1.0)
    until(lambda: systemd.listen().count("WATCHDOG=1") >= 5)

    os.kill(service.processes()[0], signal.SIGSTOP)
    until(lambda: not service.status()["live"])
    heard = len(systemd.listen())
    until(lambda: "killing process 0" in service.log)  # a second after its stack was asked for

    assert systemd.listen()[heard:].count("WATCHDOG=1") <= 1
    until(lambda: systemd.listen()[heard:].count("WATCHDOG=1") >= 5)
