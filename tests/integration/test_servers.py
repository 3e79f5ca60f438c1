"""The private servers are real, keep their data, and never outlive the test run."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pika
import psycopg
import pytest
import redis
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from servers import Guard, MissingServer, PostgreSQL, RabbitMQ, Redis, ServerFailed
from servers.mariadb import MariaDB
from servers.process import find_program, free_ports
from waiting import until

either_way = pytest.mark.parametrize("ending", ["stop", "kill"])

#: A test run in small: one server, and a process that can be killed.
SERVE_REDIS = """
import sys, time
from pathlib import Path
from servers import Guard, Redis
with Guard() as guard, Redis(Path(sys.argv[1]), guard) as server:
    print(server.port, flush=True)
    time.sleep(60)
"""


def publish(url: str, body: bytes) -> None:
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        channel.queue_declare("box", durable=True)
        channel.basic_publish("", "box", body, pika.BasicProperties(delivery_mode=2))


def receive(url: str) -> object:
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        return connection.channel().basic_get("box", auto_ack=True)[2]


def is_listening(port: int) -> bool:
    with suppress(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
        return True
    return False


def test_rabbitmq_gives_back_what_it_took(amqp_url: str) -> None:
    publish(amqp_url, b"hello")

    assert receive(amqp_url) == b"hello"


def test_virtual_hosts_do_not_see_each_other(rabbitmq: RabbitMQ) -> None:
    with rabbitmq.vhost() as one, rabbitmq.vhost() as other:
        publish(one, b"for one")

        with pytest.raises(pika.exceptions.ChannelClosedByBroker, match="NOT_FOUND"):
            receive(other)


def test_a_virtual_host_is_gone_after_its_test(rabbitmq: RabbitMQ) -> None:
    with rabbitmq.vhost() as url:
        name = url.rpartition("/")[2]
        assert name in rabbitmq.ctl("list_vhosts")

    assert name not in rabbitmq.ctl("list_vhosts")


def test_a_refused_rabbitmqctl_command_is_an_error_with_its_text(rabbitmq: RabbitMQ) -> None:
    with pytest.raises(ServerFailed, match="no_such_command"):
        rabbitmq.ctl("no_such_command")


@either_way
def test_rabbitmq_keeps_a_confirmed_message(rabbitmq: RabbitMQ, amqp_url: str, ending: str) -> None:
    publish(amqp_url, b"kept")

    getattr(rabbitmq, ending)()
    assert not is_listening(rabbitmq.port)
    rabbitmq.start()

    assert receive(amqp_url) == b"kept"


@either_way
def test_redis_keeps_an_answered_write(redis_server: Redis, redis_url: str, ending: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        client.set("key", "kept")

        getattr(redis_server, ending)()
        assert not is_listening(redis_server.port)
        redis_server.start()

        assert client.get("key") == b"kept"


def test_redis_databases_do_not_see_each_other(redis_server: Redis) -> None:
    with (
        redis.Redis.from_url(redis_server.fresh_url()) as one,
        redis.Redis.from_url(redis_server.fresh_url()) as other,
    ):
        one.set("key", "for one")

        assert other.get("key") is None


def test_redis_evicts_nothing(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}


@either_way
def test_postgresql_keeps_a_commit(postgres: PostgreSQL, postgres_url: str, ending: str) -> None:
    with psycopg.connect(postgres_url) as connection:
        connection.execute("CREATE TABLE box (body text)")
        connection.execute("INSERT INTO box VALUES ('kept')")

    getattr(postgres, ending)()
    assert not is_listening(postgres.port)
    postgres.start()

    with psycopg.connect(postgres_url) as connection:
        assert connection.execute("SELECT body FROM box").fetchall() == [("kept",)]


@either_way
def test_mariadb_keeps_a_commit(mariadb: MariaDB, mariadb_url: str, ending: str) -> None:
    engine = create_engine(mariadb_url.replace("://", "+pymysql://"), poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE box (body TEXT)"))
        connection.execute(text("INSERT INTO box VALUES ('kept')"))

    getattr(mariadb, ending)()
    assert not is_listening(mariadb.port)
    mariadb.start()

    with engine.connect() as connection:
        assert connection.execute(text("SELECT body FROM box")).all() == [("kept",)]


def test_a_fresh_url_starts_the_server_that_a_test_before_left_stopped(
    postgres: PostgreSQL, mariadb: MariaDB, redis_server: Redis, rabbitmq: RabbitMQ
) -> None:
    for server in (postgres, mariadb, redis_server, rabbitmq):
        server.stop()

    mariadb.fresh_url()

    with psycopg.connect(postgres.fresh_url()), rabbitmq.vhost() as amqp_url:
        redis.Redis.from_url(redis_server.fresh_url()).close()
        publish(amqp_url, b"hello")


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_servers_end_with_a_killed_test_run(tmp_path: Path, how: signal.Signals) -> None:
    run = subprocess.Popen(
        [sys.executable, "-c", SERVE_REDIS, str(tmp_path)],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        text=True,
    )
    with run:
        assert run.stdout is not None
        port = int(run.stdout.readline())
        assert is_listening(port)

        run.send_signal(how)

        until(lambda: not is_listening(port), message="the server is gone")


def test_a_server_that_does_not_start_shows_the_end_of_its_log(tmp_path: Path) -> None:
    (tmp_path / "appendonlydir").touch()  # where Redis wants a folder

    with (
        Guard() as guard,
        pytest.raises(ServerFailed, match=r"Redis ended with code 1 .*(?s:.*)appendonlydir"),
        Redis(tmp_path, guard),
    ):
        pytest.fail("it started")


def test_a_missing_program_is_an_error_that_says_how_to_install_it() -> None:
    with pytest.raises(MissingServer, match=r"make servers.*apt-get install some-package"):
        find_program("no-such-program", package="some-package")


def test_free_ports_lie_outside_the_range_of_outgoing_connections() -> None:
    ports = free_ports(20)

    assert len(set(ports)) == 20
    assert max(ports) < 32_768  # where the range starts on Linux, unless changed
