"""The servers behind a Redis URL: one, or the primaries of a cluster.

Redis Cluster routes each call by a key of the call's tag that never exists. So the server that
a slot is moving away from answers ASK without running the script, and ASK is not followed: at
the other end the ids that have not moved yet would look absent. Such a batch is refused
(DedupUnavailable) until the slot has moved.
"""

from __future__ import annotations

import re
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

from redis import exceptions as redis_errors
from redis.connection import Connection, parse_url
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import RedisError, ResponseError

from worker.config import mask_url
from worker.errors import ConfigurationError, StoreCorrupt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from worker.errors import QworkerError, Unreachable

    Address = tuple[str, int] | None
    Command = tuple[bytes | str | int, ...]

_REFUSED = (
    redis_errors.AuthenticationError,
    redis_errors.AuthenticationWrongNumberOfArgsError,
    redis_errors.NoPermissionError,
)
#: How many slots a dedup store may have: the size of the tag's alphabet and the tag's length.
SLOTS = {4096: (64, 2), 32768: (32, 3), 262144: (64, 3), 1048576: (32, 4)}
#: Options of ours that are one of a few. One URL may serve stores of several kinds, so each of them
#: knows the options of all.
_CHOICES = {"cluster": ("0", "1"), "settle": ("0", "1"), "slots": tuple(map(str, SLOTS))}
_OPTIONS = {
    *("prefix", "db", "client_name", *_CHOICES),
    *("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname"),
}
#: Errors that pass, or are mended at the server, and that redis-py has no class for. Redis 6
#: quotes those of a script's commands within another text.
_PASSING = re.compile(
    r"(?:^|-)(?:BUSY|LOADING|READONLY|MASTERDOWN|MISCONF|NOREPLICAS|OOM|UNKILLABLE)\b"
)


class Kind(NamedTuple):
    """What a store in Redis is, for its URLs and its errors."""

    #: As errors call it, and its URL: ``dedup``.
    name: str
    #: Of its keys, where the URL names none.
    prefix: str
    #: What is raised while the server is away.
    unavailable: type[Unreachable]
    #: What it keeps, and what happens where the server drops some of that.
    keeps: str
    harm: str


def encoded(text: str) -> bytes:
    """Return the bytes of any text, lone surrogates too."""
    return text.encode("utf-8", "surrogatepass")


def checked(replies: list[Any]) -> list[Any]:
    """Return ``replies``, or raise the first of them that is an error."""
    for reply in replies:
        if isinstance(reply, RedisError):
            raise reply
    return replies


def _read_url(url: str, kind: Kind) -> tuple[dict[str, Any], dict[str, str]]:
    """Return what ``url`` says: redis-py's arguments, and the options that are ours."""
    try:
        found: dict[str, Any] = parse_url(url)
    except ValueError:
        # Without the URL: where it cannot be read, it is not known which part is the password.
        raise ConfigurationError(
            f"the {kind.name} URL cannot be read: write redis://host:6379/0, rediss://… or"
            " unix:///path/to/socket; in a password, %2F for / and %23 for #"
        ) from None
    parts, options = urlsplit(url), dict(parse_qsl(urlsplit(url).query, keep_blank_values=True))
    ours = {name: options[name] for name in ("prefix", *_CHOICES) if name in options}
    reason = ""
    if unknown := options.keys() - _OPTIONS:
        reason = f"no option {', '.join(sorted(unknown))}; there are {', '.join(sorted(_OPTIONS))}"
    elif parts.fragment or (parts.scheme != "unix" and not re.fullmatch(r"/?\d*", parts.path)):
        reason = "after the host comes /NUMBER of the database, and then only ?option=value"
    elif set(ours.get("prefix", "")) & set("{}"):
        reason = "the prefix has no braces, which mark the hash tag"
    elif parts.scheme != "rediss" and any(name.startswith("ssl_") for name in options):
        reason = "the ssl_ options are for rediss://"
    for name, choices in _CHOICES.items():
        if not reason and ours.get(name, choices[0]) not in choices:
            reason = f"{name} can be {', '.join(choices[:-1])} or {choices[-1]}"
    if reason:
        raise ConfigurationError(f"{kind.name} URL {mask_url(url)}: {reason}")
    arguments = {name: value for name, value in found.items() if name not in ours}
    return {"connection_class": Connection} | arguments, ours


