"""Writes the locked requirements: every distribution in one version, with the hashes of all its files.

Everything that pyproject.toml asks for is resolved together, for each supported Python and platform, and then divided
into files; an environment is made from the first few of them. The files contain no addresses, so any package index may
serve them, and they let pip take wheels only: to build from source, pip would download build tools that nothing locks.

Versions stay as they are as long as pyproject.toml allows them. Options are passed on to `uv pip compile`: `--upgrade`
raises all versions, `--upgrade-package NAME` one.
"""

import re
import subprocess
import sys
import tomllib
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory

FOLDER = Path(__file__).parent
PYPROJECT = tomllib.loads((FOLDER.parent / "pyproject.toml").read_text(encoding="utf-8"))
PARTS = {
    "run": "What the command needs, and what is shipped in the image.",
    "build": "What builds the wheel.",
    "demo": "What make demo needs, besides run.txt and build.txt.",
    "dev": "What checks and tests need, besides run.txt, build.txt and demo.txt.",
    "bench": "What make bench needs, besides all others.",
}
"""The files, each with its heading."""
HEAD = "# {} Written by make lock.\n--require-hashes\n--only-binary :all:\n"


def requirements(part: str) -> list[str]:
    """Return what pyproject.toml asks for in this part."""
    project = PYPROJECT["project"]
    if part == "run":
        found = project["dependencies"]
    elif part == "build":
        found = PYPROJECT["build-system"]["requires"]
    else:
        found = project["optional-dependencies"][part]
    return [line for line in found if not line.startswith(project["name"])]


def resolve(wanted: list[str], target: Path, *options: str) -> dict[str, str]:
    """Return the locked lines of these requirements and of all that they need, by name; write them into a file, too."""
    command = [
        sys.executable, "-m", "uv", "pip", "compile", "-", "--output-file", str(target), "--quiet", "--no-config",
        "--universal", "--python-version", PYPROJECT["project"]["requires-python"].removeprefix(">="),
        "--generate-hashes", "--no-emit-index-url", "--no-header", "--no-annotate", *options,
    ]  # fmt: skip
    subprocess.run(command, input="\n".join(wanted), text=True, check=True)
    return read(target)


def read(file: Path) -> dict[str, str]:
    """Return the locked lines in a file by name. A name has several if different Pythons need different versions."""
    found: dict[str, str] = defaultdict(str)
    for entry in re.findall(r"^\S.*\n(?: .*\n)+", file.read_text(encoding="utf-8"), re.MULTILINE):
        found[entry.partition("==")[0]] += entry
    return found


def main() -> None:
    """Write all files."""
    files = {part: FOLDER / f"{part}.txt" for part in PARTS}
    with TemporaryDirectory() as folder:
        everything = Path(folder, "everything.txt")
        # uv keeps the versions that it finds in the file that it is about to write.
        locked = (entry for file in files.values() if file.exists() for entry in read(file).values())
        everything.write_text("".join(locked), encoding="utf-8")
        resolve([line for part in PARTS for line in requirements(part)], everything, *sys.argv[1:])
        written: set[str] = set()
        for part, file in files.items():
            needed = resolve(requirements(part), Path(folder, file.name), "--constraint", str(everything))
            # A later file repeats a distribution if it needs it on more platforms or Pythons than the files before.
            entries = [entry for entry in needed.values() if entry not in written]
            written.update(entries)
            file.write_text(HEAD.format(PARTS[part]) + "".join(entries), encoding="utf-8")


if __name__ == "__main__":
    main()
