"""`CONTRIBUTING.md` as a contributor follows it: its patches on a copy of the sources, its commands after them."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.conftest import TEST_DSN, Database, Server
from tests.game_rows import add_pipeline, add_player
from tests.samples import value
from tests.support import ROOT, ExporterProcess, clean_environment, eventually

pytestmark = pytest.mark.thorough
STARTS = "manufacturing_pipeline_starts_total"
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
TOUCHED = re.findall(r"^--- (\S+)$", PAGE, re.MULTILINE)
TESTS = (
    *dict.fromkeys(place for place in TOUCHED if re.fullmatch(r"tests/\w+/test_\w+\.py", place)),
    "tests/unit/test_exposition.py",
    "tests/unit/test_docs.py",
    "tests/integration/test_exactness.py::test_simulated_game_is_counted_exactly",
    "tests/integration/test_exactness.py::test_every_metric_moves",
)


def patch(text: str, hunk: str) -> str:
    """Return a text with the one place changed that a hunk describes: lines after ' ', '-' and '+', without numbers."""
    lines = hunk.splitlines(keepends=True)
    before = "".join(line[1:] for line in lines if line[0] in " -")
    after = "".join(line[1:] for line in lines if line[0] in " +")
    assert text.count(before) == 1, f"not in one place:\n{before}"
    return text.replace(before, after)


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the sources with all patches of the page applied."""
    copy = tmp_path_factory.mktemp("followed") / "mfg-notify"
    left_behind = (".git", ".venv", ".postgres", ".*_cache", ".hypothesis", "__pycache__", "dist")
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*left_behind))
    for block in re.findall(r"^```diff\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL):
        place, _, hunks = block.removeprefix("--- ").partition("\n")
        text = (copy / place).read_text(encoding="utf-8")
        for hunk in hunks.split("@@\n"):
            text = patch(text, hunk)
        (copy / place).write_text(text, encoding="utf-8")
    return copy


def run(copy: Path, *arguments: str, **variables: str) -> str:
    """Run Python in the copy, with the copy's sources; return what it printed. Fail if it failed."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=copy, capture_output=True, text=True, check=False,
        env=clean_environment("PYTEST") | {"PYTHONPATH": str(copy / "src")} | variables,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_new_metric_is_checked_documented_and_shown(followed: Path, server: Server, installed: Database) -> None:
    assert f"`{STARTS}`" not in (ROOT / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8"), (
        "choose another example"
    )
    # The last step: generate, read, check, test.
    run(followed, "-m", "pytest", "-n", "0", "--update-golden", "tests/unit/test_exposition.py")
    run(followed, "docs/generate.py")
    assert f"`{STARTS}` | counter | player_id, product_good" in (followed / "docs/reference/metrics.md").read_text(
        encoding="utf-8"
    )
    golden = (followed / "tests" / "unit" / "golden" / "exposition.txt").read_text(encoding="utf-8")
    assert f"# TYPE spacetraders_daemon_{STARTS} counter" in golden
    touched = {place for place in TOUCHED if place.endswith(".py")}
    run(followed, "-m", "ruff", "check", *touched)
    run(followed, "-m", "ruff", "format", "--check", *touched)
    run(followed, "-m", "mypy", "--cache-dir", os.devnull)
    said = run(followed, "-m", "pytest", "-n", "0", *TESTS, **{TEST_DSN: server.dsn})
    assert re.search(r"\d+ passed", said)
    assert "failed" not in said

    with (
        installed.connect() as game,
        ExporterProcess(installed.dsn, environment={"PYTHONPATH": str(followed / "src")}) as exporter,
    ):
        exporter.wait_ready()
        add_player(game)
        add_pipeline(game, product_good="RIFLES")
        eventually(lambda: value(exporter.page(), STARTS, player_id="1", product_good="RIFLES") == 0)
        game.execute("UPDATE manufacturing_pipelines SET status = 'EXECUTING'")
        eventually(lambda: value(exporter.page(), STARTS, player_id="1", product_good="RIFLES") == 1)
