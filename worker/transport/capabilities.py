"""What the broker behind a URL can do, and a kombu connection to it.

A URL is ``amqp(s)://…`` (several, by ``;``, fail over; of TLS see ``tls.py``), ``sqlite:///file``
or ``memory://name``. What the runtime needs of any is in ``worker.testing.transport_suite``.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import amqp.exceptions
from kombu.connection import Connection

from worker.brokerurl import amqp_mistake, broker_mistakes
from worker.config import mask_url
from worker.errors import BrokerUnreachable, ConfigurationError
from worker.transport.tls import split_tls

#: After so many heartbeats that stay away a connection is lost; no call waits longer than that.
_MISSED_HEARTBEATS = 2
#: Seconds that the broker may leave a call (a declaration, say) without an answer: less than the
#: watchdog of a process allows, whose loop stands still meanwhile. And without heartbeats, where
#: no loop does.
_LOOP_PATIENCE, _PATIENCE = 15.0, 60.0

_SQLITE = "worker.transport.sqlite:Transport"
_MEMORY = "worker.transport.memory:Transport"


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What the runtime must know of a broker before it uses it."""

    scheme: str
    #: Its connection has a socket that becomes readable; else it is polled.
    has_socket: bool
    #: It runs inside the processes that use it, on one machine.
    embedded: bool
    #: Commits are its confirms, so a batch is published in one step.
    publishes_batches: bool
    #: It knows queue types (quorum, classic).
    has_queue_types: bool
    #: It spreads keys over shards by itself, and lastingly so; else publishers name a slot.
    spreads_keys: bool


_AMQP = Capabilities("amqp", True, False, False, True, False)
_EMBEDDED_SQLITE = Capabilities("sqlite", False, True, True, False, True)
_EMBEDDED_MEMORY = Capabilities("memory", False, True, True, False, True)


def capabilities_of(url: str) -> Capabilities:
    """Return what the broker behind ``url`` can do. Raises ConfigurationError if unknown."""
    match url.split(":", 1)[0]:
        case "amqp" | "amqps":
            return _AMQP
        case "sqlite":
            return _EMBEDDED_SQLITE
        case "memory":
            return _EMBEDDED_MEMORY
        case _:
            raise ConfigurationError("; ".join(broker_mistakes(url)) or "it names no broker")


def connect(url: str, *, heartbeat: float, timeout: float, name: str) -> Connection:
    """Return an open connection to the first of the URLs that answers.

    ``name`` is shown by the broker's own tools. Tries each URL once within ``timeout`` seconds.
    Later calls on the connection, and what they write, wait for the broker no longer than for two
    heartbeats or 15 s (60 s without heartbeats); then the connection counts as lost. Raises
    BrokerUnreachable, or ConfigurationError where trying again is of no use.
    """
    able = capabilities_of(url)
    if able.embedded:
        connections = [_embedded(url, able)]
    else:
        told = {"connection_name": name, "product": "qworker"}
        connections = [_amqp(part, heartbeat, timeout, told) for part in url.split(";") if part]
    errors = []
    for connection in connections:
        # Of an embedded one kombu's own URL has the transport in it, which nobody typed.
        shown = mask_url(url if able.embedded else connection.as_uri())
        try:
            # connect() would try twice, and sleep in between.
            connection.ensure_connection(max_retries=0, reraise_as_library_errors=False)
        except amqp.exceptions.AccessRefused as error:
            connection.release()
            refusal = "" if able.embedded else "the broker refuses the user or the virtual host: "
            raise ConfigurationError(f"{shown}: {refusal}{error.reply_text or error}") from None
        except ssl.SSLCertVerificationError as error:
            connection.release()
            raise ConfigurationError(
                f"{shown}: the broker's certificate is not trusted: {error.verify_message};"
                " ?ssl_ca_certs=FILE names the authority that signed it"
            ) from None
        except (TimeoutError, *connection.connection_errors, OSError) as error:
            connection.release()
            if able.embedded and not isinstance(error, connection.recoverable_connection_errors):
                raise ConfigurationError(f"{shown}: {error}") from None
            if isinstance(error, amqp.exceptions.NotAllowed) and "not found" in str(error):
                raise ConfigurationError(
                    f"{shown}: the broker has no such virtual host: {error}"
                ) from None
            errors.append(mask_url(f"{shown}: {error or type(error).__name__}"))
        else:
            if able.has_socket:
                silence = min(_MISSED_HEARTBEATS * heartbeat, _LOOP_PATIENCE) or _PATIENCE
                connection.connection.transport.sock.settimeout(silence)
            return connection
    raise BrokerUnreachable("the broker does not answer: " + "; ".join(errors))


def _amqp(url: str, heartbeat: float, timeout: float, told: dict[str, str]) -> Connection:
    if mistake := amqp_mistake(url):
        raise ConfigurationError(f"a broker's URL: {mistake}")
    address, tls = split_tls(url)
    return Connection(
        address,
        ssl=tls,
        heartbeat=heartbeat,
        connect_timeout=timeout,
        transport_options={"client_properties": told},
    )


def _embedded(url: str, able: Capabilities) -> Connection:
    path = sqlite_path(url) if able.scheme == "sqlite" else unquote(url.partition("://")[2])
    transport: Any = _SQLITE if able.scheme == "sqlite" else _MEMORY
    return Connection(transport=transport, virtual_host=path or "default")


def is_missing(url: str) -> bool:
    """Whether the broker is a file that is not there: looking at it must not create it."""
    return capabilities_of(url).scheme == "sqlite" and not Path(sqlite_path(url)).exists()


def sqlite_path(url: str) -> str:
    """Return the file of ``sqlite:///relative`` or ``sqlite:////absolute``.

    Raises ConfigurationError where there is none, or where its folder does not exist.
    """
    rest = url.partition("://")[2].partition("?")[0]
    if not rest.startswith("/") or rest == "/":
        raise ConfigurationError(f"{url}: write sqlite:///file, or sqlite:////folder/file")
    path = unquote(rest[1:])
    folder = Path(path).absolute().parent
    if not folder.is_dir():
        raise ConfigurationError(f"{url}: there is no folder {folder}")
    return path
