"""`make release` in clones of this repository: what it refuses, and the files of a dry run.

It builds with the build tools of this environment; only the SBOM's environment asks the package index.
"""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support import ROOT, clean_environment

from mfg_notify import __version__

PROJECT = f"mfg_notify-{__version__}"
HEADING = f"## [{__version__}]"
DATE = "2026-01-02T03:04:05Z"
# What is committed in two clones is the same commit.
ENVIRONMENT = clean_environment("PYTHON", "GIT", "SOURCE_DATE_EPOCH") | {
    "GIT_AUTHOR_DATE": DATE,
    "GIT_COMMITTER_DATE": DATE,
}
IDENTITY = ("-c", "user.name=Somebody", "-c", "user.email=somebody@example.org")
DIGEST = "sha256:" + 64 * "1"
pytestmark = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this is not a checkout")


def git(folder: Path, *arguments: str) -> str:
    """Run git in a folder; return what it printed."""
    command = ["git", *IDENTITY, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, env=ENVIRONMENT)
    return done.stdout.strip()


def clone(folder: Path) -> Path:
    """Clone what is committed here, with nothing under Unreleased; return the clone."""
    git(ROOT, "clone", "--quiet", "--no-tags", str(ROOT), str(folder))
    changelog = folder / "CHANGELOG.md"
    text = changelog.read_text(encoding="utf-8")
    changelog.write_text(
        re.sub(r"^## \[Unreleased\].*?(?=^## )", "", text, flags=re.MULTILINE | re.DOTALL), encoding="utf-8"
    )
    git(folder, "commit", "--quiet", "--allow-empty", "--all", "--message", "release")
    return folder


def make(folder: Path, *options: str, umask: int = -1) -> tuple[int, str]:
    """Make the release in a clone; return exit code and what was printed."""
    done = subprocess.run(
        [sys.executable, "release/make.py", *options], cwd=folder, capture_output=True, text=True, check=False,
        env=ENVIRONMENT, umask=umask,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def replace(folder: Path, name: str, old: str, new: str) -> None:
    """Replace a text in a file where it stands first."""
    text = (folder / name).read_text(encoding="utf-8")
    assert old in text
    (folder / name).write_text(text.replace(old, new, 1), encoding="utf-8")


def add_unreleased(folder: Path) -> None:
    """Commit an entry that no version has."""
    replace(folder, "CHANGELOG.md", HEADING, f"## [Unreleased]\n\n- A change.\n\n{HEADING}")
    git(folder, "commit", "--quiet", "--all", "--message", "change something")


def raise_the_image(folder: Path) -> None:
    """Commit another version of the image."""
    replace(folder, "Dockerfile", f'"{__version__}"', '"99.0"')
    git(folder, "commit", "--quiet", "--all", "--message", "raise one version of several")


def tag_the_parent(folder: Path) -> None:
    """Let the version be that of the commit before."""
    git(folder, "tag", "--annotate", f"v{__version__}", "--message", "release", "HEAD~1")


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (lambda folder: (folder / "left-over.py").touch(), "?? left-over.py"),
        (raise_the_image, "Dockerfile 99.0"),
        (add_unreleased, "CHANGELOG.md has entries under Unreleased"),
        (tag_the_parent, f"the tag v{__version__} is on another commit"),
    ],
    ids=["untracked file", "versions differ", "unreleased entries", "tag elsewhere"],
)
def test_a_release_that_is_not_ready_is_refused(fault: Callable[[Path], None], said: str, tmp_path: Path) -> None:
    folder = clone(tmp_path / "clone")
    fault(folder)
    code, text = make(folder)
    assert code == 1
    assert said in text
    assert "Traceback" not in text
    assert not (folder / "dist").exists()


