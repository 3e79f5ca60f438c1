"""TLS to RabbitMQ: the certificate and the host count, and a service runs over it."""

from __future__ import annotations

from pathlib import Path

import pytest

from servers import RabbitMQ
from worker.errors import BrokerUnreachable, ConfigurationError
from worker.transport.capabilities import connect


def try_to(url: str) -> None:
    connect(url, heartbeat=0, timeout=5, name="test").release()


def test_a_certificate_of_a_trusted_authority_is_taken(rabbitmq: RabbitMQ, amqp_url: str) -> None:
    trusted = f"{rabbitmq.over_tls(amqp_url)}?ssl_ca_certs={rabbitmq.certificates.authority}"
    try_to(trusted)
    try_to(f"{trusted}&ssl_certfile={rabbitmq.certificates.client}&login_method=PLAIN")


def test_an_unknown_authority_is_refused_and_told(rabbitmq: RabbitMQ, amqp_url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        try_to(rabbitmq.over_tls(amqp_url))

    assert "the broker's certificate is not trusted: self" in str(caught.value)
    assert "?ssl_ca_certs=FILE" in str(caught.value)
    assert "guest:guest" not in str(caught.value)


def test_another_host_is_refused(rabbitmq: RabbitMQ, amqp_url: str) -> None:
    url = rabbitmq.over_tls(amqp_url, "127.0.0.1")
    url += f"?ssl_ca_certs={rabbitmq.certificates.authority}"
    with pytest.raises(ConfigurationError, match=r"IP address mismatch"):
        try_to(url)

    try_to(f"{url}&ssl_check_hostname=false")


def test_who_says_so_gets_no_check_at_all(rabbitmq: RabbitMQ, amqp_url: str) -> None:
    try_to(f"{rabbitmq.over_tls(amqp_url, '127.0.0.1')}?ssl_cert_reqs=none")


def test_a_file_that_cannot_be_used_is_told(
    rabbitmq: RabbitMQ, amqp_url: str, tmp_path: Path
) -> None:
    url = rabbitmq.over_tls(amqp_url)
    with pytest.raises(ConfigurationError, match="there is no file /no/such"):
        try_to(f"{url}?ssl_ca_certs=/no/such")

    junk = tmp_path / "junk.pem"
    junk.write_text("no certificate")
    with pytest.raises(ConfigurationError, match=r"no certificates and keys.*junk\.pem"):
        try_to(f"{url}?ssl_ca_certs={junk}")


def test_a_port_that_speaks_no_tls_does_not_answer(rabbitmq: RabbitMQ, amqp_url: str) -> None:
    with pytest.raises(BrokerUnreachable, match="does not answer"):
        try_to(amqp_url.replace("amqp://", "amqps://"))
