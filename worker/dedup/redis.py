"""Records in Redis: one script call a batch, or one a hash tag in Redis Cluster.

The script (``redis.lua``) holds the rules and tells the keys. Done ids are fields of small
hashes that Redis keeps in its compact listpack form, a fifth of what a key of its own costs an
id. A hash belongs to a slot (a hash tag, made of some bits of the record) and to a generation
(the server's time divided by the width of the layout), and it expires as a whole.

The width and the number of slots are settled by whoever opens a prefix first, and stay so (key
``PREFIX`` + ``layout``): one who looked elsewhere would not find what is done. A later user with
a longer retention looks into as many generations as that takes.

Redis Cluster routes each call by a key of the call's tag that never exists. So the server that
a slot is moving away from answers ASK without running the script, and ASK is not followed: at
the other end the ids that have not moved yet would look absent. Such a batch is refused
(DedupUnavailable) until the slot has moved.
"""

from __future__ import annotations

import math
import re
import struct
import time
from contextlib import contextmanager
from difflib import get_close_matches
from hashlib import sha1
from importlib import resources
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from redis.connection import Connection, SSLConnection, UnixDomainSocketConnection
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import (
    AuthenticationError,
    AuthenticationWrongNumberOfArgsError,
    ClusterDownError,
    MovedError,
    NoPermissionError,
    NoScriptError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from worker.config import mask_url
from worker.dedup.base import (
    FINGERPRINT_BYTES,
    RECORD_BYTES,
    TOKEN_BYTES,
    Answer,
    Answers,
    Batch,
    DedupStore,
    Verdict,
)
from worker.errors import ConfigurationError, DedupUnavailable, QworkerError, StoreCorrupt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from worker.dedup.base import StoreOptions

    Address = tuple[str, int] | None
    Command = tuple[bytes | str | int, ...]

#: How many slots a store may have: the size of the tag's alphabet and the length of the tag.
_SLOTS = {4096: (64, 2), 32768: (32, 3), 262144: (64, 3), 1048576: (32, 4)}
_ALPHABET = b"abcdefghijklmnopqrstuvwxyz234567ABCDEFGHIJKLMNOPQRSTUVWXYZ0189-_"
_DEFAULT_SLOTS = 32768
_DEFAULT_PREFIX = "qw:dedup:"
#: Generations looked into at most, besides the current one.
_MOST_BACK = 16
#: How far a server's clock may step back without hiding an id, in milliseconds.
_CLOCK_MARGIN = 300_000

_SETTINGS = struct.Struct(">5Q2H")
_DETAIL = struct.Struct(">BIIQ")
_ENTRY_BYTES = RECORD_BYTES + TOKEN_BYTES + FINGERPRINT_BYTES + 1
_NO_FINGERPRINT = bytes(FINGERPRINT_BYTES)
#: In the script's reply: the answer to this entry is told in full behind the last entry.
_DETAILED = 0
_ANSWERS = {int(answer): answer for answer in (Answer.KEPT, Answer.ALREADY_DONE, Answer.STALE)}
_VERDICTS = {
    _DETAILED: Verdict(Answer.FRESH),  # to be replaced
    int(Answer.DUPLICATE): Verdict(Answer.DUPLICATE),
    int(Answer.CONFLICT): Verdict(Answer.CONFLICT),
    9: Verdict(Answer.FRESH, 1),
}

_SCRIPT = resources.files("worker.dedup").joinpath("redis.lua").read_bytes()
_SCRIPT_SHA = sha1(_SCRIPT).hexdigest()  # noqa: S324 - the name that Redis gives to a script
_PARKED_SCRIPT = resources.files("worker.dedup").joinpath("redis_parked.lua").read_bytes()

_REFUSED = (AuthenticationError, AuthenticationWrongNumberOfArgsError, NoPermissionError)
#: Errors that pass, or are mended at the server, and that redis-py has no class for. Redis 6
#: quotes those of a script's commands within another text.
_PASSING = re.compile(
    r"(?:^|-)(?:BUSY|LOADING|READONLY|MASTERDOWN|MISCONF|NOREPLICAS|OOM|UNKILLABLE)\b"
)


class RedisStore(DedupStore):
    """A store in Redis, for every process that reaches the server.

    It remembers as well as the server does: what a failover, or a restart without persistence,
    forgets may be done again.
    """

    tier = "redis: ids are known to all machines, and are as durable as the server keeps them"
    shared = True

    def __init__(self, target: Target, options: StoreOptions) -> None:
        self._target = target
        self._options = options
        self._servers = Servers(target, options.timeout)
        #: The first argument of the script; empty until the layout is known.
        self._settings = b""
        self._tag_length = 0
        self._tag_table = b""

    @classmethod
    def open(cls, url: str, options: StoreOptions) -> RedisStore:
        """Open ``redis(s)://[[user]:password@]host[:port][/db]`` or ``unix:///path[?db=0]``.

        Options: ``prefix`` of every key, ``slots`` (4096, 32768, 262144 or 1048576; up to 500
        ids a slot and retention take the least memory), ``cluster=1``, ``client_name``, and
        redis-py's ``ssl_ca_certs``, ``ssl_certfile``, ``ssl_keyfile``, ``ssl_cert_reqs`` and
        ``ssl_check_hostname``.
        """
        store = cls(Target.parse(url), options)
        with store._talking(opening=True):
            if not store._target.cluster and b"cluster_enabled:1" in store._info("cluster")[0]:
                raise store._mistake("this is a Redis Cluster; add ?cluster=1")
            store._settle_layout()
            # Tells whether this user may run scripts, before the first message depends on it.
            store._run([bytes(_ENTRY_BYTES - 1) + b"N"], b"")
        return store

    def apply(self, batch: Batch) -> Answers:
        """Apply the whole batch: atomically on one server, in a cluster each tag atomically."""
        entries = _entries(batch)
        with self._talking():
            codes, details = self._run(entries, b"".join(batch.dead))
            return _answers(batch, codes, details)

    def warnings(self) -> list[str]:
        """Tell where the server's settings make it forget; refuse one that evicts."""
        found = []
        with self._talking():
            for memory in self._info("memory"):
                policy = re.search(rb"maxmemory_policy:([\w-]+)", memory)
                if policy is None:
                    found.append(
                        "its maxmemory-policy cannot be read. MAKE SURE that it is noeviction: a"
                        " server that evicts forgets ids, and messages are handled twice"
                    )
                elif policy[1] != b"noeviction":
                    raise self._mistake(
                        f"its maxmemory-policy is {policy[1].decode()}, so it may drop ids at any"
                        " moment and messages would be handled twice; set it to noeviction"
                    )
            if any(b"aof_enabled:0" in persistence for persistence in self._info("persistence")):
                found.append(
                    "appendonly is off, so a restarted Redis has forgotten what came after its"
                    " last snapshot (all, where snapshots are off too); set appendonly yes"
                )
        return [f"dedup store {self._target.shown}: {text}" for text in dict.fromkeys(found)]

    def add_parked(self, service: str, key: str, change: int) -> int:
        """Add ``change`` to the parked messages of ``key``; the new number, never below zero."""
        return int(self._change_parked(service, key, change))

    def parked(self, service: str) -> Mapping[str, int]:
        """Return every parked key of ``service`` with its number of parked messages."""
        name = self._parked_name(service)
        with self._talking():
            (flat,) = _checked(self._servers.exchange([(name, ("HGETALL", name))]))
        pairs = zip(flat[::2], flat[1::2], strict=True)
        return {key.decode("utf-8", "surrogatepass"): int(number) for key, number in pairs}

    def unpark(self, service: str, key: str) -> bool:
        """Forget ``key`` where it is parked at number zero; tell whether that was so."""
        return self._change_parked(service, key, "unpark") == 1

    def close(self) -> None:
        """Close the connections; the next call opens them again."""
        self._settings = b""
        self._servers.close()

    @contextmanager
    def _talking(self, *, opening: bool = False) -> Iterator[None]:
        """Tell what goes wrong in the block in this package's errors, and then start anew.

        Closing matters after any exception: a reply that nobody read would be taken for the
        answer to the next question.
        """
        try:
            yield
        except RedisError as error:
            self.close()
            raise self._failure(error, opening=opening) from error
        except BaseException:
            self.close()
            raise

    def _mistake(self, reason: str) -> ConfigurationError:
        return ConfigurationError(f"dedup store {self._target.shown}: {reason}")

    def _failure(self, error: RedisError, *, opening: bool) -> QworkerError:
        """Return what ``error`` means here; nothing in it shows a password."""
        text = f"dedup store {self._target.shown}: {mask_url(str(error)) or type(error).__name__}"
        if opening and isinstance(error, _REFUSED):
            return ConfigurationError(f"{text}; check the user, the password and what it may do")
        if type(error) is ResponseError and not _PASSING.search(str(error)):
            return ConfigurationError(text) if opening else StoreCorrupt(text)
        return DedupUnavailable(text)

    def _info(self, section: str) -> list[bytes]:
        """Return a section of INFO of every server; empty where this user may not read it."""
        replies = self._servers.ask_all(("INFO", section))
        return [b"" if isinstance(reply, ResponseError) else reply for reply in replies]

    def _settle_layout(self) -> None:
        """Settle or read the layout. Raises RedisError, ConfigurationError."""
        asked = self._target.slots
        retention = _milliseconds(self._options.retention)
        name = self._target.prefix + b"layout"
        wanted = b"slots=%d width=%d" % (asked or _DEFAULT_SLOTS, retention)
        replies = self._servers.exchange(
            [(name, ("SET", name, wanted, "NX")), (name, ("GET", name))]
        )
        layout = _checked(replies)[1]
        found = re.fullmatch(rb"slots=(\d+) width=([1-9]\d*)", layout or b"")
        if found is None or int(found[1]) not in _SLOTS:
            raise self._mistake(
                f"its layout {layout!r} is not known to this version; use the version that made"
                " it, or another prefix"
            )
        slots, width = int(found[1]), int(found[2])
        if asked not in {None, slots}:
            raise self._mistake(
                f"it was laid out with slots={slots} and stays so; leave slots={asked} out, or"
                " begin anew with another prefix (the ids under this one are forgotten)"
            )
        back = math.ceil(retention / width)
        if back > _MOST_BACK:
            raise self._mistake(
                f"it was laid out for a retention of {width / 1000:g} s; one of"
                f" {retention / 1000:g} s would take {back} look-ups a claim. Ask for less, or"
                " begin anew with another prefix (the ids under this one are forgotten)"
            )
        letters, self._tag_length = _SLOTS[slots]
        self._tag_table = bytes(_ALPHABET[byte % letters] for byte in range(256))
        self._settings = _SETTINGS.pack(
            _milliseconds(self._options.claim_ttl),
            _milliseconds(self._options.claim_memory),
            width,
            retention,
            min(_CLOCK_MARGIN, width // 4),
            back,
            self._tag_length,
        )

    def _run(self, entries: list[bytes], dead: bytes) -> tuple[bytes, Sequence[bytes]]:
        """Run the script over ``entries``; return a code for each, and the details in order."""
        if not self._settings:
            try:
                self._settle_layout()
            except ConfigurationError as error:
                # Not so when the store was opened: the server lost its data since, and
                # somebody else settled the layout anew.
                raise DedupUnavailable(str(error)) from error
        if not self._target.cluster:
            call = self._call((), b"".join(entries), dead)
            (reply,) = _checked(self._servers.exchange([(b"", call)]))
            return _split(reply, len(entries))
        groups: dict[bytes, list[int]] = {}
        for index, entry in enumerate(entries):
            tag = entry[: self._tag_length].translate(self._tag_table)
            groups.setdefault(tag, []).append(index)
        calls = []
        for tag, indices in groups.items():
            route = self._target.prefix + b"{" + tag + b"}"
            group = b"".join([entries[index] for index in indices])
            calls.append((tag, self._call((route,), group, dead)))
        codes = bytearray(len(entries))
        details: dict[int, bytes] = {}
        replies = _checked(self._servers.exchange(calls))
        for indices, reply in zip(groups.values(), replies, strict=True):
            its_codes, its_details = _split(reply, len(indices))
            rest = iter(its_details)
            for index, code in zip(indices, its_codes, strict=True):
                codes[index] = code
                if code == _DETAILED:
                    details[index] = next(rest)
        return codes, [details[index] for index in sorted(details)]

    def _call(self, route: tuple[bytes, ...], entries: bytes, dead: bytes) -> Command:
        tags = entries.translate(self._tag_table)
        settings = (self._settings, self._target.prefix)
        return ("EVALSHA", _SCRIPT_SHA, len(route), *route, *settings, entries, tags, dead)

    def _change_parked(self, service: str, key: str, change: int | str) -> int:
        name = self._parked_name(service)
        call = ("EVAL", _PARKED_SCRIPT, 1, name, key.encode("utf-8", "surrogatepass"), change)
        with self._talking():
            return int(_checked(self._servers.exchange([(name, call)]))[0])

    def _parked_name(self, service: str) -> bytes:
        return self._target.prefix + b"parked:" + service.encode("utf-8", "surrogatepass")


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def _checked(replies: list[Any]) -> list[Any]:
    """Return ``replies``, or raise the first of them that is an error."""
    for reply in replies:
        if isinstance(reply, RedisError):
            raise reply
    return replies


def _entries(batch: Batch) -> list[bytes]:
    """Return the entries of ``batch`` as the script reads them, in the order of application."""
    join = b"".join
    entries = [join((*entry, b"C")) for entry in batch.completes]
    entries += [
        join((record, token, _NO_FINGERPRINT, b"F" if refund else b"R"))
        for record, token, refund in batch.releases
    ]
    entries += [join((*entry, _NO_FINGERPRINT, b"N")) for entry in batch.renewals]
    entries += [
        join((record, token, fingerprint, b"S" if solo else b"K"))
        for record, token, fingerprint, solo in batch.claims
    ]
    if not {_ENTRY_BYTES}.issuperset(map(len, entries)):
        raise ValueError("a record, token or fingerprint of the batch has a wrong length")
    return entries


def _split(reply: bytes, count: int) -> tuple[bytes, Sequence[bytes]]:
    """Split a reply of the script into the codes of ``count`` entries and the details."""
    codes, tail, size = reply[:count], reply[count:], _DETAIL.size
    if len(codes) != count or len(tail) != codes.count(_DETAILED) * size:
        raise StoreCorrupt(f"the dedup script answered {len(reply)} bytes to {count} entries")
    return codes, [tail[at : at + size] for at in range(0, len(tail), size)]


def _answers(batch: Batch, codes: bytes, details: Sequence[bytes]) -> Answers:
    released = len(batch.completes)
    renewed = released + len(batch.releases)
    claimed = renewed + len(batch.renewals)
    try:
        changes = [_ANSWERS[code] for code in codes[:claimed]]
        verdicts = [_VERDICTS[code] for code in codes[claimed:]]
        at = -1
        for detail in details:
            at = codes.index(_DETAILED, max(claimed, claimed + at + 1)) - claimed
            answer, attempts, crashes, wait = _DETAIL.unpack(detail)
            verdicts[at] = Verdict(Answer(answer), attempts, crashes, wait / 1000)
    except (KeyError, ValueError) as error:
        raise StoreCorrupt(f"the dedup script gave an answer that is none: {error}") from error
    return Answers(
        changes[:released], changes[released:renewed], changes[renewed:claimed], verdicts
    )


def _flag(text: str) -> bool:
    if text.lower() not in {"1", "true", "yes", "0", "false", "no"}:
        raise ValueError(text)
    return text.lower() in {"1", "true", "yes"}


_OPTIONS: dict[str, Callable[[str], Any]] = {
    "prefix": str,
    "slots": int,
    "cluster": _flag,
    "db": int,
    "client_name": str,
    "ssl_ca_certs": str,
    "ssl_certfile": str,
    "ssl_keyfile": str,
    "ssl_cert_reqs": str,
    "ssl_check_hostname": _flag,
}
_CONNECTIONS = {
    "redis": Connection,
    "rediss": SSLConnection,
    "unix": UnixDomainSocketConnection,
}


class Target(NamedTuple):
    """What a URL says: where the servers are, and where in them the records."""

    shown: str
    prefix: bytes
    slots: int | None
    cluster: bool
    connection: type[Connection | UnixDomainSocketConnection]
    arguments: dict[str, Any]

    @classmethod
    def parse(cls, url: str) -> Target:
        """Read ``url``. Raises ConfigurationError, without the password in its text."""
        shown = mask_url(url)

        def wrong(reason: str) -> ConfigurationError:
            return ConfigurationError(f"dedup URL {shown}: {reason}")

        parts = urlsplit(url)
        options: dict[str, Any] = {}
        for name, text in parse_qsl(parts.query, keep_blank_values=True):
            if name not in _OPTIONS:
                near = get_close_matches(name, _OPTIONS, 1) or _OPTIONS
                raise wrong(f"there is no option {name!r}; did you mean {', '.join(near)}?")
            try:
                options[name] = _OPTIONS[name](text)
            except ValueError:
                raise wrong(f"{name}={text} is not a value of it") from None
        prefix = options.pop("prefix", _DEFAULT_PREFIX)
        slots = options.pop("slots", None)
        cluster = options.pop("cluster", False)
        if "{" in prefix or "}" in prefix:
            raise wrong("the prefix may not contain braces, which mark the hash tag")
        if slots is not None and slots not in _SLOTS:
            raise wrong(f"slots can be {', '.join(map(str, _SLOTS))}")
        where = _place(parts.scheme, parts.path)
        if where is None or parts.fragment:
            raise wrong("write redis://host:6379/0, rediss://… or unix:///path/to/socket?db=0")
        if parts.scheme != "unix":
            try:
                where |= {"host": parts.hostname or "localhost", "port": parts.port or 6379}
            except ValueError as error:
                raise wrong(f"{error}; in a password write %2F for / and %23 for #") from None
        arguments = {"db": 0} | where | options
        if cluster and (parts.scheme == "unix" or arguments["db"]):
            raise wrong("a cluster has no database but 0, and is not reached by a socket file")
        if parts.scheme != "rediss" and any(name.startswith("ssl_") for name in options):
            raise wrong("the ssl_ options are for rediss://")
        arguments["username"] = unquote(parts.username or "") or None
        arguments["password"] = unquote(parts.password or "") or None
        connection = _CONNECTIONS[parts.scheme]
        return cls(shown, prefix.encode(), slots, cluster, connection, arguments)


def _place(scheme: str, path: str) -> dict[str, Any] | None:
    """Return what the path of a URL says; None where it says nothing."""
    if scheme == "unix":
        return {"path": unquote(path)} if path else None
    found = re.fullmatch(r"/?(\d*)/?", path)
    if scheme not in _CONNECTIONS or found is None:
        return None
    return {"db": int(found[1] or 0)}


class Servers:
    """The connections to the server of a target, or to every primary of its cluster.

    There are no retries here that take longer than the timeout: an error is told, and the
    caller asks again later. Only a command that was refused unexecuted is sent again at once.
    """

    #: MOVED first, then NOSCRIPT at the new address.
    _ROUNDS = 3

    def __init__(self, target: Target, timeout: float) -> None:
        self._target = target
        self._timeout = timeout
        self._connections: dict[Address, Connection | UnixDomainSocketConnection] = {}
        #: Cluster: the address of each hash slot; None until asked for.
        self._slots: list[Address] | None = None

    def exchange(self, calls: Sequence[tuple[bytes, Command]]) -> list[Any]:
        """Send each command to the server of its key and return the replies in order.

        A reply may be a ResponseError. Raises another RedisError where a server is away; then
        :meth:`close` must follow, as after any exception.
        """
        replies: list[Any] = [None] * len(calls)
        pending = list(range(len(calls)))
        scriptless: set[Address] = set()
        for _ in range(self._ROUNDS):
            routed: dict[Address, list[int]] = {}
            for index in pending:
                routed.setdefault(self._address(calls[index][0]), []).append(index)
            # To all servers before the first reply is waited for: they work side by side.
            for address, indices in routed.items():
                load = [("SCRIPT", "LOAD", _SCRIPT)] if address in scriptless else []
                self._send(address, [*load, *(calls[index][1] for index in indices)])
            pending = []
            for address, indices in routed.items():
                loaded = self._receive(address) if address in scriptless else None
                for index in indices:
                    replies[index] = self._receive(address)
                    if isinstance(loaded, ResponseError):
                        replies[index] = loaded
                    elif isinstance(replies[index], NoScriptError):
                        scriptless.add(address)
                        pending.append(index)
                    elif isinstance(replies[index], MovedError):
                        self._slots = None
                        pending.append(index)
            if not pending:
                break
        return replies

    def ask_all(self, command: Command) -> list[Any]:
        """Send ``command`` to every server and return the replies, errors among them."""
        addresses: Iterable[Address] = [None]
        if self._target.cluster:
            addresses = sorted({address for address in self._learn_slots() if address})
        return [self._ask(address, command) for address in addresses]

    def close(self) -> None:
        """Disconnect. The addresses stay known, for when the URL's own server is gone."""
        self._slots = None
        for connection in self._connections.values():
            connection.disconnect()

    def _address(self, key: bytes) -> Address:
        if not self._target.cluster:
            return None
        if self._slots is None:
            self._slots = self._learn_slots()
        slot = key_slot(key)
        if self._slots[slot] is None:
            raise ClusterDownError(f"no server has the hash slot {slot}")
        return self._slots[slot]

    def _learn_slots(self) -> list[Address]:
        """Ask the servers that are known, then that of the URL, who has which hash slot."""
        give_up = time.monotonic() + self._timeout
        failure: RedisError = ClusterDownError("no server of the cluster answers")
        for asked in [*filter(None, self._connections), None]:
            try:
                reply = self._ask(asked, ("CLUSTER", "SLOTS"))
            except _REFUSED:
                raise
            except (RedisConnectionError, RedisTimeoutError) as error:
                failure = error
                if time.monotonic() >= give_up:
                    break
                continue
            if isinstance(reply, ResponseError):
                raise reply
            slots: list[Address] = [None] * REDIS_CLUSTER_HASH_SLOTS
            for first, last, (host, port, *_), *_ in reply:
                # A server that does not know its own name leaves it out.
                name = host.decode() if host else (asked or (self._target.arguments["host"],))[0]
                slots[first : last + 1] = [(name, port)] * (last + 1 - first)
            return slots
        raise failure

    def _ask(self, address: Address, command: Command) -> Any:  # noqa: ANN401 - as the command
        self._send(address, [command])
        return self._receive(address)

    def _send(self, address: Address, commands: Sequence[Command]) -> None:
        connection = self._connections.get(address)
        if connection is None:
            place = {} if address is None else {"host": address[0], "port": address[1]}
            # RESP2: the answers are the same, and no server speaks unasked.
            connection = self._connections[address] = self._target.connection(
                **self._target.arguments | place,
                protocol=2,
                socket_timeout=self._timeout,
                socket_connect_timeout=self._timeout,
            )
        connection.send_packed_command(connection.pack_commands(commands), check_health=False)

    def _receive(self, address: Address) -> Any:  # noqa: ANN401 - as the command
        try:
            return self._connections[address].read_response()
        except ResponseError as error:
            return error
