"""``qworker publish``: one event from arguments, or JSON lines."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click
import orjson

from worker.cli.compose import KEYLESS, Composer, Wanted, WrongMessage
from worker.cli.lines import Bare, Source, reader
from worker.cli.loading import load
from worker.cli.options import SettingsCommand, WholeNumber, example, settings_options
from worker.cli.output import emit, interruptible, note
from worker.cli.stream import Stream
from worker.codec import Codec
from worker.config import load_settings, mask_url
from worker.errors import Unroutable, UsageError
from worker.publisher import Publisher
from worker.stores.sqlite import path_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from worker.app import App
    from worker.config import Settings

_SERVICE = "cli"
_DASH = "-"
_UNCLEAR = "it may or may not be published; --id {} publishes it again, and no handler runs twice"


@click.command(
    cls=SettingsCommand,
    epilog=example(
        "qworker publish user.deposited --key u1 user_id=u1 amount=10",
        'qworker publish user.deposited --key u1 --json \'{"user_id": "u1", "amount": "10"}\'',
        "qworker publish mailer.send_email --command --to mailer user_id=u1 text=Hello",
        "qworker publish --file events.jsonl",
        "qworker publish --file rows.jsonl --name file.changed --key-field path",
    ),
)
@settings_options(
    "app",
    "broker",
    "connect_timeout",
    "confirm_timeout",
    "max_message_bytes",
    "events_exchange",
    "commands_exchange",
    "event_format",
)
@click.argument("event", metavar="[NAME]", required=False)
@click.argument("fields", metavar="[FIELD=TEXT|FIELD:=JSON]...", nargs=-1)
@click.option("--json", "payload", metavar="JSON", help="The payload, instead of fields.")
@click.option("--key", metavar="TEXT", help="What orders the event. [default: its class's key]")
@click.option("--id", "message_id", metavar="TEXT", help="The event's id. [default: a new one]")
@click.option("--to", metavar="SERVICE", help="Send a command to this service.")
@click.option("--command", "is_command", is_flag=True, help="It is a command: --to is needed.")
@click.option("--header", "headers", metavar="NAME=TEXT", multiple=True, help="(repeatable)")
@click.option("--priority", type=WholeNumber(0, 255), metavar="N", help="Its priority.")
@click.option("--transient", is_flag=True, help="It need not survive a restart of the broker.")
@click.option("--file", "file", metavar="FILE", help="JSON lines; '-' is standard input.")
@click.option("--name", metavar="NAME", help="Lines are bare payloads of events of this name.")
@click.option("--key-field", metavar="PATH", help="Where in a bare payload the key is.")
@click.option("--id-field", metavar="PATH", help="Where in a bare payload the id is.")
@click.option("--from-line", type=WholeNumber(1), metavar="N", help="Leave out what is before.")
def publish(options: dict[str, Any], event: str | None, file: str | None, **given: Any) -> int:
    """Publish one event and print its id, or publish a file of JSON lines.

    With --file FILE or '-' (standard input) each line is an object {"name": …, "payload": {…}}
    that may have "key", "id", "to", "headers", "priority" and "transient"; or, with --name, a
    payload. Everything is confirmed by the broker. A line that cannot be published ends the
    command, after all lines before it are confirmed, and --from-line goes on there.

    With --app names and payloads are checked against the app's classes, which also give the key
    and the recipient, and tell where a TEXT is a number, say: count=3 is one where the class has an
    int.
    """
    if file is None and event == _DASH:
        file, event = _DASH, None
    _check_usage(event, file, given)
    headers = dict(_split(text, "--header") for text in given["headers"])
    if event is not None:
        wanted = Wanted(
            name=event,
            payload=_payload(given["payload"], given["fields"]),
            key=given["key"],
            id=given["message_id"],
            to=given["to"],
            headers=headers,
            priority=given["priority"],
            transient=given["transient"],
            texts=frozenset(_texts(given["fields"])),
        )
        return _publish_one(options, wanted)
    bare = None
    if given["name"] is not None:
        bare = Bare(given["name"], given["key_field"], given["id_field"], given["to"])
    read = reader(bare, headers, given["priority"], transient=given["transient"])
    app, settings = _setting(options)
    _check_there(settings.broker)
    source = Source(str(file))
    publisher, composer = _parts(app, settings)
    try:
        return Stream(publisher, composer, read, source).run(given["from_line"] or 1)
    finally:
        source.close()
        publisher.close()


def _publish_one(options: Mapping[str, object], wanted: Wanted) -> int:
    app, settings = _setting(options)
    publisher, composer = _parts(app, settings)
    outgoing = composer.compose(wanted)
    _check_there(settings.broker)
    try:
        with interruptible(_UNCLEAR.format(outgoing.message_id)), publisher:
            publisher.send(outgoing)
    except Unroutable as error:
        if not composer.is_event(outgoing):
            raise Unroutable(f"{error} (on {mask_url(settings.broker)})") from None
        note(f"qworker: {wanted.name}: {composer.unheard}")
    finally:
        publisher.close()
    for line in composer.strange():
        note(f"qworker: {line}")
    if composer.keyless:
        note(f"qworker: {wanted.name}: {KEYLESS}")
    emit(outgoing.message_id)
    return 0


def _setting(options: Mapping[str, object]) -> tuple[App | None, Settings]:
    if options.get("app") or load_settings(options).app:
        return load(options)
    return None, load_settings(options)


def _parts(app: App | None, settings: Settings) -> tuple[Publisher, Composer]:
    codec = Codec.of(app.name if app is not None else _SERVICE, settings)
    return Publisher(codec, settings), Composer(codec, app, settings.broker)


def _check_there(broker: str) -> None:
    """Raise UsageError for an SQLite broker without a file: publishing would make an empty one."""
    if broker.startswith("sqlite:") and not path_of(broker, "broker").exists():
        raise UsageError(
            f"{broker}: there is no such file, so no service has ever run there, and nothing was"
            " published: start the service there once (or 'qworker topology --declare'), or say"
            " another --broker"
        )


def _check_usage(event: str | None, file: str | None, given: Mapping[str, Any]) -> None:
    """Raise click.UsageError where one event and many are mixed, or neither is said."""
    of_one = {"fields": "fields", "payload": "--json", "key": "--key", "message_id": "--id"}
    of_many = {"name": "--name", "key_field": "--key-field", "id_field": "--id-field"}
    if event is None and file is None:
        raise click.UsageError("name an event, or say --file FILE ('-' is standard input)")
    if event is not None and file is not None:
        raise click.UsageError(f"either the event {event!r}, or --file; lines say their names")
    refused = of_one if file is not None else {**of_many, "from_line": "--from-line"}
    for name, shown in refused.items():
        if given[name]:
            what = "one event from arguments" if refused is of_one else "lines (--file)"
            raise click.UsageError(f"{shown} is for {what}")
    for name in ("key_field", "id_field", "to"):
        if file is not None and given[name] and given["name"] is None:
            shown = of_many.get(name, "--to")
            raise click.UsageError(f"{shown} is for bare payloads: say their --name as well")
    if given["is_command"] and given["to"] is None:
        raise click.UsageError("a command has one recipient: --to SERVICE")
    if given["payload"] is not None and given["fields"]:
        raise click.UsageError("either fields or --json")


def _payload(text: str | None, fields: tuple[str, ...]) -> bytes:
    """Return the payload as JSON, numbers as they were written. Raises WrongMessage."""
    if text is not None:
        return _json(text, "--json")
    parts = []
    for field in fields:
        name, value = _split(field, "field")
        is_json = name.endswith(":")
        shown = value if is_json else json.dumps(value, ensure_ascii=False)
        key = json.dumps(name.removesuffix(":"), ensure_ascii=False)
        parts.append(_json(key, field) + b": " + _json(shown, field))
    return b"{" + b", ".join(parts) + b"}"


def _texts(fields: tuple[str, ...]) -> list[str]:
    """Return the names of the fields that were given as bare texts."""
    names = [_split(field, "field")[0] for field in fields]
    return [name for name in names if not name.endswith(":")]


def _json(text: str, what: str) -> bytes:
    """Return ``text`` as bytes if it is JSON as consumers read it. Raises WrongMessage."""
    try:
        encoded = text.strip().encode()
        orjson.loads(encoded)
    except ValueError as error:  # also where the terminal sent what is not UTF-8
        raise WrongMessage(f"{what}: {text!r} is not JSON: {error}") from None
    return encoded


def _split(text: str, what: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip(":"):
        json_too = ", or NAME:=JSON (a number, say)" if what == "field" else ""
        raise click.UsageError(f"{what} {text!r}: write NAME=TEXT{json_too}")
    return name, value
