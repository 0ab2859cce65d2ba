"""deploy/kubernetes against the code: every command, variable, path, port and label in it is one that there is."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support import ROOT

from mfg_notify import __version__
from mfg_notify.alerts import JOB, NAMES, read_rules
from mfg_notify.cli import main
from mfg_notify.core.tuning import Tuning
from mfg_notify.exposition import Page
from mfg_notify.web.application import make_application
from mfg_notify.web.server import GRACE

FOLDER = ROOT / "deploy" / "kubernetes"
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
Json = dict[str, Any]


def read(path: Path) -> Json:
    found: Json = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found


KUSTOMIZATIONS = {path.parent: read(path) for path in FOLDER.rglob("kustomization.yaml")}
MANIFESTS = {
    manifest["kind"]: manifest
    for folder, kustomization in KUSTOMIZATIONS.items()
    for manifest in (read(folder / name) for name in kustomization["resources"])
}
PODS = {kind: MANIFESTS[kind]["spec"]["template"] for kind in ("Deployment", "Job")}
EXPORTER = PODS["Deployment"]["spec"]["containers"][0]
every_pod = pytest.mark.parametrize("pod", [pod["spec"] for pod in PODS.values()], ids=PODS)
every_kustomization = pytest.mark.parametrize("folder", KUSTOMIZATIONS, ids=lambda folder: folder.name)


def test_it_has_what_it_needs_and_no_more() -> None:
    assert set(MANIFESTS) == {"Deployment", "Job", "PodMonitor", "PrometheusRule", "Service"}
    used = {folder / name for folder, kustomization in KUSTOMIZATIONS.items() for name in kustomization["resources"]}
    assert used | {folder / "kustomization.yaml" for folder in KUSTOMIZATIONS} == set(FOLDER.rglob("*.yaml"))
    assert MANIFESTS["Deployment"]["spec"]["replicas"] == 2


def test_a_selector_of_exporters_selects_nothing_else() -> None:
    labels = PODS["Deployment"]["metadata"]["labels"]
    [spread] = PODS["Deployment"]["spec"]["topologySpreadConstraints"]
    for selector in (
        MANIFESTS["Deployment"]["spec"]["selector"]["matchLabels"],
        MANIFESTS["Service"]["spec"]["selector"],
        MANIFESTS["PodMonitor"]["spec"]["selector"]["matchLabels"],
        spread["labelSelector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()
        assert not selector.items() <= PODS["Job"]["metadata"]["labels"].items()


@every_pod
def test_a_pod_meets_the_restricted_pod_security_standard(pod: Json) -> None:
    allowed = {
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    }
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    assert {kind for volume in pod["volumes"] for kind in volume.keys() - {"name"}} <= allowed
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    for container in pod["containers"]:
        # Also what the standard does not ask for: the root file system.
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        }
        assert all("hostPort" not in port for port in container.get("ports", []))


@every_pod
def test_a_pod_runs_as_the_user_of_the_image(pod: Json) -> None:
    [user, group] = re.findall(r"^USER (\d+):(\d+)$", DOCKERFILE, re.MULTILINE)[0]
    context = pod["securityContext"]
    assert [context["runAsUser"], context["runAsGroup"], context["fsGroup"]] == [int(user), int(group), int(group)]


def parameters(arguments: list[str]) -> Iterator[Any]:
    """Yield the parameters of the command that these arguments call."""
    command: Any = main
    for word in arguments:
        command = command.commands[word]
    yield from command.params


@every_pod
def test_a_command_and_its_variables_are_known(pod: Json) -> None:
    [container] = pod["containers"]
    # The image's entry point stays.
    assert "command" not in container
    assert 'ENTRYPOINT ["mfg-notify"]' in DOCKERFILE
    assert {given["name"] for given in container["env"]} <= {one.envvar for one in parameters(container["args"])}


@every_pod
def test_a_secret_is_a_file_that_only_the_pod_can_read(pod: Json) -> None:
    [container] = pod["containers"]
    given = {each["name"]: each["value"] for each in container["env"]}
    [mount] = container["volumeMounts"]
    [volume] = pod["volumes"]
    [item] = volume["secret"]["items"]
    assert volume["name"] == mount["name"]
    assert given["MFG_NOTIFY_DSN_FILE"] == f"{mount['mountPath']}/{item['path']}"
    assert volume["secret"]["defaultMode"] == 0o440
    assert "MFG_NOTIFY_DSN" not in given


def test_the_owners_secret_is_for_the_job_alone() -> None:
    secrets = {kind: pod["spec"]["volumes"][0]["secret"]["secretName"] for kind, pod in PODS.items()}
    assert secrets == {"Deployment": "mfg-notify", "Job": "mfg-notify-owner"}


def test_ports_and_paths_are_those_of_the_exporter() -> None:
    [port] = EXPORTER["ports"]
    assert f"EXPOSE {port['containerPort']}" in DOCKERFILE
    [of_service] = MANIFESTS["Service"]["spec"]["ports"]
    [endpoint] = MANIFESTS["PodMonitor"]["spec"]["podMetricsEndpoints"]
    probes = {name: EXPORTER[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")}
    named = [of_service["targetPort"], endpoint["port"], *(probe["port"] for probe in probes.values())]
    assert set(named) == {port["name"]}
    # A restart helps an exporter that hangs, and none whose database is away.
    assert {name: probe["path"] for name, probe in probes.items()} == {
        "startup": "/-/healthy",
        "liveness": "/-/healthy",
        "readiness": "/-/ready",
    }
    [path] = [one.default for one in parameters(EXPORTER["args"]) if "--web.telemetry-path" in one.opts]
    assert endpoint["path"] == path
    application = make_application(Page(lambda: None, lambda: 0), lambda: (True, ""), path)
    served = {route.path for route in application.routes}  # type: ignore[attr-defined]
    assert {path, *(probe["path"] for probe in probes.values())} <= served


def test_it_has_time_for_its_last_fold() -> None:
    assert PODS["Deployment"]["spec"]["terminationGracePeriodSeconds"] > Tuning().final_fold_timeout + GRACE


def test_prometheus_gets_the_job_and_the_label_of_the_database() -> None:
    monitor = MANIFESTS["PodMonitor"]["spec"]
    assert PODS["Deployment"]["metadata"]["labels"][monitor["jobLabel"]] == JOB
    [endpoint] = monitor["podMetricsEndpoints"]
    assert "database" in {relabeling["targetLabel"] for relabeling in endpoint["relabelings"]}


def test_the_rules_are_ours() -> None:
    groups = [group for name in NAMES for group in yaml.safe_load(read_rules(name))["groups"]]
    assert MANIFESTS["PrometheusRule"]["spec"] == {"groups": groups}


@every_kustomization
def test_the_image_is_that_of_this_version(folder: Path) -> None:
    [image] = KUSTOMIZATIONS[folder]["images"]
    used = {container["image"] for pod in PODS.values() for container in pod["spec"]["containers"]}
    assert used == {image["name"]}
    assert image["newTag"] == __version__


@every_kustomization
def test_kustomize_builds_it(folder: Path) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    built = {manifest["kind"]: manifest for manifest in yaml.safe_load_all(done.stdout)}
    assert len(built) == len(KUSTOMIZATIONS[folder]["resources"])
    for kind, manifest in built.items():
        if kind in PODS:
            [container] = manifest["spec"]["template"]["spec"]["containers"]
            assert container["image"] == f"registry.example/mfg-notify:{__version__}"
            container["image"] = "mfg-notify"
        assert manifest == MANIFESTS[kind]
