"""Settings: every option of a service in one frozen dataclass, and where each was set.

Sources, the first that says something wins: the command line, the environment (``QWORKER_…``),
``[tool.qworker]`` in pyproject.toml or ``qworker.toml``, ``App(...)``, the default. All mistakes
are told at once, each with its source; an unknown key or variable is a mistake too.
"""

from __future__ import annotations

import os
import re
import tomllib
from dataclasses import Field, dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worker.brokerurl import broker_mistakes
from worker.converting import convert, place_mistake
from worker.errors import ConfigurationError
from worker.variables import PREFIX, unknown_variables

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Up to the last @: passwords hold signs that a URL should escape. Rather too much is masked than
#: too little. Lengths are bounded, because this is searched for in texts from outside.
_PASSWORD = re.compile(
    r"""(?P<head> [a-z][a-z0-9+.-]{0,30}:// [^\s:/@]{0,255} :)
    (?:
        (?: [^\s;@]{0,1024}+ (?: ; (?![a-z][a-z0-9+.-]{0,30}://) [^\s;@]{0,255}+ ){0,8}+ @ ){1,64}+
        | (?! \d{1,5}\b )  # a port, before other words
          [^\s@]{0,1024}+ (?: [ ] (?![a-z][a-z0-9+.-]{0,30}://) [^\s@]{0,255}+ ){1,8}+ @
    )""",
    re.IGNORECASE | re.VERBOSE,
)
#: Of whatever name that ends with such a word. A semicolon ends it only before another URL.
_PASSWORD_PARAMETER = re.compile(
    r"""(?P<head> [?&] [\w.-]{0,64} (?:password|passwd|secret|token) =)
    [^\s&;]*+ (?: ; (?![a-z][a-z0-9+.-]{0,30}://) [^\s&;]*+ )*+""",
    re.IGNORECASE | re.VERBOSE,
)

#: Schemes of dedup stores whose servers can keep leases too.
_LEASE_SCHEMES = ("memory", "sqlite", "redis", "rediss", "unix", "postgresql", "postgres")
DEFAULT_BROKER = "sqlite:///qworker.db"
_MAX_SHARDS = 1024


def mask_url(text: str) -> str:
    """Return ``text`` with the password of every URL in it replaced by ``***``."""
    return _PASSWORD_PARAMETER.sub(r"\g<head>***", _PASSWORD.sub(r"\g<head>***@", text))


def _option(  # noqa: PLR0913 - one keyword for each fact of an option
    default: Any,
    help: str,  # noqa: A002 - the word that click uses
    *,
    env: str | None = None,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    shown: str = "",
) -> Any:
    """Declare a setting: its default, what it means, and which values are meant."""
    facts = {"help": help, "env": env, "low": low, "high": high, "choices": choices, "shown": shown}
    return field(default=default, metadata=facts)


