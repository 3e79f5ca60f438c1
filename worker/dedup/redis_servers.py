"""The servers behind a Redis URL: one, or the primaries of a cluster.

Redis Cluster routes each call by a key of the call's tag that never exists. So the server that
a slot is moving away from answers ASK without running the script, and ASK is not followed: at
the other end the ids that have not moved yet would look absent. Such a batch is refused
(DedupUnavailable) until the slot has moved.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from redis import exceptions as redis_errors
from redis.connection import Connection, parse_url
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import RedisError, ResponseError

from worker.config import mask_url
from worker.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Address = tuple[str, int] | None
    Command = tuple[bytes | str | int, ...]

#: How many slots a store may have: the size of the tag's alphabet and the length of the tag.
SLOTS = {4096: (64, 2), 32768: (32, 3), 262144: (64, 3), 1048576: (32, 4)}
REFUSED = (
    redis_errors.AuthenticationError,
    redis_errors.AuthenticationWrongNumberOfArgsError,
    redis_errors.NoPermissionError,
)
_OPTIONS = {
    *("prefix", "slots", "cluster", "db", "client_name"),
    *("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname"),
}


def encoded(text: str) -> bytes:
    """Return the bytes of any text, lone surrogates too."""
    return text.encode("utf-8", "surrogatepass")


def checked(replies: list[Any]) -> list[Any]:
    """Return ``replies``, or raise the first of them that is an error."""
    for reply in replies:
        if isinstance(reply, RedisError):
            raise reply
    return replies


def read_url(url: str) -> dict[str, Any]:
    """Return what ``url`` says: redis-py's arguments, and prefix, slots and cluster of ours."""
    try:
        found: dict[str, Any] = parse_url(url)  # type: ignore[no-untyped-call]
    except ValueError:
        # Without the URL: where it cannot be read, it is not known which part is the password.
        raise ConfigurationError(
            "the dedup URL cannot be read: write redis://host:6379/0, rediss://… or"
            " unix:///path/to/socket; in a password, %2F for / and %23 for #"
        ) from None
    parts, options = urlsplit(url), dict(parse_qsl(urlsplit(url).query, keep_blank_values=True))
    slots, cluster = options.get("slots", "32768"), options.get("cluster", "0")
    prefix = options.get("prefix", "qw:dedup:")
    reason = ""
    if unknown := options.keys() - _OPTIONS:
        reason = f"no option {', '.join(sorted(unknown))}; there are {', '.join(sorted(_OPTIONS))}"
    elif parts.fragment or (parts.scheme != "unix" and not re.fullmatch(r"/?\d*", parts.path)):
        reason = "after the host comes /NUMBER of the database, and then only ?option=value"
    elif not slots.isdecimal() or int(slots) not in SLOTS:
        reason = f"slots can be {', '.join(map(str, SLOTS))}"
    elif cluster not in {"0", "1"} or set(prefix) & set("{}"):
        reason = "cluster can be 0 or 1, and the prefix has no braces, which mark the hash tag"
    elif parts.scheme != "rediss" and any(name.startswith("ssl_") for name in options):
        reason = "the ssl_ options are for rediss://"
    if reason:
        raise ConfigurationError(f"dedup URL {mask_url(url)}: {reason}")
    ours = {"prefix": encoded(prefix), "slots": int(slots) if "slots" in options else None}
    return {"connection_class": Connection} | found | ours | {"cluster": cluster == "1"}


class Servers:
    """The connections to the server of a URL, or to every primary of its cluster.

    There are no retries here that take longer than the timeout: an error is told, and the
    caller asks again later. Only a command that was refused unexecuted is sent again at once.
    """

    #: MOVED first, then NOSCRIPT at the new address.
    _ROUNDS = 3

    def __init__(self, arguments: dict[str, Any], timeout: float, script: bytes) -> None:
        self.cluster: bool = arguments.pop("cluster")
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
            connection.disconnect()  # type: ignore[no-untyped-call]

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
            except REFUSED:
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

    def _ask(self, address: Address, command: Command) -> Any:  # noqa: ANN401 - as the command
        self._send(address, [command])
        return self._receive(address)

    def _send(self, address: Address, commands: Sequence[Command]) -> None:
        connection = self._connections.get(address)
        if connection is None:
            place = {"host": address[0], "port": address[1]} if address else {}
            connection = self._connection_class(**self._arguments | place)
            self._connections[address] = connection
        packed = connection.pack_commands(commands)  # type: ignore[no-untyped-call]
        connection.send_packed_command(packed, check_health=False)  # type: ignore[no-untyped-call]

    def _receive(self, address: Address) -> Any:  # noqa: ANN401 - as the command
        try:
            return self._connections[address].read_response()
        except ResponseError as error:
            return error
