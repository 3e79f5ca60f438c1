"""The pytest plugin: a fixture that makes TestWorkers. pytest finds it by itself.

::

    def test_a_deposit_is_recorded(qworker_worker):
        worker = qworker_worker(app)
        worker.publish(UserDeposited(user_id="u1", amount=Decimal(5)))
        worker.run()

        assert balance("u1") == 5
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from worker.testing.test_worker import TestWorker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from worker.app import App


@pytest.fixture
def qworker_worker() -> Iterator[Callable[..., TestWorker]]:
    """A function that takes what TestWorker takes and returns one that runs until the test ends."""
    with ExitStack() as stack:

        def make(
            app: App,
            *,
            clock: Callable[[], float] | None = None,
            settings: Mapping[str, object] | None = None,
        ) -> TestWorker:
            return stack.enter_context(TestWorker(app, clock=clock, settings=settings))

        yield make
