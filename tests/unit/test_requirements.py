"""requirements/*.txt against pyproject.toml, and against what installs from them."""

import re
import tomllib
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tests.support import ROOT

PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT: dict[str, Any] = PYPROJECT["project"]
PARTS = ("run", "build", "demo", "dev", "bench")
TEXTS = {part: (ROOT / "requirements" / f"{part}.txt").read_text(encoding="utf-8") for part in PARTS}
SPECIFIED = {
    "run": PROJECT["dependencies"],
    "build": PYPROJECT["build-system"]["requires"],
    **{part: PROJECT["optional-dependencies"][part] for part in ("demo", "dev", "bench")},
}
"""What pyproject.toml asks for, by the file that locks it."""
HASH = r"    --hash=sha256:[0-9a-f]{64}"
ENTRY = rf"[a-z0-9-]+==\S+(?: ; [^\\\n]+)?(?: \\\n{HASH})+\n"
every_part = pytest.mark.parametrize("part", PARTS)


def entries(part: str) -> list[Requirement]:
    """Return the locked requirements of a file."""
    return [Requirement(line.rstrip(" \\")) for line in TEXTS[part].splitlines() if "==" in line]


@every_part
def test_every_file_has_a_hash_and_no_address(part: str) -> None:
    assert re.fullmatch(rf"# [^\n:/]+\n--require-hashes\n--only-binary :all:\n(?:{ENTRY})+", TEXTS[part])


@every_part
def test_every_dependency_is_locked_at_a_version_that_is_allowed(part: str) -> None:
    known = [one for before in PARTS[: PARTS.index(part) + 1] for one in entries(before)]
    for dependency in map(Requirement, SPECIFIED[part]):
        if dependency.name == PROJECT["name"]:
            continue
        # psycopg[binary] is locked as psycopg and psycopg-binary.
        extras = {f"{dependency.name}-{extra}" for extra in dependency.extras}
        assert extras <= {one.name for one in known}
        locked = [one for one in known if one.name == canonicalize_name(dependency.name)]
        assert locked, f"{dependency} is not locked: run make lock"
        for one in locked:
            [version] = one.specifier
            assert dependency.specifier.contains(version.version), f"{one}: run make lock"


def test_no_distribution_is_locked_in_two_versions() -> None:
    found: dict[str, set[str]] = {}
    for part in PARTS:
        for one in entries(part):
            # Different Pythons may need different versions.
            if one.marker is None or one.marker.evaluate():
                found.setdefault(one.name, set()).add(str(one.specifier))
    assert {name: versions for name, versions in found.items() if len(versions) > 1} == {}


@pytest.mark.parametrize("name", ["Makefile", "Dockerfile"])
def test_nothing_is_installed_that_is_not_locked(name: str) -> None:
    text = re.sub(r"^#.*\n|\\\n", "", (ROOT / name).read_text(encoding="utf-8"), flags=re.MULTILINE)
    commands = re.findall(r"(?:pip|PIP\)).*? (?:install|wheel) [^&\n]*", text)
    assert len(commands) >= 4
    for command in commands:
        locked = re.search(r"( -r requirements/\S+)+ *$| \$\(LOCKED_\w+:%=-r %\)$", command)
        local = "--no-deps" in command and ("--no-index" in command or "--no-build-isolation" in command)
        assert locked or local, command
