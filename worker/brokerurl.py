"""What is wrong with the URL of a broker, told before anything connects."""

from __future__ import annotations

from difflib import get_close_matches
from urllib.parse import parse_qsl, urlsplit

SCHEMES = ("amqp", "amqps", "sqlite", "memory")
#: Of those that py-amqp has, what RabbitMQ knows.
_LOGIN_METHODS = ("PLAIN", "AMQPLAIN", "EXTERNAL")


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
    return found


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
    return _query_mistake(parts.query)


def _query_mistake(query: str) -> str:
    # Nothing of it is shown: it may be the rest of a password.
    options = parse_qsl(query, keep_blank_values=True)
    if {name for name, _ in options} - {"login_method"}:
        return (
            "the one option after its '?' is login_method; heartbeat and connect_timeout are"
            " settings of their own, and TLS is amqps://"
        )
    if {value for _, value in options} - set(_LOGIN_METHODS):
        return f"its login_method is one of {', '.join(_LOGIN_METHODS)}"
    return ""
