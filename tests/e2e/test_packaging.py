"""What is published: wheel and sdist carry everything, and the wheel works where there is nothing else.

The build uses the build tools of this environment; only the installation asks the package index.
"""

import json
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tests.samples import samples
from tests.support import ROOT, Process, clean_environment, eventually

from mfg_notify import __version__
from mfg_notify.cli import main
from mfg_notify.core.catalogue import SPECIFIED
from mfg_notify.dashboards import shipped

PROJECT = f"mfg_notify-{__version__}"
CARRIED = (
    ("src/mfg_notify", "mfg_notify"),
    ("db/triggers", "mfg_notify/postgres/triggers"),
    ("grafana/dashboards", "mfg_notify/dashboards/json"),
    ("prometheus/rules", "mfg_notify/rules"),
    ("prometheus/rules", f"{PROJECT}.data/data/share/mfg-notify/prometheus/rules"),
    ("grafana/provisioning", f"{PROJECT}.data/data/share/mfg-notify/grafana/provisioning"),
    ("systemd", f"{PROJECT}.data/data/share/mfg-notify/systemd"),
)
"""Folders of the repository, and where they are in the wheel; a folder that is not there carries nothing."""
pytestmark = pytest.mark.thorough
# Without variables that could point to another installation than the one built here.
ENVIRONMENT = clean_environment("PYTHON")


KEEP_OUT = 0o077
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT_NAME = "mfg-notify"


def locked() -> dict[str, str]:
    """Return the versions of what is locked for this Python and this platform, by name."""
    lines = (ROOT / "requirements" / "run.txt").read_text(encoding="utf-8").splitlines()
    found = [Requirement(line.rstrip(" \\")) for line in lines if "==" in line]
    return {one.name: str(one.specifier)[2:] for one in found if one.marker is None or one.marker.evaluate()}


def build(source: Path, outcome: Path, *what: str) -> None:
    command = [sys.executable, "-m", "build", "--no-isolation", *what, "--outdir", str(outcome), str(source)]
    subprocess.run(command, check=True, capture_output=True, env=ENVIRONMENT)


def members(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


@pytest.fixture(scope="module")
def built() -> Iterator[Path]:
    """Return a folder with the sdist and the wheel, both made from the checkout."""
    # Not pytest's own folder: no other user may pass it, and the demo's server is another user where this one is root.
    with tempfile.TemporaryDirectory(prefix="mfg-notify-") as folder:
        build(ROOT, Path(folder), "--sdist", "--wheel")
        yield Path(folder)


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    """Return the wheel."""
    [found] = built.glob("*.whl")
    return found


def test_the_wheel_has_what_the_commands_need_and_no_more(wheel: Path) -> None:
    expected = {
        f"{inside}/{file.relative_to(ROOT / folder)}": file.read_bytes()
        for folder, inside in CARRIED
        for file in (ROOT / folder).rglob("*")
        if file.is_file() and file.suffix != ".pyc"
    }
    found = {name: content for name, content in members(wheel).items() if ".dist-info/" not in name}
    assert found.keys() == expected.keys()
    assert found == expected


def test_links_of_the_readme_lead_to_the_release(wheel: Path) -> None:
    """On PyPI there are no files beside the README."""
    readme = members(wheel)[f"{PROJECT}.dist-info/METADATA"].decode()
    links = re.findall(r"\]\(([^)]*)\)", readme)
    source = PYPROJECT["project"]["urls"]["Repository"]
    ours = [re.fullmatch(rf"{source}/(?:blob|raw)/v{__version__}/([^#]+)(?:#.*)?", link) for link in links]
    assert len(ours) == (ROOT / "README.md").read_text(encoding="utf-8").count("](")
    assert [link for link, found in zip(links, ours, strict=True) if found is None] == []
    assert [found[1] for found in ours if found and not (ROOT / found[1]).is_file()] == []


def test_the_sdist_makes_the_same_wheel(built: Path, wheel: Path, tmp_path: Path) -> None:
    [sdist] = built.glob("*.tar.gz")
    subprocess.run(["tar", "-xzf", sdist, "-C", tmp_path], check=True)
    build(tmp_path / PROJECT, tmp_path, "--wheel")
    [again] = tmp_path.glob("*.whl")
    assert members(again) == members(wheel)


def copy_context(target: Path) -> None:
    """Copy what Docker gets: only what .dockerignore excepts."""
    target.mkdir()
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        if line.startswith("!"):
            source, copy = ROOT / line[1:], target / line[1:]
            if source.is_dir():
                shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, copy)


