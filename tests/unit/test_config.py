"""Settings: each source outranks the next, every mistake is told at once, passwords are masked."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest

from worker import App, ConfigurationError
from worker.config import FIELDS, Settings, environment_name, load_settings, mask_url

ROOT = Path(__file__).parents[2]


def load(
    folder: Path,
    options: dict[str, object] | None = None,
    environ: dict[str, str] | None = None,
    app: dict[str, object] | None = None,
) -> Settings:
    """Load settings from these sources and the files in ``folder`` alone."""
    return load_settings(options or {}, environ or {}, folder, app)


def mistakes(folder: Path, **sources: Any) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        load(folder, **sources)
    return str(caught.value).splitlines()


class TestPrecedence:
    #: Every source, the weakest first, with the prefetch that it sets.
    SOURCES = ("app", "pyproject", "qworker.toml", "environ", "options")

    def load_from(self, folder: Path, *sources: str) -> Settings:
        given: dict[str, Any] = {}
        for number, source in enumerate(self.SOURCES, 100):
            if source not in sources:
                continue
            match source:
                case "app" | "options":
                    given[source] = {"prefetch": number}
                case "environ":
                    given[source] = {"QWORKER_PREFETCH": str(number)}
                case "pyproject":
                    text = f"[tool.qworker]\nprefetch = {number}\n"
                    (folder / "pyproject.toml").write_text(text)
                case _:
                    (folder / "qworker.toml").write_text(f"prefetch = {number}\n")
        return load(folder, **given)

    @pytest.mark.parametrize("strongest", range(5))
    def test_a_source_outranks_all_before_it(self, tmp_path: Path, strongest: int) -> None:
        settings = self.load_from(tmp_path, *self.SOURCES[: strongest + 1])

        assert settings.prefetch == 100 + strongest

    @pytest.mark.parametrize("only", range(5))
    def test_a_source_serves_alone(self, tmp_path: Path, only: int) -> None:
        assert self.load_from(tmp_path, self.SOURCES[only]).prefetch == 100 + only

    def test_without_any_source_there_are_defaults(self, tmp_path: Path) -> None:
        assert load(tmp_path) == Settings()

    def test_sources_complement_each_other(self, tmp_path: Path) -> None:
        settings = load(
            tmp_path,
            options={"shards": 8},
            environ={"QWORKER_CONCURRENCY": "4"},
            app={"prefetch": 10},
        )

        assert (settings.shards, settings.concurrency, settings.prefetch) == (8, 4, 10)

    def test_an_empty_variable_says_nothing(self, tmp_path: Path) -> None:
        assert load(tmp_path, environ={"QWORKER_PREFETCH": ""}).prefetch == 256

    def test_an_option_that_was_not_given_says_nothing(self, tmp_path: Path) -> None:
        assert load(tmp_path, options={"shards": None}, app={"shards": 4}).shards == 4

    def test_the_arguments_of_an_app_are_its_weakest_source(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.delenv("QWORKER_BROKER_URL", raising=False)
        app = App("bank", broker="memory://a", settings={"prefetch": 7})

        assert (app.settings.broker, app.settings.prefetch) == ("memory://a", 7)
        assert app.configure({"broker": "memory://b"}).broker == "memory://b"


class TestValues:
    def test_files_may_write_names_with_hyphens(self, tmp_path: Path) -> None:
        (tmp_path / "qworker.toml").write_text("drain-timeout = 5\nsingle-active = true\n")
        settings = load(tmp_path)

        assert settings.drain_timeout == 5.0
        assert settings.single_active is True

    @pytest.mark.parametrize(
        ("text", "meant"),
        [("1", True), ("TRUE", True), ("yes", True), (" on ", True), ("0", False), ("Off", False)],
    )
    def test_the_environment_says_yes_and_no_in_many_ways(
        self, tmp_path: Path, text: str, meant: bool
    ) -> None:
        assert load(tmp_path, environ={"QWORKER_BURST": text}).burst is meant

    def test_a_list_is_written_with_commas_in_the_environment(self, tmp_path: Path) -> None:
        settings = load(tmp_path, environ={"QWORKER_HANDLERS": "audit, record,"})

        assert settings.handlers == ("audit", "record")

    def test_every_setting_can_be_set_by_the_environment(self, tmp_path: Path) -> None:
        names = {environment_name(setting) for setting in FIELDS}

        assert len(names) == len(FIELDS)
        assert all(name.startswith("QWORKER_") for name in names)
        assert {"QWORKER_APP", "QWORKER_BROKER_URL", "QWORKER_DEDUP_URL"} <= names

    @pytest.mark.parametrize(
        ("setting", "value", "told"),
        [
            ("shards", "many", "not a whole number"),
            ("shards", 2.5, "not a whole number"),
            ("shards", True, "not a whole number"),
            ("shards", 0, "at least 1"),
            ("shards", 1025, "at most 1024"),
            ("drain_timeout", "soon", "not a number"),
            ("drain_timeout", "nan", "not a number"),
            ("confirm_timeout", "nan", "not a number"),
            ("heartbeat", -1, "at least 0"),
            ("burst", "perhaps", "neither true nor false"),
            ("queue_type", "stream", "none of quorum, classic"),
            ("broker", 5, "not a text"),
            ("handlers", [1], "not a list of names"),
            ("id_from", "cookie:id", "none of property:NAME"),
            ("id_from", "header:", "none of property:NAME"),
            ("name_from", "body-hash", "or routing-key"),
            ("key_from", "routing-key", "none of property:NAME"),
        ],
    )
    def test_a_value_that_cannot_be_meant_is_told_with_its_source(
        self, tmp_path: Path, setting: str, value: object, told: str
    ) -> None:
        (line,) = mistakes(tmp_path, app={setting: value})

        assert line.startswith(f"{setting} in App(...): ")
        assert told in line

    def test_a_whole_number_may_be_written_as_one_with_a_point(self, tmp_path: Path) -> None:
        assert load(tmp_path, app={"shards": 4.0}).shards == 4


class TestMistakes:
    def test_all_of_them_are_told_at_once_each_with_where_it_was_set(self, tmp_path: Path) -> None:
        (tmp_path / "pyproject.toml").write_text("[tool.qworker]\nconcurency = 4\n")
        (tmp_path / "qworker.toml").write_text("claim-ttl = 'long'\n")
        told = mistakes(
            tmp_path,
            options={"shards": 0, "handlers": 7},
            environ={"QWORKER_PREFETCH": "lots", "QWORKER_BROKER_URL": "ampq://localhost"},
            app={"drain_timeout": -1},
        )

        assert sorted(told) == sorted(
            [
                "pyproject.toml: there is no setting concurency; did you mean concurrency?",
                "drain_timeout in App(...): -1.0 is too small; at least 0",
                "claim_ttl in qworker.toml: 'long' is not a number",
                "QWORKER_PREFETCH: 'lots' is not a whole number",
                "--shards: 0 is too small; at least 1",
                "--handler: 7 is not a list of names",
                (
                    "QWORKER_BROKER_URL: no broker speaks 'ampq': use one of amqp://, amqps://,"
                    " sqlite://, memory://; did you mean amqp?"
                ),
            ]
        )

    @pytest.mark.parametrize(
        ("variable", "told"),
        [
            ("QWORKER_BROKR_URL", "did you mean QWORKER_BROKER_URL?"),
            ("QWORKER_BROKER", "did you mean QWORKER_BROKER_URL?"),
            ("QWORKER_SHARD", "did you mean QWORKER_SHARDS?"),
            ("QWORKER_shards", "did you mean QWORKER_SHARDS?"),
            ("QWORKER_COLOUR", "QWORKER_* is for settings"),
        ],
    )
    def test_a_variable_that_is_no_setting_is_told(
        self, tmp_path: Path, variable: str, told: str
    ) -> None:
        (line,) = mistakes(tmp_path, environ={variable: "x", "QWORKER_SHARDS": "2"})

        assert line == f"the environment: there is no setting {variable}; {told}"

    def test_an_unknown_variable_that_is_empty_says_nothing(self, tmp_path: Path) -> None:
        assert load(tmp_path, environ={"QWORKER_BROKR_URL": ""}) == Settings()

    @pytest.mark.parametrize("name", ["QWORKER", "QWORKER_METRICS"])
    def test_what_kubernetes_tells_of_a_service_called_qworker_is_no_mistake(
        self, tmp_path: Path, name: str
    ) -> None:
        told = {
            f"{name}_SERVICE_HOST": "10.0.0.11",
            f"{name}_SERVICE_PORT": "9090",
            f"{name}_SERVICE_PORT_HTTP": "9090",
            f"{name}_PORT": "tcp://10.0.0.11:9090",
            f"{name}_PORT_9090_TCP": "tcp://10.0.0.11:9090",
            f"{name}_PORT_9090_TCP_PROTO": "tcp",
            f"{name}_PORT_9090_TCP_PORT": "9090",
            f"{name}_PORT_9090_TCP_ADDR": "10.0.0.11",
        }

        assert load(tmp_path, environ=told) == Settings()

    def test_every_variable_that_this_repository_uses_is_known(self, tmp_path: Path) -> None:
        used = {
            name
            for folder in ("worker", "benchmarks", "contrib", "deploy", "examples", "scripts")
            for file in (ROOT / folder).rglob("*")
            if file.suffix in (".py", ".yaml", ".service", ".sh", "")
            if file.is_file()
            for name in re.findall(r"(?<![A-Z_])QWORKER_[A-Z_]+[A-Z]\b", file.read_text())
        } - {"QWORKER_ERRORS"}  # a name in the code

        assert len(used) > 5
        load(tmp_path, environ=dict.fromkeys(used - {*map(environment_name, FIELDS)}, "1"))

    def test_a_file_that_is_no_toml_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "qworker.toml").write_text("shards = = 4")
        (line,) = mistakes(tmp_path)

        assert line.startswith(f"{tmp_path / 'qworker.toml'}: cannot be read")

    @pytest.mark.parametrize("text", ["tool = 5", "[tool]\nqworker = 5"])
    def test_a_file_whose_section_is_no_table_is_named(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "pyproject.toml").write_text(text)
        (line,) = mistakes(tmp_path)

        assert "pyproject.toml" in line
        assert "[tool.qworker]" in line

    def test_a_file_of_other_tools_is_none_of_ours(self, tmp_path: Path) -> None:
        (tmp_path / "pyproject.toml").write_text("[project]\nname = 'x'\n[tool.ruff]\n")

        assert load(tmp_path) == Settings()

    @pytest.mark.parametrize(
        ("together", "told"),
        [
            ({"broker": "amqp://a;memory://b"}, "fail over"),
            ({"broker": "memory://a", "processes": 2}, "lives in one process"),
            ({"dedup": "memory://", "processes": 2}, "one process's memory"),
            ({"max_priority": 5}, "quorum queues have no such priorities"),
            ({"single_active": True, "shards": 2, "processes": 2}, "leave processes at 1"),
            ({"broker": "amqp://a", "dedup": "bank:Store"}, "set leases to"),
            ({"retention": 60, "claim_ttl": 60}, "longer than claim_ttl"),
        ],
    )
    def test_settings_that_contradict_each_other_are_refused(
        self, tmp_path: Path, together: dict[str, object], told: str
    ) -> None:
        assert any(told in line for line in mistakes(tmp_path, app=together))

    def test_a_mistake_in_an_option_is_named_as_it_is_typed(self, tmp_path: Path) -> None:
        (line,) = mistakes(tmp_path, options={"drain_timeout": -1.0})

        assert line.startswith("--drain-timeout: ")


class TestDerived:
    @pytest.mark.parametrize(
        ("broker", "dedup", "meant"),
        [
            ("sqlite:///here.db", "", "sqlite:///here.db"),
            ("memory://x", "", "memory://x"),
            ("amqp://localhost", "", "redis://localhost:6379/0"),
            ("amqp://localhost", "sqlite:///ids.db", "sqlite:///ids.db"),
        ],
    )
    def test_the_dedup_store_follows_the_broker(self, broker: str, dedup: str, meant: str) -> None:
        assert Settings(broker=broker, dedup=dedup).dedup_url == meant

    @pytest.mark.parametrize(
        ("broker", "dedup", "leases", "meant"),
        [
            ("sqlite:///here.db", "redis://there", "", "sqlite:///here.db"),
            ("sqlite:///here.db", "", "redis://there", "redis://there"),
            ("amqp://localhost", "", "", "redis://localhost:6379/0"),
            ("amqp://localhost", "postgresql://there/ids", "", "postgresql://there/ids"),
            ("amqp://localhost", "bank:Store", "", ""),
            ("amqp://localhost", "bank:Store", "sqlite:///leases.db", "sqlite:///leases.db"),
        ],
    )
    def test_leases_are_where_the_others_look_for_them(
        self, broker: str, dedup: str, leases: str, meant: str
    ) -> None:
        assert Settings(broker=broker, dedup=dedup, leases=leases).leases_url == meant

    @pytest.mark.parametrize(
        ("broker", "dedup", "leases", "told"),
        [
            ("sqlite:///here.db", "redis://there", "", "the file of --broker sqlite:///here.db"),
            ("sqlite:///here.db", "", "redis://there", ""),
            ("amqp://u:secret@host", "", "", "this goes with --broker amqp://u:***@host"),
            ("amqp://localhost", "redis://there", "", "the dedup store of --dedup"),
        ],
    )
    def test_who_did_not_say_where_leases_are_is_told_what_did(
        self, broker: str, dedup: str, leases: str, told: str
    ) -> None:
        origin = Settings(broker=broker, dedup=dedup, leases=leases).leases_origin
        assert origin.endswith(told)
        assert bool(origin) is bool(told)

    @pytest.mark.parametrize(
        ("settings", "most"),
        [
            ({}, 4),
            ({"single_active": True}, 1),
            ({"broker": "memory://here"}, 1),
            ({"broker": "amqp://localhost", "dedup": "memory://"}, 1),
        ],
    )
    def test_what_cannot_be_shared_runs_in_one_process(
        self, settings: dict[str, Any], most: int
    ) -> None:
        made = Settings(shards=4, **{"processes": 8, **settings})

        assert made.most_processes == made.process_count == most

    def test_there_are_never_more_processes_than_shards(self) -> None:
        assert Settings(shards=2, processes=8).process_count == 2
        assert Settings(shards=1, processes=0).process_count == 1

    def test_a_service_whose_number_of_shards_is_not_set_begins_with_one(self) -> None:
        made = Settings(processes=8)

        assert (made.shards, made.first_shards) == (0, 1)
        assert made.process_count == 8, "it may have more by now"
        assert Settings(shards=4).first_shards == 4

    def test_a_broker_in_memory_has_one_process(self) -> None:
        assert Settings(broker="memory://", shards=8).process_count == 1


class TestMasking:
    @pytest.mark.parametrize(
        ("text", "masked"),
        [
            ("amqp://user:secret@host:5672/vhost", "amqp://user:***@host:5672/vhost"),
            ("redis://:secret@host:6379/0", "redis://:***@host:6379/0"),
            ("amqps://u:secret@a;amqps://u:secret@b", "amqps://u:***@a;amqps://u:***@b"),
            ("AMQP://U:secret@H", "AMQP://U:***@H"),
            ("cannot reach amqp://u:secret@h: refused", "cannot reach amqp://u:***@h: refused"),
            ("redis://h?password=secret&db=1", "redis://h?password=***&db=1"),
            (
                "postgresql://u@h/db?a=b&sslpassword=hunter2",
                "postgresql://u@h/db?a=b&sslpassword=***",
            ),
            ("pg://h?oauth_client_secret=hunter2&x=1", "pg://h?oauth_client_secret=***&x=1"),
            ("redis://h?password=hun;ter2", "redis://h?password=***"),
            ("redis://h?password=hunter;redis://h2", "redis://h?password=***;redis://h2"),
            ("postgresql://u@h/db?sslmode=on", "postgresql://u@h/db?sslmode=on"),
            ("amqp://localhost:5672/", "amqp://localhost:5672/"),
            ("sqlite:///qworker.db", "sqlite:///qworker.db"),
            ("amqp://u:secret@h for bob@h", "amqp://u:***@h for bob@h"),
            ("amqp://h:5672/ for bob@h", "amqp://h:5672/ for bob@h"),
            ("amqp://h:5672 or redis://:secret@h", "amqp://h:5672 or redis://:***@h"),
        ],
    )
    def test_the_password_of_every_url_is_masked(self, text: str, masked: str) -> None:
        assert mask_url(text) == masked

    @pytest.mark.parametrize(
        "url",
        [
            "amqp://user:se@cret@host/",
            "redis://:se/cret@host:6379/0",
            "redis://:se:cret@host:6379/0",
            "amqp://user:cret?cret@host/",
            "amqp://user:cret;cret@host/",
            "amqp://user:cret cret@host/",
            "amqp://user:se cret cret@host/",
        ],
    )
    def test_a_password_with_signs_that_a_url_would_escape_is_masked_too(self, url: str) -> None:
        assert "cret" not in mask_url(url)
        assert "host" in mask_url(url)

    @pytest.mark.parametrize(
        "piece",
        [
            "a",
            "a://",
            "a://a:",
            "a://a:a",
            "?password=",
            "?a",
            "?password=;",
            "@",
            "a://a:a ",
            "a://a: ",
        ],
    )
    def test_a_long_text_from_outside_is_masked_quickly(self, piece: str) -> None:
        begun = time.process_time()
        mask_url(piece * (200_000 // len(piece)))

        assert time.process_time() - begun < 5

    def test_no_mistake_shows_a_password(self, tmp_path: Path) -> None:
        told = mistakes(tmp_path, app={"broker": "ampq://user:secret@host", "dedup": 5})

        assert "secret" not in "".join(told)
