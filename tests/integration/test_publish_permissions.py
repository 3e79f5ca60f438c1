"""A user of the broker who may publish and nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import pytest

from servers import RabbitMQ
from worker import App, Event
from worker.errors import ConfigurationError

Limit = Callable[[str], App]

_USER = """\
rabbit_auth_backend_internal:add_user(<<"limited">>, <<"limited">>, <<"tests">>),
ok = rabbit_auth_backend_internal:set_permissions(
    <<"limited">>, <<"%s">>, <<"^$">>, <<"%s">>, <<"^$">>, <<"tests">>).
"""


class Deposited(Event, name="user.deposited", key="user"):
    """Money arrived."""

    user: str


@pytest.fixture
def limit(rabbitmq: RabbitMQ, amqp_url: str) -> Iterator[Limit]:
    """Make the app of a user who may write to what matches."""
    apps = []

    def limit(may_write: str) -> App:
        vhost = urlsplit(amqp_url).path[1:]
        rabbitmq.eval(_USER % (vhost, may_write))
        url = amqp_url.replace("guest:guest", "limited:limited")
        apps.append(App("shop", broker=url, settings={"connect_timeout": 5.0}))
        return apps[-1]

    yield limit
    for app in apps:
        app.close()
    rabbitmq.eval('rabbit_auth_backend_internal:delete_user(<<"limited">>, <<"tests">>).')


def test_whoever_may_only_publish_publishes_to_what_is_there(limit: Limit, amqp_url: str) -> None:
    other = App("bank", broker=amqp_url)
    other.publish(Deposited(user="alice"))
    other.close()

    assert limit(".*").publish(Deposited(user="alice"))


def test_whoever_may_not_declare_what_is_missing_is_told_at_once(limit: Limit) -> None:
    begun = time.monotonic()
    with pytest.raises(ConfigurationError, match="may not declare the exchange"):
        limit(".*").publish(Deposited(user="alice"))

    assert time.monotonic() - begun < 4


def test_whoever_may_not_publish_is_told_at_once(limit: Limit, amqp_url: str) -> None:
    other = App("bank", broker=amqp_url)
    other.publish(Deposited(user="alice"))
    other.close()

    with pytest.raises(ConfigurationError, match="may not publish"):
        limit("^$").publish(Deposited(user="alice"))
