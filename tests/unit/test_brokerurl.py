"""What is wrong with the URL of a broker is told, and no password with it."""

from __future__ import annotations

import pytest

from worker.brokerurl import broker_mistakes
from worker.errors import ConfigurationError
from worker.transport.capabilities import connect


@pytest.mark.parametrize(
    "query", ["timeout=5", "timeout", "ca_certs=/ca", "heartbeat=x", "virtual_host=a"]
)
def test_an_option_that_nothing_reads_is_a_mistake(query: str) -> None:
    (mistake,) = broker_mistakes(f"amqp://host//?{query}")

    assert "the options after its '?' are login_method, ssl_ca_certs," in mistake


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("amqp://host//?ssl_ca_certs=/ca", "the ssl_ options are for amqps://"),
        ("amqps://host//?ssl_cert_reqs=no", "its ssl_cert_reqs is one of required, none"),
        ("amqps://host//?ssl_check_hostname=1", "its ssl_check_hostname is one of true, false"),
        ("amqps://host//?ssl_ca_certs=", "its ssl_ca_certs is the name of a file"),
        ("amqps://host//?ssl_keyfile=/key", "its ssl_keyfile goes with an ssl_certfile"),
    ],
)
def test_what_is_wrong_about_tls_is_told(url: str, told: str) -> None:
    assert broker_mistakes(url) == [told]


def test_a_way_to_log_in_that_does_not_exist_is_a_mistake() -> None:
    assert broker_mistakes("amqp://host/?login_method=EXTERNAL") == []
    assert broker_mistakes("amqp://host/?login_method=MAGIC") == [
        "its login_method is one of PLAIN, AMQPLAIN, EXTERNAL"
    ]


def test_the_rest_of_a_password_is_no_option() -> None:
    (mistake,) = broker_mistakes("amqp://u:5?hunter2@host/")

    assert "hunter2" not in mistake


@pytest.mark.parametrize(
    "urls",
    [
        "amqp://u:hunter;2secret@h/",
        "amqp://u:hunter;2sec:ret@h/",
        "amqp://u:hunter;2sec;ret@h/",
        "amqp:/u:2secret@h/",
        "2secret@h",
    ],
)
def test_what_may_be_a_password_is_not_shown(urls: str) -> None:
    told = "; ".join(broker_mistakes(urls))

    assert told
    assert not any(piece in told for piece in ("2sec", "ret", "hunter"))


@pytest.mark.parametrize(
    "urls",
    ["2secret@h", "u:2secret@h", "ampq://u:2secret@h", ";u:2secret@h", "amqp://u:2secret;3@h/"],
)
def test_no_mistake_of_a_connection_shows_a_password(urls: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        connect(urls, heartbeat=0, timeout=1, name="test")

    assert "2secret" not in str(caught.value)
