"""What is wrong with the URL of a broker, told before anything connects."""

from __future__ import annotations

from difflib import get_close_matches
from urllib.parse import parse_qsl, urlsplit

SCHEMES = ("amqp", "amqps", "sqlite", "memory")
#: What an amqps:// URL may say of TLS, and the values where these are few.
TLS_OPTIONS: dict[str, tuple[str, ...]] = {
    "ssl_ca_certs": (),
    "ssl_certfile": (),
    "ssl_keyfile": (),
    "ssl_cert_reqs": ("required", "none"),
    "ssl_check_hostname": ("true", "false"),
}
#: Of those that py-amqp has, what RabbitMQ knows.
_OPTIONS = {"login_method": ("PLAIN", "AMQPLAIN", "EXTERNAL"), **TLS_OPTIONS}


def broker_mistakes(urls: str) -> list[str]:
    """Return what is wrong with ``urls`` (one, or several by ``;``). No text shows a password."""
    parts = [url for url in urls.split(";") if url]
    schemes = {url.split(":", 1)[0] for url in parts if "://" in url or "@" not in urls}
    found = []
    if any("://" not in url for url in parts) and "@" in urls:  # not shown: it may be a password
        found.append("a part of it is no URL: one has ://, and ';' in a password is %3B")
    for scheme in sorted(schemes.difference(SCHEMES)):
        near = get_close_matches(scheme, SCHEMES, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        spoken = ", ".join(f"{each}://" for each in SCHEMES)
        found.append(f"no broker speaks {scheme!r}: use one of {spoken}{hint}")
    if schemes & {"sqlite", "memory"} and ";" in urls:
        found.append("only amqp:// URLs can fail over to one another")
    found += filter(None, map(amqp_mistake, parts))
    found += [
        mistake for url in parts if url.startswith("sqlite:") and (mistake := file_mistake(url))
    ]
    return found


def file_mistake(url: str) -> str:
    """Return what is wrong with a ``sqlite:`` URL; nothing where it names a file."""
    parts = urlsplit(url)
    path = parts.path.removeprefix("/")
    if not url.startswith("sqlite://") or parts.netloc or parts.query or parts.fragment or not path:
        return (
            "write sqlite:///relative.db or sqlite:////absolute.db, without options ('?' in a name"
            " is %3F, '#' is %23)"
        )
    return "records in memory are memory://NAME" if path == ":memory:" else ""


def amqp_mistake(url: str) -> str:
    """Return what is wrong with an ``amqp(s)://`` URL; nothing where it can be meant."""
    if not url.startswith(("amqp:", "amqps:")):
        return ""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return "its port is no number from 0 to 65535; such as amqp://user:password@host:5672/vhost"
    if not parts.hostname:
        return f"it has no host; such as amqp://user:password@host:{port or 5672}/vhost"
    return _query_mistake(parts.scheme, parts.query)


def _query_mistake(scheme: str, query: str) -> str:
    # Nothing of it is shown: it may be the rest of a password.
    options = dict(parse_qsl(query, keep_blank_values=True))
    if options.keys() - _OPTIONS:
        return (
            f"the options after its '?' are {', '.join(_OPTIONS)}; heartbeat and connect_timeout"
            " are settings of their own"
        )
    if scheme != "amqps" and options.keys() & TLS_OPTIONS:
        return "the ssl_ options are for amqps://"
    for name, value in options.items():
        if not value or (_OPTIONS[name] and value not in _OPTIONS[name]):
            return f"its {name} is {_one_of(_OPTIONS[name])}"
    if "ssl_keyfile" in options and "ssl_certfile" not in options:
        return "its ssl_keyfile goes with an ssl_certfile"
    return ""


def _one_of(values: tuple[str, ...]) -> str:
    return f"one of {', '.join(values)}" if values else "the name of a file"
