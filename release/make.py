"""Makes the files of a release in dist/: wheel, sdist, SBOM, release notes, image commands and checksums.

It works from the commit that is checked out and refuses anything that would make the files untrue. The same commit and
the same Python give the same files. It never tags, pushes or uploads: CONTRIBUTING.md has those commands.
"""

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mfg_notify import __version__

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"
STATED = {
    "CHANGELOG.md": r"^## \[(\d\S*)\] - \d{4}-\d\d-\d\d$",
    "Dockerfile": r'org\.opencontainers\.image\.version="([^"]*)"',
    "deploy/kubernetes/kustomization.yaml": r"newTag: ([^},\s]+)",
    "deploy/kubernetes/migrate/kustomization.yaml": r"newTag: ([^},\s]+)",
}
"""Where the version is written besides pyproject.toml. The first one in a file counts: CHANGELOG.md has older ones."""


class ReleaseError(Exception):
    """The release cannot be made; the text says what to change."""


def read_project(root: Path) -> dict[str, Any]:
    """Return the table `project` of pyproject.toml."""
    project: dict[str, Any] = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project


def read_versions(root: Path) -> dict[str, str]:
    """Return the version that each file of a checkout states, and that of the package that is installed."""
    found = {"pyproject.toml": read_project(root)["version"], "mfg_notify.__version__": __version__}
    for name, pattern in STATED.items():
        if (stated := re.search(pattern, (root / name).read_text(encoding="utf-8"), re.MULTILINE)) is None:
            raise ReleaseError(f"{name} states no version")
        found[name] = stated[1]
    return found


def agree(versions: Mapping[str, str]) -> str:
    """Return the version that all state."""
    if len(set(versions.values())) != 1:
        raise ReleaseError("the version differs: " + ", ".join(f"{name} {text}" for name, text in versions.items()))
    return next(iter(versions.values()))


def cut(changelog: str, heading: str) -> str:
    """Return what CHANGELOG.md says under a heading such as `0.1.0` or `Unreleased`; nothing if it has none."""
    pattern = rf"^## \[{re.escape(heading)}\][^\n]*\n(.*?)(?=^## |\Z)"
    found = re.search(pattern, changelog, re.MULTILINE | re.DOTALL)
    return found[1].strip() if found else ""


def complete_links(text: str, source: str, version: str) -> str:
    """Return a text whose links to files of the repository lead to its page, at the tag of the version."""
    return re.sub(r"\]\((?!\w+:|#)", f"]({source}/blob/v{version}/", text)


def run(*command: str | Path, epoch: str | None = None) -> str:
    """Run a command in the checkout, at the time `epoch` if it writes any; return what it printed."""
    environment = os.environ if epoch is None else os.environ | {"SOURCE_DATE_EPOCH": epoch}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ReleaseError(f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")
    return done.stdout.strip()


def check(changelog: str, version: str, revision: str, *, dry_run: bool) -> None:
    """Refuse a release whose files would not be true. A dry run may repeat one, or be of what is not ready yet."""
    found = []
    if dirty := run("git", "status", "--porcelain"):
        found.append(f"the checkout has changes that are not committed:\n{dirty}")
    if not cut(changelog, version):
        found.append(f"CHANGELOG.md says nothing about {version}")
    if cut(changelog, "Unreleased") and not dry_run:
        found.append(f"CHANGELOG.md has entries under Unreleased: move them to {version}, or raise the version")
    # In a workflow that the tag has started, it is on this commit.
    tagged = run("git", "for-each-ref", "--format=%(*objectname) %(objectname)", f"refs/tags/v{version}").split()
    if tagged and tagged[0] != revision and not dry_run:
        found.append(f"the tag v{version} is on another commit: raise the version")
    if found:
        raise ReleaseError("\n".join(found))


def make(version: str, changelog: str, revision: str) -> None:
    """Write all files. What was in dist/ before is deleted."""
    shutil.rmtree(DIST, ignore_errors=True)
    epoch = run("git", "log", "-1", "--format=%ct")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", DIST, ROOT, epoch=epoch)
    run(sys.executable, ROOT / "requirements" / "sbom.py", DIST / f"mfg_notify-{version}.cdx.json", epoch=epoch)

    source = read_project(ROOT)["urls"]["Repository"]
    notes = complete_links(cut(changelog, version), source, version)
    (DIST / "RELEASE_NOTES.md").write_text(notes + "\n", encoding="utf-8")

    [base] = re.findall(r"^ARG PYTHON=(\S+)$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    image = (ROOT / "release" / "image.sh").read_text(encoding="utf-8")
    filled = {"VERSION": version, "REVISION": revision, "EPOCH": epoch, "BASE": base, "SOURCE": source}
    for name, text in filled.items():
        image = image.replace(f"@{name}@", text)
    (DIST / "image.sh").write_text(image, encoding="utf-8")

    sums = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in sorted(DIST.iterdir())]
    (DIST / "SHA256SUMS").write_text("".join(sums), encoding="utf-8")


def main() -> int:
    """Make the release that is checked out, or say why not."""
    parser = argparse.ArgumentParser(prog="release/make.py", description=__doc__)
    parser.add_argument(
        "--dry-run", action="store_true", help="also with entries under Unreleased, and if the version has a tag"
    )
    options = parser.parse_args()
    try:
        version = agree(read_versions(ROOT))
        revision = run("git", "rev-parse", "HEAD")
        changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
        check(changelog, version, revision, dry_run=options.dry_run)
        make(version, changelog, revision)
    except ReleaseError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 1
    for file in sorted(DIST.iterdir()):
        print(file.relative_to(ROOT))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
