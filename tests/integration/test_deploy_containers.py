"""The manifest and the Dockerfile that we ship fit each other and what the supervisor does."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from worker.config import FIELDS, Settings

DEPLOY = Path(__file__).parents[2] / "deploy"


@pytest.fixture(scope="module")
def pod() -> dict[str, Any]:
    """The template of the pods."""
    manifest = yaml.safe_load((DEPLOY / "kubernetes/deployment.yaml").read_text())
    assert (manifest["apiVersion"], manifest["kind"]) == ("apps/v1", "Deployment")
    template: dict[str, Any] = manifest["spec"]["template"]
    assert manifest["spec"]["selector"]["matchLabels"] == template["metadata"]["labels"]
    spec: dict[str, Any] = template["spec"]
    return spec


@pytest.fixture(scope="module")
def container(pod: dict[str, Any]) -> dict[str, Any]:
    """The one container of a pod."""
    only: dict[str, Any]
    (only,) = pod["containers"]
    return only


def argument(container: dict[str, Any], name: str) -> str:
    arguments = container["args"]
    return str(arguments[arguments.index(name) + 1])


def test_kubernetes_waits_longer_than_the_drain(
    pod: dict[str, Any], container: dict[str, Any]
) -> None:
    drain = float(argument(container, "--drain-timeout"))

    assert drain == Settings().drain_timeout
    assert pod["terminationGracePeriodSeconds"] > drain + 5


def test_every_argument_and_variable_is_a_setting(container: dict[str, Any]) -> None:
    options = [a.removeprefix("--") for a in container["args"] if a.startswith("--")]
    variables = [v["name"].removeprefix("QWORKER_").lower() for v in container["env"]]
    settings = {name.replace("_", "-") for name in FIELDS}

    assert container["args"][0] == "start"
    assert all(isinstance(value, str) for value in container["args"])
    assert set(options) <= settings
    assert set(variables) - {"run_dir"} <= set(FIELDS)


def test_there_are_no_more_processes_than_shards(container: dict[str, Any]) -> None:
    environ = {variable["name"]: variable["value"] for variable in container["env"]}

    assert int(environ["QWORKER_PROCESSES"]) <= int(argument(container, "--shards"))


def test_probes_ask_the_supervisor_not_the_broker(container: dict[str, Any]) -> None:
    def command(probe: str) -> list[str]:
        found: list[str] = container[probe]["exec"]["command"]
        return found

    assert command("livenessProbe") == ["qworker", "check", "--live"]
    assert command("readinessProbe") == ["qworker", "check", "--ready"]
    assert command("startupProbe") == ["qworker", "check", "--ready"]


def test_a_process_that_hangs_is_replaced_before_kubernetes_restarts_the_pod(
    container: dict[str, Any],
) -> None:
    probe = container["livenessProbe"]

    assert probe["periodSeconds"] * probe["failureThreshold"] > Settings().watchdog + 5


def test_the_pod_has_no_more_rights_than_it_needs(
    pod: dict[str, Any], container: dict[str, Any]
) -> None:
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert "memory" in container["resources"]["limits"]


def test_what_is_written_has_a_place_though_the_root_is_read_only(
    pod: dict[str, Any], container: dict[str, Any]
) -> None:
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    environ = {variable["name"]: variable["value"] for variable in container["env"]}
    volumes = {volume["name"] for volume in pod["volumes"]}

    assert environ["QWORKER_RUN_DIR"] in mounts
    assert "/tmp" in mounts  # noqa: S108 - where Python looks
    assert set(mounts.values()) == volumes


def test_the_image_runs_the_supervisor_as_process_1_of_the_manifests_user(
    pod: dict[str, Any],
) -> None:
    lines = dict(
        re.findall(r"^(\w+) (.*)$", (DEPLOY / "docker/Dockerfile").read_text(), re.MULTILINE)
    )

    assert json.loads(lines["ENTRYPOINT"]) == ["qworker"]
    user, group = map(int, lines["USER"].split(":"))
    assert (user, group) == (
        pod["securityContext"]["runAsUser"],
        pod["securityContext"]["runAsGroup"],
    )
