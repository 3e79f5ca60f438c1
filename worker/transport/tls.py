"""TLS to the broker: what an ``amqps://`` URL says, as py-amqp's arguments.

The certificate is checked against the host of the URL and the machine's authorities unless the
URL says otherwise. The options have the names that a ``rediss://`` URL has.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from worker.brokerurl import TLS_OPTIONS
from worker.errors import ConfigurationError


def split_tls(url: str) -> tuple[str, dict[str, Any] | bool]:
    """Return the URL without its TLS options, and what kombu's ``ssl`` must be.

    ``url`` has no mistakes that :func:`worker.brokerurl.amqp_mistake` finds. Raises
    ConfigurationError where a file cannot be used.
    """
    parts = urlsplit(url)
    options = dict(parse_qsl(parts.query))
    if parts.scheme != "amqps":
        return url, False
    rest = {name: value for name, value in options.items() if name not in TLS_OPTIONS}
    address = urlunsplit(parts._replace(query=urlencode(rest)))
    arguments: dict[str, Any] = {"cert_reqs": ssl.CERT_REQUIRED}
    for option in ("ca_certs", "certfile", "keyfile"):
        if file := options.get(f"ssl_{option}"):
            arguments[option] = file
    if options.get("ssl_cert_reqs") == "none":
        arguments["cert_reqs"] = ssl.CERT_NONE
    elif options.get("ssl_check_hostname") != "false":
        arguments["server_hostname"] = parts.hostname  # with it py-amqp checks the name
    _try_files(arguments)
    return address, arguments


def _try_files(arguments: dict[str, Any]) -> None:
    """Read the files now: later a mistake would look like a broker that does not answer."""
    context = ssl.create_default_context()
    files = [arguments.get(name) for name in ("ca_certs", "certfile", "keyfile")]
    for file in filter(None, files):
        if not Path(file).is_file():
            raise ConfigurationError(f"a broker's URL: there is no file {file}")
    ca_certs, certfile, keyfile = files
    try:
        if ca_certs:
            context.load_verify_locations(ca_certs)
        if certfile:
            context.load_cert_chain(certfile, keyfile, _no_password)
    except (OSError, ValueError) as error:
        names = ", ".join(filter(None, files))
        raise ConfigurationError(
            f"a broker's URL: no certificates and keys that can be used ({names}): {error}"
        ) from None


def _no_password() -> str:
    raise ValueError("the key has a password, which nobody is here to type")