def test_a_dry_run_may_come_before_the_version_is_ready(tmp_path: Path) -> None:
    folder = clone(tmp_path / "clone")
    add_unreleased(folder)
    tag_the_parent(folder)
    (folder / "left-over.py").touch()
    code, text = make(folder, "--dry-run")
    assert (code, text) == (1, "the checkout has changes that are not committed:\n?? left-over.py\n")


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a clone in which the release was made."""
    folder = clone(tmp_path_factory.mktemp("release") / "clone")
    code, text = make(folder)
    assert code == 0, text
    return folder


@pytest.mark.thorough
def test_a_release_has_every_file(released: Path, tmp_path: Path) -> None:
    dist = released / "dist"
    assert {file.name for file in dist.iterdir()} == {
        f"{PROJECT}-py3-none-any.whl", f"{PROJECT}.tar.gz", f"{PROJECT}.cdx.json", "RELEASE_NOTES.md", "image.sh",
        "SHA256SUMS",
    }  # fmt: skip
    sums = subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=dist, capture_output=True, text=True, check=True
    )
    assert sums.stdout.count(": OK\n") == 5

    component = json.loads((dist / f"{PROJECT}.cdx.json").read_text(encoding="utf-8"))["metadata"]["component"]
    assert (component["name"], component["version"]) == ("mfg-notify", __version__)
    notes = (dist / "RELEASE_NOTES.md").read_text(encoding="utf-8")
    assert "### " in notes
    assert re.findall(r"\]\((?!https://)", notes) == [], "a forge shows the notes far from the files"

    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(tmp_path)]
    subprocess.run([*pip, str(dist / f"{PROJECT}-py3-none-any.whl")], check=True, env=ENVIRONMENT)
    said = subprocess.run(
        [sys.executable, tmp_path / "bin" / "mfg-notify", "--version"], capture_output=True, text=True, check=True,
        env=ENVIRONMENT | {"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert said.stdout == f"mfg-notify, version {__version__}\n"


@pytest.mark.thorough
def test_a_dry_run_of_the_same_commit_makes_the_same_files(released: Path, tmp_path: Path) -> None:
    folder = clone(tmp_path / "elsewhere")
    tag_the_parent(folder)
    code, text = make(folder, "--dry-run", umask=0o077)
    assert code == 0, text
    assert git(folder, "rev-parse", "HEAD") == git(released, "rev-parse", "HEAD")
    assert (folder / "dist" / "SHA256SUMS").read_bytes() == (released / "dist" / "SHA256SUMS").read_bytes()


@pytest.mark.thorough
def test_the_image_is_built_from_the_commit(released: Path, tmp_path: Path) -> None:
    """Docker's place is taken by a script that keeps its arguments: no engine builds for two platforms here."""
    docker = tmp_path / "docker"
    docker.write_text(f'#!/bin/sh\necho "$*" >> {tmp_path}/called\n[ "$2" = imagetools ] && echo {DIGEST} || true\n')
    docker.chmod(0o755)
    environment = ENVIRONMENT | {"PATH": f"{tmp_path}:{ENVIRONMENT['PATH']}"}
    command = ["sh", str(released / "dist" / "image.sh"), "registry.example/mfg-notify"]
    subprocess.run(command, cwd=tmp_path, check=True, env=environment)
    [base] = re.findall(r"^ARG PYTHON=(\S+)$", (released / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    inspected, built = (tmp_path / "called").read_text(encoding="utf-8").splitlines()
    assert base in inspected
    assert built.startswith("buildx build --platform linux/amd64,linux/arm64 ")
    assert f" --build-arg PYTHON={base}@{DIGEST} " in built
    assert f" --label org.opencontainers.image.revision={git(released, 'rev-parse', 'HEAD')} " in built
    assert f" --tag registry.example/mfg-notify:{__version__} --push ." in built

    (released / "left-over.py").touch()
    refused = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    (released / "left-over.py").unlink()
    assert (refused.returncode, "make release" in refused.stderr) == (1, True)
    assert len((tmp_path / "called").read_text(encoding="utf-8").splitlines()) == 2
