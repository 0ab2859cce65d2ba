"""Writes a CycloneDX SBOM of what is shipped to dist/mfg-notify.cdx.json, or to the file that is named.

It describes an environment made like the image's: the wheel, what run.txt locks, and nothing else. cyclonedx-py takes
the distributions from their metadata. The libraries inside psycopg's wheel, OpenSSL among them, have none, so they are
added here, with the hash of each file. The result is valid by the schema.
"""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

ROOT = Path(__file__).parents[1]
VERSION = SchemaVersion.V1_6


def run(*command: str | Path) -> str:
    """Run a command with this Python; return what it printed."""
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return done.stdout


def install(folder: Path) -> Path:
    """Make an environment with what is shipped; return its Python."""
    python = folder / "environment" / "bin" / "python"
    run("build", "--wheel", "--no-isolation", "--outdir", folder, ROOT)
    run("venv", "--without-pip", folder / "environment")
    pip = ("pip", "--python", python, "install", "--quiet")
    run(*pip, "-r", ROOT / "requirements" / "run.txt")
    run(*pip, "--no-deps", "--no-index", *folder.glob("*.whl"))
    return python


def bundled_libraries(python: Path) -> list[dict[str, Any]]:
    """Return the components inside psycopg's wheel. The files name no version, except that of OpenSSL."""
    number = subprocess.run(
        [python, "-c", "import psycopg; print(psycopg.pq.version())"], capture_output=True, text=True, check=True
    )
    libpq = "{}.{}".format(*divmod(int(number.stdout), 10_000))
    found = []
    for file in sorted(python.parents[1].glob("lib/python*/site-packages/psycopg_binary.libs/*")):
        content = file.read_bytes()
        component = {
            "type": "library",
            "bom-ref": file.name,
            "name": re.sub(r"[-.].*", "", file.name),
            "hashes": [{"alg": "SHA-256", "content": hashlib.sha256(content).hexdigest()}],
        }
        if component["name"] == "libpq":
            component |= {"version": libpq, "purl": f"pkg:generic/postgresql@{libpq}"}
        elif openssl := re.search(rb"OpenSSL (\d+\.\d+\.\d+) ", content):
            version = openssl[1].decode()
            component |= {"version": version, "purl": f"pkg:generic/openssl@{version}"}
        found.append(component)
    return found


def main() -> None:
    """Write the SBOM."""
    target = Path(sys.argv[1]) if sys.argv[1:] else ROOT / "dist" / "mfg-notify.cdx.json"
    with TemporaryDirectory() as folder:
        python = install(Path(folder))
        bom = json.loads(
            run(
                "cyclonedx_py", "environment", "--pyproject", ROOT / "pyproject.toml", "--output-reproducible",
                "--spec-version", VERSION.to_version(), python,
            )
        )  # fmt: skip
        [psycopg] = (component for component in bom["components"] if component["name"] == "psycopg-binary")
        psycopg["components"] = bundled_libraries(python)
    text = json.dumps(bom, indent=2, ensure_ascii=False) + "\n"
    if error := JsonStrictValidator(VERSION).validate_str(text):
        raise SystemExit(f"the SBOM is not valid: {error}")
    target.parent.mkdir(exist_ok=True)
    target.write_text(text, encoding="utf-8")
    print(target)  # noqa: T201


if __name__ == "__main__":
    main()
