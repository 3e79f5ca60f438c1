"""A user's mistake ends with its exit code and a text that says what to do, never a traceback."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import redis

from acceptance.conftest import Place, long_on
from acceptance.running import Load, Service, eventually, steps
from servers import RabbitMQ, Redis
from servers.process import free_ports

Serve = Callable[..., Service]

APP = """\
from worker import App
app = App("mine")

@app.on("#")
def handle(event):
    pass
"""


KEEPER = """\
from worker import App
app = App("mine")

@app.on("#")
class Keeper:
    def __init__(self):
        self.file = open("settings")

    def handle(self, event):
        pass
"""

LIFESPAN = """
@app.lifespan
def life():
    {start}
    yield
    raise RuntimeError("cannot close")
"""

#: A mistake that the lifespan finds, and tells as the runtime tells its own.
UNSET = 'import worker; raise worker.ConfigurationError("MINE_URL is not set")'


def told(service: Service, *options: str) -> tuple[int, str]:
    """Start it, and return its exit code and what it said to its user."""
    service.start(*options)
    code = service.exit_code()
    lines = [line for line in service.log.splitlines() if not line.startswith("{")]
    return code, "\n".join(lines)


def test_the_app_of_the_current_folder_is_found(project: Service) -> None:
    project.start_ready()

    assert project.drain() == 0


@pytest.mark.parametrize(
    ("app", "source", "says"),
    [
        ("", APP, "which app?"),
        ("handlerz", APP, "there is no module 'handlerz'"),
        ("handlers.py", APP, "try --app handlers"),
        ("handlers:ap", APP, "handlers has no App named 'ap'; it has app"),
        ("handlers", "import missing_package\n", "'missing_package', which is not installed"),
        (
            "handlers",
            "raise ModuleNotFoundError(name='sqlalchemy')\n",
            "'sqlalchemy', which is not installed; the extra 'sqlalchemy' brings it: pip install",
        ),
        ("handlers", APP.replace("#", "a b"), "a b"),
        ("handlers", APP.replace("event", "a, b, c"), "takes (event) or (event, context)"),
        (
            "handlers",
            "from worker import Revisions\n\nRevisions('n', gap='wat')\n",
            "handlers.py, line 3: Revisions(gap='wat'): one of 'accept', 'wait', 'dead_letter'",
        ),
        (
            "handlers",
            "from worker import RetryPolicy\n\nRetryPolicy(attempts=0)\n",
            "handlers.py, line 3: RetryPolicy(attempts=0): at least 1",
        ),
        ("handlers", KEEPER, "making the handler class mine.Keeper raised FileNotFoundError"),
        ("handlers", APP + LIFESPAN.format(start="1 / 0"), "('mine') raised ZeroDivisionError"),
        ("handlers", APP + LIFESPAN.format(start=UNSET), "qworker: MINE_URL is not set"),
    ],
)
def test_an_app_that_cannot_be_found_or_meant(
    project: Service, app: str, source: str, says: str
) -> None:
    (project.folder / "handlers.py").write_text(source)
    project.app = app

    code, text = told(project)

    assert code == 3
    assert says in text
    assert "Traceback" not in project.log
    assert len(text.splitlines()) == 1


def test_an_app_that_raises_shows_the_users_own_lines_and_no_others(project: Service) -> None:
    (project.folder / "handlers.py").write_text("def broken():\n    1 / 0\n\nbroken()\n")

    code, text = told(project)

    assert code == 3
    assert "importing it raised ZeroDivisionError: division by zero" in text
    assert 'handlers.py", line 4' in text
    assert "worker/" not in text
    assert "importlib" not in text


def test_a_lifespan_that_raises_at_its_end_changes_nothing_about_the_end(project: Service) -> None:
    (project.folder / "handlers.py").write_text(APP + LIFESPAN.format(start=""))
    project.start_ready()

    assert project.drain() == 0
    assert "cannot close" in project.log


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["--sharsd", "4"], 2, "--shards"),
        (["--shards", "0"], 3, "--shards: 0 is too small"),
        (["--shards", "many"], 3, "'many' is not a whole number"),
        (["--broker", "ampq://localhost"], 3, "did you mean amqp?"),
        (["--broker", "amqp://guest:secret@localhost:port/"], 3, "--broker: its port is no number"),
        (["--broker", "sqlite:///missing/qworker.db"], 3, "its folder must exist"),
        (
            ["--broker", "sqlite:///missing/qworker.db"],
            3,
            "--leases (QWORKER_LEASES_URL) is not set, and this is the file of --broker sqlite:",
        ),
        (["--dedup", "rediss:/localhost"], 3, "rediss"),
        (["--dedup", "nowhere.module:Store"], 3, "nowhere.module"),
        (["--handler", "handel"], 2, "did you mean handle?"),
        (["--http", "nowhere"], 3, "nowhere"),
    ],
)
def test_settings_that_cannot_be_meant(
    project: Service, options: list[str], code: int, says: str
) -> None:
    found, text = told(project, *options)

    assert (found, says in text) == (code, True), text
    assert "Traceback" not in project.log
    assert "secret" not in project.log


def test_all_mistakes_are_told_at_once_each_with_its_source(project: Service) -> None:
    (project.folder / "qworker.toml").write_text('prefetch = "lots"\nshrads = 3\n')
    project.configure(concurrency="some", brokr_url="amqp://localhost", log_level="loud")

    code, text = told(project, "--shards", "-1")

    assert code == 3
    for part in (
        "prefetch in qworker.toml",
        "shrads",
        "QWORKER_CONCURRENCY",
        "--shards",
        "QWORKER_BROKR_URL; did you mean QWORKER_BROKER_URL?",
        "QWORKER_LOG_LEVEL: 'loud' is none of",
    ):
        assert part in text
    assert "Traceback" not in project.log


@pytest.mark.parametrize("part", ["broker", "dedup"])
def test_a_server_that_does_not_answer(project: Service, servers: Place, part: str) -> None:
    (port,) = free_ports(1)
    urls = {"broker": servers.broker, "dedup": servers.dedup}
    urls[part] = {
        "broker": f"amqp://guest:secret@127.0.0.1:{port}//",
        "dedup": f"redis://:secret@127.0.0.1:{port}/0",
    }[part]

    began = time.monotonic()
    code, text = told(
        project, "--broker", urls["broker"], "--dedup", urls["dedup"], "--connect-timeout", "2"
    )

    assert code == 4
    assert time.monotonic() - began < 20
    assert str(port) in text
    assert "Traceback" not in project.log
    assert "secret" not in project.log


def test_a_server_that_comes_up_within_the_connect_timeout(
    servers: Place, serve: Serve, rabbitmq: RabbitMQ
) -> None:
    service = serve(servers, "steps")
    rabbitmq.stop()

    service.start("--connect-timeout", "60")
    eventually(service.status, "it is on its way")
    rabbitmq.start()

    eventually(lambda: service.status().get("ready") or not service.running, "it is ready")
    assert service.drain() == 0


def test_a_password_that_the_broker_refuses(project: Service, servers: Place) -> None:
    wrong = servers.broker.replace("guest:guest", "guest:wrongword")

    code, text = told(project, "--broker", wrong, "--dedup", servers.dedup)

    assert code == 3
    assert "refuses the user" in text
    assert "Traceback" not in project.log
    assert "wrongword" not in project.log


def test_a_virtual_host_that_is_not_there(project: Service, servers: Place) -> None:
    code, text = told(project, "--broker", f"{servers.broker}-nowhere", "--dedup", servers.dedup)

    assert code == 3
    assert "no such virtual host" in text
    assert "Traceback" not in project.log


def test_a_redis_that_may_forget_ids(project: Service, servers: Place, redis_server: Redis) -> None:
    with redis.Redis.from_url(redis_server.url) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        try:
            code, text = told(project, "--broker", servers.broker, "--dedup", servers.dedup)
        finally:
            client.config_set("maxmemory-policy", "noeviction")

    assert code == 3
    assert "set it to noeviction" in text


@pytest.mark.parametrize("dedup", ["redis//localhost", "redis://localhost:1/zero"])
def test_a_first_start_that_fails_settles_no_number_of_shards(project: Service, dedup: str) -> None:
    code, _ = told(project, "--dedup", dedup)
    assert code == 3
    assert not [line for line in project.log.splitlines() if line.startswith("{")], "nothing else"

    project.start_ready("--shards", "3")
    eventually(lambda: "mine: 1 handler, sqlite" in project.log, "a start says what runs where")


@long_on("servers")
def test_another_number_of_shards_would_leave_messages_to_nobody(
    place: Place, serve: Serve
) -> None:
    service = serve(place, "steps")
    service.start_ready("--shards", "4", "--processes", "1")
    assert service.drain() == 0

    for shards in (1, 2, 8):
        code, text = told(service, "--shards", str(shards))

        assert code == 3
        verb = "is" if shards == 1 else "are"
        assert f"steps has 4 shards, and {shards} {verb} asked for" in text
        assert f"qworker reshard --to {shards}" in text
        assert "Traceback" not in service.log
        assert "SIGKILL" not in service.log, "the process that nobody needs any more is no news"

    service.start_ready("--shards", "4", "--processes", "1")
    assert service.drain() == 0


def test_a_queue_that_is_there_with_other_properties(
    servers: Place, serve: Serve, load: Load
) -> None:
    service = serve(servers, "steps")
    service.start_ready()
    load.publish(steps(keys=1, each=1))
    assert service.drain() == 0

    service.configure(queue_type="classic")
    code, text = told(service)

    assert code == 3
    assert "steps.g1.0" in text
    assert "queue_type" in text
    assert "Traceback" not in service.log
