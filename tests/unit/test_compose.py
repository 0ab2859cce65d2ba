"""compose.yaml and the Dockerfile against the code: no unknown name, no path that is not there, no open door."""

import re
from typing import Any

import pytest
import yaml
from tests.support import ROOT

from mfg_notify.cli import main

COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
SERVICES = COMPOSE["services"]
every_service = pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES)


@every_service
def test_a_service_has_no_right_that_it_does_not_need(service: dict[str, Any]) -> None:
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]


def published(service: str, **variables: str) -> list[str]:
    """Return the ports of a service as Compose reads them, with these variables in the environment."""
    return [
        re.sub(r"\$\{(\w+):-([^}]*)\}", lambda found: variables.get(found[1]) or found[2], port)
        for port in SERVICES[service].get("ports", [])
    ]


def started_with(service: str, *profiles: str) -> set[str]:
    """Return the services that `docker compose --profile … up SERVICE` starts: this one and what it depends on."""
    return {service}.union(
        *(
            started_with(name, *profiles)
            for name in SERVICES[service].get("depends_on", [])
            if set(SERVICES[name].get("profiles", profiles)) <= set(profiles)
        )
    )


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_is_reached_from_this_machine_alone(service: str) -> None:
    for port in published(service):
        assert port.startswith("127.0.0.1:")


def test_ports_that_another_stack_uses_can_be_changed() -> None:
    usual = {name: published(name) for name in SERVICES if published(name)}
    assert usual == {
        "exporter": ["127.0.0.1:9810:9810"],
        "prometheus": ["127.0.0.1:9090:9090"],
        "grafana": ["127.0.0.1:3000:3000"],
    }
    other = {"MFG_NOTIFY_PORT": "1", "PROMETHEUS_PORT": "2", "GRAFANA_PORT": "3", "MFG_NOTIFY_BIND": "172.17.0.1"}
    assert {name: published(name, **other) for name in usual} == {
        "exporter": ["172.17.0.1:1:9810"],
        # They ask for no password, so they stay where they are.
        "prometheus": ["127.0.0.1:2:9090"],
        "grafana": ["127.0.0.1:3:3000"],
    }
    # As Compose reads them: an empty variable is one that is not given.
    assert published("exporter", MFG_NOTIFY_BIND="") == usual["exporter"]


def test_the_exporter_starts_without_our_prometheus_and_grafana() -> None:
    assert started_with("exporter") == {"exporter", "migrate"}
    assert started_with("exporter", "demo") == {"exporter", "migrate", "postgres"}


@every_service
def test_an_image_has_a_version(service: dict[str, Any]) -> None:
    assert "build" in service or re.search(r":v?\d+(\.\d+)+$", service["image"])


def test_the_images_of_the_build_have_a_version() -> None:
    # A release of Python and one of Debian; whoever builds can add the digest.
    assert re.search(r"^ARG PYTHON=python:\d+\.\d+\.\d+-slim-[a-z]+$", DOCKERFILE, re.MULTILINE)
    assert set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)) == {"${PYTHON}"}


@every_service
def test_what_a_service_mounts_is_there(service: dict[str, Any]) -> None:
    for mount in service.get("volumes", []):
        source, _, *mode = mount.split(":")
        if source.startswith("."):
            # The dashboards' own tests are about their files.
            assert (ROOT / source).exists(), source
            assert mode == ["ro"]
        else:
            assert source in COMPOSE["volumes"]


@every_service
def test_the_command_and_its_variables_are_known(service: dict[str, Any]) -> None:
    if "build" not in service:
        return
    words = [word for word in service["command"] if not word.startswith("-")]
    command: Any = main
    for word in words:
        command = command.commands[word]
    assert set(service["command"]) - set(words) <= {option for one in command.params for option in one.opts}
    given = {name for name in service["environment"] if name.startswith("MFG_NOTIFY_")}
    assert given <= {one.envvar for one in command.params}


def test_the_image_serves_where_its_health_is_asked_for() -> None:
    [address] = re.findall(r"MFG_NOTIFY_WEB_LISTEN_ADDRESS=(\S+)", DOCKERFILE)
    assert address == "0.0.0.0:9810"
    assert "'127.0.0.1', 9810" in DOCKERFILE
    assert "EXPOSE 9810" in DOCKERFILE
    assert [port.rpartition(":")[2] for port in published("exporter")] == ["9810"]
