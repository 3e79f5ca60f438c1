"""For the story alone: settings of a web server that dies where a request asks it to."""

import os
import signal
from collections.abc import Callable

from django.db import connection
from django.http import HttpRequest, HttpResponse

from examples.bank.finance.settings import *  # noqa: F403 - all of them, and one more

MIDDLEWARE = ["examples.bank.accident.accident"]


def accident(view: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    def handle(request: HttpRequest) -> HttpResponse:
        if "Accident" in request.headers:
            commit = connection.commit

            def commit_and_die() -> None:
                commit()
                os.kill(os.getpid(), signal.SIGKILL)

            connection.commit = commit_and_die
        return view(request)

    return handle
