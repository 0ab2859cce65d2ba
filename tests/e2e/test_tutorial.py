"""docs/tutorial/first-steps.md, followed with its own snippets: the demo, Prometheus, the first queries and alert.

Ports are those of the test's own processes. Needs prometheus (Debian: apt-get install prometheus).
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from tests.e2e.prometheus import Prometheus
from tests.support import ROOT, Process, clean_environment, eventually

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="there is no prometheus on this machine"),
]
PAGE = (ROOT / "docs" / "tutorial" / "first-steps.md").read_text(encoding="utf-8")
SCRIPTS = re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
CONSOLE = re.findall(r"^\$ (.*)$", PAGE, re.MULTILINE)


def run(script: str, folder: Path, dsn: str) -> str:
    """Run commands of the page in a folder; return what they print."""
    programs = folder / "bin"
    if not programs.exists():
        programs.mkdir()
        (programs / "mfg-notify").write_text(f'#!/bin/sh\nexec {sys.executable} -m mfg_notify "$@"\n', encoding="utf-8")
        (programs / "mfg-notify").chmod(0o755)
    here = folder / "first-steps" if (folder / "first-steps").exists() else folder
    done = subprocess.run(
        ["sh", "-euc", script], cwd=here, capture_output=True, text=True, check=False,
        env=clean_environment() | {"PATH": f"{programs}:{os.environ['PATH']}", "MFG_NOTIFY_DSN": dsn},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def block(containing: str) -> str:
    """Return the one block of commands that contains this."""
    [found] = [script for script in SCRIPTS if containing in script]
    return str(found)


@pytest.fixture
def demo() -> Iterator[Process]:
    """Start the demo; end it as Ctrl-C does, so that its database goes too."""
    with Process([sys.executable, "-m", "mfg_notify", "demo", "--web.listen-address", "127.0.0.1:0"]) as playing:
        yield playing
        playing.terminate(signal.SIGINT)


def test_the_first_steps_lead_to_an_alert_that_fires(demo: Process, tmp_path: Path) -> None:
    exporter, dsn = (demo.find(pattern)[1] for pattern in (r"metrics +http://(\S+)/metrics", r'psql "(.*)"'))
    commands = {line.split()[0]: line for line in CONSOLE}
    assert run(commands["mfg-notify"], tmp_path, dsn)
    run(block("cat > prometheus.yml").replace("localhost:9810", exporter), tmp_path, dsn)
    with Prometheus(tmp_path / "first-steps" / "prometheus.yml", "--web.enable-lifecycle") as prometheus:

        def ask(command: str) -> str:
            return run(command.replace("127.0.0.1:9091", prometheus.address), tmp_path, dsn)

        for query in (line for line in CONSOLE if line.startswith("promtool query instant ")):
            eventually(partial(ask, query), lambda answer: "=>" in answer)
        ask(block("rules/first.yml"))
        eventually(partial(ask, commands["curl"]), lambda answer: '"alertname":"TaskFailed"' in answer, patience=300)
        ask(block("dashboards write"))
        assert (tmp_path / "first-steps" / "dashboards" / "manufacturing.json").exists()