_CENTURY = 100 * 365 * 86400


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Every option of a service. Durations are seconds, sizes bytes."""

    app: str = _option("", "the App: MODULE[:ATTRIBUTE]", env="QWORKER_APP")
    broker: str = _option(
        DEFAULT_BROKER,
        "amqp(s)://, sqlite:///file or memory://; several, by ';', fail over",
        env="QWORKER_BROKER_URL",
    )
    dedup: str = _option(
        "",
        "redis(s)://, postgresql://, sqlite:///file, memory:// or package.module:Class",
        env="QWORKER_DEDUP_URL",
        shown="the broker's own file, or redis://localhost:6379/0",
    )
    shards: int = _option(
        0,
        "ordered shards of this service",
        low=1,
        high=_MAX_SHARDS,
        shown="1 at the first start, then what the service has",
    )
    processes: int = _option(0, "handler processes", low=0, high=256, shown="min(cores, shards)")
    concurrency: int = _option(16, "handlers running at once in one process", low=1, high=1024)
    prefetch: int = _option(256, "unacknowledged messages a shard", low=1, high=65535)
    leases: str = _option(
        "",
        "where supervisors share shards: redis(s)://, sqlite:///file, postgresql:// or memory://",
        env="QWORKER_LEASES_URL",
        shown="the file of an SQLite broker, else the dedup store",
    )
    single_active: bool = _option(False, "the whole service is consumed by one process at a time")
    drain_timeout: float = _option(25.0, "seconds from SIGTERM to the end", low=0, high=86400)
    handlers: tuple[str, ...] = _option((), "run only these handlers")
    burst: bool = _option(
        False,
        "exit 0 as soon as every queue is empty (75: but for what is halted or paused)",
    )
    http: str = _option("", "HOST:PORT of probes and metrics", shown="off")
    log_format: str = _option(
        "", "text or json", choices=("", "text", "json"), shown="text on a terminal, else json"
    )
    log_level: str = _option(
        "info", "how much to log", choices=("debug", "info", "warning", "error")
    )
    reload: bool = _option(False, "restart the processes when the code changes")
    connect_timeout: float = _option(
        10.0, "seconds that a server may take to answer at the start", low=0.1, high=3600
    )

    heartbeat: float = _option(
        10.0, "seconds between heartbeats of an AMQP connection, 0 for none", low=0
    )
    confirm_timeout: float = _option(
        30.0, "seconds that the broker may take to confirm a message", low=0.1
    )
    watchdog: float = _option(
        30.0, "seconds without a sign of life after which a process is replaced", low=1
    )
    max_message_bytes: int = _option(
        1024 * 1024, "a longer body is dead-lettered undecoded", low=1, high=512 * 1024 * 1024
    )
    claim_ttl: float = _option(
        10.0, "seconds that a claim lives without renewal", low=0.5, high=3600
    )
    lease_ttl: float = _option(
        10.0, "seconds that the lease on a shard lives without renewal", low=1, high=3600
    )
    retention: float = _option(
        7 * 86400.0, "seconds that a done id is remembered, at least", low=60
    )
    revision_retention: float = _option(
        90 * 86400.0, "seconds that a key's last revision is remembered, at least", low=60
    )
    dedup_timeout: float = _option(
        2.0,
        "seconds that the dedup store, or the lease store, may take to answer",
        low=0.05,
        high=60,
    )
    crash_limit: int = _option(
        3, "deaths of the process in one message that dead-letter it", low=1, high=100
    )
    outage_after: int = _option(
        20, "different messages failing in a row at a handler that count as an outage", low=2
    )
    queue_type: str = _option(
        "quorum", "type of the queues on RabbitMQ", choices=("quorum", "classic")
    )
    max_priority: int = _option(
        0, "priorities of the queues, 0 for none (classic queues only)", low=0, high=255
    )
    events_exchange: str = _option("qw.events", "topic exchange of events")
    commands_exchange: str = _option("qw.commands", "direct exchange of commands")
    event_format: str = _option(
        "plain", "how events are published", choices=("plain", "cloudevents")
    )
    id_from: str = _option(
        "property:message_id",
        "where foreign publishers put the id: property:, header:, body:, or body-hash",
    )
    name_from: str = _option(
        "property:type",
        "where foreign publishers put the name: property:, header:, body:, or routing-key",
    )
    key_from: str = _option(
        "header:qw-key", "where foreign publishers put the key: property:, header:, body:"
    )

    archive: str = _option(
        "",
        "where 'qworker archive' keeps events: sqlite:///file or postgresql://",
        env="QWORKER_ARCHIVE_URL",
        shown="a file beside that of an SQLite broker",
    )
    archive_retention: float = _option(
        0.0, "seconds that an archived event is kept, 0 for ever", low=0, high=_CENTURY
    )

    @property
    def dedup_url(self) -> str:
        """The URL of the dedup store, with the default that fits the broker filled in."""
        if self.dedup:
            return self.dedup
        scheme = self.broker.split(":", 1)[0]
        if scheme in ("sqlite", "memory"):
            return self.broker.split(";", 1)[0]
        return "redis://localhost:6379/0"

    @property
    def leases_url(self) -> str:
        """The URL of the lease store; empty where nothing tells where leases could live."""
        if self.leases:
            return self.leases
        if self.broker.startswith("sqlite:"):  # its processes share a machine, and this file
            return self.broker.split(";", 1)[0]
        url = self.dedup_url
        return url if url.split(":", 1)[0] in _LEASE_SCHEMES else ""

    @property
    def leases_origin(self) -> str:
        """Why the leases are where they are, for errors that name the place; empty where said."""
        if self.leases:
            return ""
        unset = "--leases (QWORKER_LEASES_URL) is not set"
        if self.broker.startswith("sqlite:"):
            return f"{unset}, and this is the file of --broker {self.broker}"
        if self.dedup:
            return f"{unset}, and this is the dedup store of --dedup"
        broker = mask_url(self.broker)
        return f"neither --leases nor --dedup is set, and this goes with --broker {broker}"

    @property
    def first_shards(self) -> int:
        """With how many shards the service begins, where it has none yet."""
        return self.shards or 1

    @property
    def most_processes(self) -> int:
        """How many processes there can be: one for each shard, where they can share at all.

        Where ``shards`` is not set, the service may have so many.
        """
        alone = self.single_active or "memory:" in (self.broker[:7], self.dedup_url[:7])
        return 1 if alone else self.shards or _MAX_SHARDS

    @property
    def process_count(self) -> int:
        """How many processes to run: what was asked for, never more than there can be."""
        return max(1, min(self.processes or _cores(), self.most_processes))


#: Every setting by name: its default and its facts.
FIELDS: dict[str, Field[Any]] = {item.name: item for item in fields(Settings)}


def environment_name(setting: str) -> str:
    """Return the environment variable of a setting."""
    return FIELDS[setting].metadata["env"] or f"{PREFIX}{setting.upper()}"


def load_settings(
    options: Mapping[str, object],
    environ: Mapping[str, str] | None = None,
    folder: Path | None = None,
    app_settings: Mapping[str, object] | None = None,
) -> Settings:
    """Merge every source into the settings of a service.

    ``options`` holds only what the command line really gave. Raises ConfigurationError with
    every mistake of every source, a line each.
    """
    mistakes: list[str] = []
    merged: dict[str, tuple[object, str]] = {}
    for source, values in _sources(options, environ, folder, app_settings, mistakes):
        for name, value in values.items():
            if name not in FIELDS:
                near = get_close_matches(name, FIELDS, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                mistakes.append(f"{source}: there is no setting {name}{hint}")
            elif value is not None:
                merged[name] = (value, source)
    settings = Settings()
    for name, (value, source) in merged.items():
        try:
            changed: dict[str, Any] = {name: convert(FIELDS[name], value)}
            settings = replace(settings, **changed)
        except ValueError as error:
            mistakes.append(f"{_told(name, source)}: {error}")
    mistakes.extend(_conflicts(settings, {name: source for name, (_, source) in merged.items()}))
    if mistakes:
        raise ConfigurationError("\n".join(mistakes))
    return settings


def _sources(
    options: Mapping[str, object],
    environ: Mapping[str, str] | None,
    folder: Path | None,
    app_settings: Mapping[str, object] | None,
    mistakes: list[str],
) -> list[tuple[str, Mapping[str, object]]]:
    """Return every source of settings, the weakest first."""
    environ = os.environ if environ is None else environ
    found = {
        name: environ[variable]
        for name in FIELDS
        if environ.get(variable := environment_name(name), "") != ""
    }
    mistakes.extend(unknown_variables(environ, map(environment_name, FIELDS)))
    return [
        ("App(...)", dict(app_settings or {})),
        *_files(folder or Path.cwd(), mistakes),
        ("the environment", found),
        ("the command line", options),
    ]


def _files(folder: Path, mistakes: list[str]) -> list[tuple[str, dict[str, object]]]:
    found: list[tuple[str, dict[str, object]]] = []
    for file in (folder / "pyproject.toml", folder / "qworker.toml"):
        if not file.is_file():
            continue
        try:
            content: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
            mistakes.append(f"{file}: cannot be read: {error}")
            continue
        if file.name == "pyproject.toml":
            content = _section(content, "tool", "qworker", file=file, mistakes=mistakes)
        values = {name.replace("-", "_"): value for name, value in content.items()}
        if values:
            found.append((file.name, values))
    return found


def _section(
    content: dict[str, Any], *path: str, file: Path, mistakes: list[str]
) -> dict[str, Any]:
    for name in path:
        content = content.get(name, {})
        if not isinstance(content, dict):
            mistakes.append(f"{file}: [{'.'.join(path)}] is not a table")
            return {}
    return content


def _told(name: str, source: str) -> str:
    if source == "the environment":
        return environment_name(name)
    if source == "the command line":
        return "--" + _OPTION_NAMES.get(name, name).replace("_", "-")
    return f"{name} in {source}"


_OPTION_NAMES = {"handlers": "handler"}


def _conflicts(settings: Settings, sources: Mapping[str, str]) -> list[str]:
    """Return what no single setting can be blamed for."""

    def told(name: str) -> str:
        return _told(name, sources[name]) if name in sources else f"{name} (default)"

    found = [f"{told('broker')}: {mistake}" for mistake in broker_mistakes(settings.broker)]
    if settings.broker.startswith("memory:") and settings.processes > 1:
        found.append(
            f"{told('processes')}: memory:// lives in one process; leave processes at 1, or use"
            " sqlite:///"
        )
    if settings.dedup.startswith("memory:") and settings.processes > 1:
        found.append(
            f"{told('dedup')}: memory:// is one process's memory; with {settings.processes}"
            " processes use redis://, postgresql:// or sqlite:///"
        )
    if settings.max_priority and settings.queue_type == "quorum":
        found.append(
            f"{told('max_priority')}: quorum queues have no such priorities; set queue_type to"
            " classic"
        )
    if settings.single_active and settings.processes > 1:
        found.append(
            f"{told('processes')}: with single_active one process consumes at a time; leave"
            " processes at 1"
        )
    if not settings.leases_url:
        found.append(
            f"{told('dedup')}: a store of your own does not keep leases on shards; set leases to"
            " redis://, sqlite:/// or postgresql://"
        )
    if settings.retention <= settings.claim_ttl:
        found.append(f"{told('retention')}: must be longer than claim_ttl {settings.claim_ttl}")
    for name, extra in (("id_from", "body-hash"), ("name_from", "routing-key"), ("key_from", "")):
        if mistake := place_mistake(getattr(settings, name), extra):
            found.append(f"{told(name)}: {mistake}")
    return found


def _cores() -> int:
    """Return the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
