"""What befalls RabbitMQ: an operator closes or deletes something, or memory or disk are short."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import unquote, urlsplit

from servers import RabbitMQ
from waiting import until

_CLOSE = """\
[catch rabbit_networking:close_connection(C, "an operator")  % one may be ending by itself
 || C <- rabbit_networking:connections()]."""
#: As a text of one line: erl_call does not print binaries.
_QUEUES = """\
Names = [binary_to_list(Name) || {resource, _, queue, Name} <-
         rabbit_amqqueue:list_names(<<"%s">>)],
lists:flatten(lists:join(" ", lists:sort(Names))).
"""
#: What the leader of a quorum queue knows: the statistics are some seconds old.
_DEPTHS = """\
Held = fun (Queue) ->
    case amqqueue:get_type(Queue) of
        rabbit_quorum_queue ->
            Leader = amqqueue:get_pid(Queue),
            {ok, Number, _} = ra:consistent_query(Leader, fun rabbit_fifo:query_messages_total/1),
            Number;
        _ -> proplists:get_value(messages, rabbit_amqqueue:info(Queue, [messages]))
    end
end,
Rows = [binary_to_list(element(4, amqqueue:get_name(Queue))) ++ "="
        ++ integer_to_list(Held(Queue)) || Queue <- rabbit_amqqueue:list(<<"%s">>)],
lists:flatten(lists:join(" ", lists:sort(Rows))).
"""
_DELETE = """\
case rabbit_amqqueue:lookup(rabbit_misc:r(<<"%s">>, queue, <<"%s">>)) of
    {ok, Queue} ->
        {ok, Number} = rabbit_amqqueue:delete(Queue, false, false, <<"tests">>),
        Number;
    {error, not_found} -> -1
end.
"""
_ALARMED = """\
lists:any(fun ({{resource_limit, Source, _}, _}) -> Source =:= %s; (_) -> false end,
          rabbit_alarm:get_alarms()).
"""


def close_connections(server: RabbitMQ) -> None:
    """Close all connections, as ``rabbitmqctl close_all_connections`` does."""
    server.eval(_CLOSE)


def queues(server: RabbitMQ, url: str) -> list[str]:
    """Return the names of the queues in the virtual host of ``url``, in order."""
    text = server.eval(_QUEUES % _vhost(url))
    return [] if text == "[]" else text.strip('"').split()


def depths(server: RabbitMQ, url: str) -> dict[str, int]:
    """Return how many messages each queue in the virtual host holds, delivered or not."""
    text = server.eval(_DEPTHS % _vhost(url)).strip('"')
    pairs = (each.rpartition("=") for each in text.split() if text != "[]")
    return {name: int(number) for name, _, number in pairs}


def delete_queue(server: RabbitMQ, url: str, name: str) -> int:
    """Delete a queue as ``rabbitmqctl delete_queue`` does; return how many messages it held.

    -1: there was none.
    """
    return int(server.eval(_DELETE % (_vhost(url), name)))


@contextmanager
def short_of_memory(server: RabbitMQ) -> Iterator[None]:
    """Allow it no memory: it reads no more from connections that publish."""
    before = server.eval("vm_memory_monitor:get_vm_memory_high_watermark().")
    setting = "vm_memory_monitor:set_vm_memory_high_watermark(%s)."
    with _alarm(server, "memory", setting % "0.0", setting % before):
        yield


@contextmanager
def short_of_disk(server: RabbitMQ) -> Iterator[None]:
    """Ask for more free disk than there is; it does what it does without memory."""
    before = server.eval("rabbit_disk_monitor:get_disk_free_limit().")
    setting = "rabbit_disk_monitor:set_disk_free_limit(%s)."
    with _alarm(server, "disk", setting % 2**60, setting % before):
        yield


@contextmanager
def _alarm(server: RabbitMQ, source: str, raising: str, ending: str) -> Iterator[None]:
    """Do what raises an alarm; a restart ends it too."""

    def alarmed() -> bool:
        return server.eval(_ALARMED % source) == "true"

    try:
        server.eval(raising)
        until(alarmed, message=f"an alarm for {source}")
        yield
    finally:
        if server.pid is not None:
            server.eval(ending)
            until(lambda: not alarmed(), message=f"no alarm for {source}")


def _vhost(url: str) -> str:
    return unquote(urlsplit(url).path[1:])
