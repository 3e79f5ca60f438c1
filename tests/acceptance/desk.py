"""A service that fails, what its handlers did, and the command line beside it."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acceptance.commands import Result, Shell, depth
from processes import status_of
from waiting import until

if TYPE_CHECKING:
    from acceptance.conftest import Place  # which imports this module

PATIENCE = 60.0

_APP = """\
import os
from pathlib import Path

from worker import App, Context, Event, RetryPolicy
from worker.sharding import vacancy

# How long nothing may come back to old queues before they go. The brokers of tests are well.
vacancy.CALM = 1.0
once, patient = App("once"), App("patient")


class Step(Event, name="test.step", key="key"):
    key: str
    number: int
    fault: str = ""


def note(event, context):
    line = f"{context.handler} {event.key} {event.number}\\n"
    descriptor = os.open("effects", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(descriptor, line.encode())
    os.close(descriptor)


def count(event: Step, context: Context):
    if event.fault and not Path("mended").exists():
        raise LookupError(f"{event.fault}: no account {event.key}")
    note(event, context)


once.on(Step, retry=RetryPolicy(attempts=1))(count)
patient.on(Step, retry=RetryPolicy(attempts=1, exhausted="park_key"))(count)


@once.on(Step)
def observe(event: Step, context: Context):
    note(event, context)
"""


class Desk(Shell):
    """A shell beside a service, and what its handlers did."""

    def __init__(self, folder: Path, place: Place, app: str = "once") -> None:
        super().__init__(folder)
        self.service, self.broker = app, place.broker
        self.environ |= {
            "QWORKER_APP": f"handlers:{app}",
            "QWORKER_BROKER_URL": place.broker,
            "QWORKER_DEDUP_URL": place.dedup,
            "QWORKER_OUTAGE_AFTER": "1000000",
            # Supervisors talk with the lease store eight times in this, at each step of a change.
            "QWORKER_LEASE_TTL": "3",
        }
        self.write("handlers.py", _APP)

    def serve(self, shards: int = 2) -> None:
        """Start the service and wait until it consumes."""
        service = self.start(
            "start", "--shards", str(shards), "--processes", "1", "--log-level", "error",
            log="service.log",
        )  # fmt: skip
        run_folder = self.folder / "run"

        def is_ready_or_dead() -> bool:
            return service.poll() is not None or bool(
                status_of(service.pid, run_folder).get("ready")
            )

        until(is_ready_or_dead, PATIENCE, "it is ready")
        assert service.poll() is None, (self.folder / "service.log").read_text()

    def reshard(self, shards: int) -> None:
        """Change the number of shards of the service, which runs."""
        self.run("reshard", "--to", str(shards))

    def fail_five(self) -> None:
        """Start the service; let one handler fail for five of six steps."""
        self.serve()
        faults = [step(f"k{n}", n, "declined" if n % 2 else "unknown") for n in range(5)]
        self.publish(step("k9", 9), *faults)
        until(lambda: self.dead() == 5, PATIENCE, "five are dead")
        until(lambda: len(self.effects("observe")) == 6, PATIENCE, "the other handler did all")

    def stop(self) -> None:
        """Drain the service."""
        process = self._started[-1]
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0

    def publish(self, *steps: dict[str, Any]) -> None:
        self.run("publish", "-", stdin="\n".join(map(_line, steps)))

    def trickle(
        self, stream: subprocess.Popen[bytes], steps: Iterable[dict[str, Any]], pause: float
    ) -> None:
        """Publish by ``stream``, a ``qworker publish -``, with a pause after each; then end it."""
        assert stream.stdin is not None
        for one in steps:
            stream.stdin.write(_line(one).encode() + b"\n")
            stream.stdin.flush()
            time.sleep(pause)
        _, err = stream.communicate(timeout=PATIENCE)
        assert stream.returncode == 0, err

    def dlq(self, *arguments: str, code: int | None = 0) -> Result:
        return self.run("dlq", *arguments, code=code)

    def listed(self, *arguments: str) -> list[str]:
        """The ids that the list shows, in its order."""
        return [letter["id"] for letter in self.dlq("list", "--json", *arguments).json]

    def effects(self, handler: str) -> list[str]:
        """What the handler did, in its order."""
        file = self.folder / "effects"
        lines = file.read_text().splitlines() if file.exists() else []
        prefix = f"{self.service}.{handler} "
        return [x.removeprefix(prefix).replace(" ", "-") for x in lines if x.startswith(prefix)]

    def of_k(self) -> list[str]:
        """What the handler that counts did of the key k, in its order."""
        return [effect for effect in self.effects("count") if effect.startswith("k-")]

    def dead(self) -> int:
        return depth(self.broker, f"{self.service}.dlq")

    def parked(self) -> int:
        return depth(self.broker, f"{self.service}.parked")

    def mend(self) -> None:
        """Let faults be no faults any more."""
        self.write("mended", "")


def step(key: str, number: int, fault: str = "") -> dict[str, Any]:
    return {"key": key, "number": number, "fault": fault}


def step_id(step: dict[str, Any]) -> str:
    return f"{step['key']}-{step['number']}"


def _line(step: dict[str, Any]) -> str:
    """Return what ``qworker publish -`` reads."""
    return json.dumps(
        {"name": "test.step", "key": step["key"], "id": step_id(step), "payload": step}
    )
