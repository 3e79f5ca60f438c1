"""A broker with what is there already, and services that join it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from integration.site import Running, Site
from worker import App


@pytest.fixture
def site(amqp_url: str) -> Iterator[Site]:
    site = Site(amqp_url)
    yield site
    site.close()


@pytest.fixture
def serve() -> Iterator[Callable[..., Running]]:
    started: list[Running] = []

    def start(app: App, **options: Any) -> Running:
        started.append(Running(app, **options))
        return started[-1]

    yield start
    for each in started:
        if each.consumer.ended is None and each.consumer._link.is_up:
            each.consumer.close()
