"""compose.yaml and the Dockerfile against the code: no unknown name, no path that is not there, no open door."""

import re
from typing import Any

import pytest
import yaml
from tests.support import ROOT

from mfg_notify.cli import main

COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
SECOND = yaml.safe_load((ROOT / "compose.two-games.yaml").read_text(encoding="utf-8"))["services"]
"""Merged into `COMPOSE`: services of a second game, and what changes in those of the first one."""
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


@pytest.mark.parametrize("name", ["migrate", "exporter"])
def test_the_second_game_differs_in_what_is_its_own(name: str) -> None:
    def comparable(service: dict[str, Any]) -> dict[str, Any]:
        dsn = {"MFG_NOTIFY_DSN", "MFG_NOTIFY_GAME_SCHEMA", "PGPASSWORD"}
        assert dsn <= service["environment"].keys()
        others = {variable: text for variable, text in service["environment"].items() if variable not in dsn}
        return {**service, "environment": others, "ports": bool(service.get("ports")), "depends_on": None}

    first, second = SERVICES[name], SECOND[f"{name}-second"]
    assert comparable(second) == comparable(first)
    for variable in ("MFG_NOTIFY_DSN", "MFG_NOTIFY_GAME_SCHEMA"):
        assert re.match(r"\$\{MFG_NOTIFY_SECOND_", second["environment"][variable])


def test_two_games_have_ports_and_labels_of_their_own() -> None:
    [first], [second] = SERVICES["exporter"]["ports"], SECOND["exporter-second"]["ports"]
    assert second == first.replace("MFG_NOTIFY_PORT:-9810", "MFG_NOTIFY_SECOND_PORT:-9811")
    assert set(SECOND["exporter-second"]["depends_on"]) == {"migrate-second"}
    exporters = {name for name in SERVICES | SECOND if name.startswith("exporter")}
    targets = [
        entry
        for path in (ROOT / "prometheus" / "targets").glob("*.yml")
        for entry in yaml.safe_load(path.read_text(encoding="utf-8"))
    ]
    assert {target for entry in targets for target in entry["targets"]} == {f"{name}:9810" for name in exporters}
    assert len({entry["labels"]["database"] for entry in targets}) == len(exporters)


def test_prometheus_of_two_games_is_the_same_but_for_its_targets() -> None:
    [mount] = SECOND["prometheus"]["volumes"]
    source, target, mode = mount.split(":")
    assert (target, mode) == ("/etc/prometheus/prometheus.yml", "ro")
    one, two = (
        yaml.safe_load((ROOT / name).read_text(encoding="utf-8")) for name in ("prometheus/prometheus.yml", source)
    )
    [of_one], [of_two] = one.pop("scrape_configs"), two.pop("scrape_configs")
    assert one == two
    assert of_one["job_name"] == of_two["job_name"]
    assert of_one["static_configs"][0]["labels"].keys() == {"database"}
    assert of_two["file_sd_configs"] == [{"files": ["targets/*.yml"]}]