def test_the_images_build_has_all_that_the_wheel_is_made_of(wheel: Path, tmp_path: Path) -> None:
    context = tmp_path / "context"
    copy_context(context)
    build(context, tmp_path, "--wheel")
    [again] = tmp_path.glob("*.whl")
    assert members(again) == members(wheel)


@dataclass(frozen=True)
class FirstStage:
    """What the Dockerfile's first stage makes: its folder, its own environment, and the one that is shipped."""

    folder: Path
    environment: Path
    shipped: Path

    def run(self, command: str) -> None:
        """Run a command in its folder, with the programs of its environment."""
        done = subprocess.run(
            ["sh", "-ec", command], capture_output=True, text=True, check=False, cwd=self.folder,
            env={**ENVIRONMENT, "PATH": f"{self.environment}/bin:/usr/bin:/bin"},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def first_stage(tmp_path_factory: pytest.TempPathFactory) -> FirstStage:
    """Run the commands of the Dockerfile's first stage, without Docker."""
    place = tmp_path_factory.mktemp("image")
    stage = FirstStage(place / "build", place / "stage", place / "mfg-notify")
    copy_context(stage.folder)
    subprocess.run([sys.executable, "-m", "venv", stage.environment], check=True, env=ENVIRONMENT)
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", "").split("\nFROM ")[1]
    commands = re.findall(r"^RUN (.*)$", text.replace("/opt/mfg-notify", str(stage.shipped)), re.MULTILINE)
    assert str(stage.shipped) in commands[0]
    for command in commands:
        stage.run(command)
    return stage


def test_the_image_has_what_is_locked_and_no_more(first_stage: FirstStage) -> None:
    [packages] = first_stage.shipped.glob("lib/python*/site-packages")
    installed = {canonicalize_name(one.name): one.version for one in distributions(path=[str(packages)])}
    assert installed == {PROJECT_NAME: __version__, **locked()}
    subprocess.run([first_stage.shipped / "bin" / "mfg-notify", "--version"], check=True, env=ENVIRONMENT)


def test_an_editable_installation_needs_no_other_build_tools(first_stage: FirstStage) -> None:
    # As the Makefile does; it would fail if the build asked for anything that build.txt does not lock.
    first_stage.run("pip install --no-deps --no-build-isolation --editable .")


def test_the_sbom_names_what_is_locked_and_what_is_bundled(tmp_path: Path) -> None:
    target = tmp_path / "sbom.json"
    command = [sys.executable, str(ROOT / "requirements" / "sbom.py"), str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT)
    assert done.returncode == 0, done.stdout + done.stderr
    text = target.read_text(encoding="utf-8")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    bom = json.loads(text)
    root, components = bom["metadata"]["component"], bom["components"]
    assert (root["name"], root["version"]) == (PROJECT_NAME, __version__)
    assert {canonicalize_name(one["name"]): one["version"] for one in components} == locked()
    assert [one["name"] for one in components if not one.get("licenses")] == []
    [direct] = (one["dependsOn"] for one in bom["dependencies"] if one["ref"] == root["bom-ref"])
    named = {canonicalize_name(ref.partition("==")[0]) for ref in direct}
    assert named == {Requirement(line).name for line in PYPROJECT["project"]["dependencies"]}
    [psycopg] = (one for one in components if one["name"] == "psycopg-binary")
    versions = {one["name"]: one.get("version") for one in psycopg["components"]}
    assert versions.keys() >= {"libpq", "libssl", "libkrb5"}
    assert re.fullmatch(r"\d+\.\d+", versions["libpq"])
    assert re.fullmatch(r"3\.\d+\.\d+", versions["libcrypto"])
    # Nothing of the machine that made it.
    assert [place for place in (str(ROOT), tempfile.gettempdir(), "file:") if place in text] == []


class Installed:
    """An empty virtual environment for pip to fill, made with a umask that keeps other users out."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        subprocess.run(
            [sys.executable, "-m", "venv", "--without-pip", folder], check=True, env=ENVIRONMENT, umask=KEEP_OUT
        )
        self.environment = {"PATH": f"{folder}/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}

    def pip(self, *arguments: str) -> None:
        """Run pip on it from outside."""
        command = [sys.executable, "-m", "pip", "--python", str(self.folder / "bin" / "python"), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT, umask=KEEP_OUT)
        assert done.returncode == 0, done.stdout + done.stderr

    def run(self, *command: str) -> tuple[int, str]:
        """Run a command in it; return exit code and everything it printed."""
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=self.environment, cwd=self.folder
        )
        return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def installed(built: Path, wheel: Path) -> Installed:
    """Return an environment with the wheel and without the demo's server."""
    environment = Installed(built / "venv")
    environment.pip("install", "--quiet", str(wheel))
    environment.pip("check")
    return environment


def test_the_wheel_alone_exports_and_installs_triggers(installed: Installed) -> None:
    assert installed.run("mfg-notify", "--version") == (0, f"mfg-notify, version {__version__}\n")
    assert installed.run("mfg-notify", "migrate", "sql", "--create-role", "x") == (
        0, CliRunner().invoke(main, ["migrate", "sql", "--create-role", "x"]).output,
    )  # fmt: skip
    code, text = installed.run("mfg-notify", "dashboards", "write", "dashboards")
    assert code == 0, text
    for name in shipped.NAMES:
        written = (installed.folder / "dashboards" / name).read_text(encoding="utf-8")
        assert written == shipped.read_dashboard(name)
    for rules in (ROOT / "prometheus" / "rules").iterdir():
        copied = installed.folder / "share" / "mfg-notify" / "prometheus" / "rules" / rules.name
        assert copied.read_bytes() == rules.read_bytes()


def test_the_demo_works_from_the_wheel(installed: Installed, wheel: Path) -> None:
    code, text = installed.run("mfg-notify", "demo")
    assert (code, "pip install 'mfg-notify[demo]'" in text) == (1, True), text
    installed.pip("install", "--quiet", f"{wheel}[demo]")
    command = ["mfg-notify", "demo", "--web.listen-address", "127.0.0.1:0", "--players", "1"]
    with Process(command, environment=installed.environment, folder=installed.folder) as demo:
        try:
            url = demo.find(r"(http://\S+)\n").group(1)
            expected = {metric.full_name + ("_count" if metric.buckets else "") for metric in SPECIFIED}

            def missing() -> set[str]:
                page = httpx.get(url).raise_for_status().text
                assert (
                    f'mfg_notify_build_info{{python_version="{platform.python_version()}",version="{__version__}"}} 1'
                    in page
                )
                return expected - {name for name, _ in samples(page)}

            eventually(missing, lambda names: not names)
            assert demo.terminate(signal.SIGINT) == 0
        finally:
            # Do not kill it: its server would stay behind.
            demo.terminate()


SHELL_SCRIPT = """
eval "$(mfg-notify completion bash)"
COMP_WORDS=(mfg-notify "$@")
COMP_CWORD=$#
"$(complete -p mfg-notify | sed -E 's/.* -F (\\S+) .*/\\1/')" mfg-notify
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        (["mig"], ["migrate"]),
        (["migrate", "u"], ["up"]),
        (["run", "--web.t"], ["--web.telemetry-path"]),
        (["run", "--log.level", "w"], ["warning"]),
        (["completion", ""], ["bash", "zsh", "fish"]),
    ],
    ids=" ".join,
)
def test_bash_completes(installed: Installed, typed: list[str], completed: list[str]) -> None:
    code, text = installed.run("bash", "--norc", "-c", SHELL_SCRIPT, "bash", *typed)
    assert (code, text.split()) == (0, completed)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_has_its_script(shell: str) -> None:
    result = CliRunner().invoke(main, ["completion", shell])
    assert result.exit_code == 0
    assert f"_MFG_NOTIFY_COMPLETE={shell}_complete" in result.output