class Servers:
    """The connections to the server of a URL, or to every primary of its cluster.

    There are no retries here that take longer than the timeout: an error is told, and the
    caller asks again later. Only a command that was refused unexecuted is sent again at once.
    """

    #: MOVED first, then NOSCRIPT at the new address.
    _ROUNDS = 3

    def __init__(self, url: str, kind: Kind, timeout: float, script: bytes) -> None:
        """Read the URL; connects when it is asked for something. Raises ConfigurationError."""
        arguments, self.options = _read_url(url, kind)
        self.cluster = self.options.get("cluster") == "1"
        #: Of every key.
        self.prefix = encoded(self.options.get("prefix", kind.prefix))
        self._kind = kind
        self._shown = f"{kind.name} store {mask_url(url)}"
        self._connection_class: type[Connection] = arguments.pop("connection_class")
        self._timeout = timeout
        self._script = script
        times = {"socket_timeout": timeout, "socket_connect_timeout": timeout}
        # RESP2: the answers are the same, and no server speaks unasked.
        self._arguments = arguments | times | {"protocol": 2}
        #: By address; None is that of the URL.
        self._connections: dict[Address, Connection] = {}
        #: Cluster: the address of each hash slot; None until asked for.
        self._hash_slots: list[Address] | None = None

    @contextmanager
    def talking(self, *, opening: bool = False) -> Iterator[None]:
        """Tell in this package's errors what goes wrong in the block, and then start anew.

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

    def mistake(self, reason: str) -> ConfigurationError:
        """Return the error that says what is set wrong about this store."""
        return ConfigurationError(f"{self._shown}: {reason}")

    def told(self, text: str) -> str:
        """Return ``text`` as said of this store."""
        return f"{self._shown}: {text}"

    def info(self, section: str) -> list[bytes]:
        """Return a section of INFO of every server; empty where this user may not read it."""
        replies = self.ask_all(("INFO", section))
        return [b"" if isinstance(reply, ResponseError) else reply for reply in replies]

    def check_cluster(self) -> None:
        """Raise ConfigurationError where the server is a cluster and the URL does not say so."""
        if not self.cluster and b"cluster_enabled:1" in self.info("cluster")[0]:
            raise self.mistake("this is a Redis Cluster; add ?cluster=1")

    def check_policy(self) -> list[str]:
        """Refuse a server that may drop keys to make room. Raises ConfigurationError.

        Returns what is to be told of servers that do not let this user see whether they do.
        """
        found = []
        for memory in self.info("memory"):
            policy = re.search(rb"maxmemory_policy:([\w-]+)", memory)
            if policy is None:
                found.append(
                    "its maxmemory-policy cannot be read. MAKE SURE that it is noeviction: a"
                    f" server that evicts forgets {self._kind.keeps}, and {self._kind.harm}"
                )
            elif policy[1] != b"noeviction":
                raise self.mistake(
                    f"its maxmemory-policy is {policy[1].decode()}, so it may drop"
                    f" {self._kind.keeps} at any moment, and then {self._kind.harm}; set it to"
                    " noeviction"
                )
        return [self.told(text) for text in dict.fromkeys(found)]

    def _failure(self, error: RedisError, *, opening: bool) -> QworkerError:
        """Return what ``error`` means here; nothing in it shows a password."""
        text = self.told(mask_url(str(error)) or type(error).__name__)
        if opening and isinstance(error, _REFUSED):
            return ConfigurationError(f"{text}; check the user, the password and what it may do")
        if type(error) is ResponseError and not _PASSING.search(str(error)):
            return ConfigurationError(text) if opening else StoreCorrupt(text)
        return self._kind.unavailable(text)

    def exchange(self, calls: Sequence[tuple[bytes, Command]]) -> list[Any]:
        """Send each command to the server of its key and return the replies in order.

        A reply may be a ResponseError. Raises another RedisError where a server is away; then
        :meth:`close` must follow, as after any exception.
        """
        return self.begin(calls)()

    def begin(self, calls: Sequence[tuple[bytes, Command]]) -> Callable[[], list[Any]]:
        """Send as :meth:`exchange` does; the call that is returned waits for the replies.

        It comes before anything else is asked: replies come in the order of their questions.
        """
        replies: list[Any] = [None] * len(calls)
        scriptless: set[Address] = set()
        routed = self._send_all(calls, range(len(calls)), scriptless)

        def finish() -> list[Any]:
            sent = routed
            for _ in range(self._ROUNDS - 1):
                again = self._receive_all(sent, replies, scriptless)
                if not again:
                    return replies
                sent = self._send_all(calls, again, scriptless)
            self._receive_all(sent, replies, scriptless)
            return replies

        return finish

    def _send_all(
        self,
        calls: Sequence[tuple[bytes, Command]],
        pending: Sequence[int],
        scriptless: set[Address],
    ) -> dict[Address, list[int]]:
        """Send the ``pending`` calls; return which went where."""
        routed: dict[Address, list[int]] = {}
        for index in pending:
            routed.setdefault(self._address(calls[index][0]), []).append(index)
        # To all servers before the first reply is waited for: they work side by side.
        for address, indices in routed.items():
            load = [("SCRIPT", "LOAD", self._script)] if address in scriptless else []
            self._send(address, [*load, *(calls[index][1] for index in indices)])
        return routed

    def _receive_all(
        self, routed: dict[Address, list[int]], replies: list[Any], scriptless: set[Address]
    ) -> list[int]:
        """Take the replies to what was sent; return the calls that have to be sent again."""
        again = []
        for address, indices in routed.items():
            loaded = self._receive(address) if address in scriptless else None
            for index in indices:
                reply = replies[index] = self._receive(address)
                if isinstance(loaded, ResponseError):
                    replies[index] = loaded
                elif isinstance(reply, redis_errors.NoScriptError):
                    scriptless.add(address)
                    again.append(index)
                elif isinstance(reply, redis_errors.MovedError):
                    self._hash_slots = None
                    again.append(index)
        return again

    def ask_all(self, command: Command) -> list[Any]:
        """Send ``command`` to every server and return the replies, errors among them."""
        addresses = set(self._learn_hash_slots()) - {None} if self.cluster else {None}
        return [self._ask(address, command) for address in addresses]

    def close(self) -> None:
        """Disconnect. The addresses stay known, for when the URL's own server is gone."""
        self._hash_slots = None
        for connection in self._connections.values():
            connection.disconnect()

    def _address(self, key: bytes) -> Address:
        if not self.cluster:
            return None
        if self._hash_slots is None:
            self._hash_slots = self._learn_hash_slots()
        address = self._hash_slots[key_slot(key)]
        if address is None:
            raise redis_errors.ClusterDownError(f"no server has the hash slot {key_slot(key)}")
        return address

    def _learn_hash_slots(self) -> list[Address]:
        """Ask the servers that are known, then that of the URL, who has which hash slot."""
        give_up = time.monotonic() + self._timeout
        failure: RedisError = redis_errors.ClusterDownError("no server of the cluster answers")
        for asked in [*filter(None, self._connections), None]:
            try:
                (reply,) = checked([self._ask(asked, ("CLUSTER", "SLOTS"))])
            except _REFUSED:
                raise
            except (redis_errors.ConnectionError, redis_errors.TimeoutError) as error:
                failure = error
                if time.monotonic() >= give_up:
                    break
                continue
            own_name = asked[0] if asked else self._arguments.get("host", "localhost")
            slots: list[Address] = [None] * REDIS_CLUSTER_HASH_SLOTS
            for first, last, (host, port, *_), *_ in reply:
                # A server that does not know its own name leaves it out.
                address = (host.decode() if host else own_name, port)
                slots[first : last + 1] = [address] * (last + 1 - first)
            return slots
        raise failure

    def _ask(self, address: Address, command: Command) -> Any:
        self._send(address, [command])
        return self._receive(address)

    def _send(self, address: Address, commands: Sequence[Command]) -> None:
        connection = self._connections.get(address)
        if connection is None:
            place = {"host": address[0], "port": address[1]} if address else {}
            connection = self._connection_class(**self._arguments | place)
            self._connections[address] = connection
        packed = connection.pack_commands(commands)
        connection.send_packed_command(packed, check_health=False)

    def _receive(self, address: Address) -> Any:
        try:
            return self._connections[address].read_response()
        except ResponseError as error:
            return error
