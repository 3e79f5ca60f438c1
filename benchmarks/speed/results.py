"""What each run gave, kept as JSON lines: first the environment, then a line for each run."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import redis

from speed.site import Servers

FOLDER = Path(__file__).resolve().parent.parent / "results"
_DISTRIBUTIONS = (
    "qworker-runtime", "kombu", "amqp", "redis", "celery", "dramatiq", "pika", "taskiq",
    "taskiq-aio-pika", "faststream", "aio-pika", "huey",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One run of one case."""

    case: str
    group: str
    contender: str
    #: Where it is on the axis of a plot.
    x: float | None
    round: int
    finished: bool
    metrics: dict[str, float] = field(default_factory=dict)
    #: Why it did not finish.
    told: str = ""
    #: Of this machine over the last minute, when it ended.
    busy: float = field(default_factory=lambda: os.getloadavg()[0])


@dataclass(frozen=True, slots=True)
class Record:
    """All runs of a scenario."""

    environment: Mapping[str, Any]
    results: list[Result]


def path_of(scenario: str, folder: Path) -> Path:
    """Return the file of a scenario's results."""
    return folder / f"speed-{scenario}.jsonl"


def write(path: Path, record: Record) -> None:
    """Keep it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [record.environment, *map(asdict, record.results)]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def read(path: Path) -> Record:
    """Return what was kept."""
    environment, *lines = map(json.loads, path.read_text().splitlines())
    return Record(environment, [Result(**line) for line in lines])


def environment(servers: Servers, facts: Mapping[str, object]) -> dict[str, Any]:
    """Return what the figures depend on: versions, cores, and how the scenario was run."""
    with redis.Redis.from_url(servers.redis.url) as client:
        redis_version = client.info("server")["redis_version"]
    return {
        **facts,
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "cores": os.cpu_count(),
        "processor": _processor(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "RabbitMQ": _rabbitmq_version(servers),
        "Redis server": redis_version,
        "versions": dict(_versions(_DISTRIBUTIONS)),
    }


def _versions(names: Iterable[str]) -> Iterable[tuple[str, str]]:
    for name in names:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            continue


def _rabbitmq_version(servers: Servers) -> str:
    servers.rabbitmq.start()
    return servers.rabbitmq.eval("rabbit_misc:version().").strip('"')


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
