"""docs/how-to/existing-stack.md, followed with its own snippets in a stack like the game's, without Docker.

The exporter, its database and Prometheus are real; the game's daemon is imitated (see daemon.py). Where the page says
`host.docker.internal`, `docker compose exec` or a port of the stack, the test has the address of the process and runs
the command itself.

Needs prometheus (Debian: apt-get install prometheus).
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from tests.conftest import Server
from tests.e2e import daemon
from tests.e2e.prometheus import JOB, Prometheus
from tests.game_rows import add_pipeline, add_player, add_task
from tests.support import ROOT, ExporterProcess, clean_environment, eventually
from tests.unit.test_dashboard_merge import ROW, game_dashboard

from mfg_notify.core.catalogue import SPECIFIED, Kind
from mfg_notify.dashboards.shipped import NAMES, read_dashboard, shipped_queries

Json = dict[str, Any]

PAGE = (ROOT / "docs" / "how-to" / "existing-stack.md").read_text(encoding="utf-8")
HOST = "host.docker.internal:9810"
"""The exporter, as the page's containers reach it."""
THEIR_RULES = {"groups": [{"name": "bot", "rules": [{"alert": "BotDown", "expr": f'up{{job="{daemon.JOB}"}} == 0'}]}]}


def blocks(language: str) -> list[str]:
    """Return the page's code blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def block(language: str, containing: str) -> str:
    """Return the one code block that contains this."""
    [found] = [text for text in blocks(language) if containing in text]
    return found


def run(script: str, home: Path) -> str:
    """Run a block of the page in a clone, with this home folder; return what it prints."""
    programs = home / "bin"
    if not programs.exists():
        programs.mkdir()
        (programs / "mfg-notify").write_text(f'#!/bin/sh\nexec {sys.executable} -m mfg_notify "$@"\n', encoding="utf-8")
        (programs / "mfg-notify").chmod(0o755)
    environment = clean_environment() | {"HOME": str(home), "PATH": f"{programs}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["sh", "-euc", script], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# ----------------------------------------------------------------------------------------------------- Grafana --


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Return a home folder with a stack whose dashboards have the uids of ours."""
    folder = tmp_path / "stack" / "grafana" / "dashboards"
    folder.mkdir(parents=True)
    older = {"uid": "manufacturing-pipeline", "title": "SpaceTraders - Manufacturing Pipeline", "panels": []}
    for name, document in zip(NAMES, (older, game_dashboard()), strict=True):
        (folder / name).write_text(json.dumps(document), encoding="utf-8")
    return tmp_path


def provisioned(home: Path) -> list[Json]:
    """Return the dashboards that Grafana reads from the stack's folder."""
    return [json.loads(file.read_text(encoding="utf-8")) for file in (home / "stack" / "grafana").rglob("*.json")]


def test_our_dashboards_replace_those_of_the_stack(home: Path) -> None:
    run(block("sh", "dashboards merge"), home)
    assert Counter(each["uid"] for each in provisioned(home)) == {"manufacturing-pipeline": 1, "market-dynamics": 1}
    folder = home / "stack" / "grafana" / "dashboards"
    assert (folder / "manufacturing.json").read_text(encoding="utf-8") == read_dashboard("manufacturing.json")
    merged = json.loads((folder / "market-dynamics.json").read_text(encoding="utf-8"))
    panels = game_dashboard()["panels"]
    assert merged["panels"][: len(panels)] == panels
    assert ROW in {panel["title"] for panel in merged["panels"]}
    before = home / "dashboards-before"
    assert json.loads((before / "market-dynamics.json").read_text(encoding="utf-8")) == game_dashboard()


def test_our_dashboards_can_stand_beside_those_of_the_stack(home: Path) -> None:
    before = provisioned(home)
    run(block("sh", "--own-uids"), home)
    after = provisioned(home)
    assert len(after) == 4
    assert all(each in after for each in before)
    for key in ("uid", "title"):
        assert len({each[key] for each in after}) == 4


# -------------------------------------------------------------------------------------------------- Prometheus --


@dataclass
class Stack:
    """A stack that the exporter has joined as the page says."""

    home: Path
    exporter: ExporterProcess
    prometheus: Prometheus

    def answer(self, command: str) -> str:
        """Run a command of step 6 as it would run where the page runs it; return what it prints."""
        words = shlex.split(command)
        if words[:4] == ["docker", "compose", "exec", "prometheus"]:
            words = words[4:]
        if words[0] in ("curl", "wget"):
            url = httpx.URL(words[-1])
            # What Prometheus's own port is inside its container is the one that the stack has published.
            place = self.exporter.address if url.port == 9810 else f"http://{self.prometheus.address}"
            return httpx.get(place + url.path, headers={"Host": url.netloc.decode()}).text
        assert words[0] == "promtool"
        words = [word.replace("localhost:9090", self.prometheus.address) for word in words]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        return done.stdout.replace(self.exporter.address.removeprefix("http://"), HOST)


def configure(home: Path, exporter: str, beside: str, **more: object) -> Path:
    """Write the configuration of a stack, and add to it what step 3 of the page says."""
    folder = home / "stack" / "prometheus"
    (folder / "rules").mkdir(parents=True)
    (folder / "rules" / "bot.yml").write_text(yaml.safe_dump(THEIR_RULES), encoding="utf-8")
    configuration: Json = {
        "global": {"scrape_interval": "500ms", "evaluation_interval": "500ms"},
        "rule_files": ["rules/*.yml"],
        "scrape_configs": [{"job_name": daemon.JOB, "static_configs": [{"targets": [beside]}], **more}],
    }
    configuration["scrape_configs"] += yaml.safe_load(block("yaml", "job_name").replace(HOST, exporter))
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration, sort_keys=False), encoding="utf-8")
    run(block("sh", "cp prometheus/rules"), home)
    [check] = [line for line in block("sh", "promtool").splitlines() if "promtool" in line]
    check = check.replace("docker compose run --rm --no-deps --entrypoint promtool prometheus", "promtool")
    assert "SUCCESS" in run(check.replace("/etc/prometheus", str(folder)), home)
    # Alerts that wait for minutes are to be seen in seconds.
    copied = folder / "rules" / "mfg-notify.yml"
    assert copied.read_bytes() == (ROOT / "prometheus" / "rules" / "exporter.yml").read_bytes()
    copied.write_text(re.sub(r"\bfor: \w+", "for: 2s", copied.read_text(encoding="utf-8")), encoding="utf-8")
    return folder / "prometheus.yml"


@contextmanager
def joined(server: Server, home: Path, **more: object) -> Iterator[Stack]:
    """Run a stack with a daemon that has the exporter's names, and let the exporter join it."""
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not installed")
    with ExitStack() as stack:
        database = stack.enter_context(contextmanager(server.clone)(server.installed))
        with database.connect() as connection:
            player = add_player(connection)
            add_pipeline(connection, player_id=player)
            add_task(connection, player_id=player)
        exporter = stack.enter_context(ExporterProcess(database.dsn))
        exporter.wait_ready()
        address = exporter.address.removeprefix("http://")
        beside = stack.enter_context(daemon.serving(daemon.Daemon(manufacturing=True), address))
        prometheus = stack.enter_context(Prometheus(configure(home, address, beside, **more)))
        prometheus.wait_for(f'up{{job="{JOB}"}} == 1')
        prometheus.wait_for(f'up{{job="{daemon.JOB}"}} == 1')
        yield Stack(home, exporter, prometheus)


@pytest.fixture(scope="module")
def stack(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with joined(server, tmp_path_factory.mktemp("home")) as stack:
        yield stack


def shape(printed: str) -> list[str]:
    """Return the lines of an answer, in any order, without what depends on the moment: times and numbers of series."""
    return sorted(re.sub(r"=> \d\d+ @", "=> N @", re.sub(r"@\[[\d.]+\]", "@[T]", printed)).split("\n"))


def test_the_page_shows_what_its_checks_print(stack: Stack) -> None:
    console = block("console", "promtool query")
    commands = re.findall(r"^\$ (.+)\n((?:[^$\n].*\n)+)", console, re.MULTILINE)
    assert len(commands) == 5
    for command, shown in commands:
        expected = shape(shown.rstrip("\n"))

        def printed(command: str = command) -> list[str]:
            return shape(stack.answer(command).rstrip("\n"))

        eventually(printed, expected.__eq__)


def test_the_dashboards_see_the_exporters_job_alone(stack: Stack) -> None:
    names = {
        f"{metric.full_name}{part}"
        for metric in SPECIFIED
        for part in (("_bucket", "_count", "_sum") if metric.kind is Kind.HISTOGRAM else ("",))
    }
    # Under both jobs there are all names, so a selector that does not choose would find both.
    theirs = stack.prometheus.values_of("__name__", f'{{job="{daemon.JOB}"}}')
    assert names <= set(theirs)
    queries = list(shipped_queries())
    jobs = {query.place: query for query in queries if query.label == "job" and "mfg_notify" in query.expr}
    assert {place.removeprefix("variable ") for place in jobs} == {"job", "manufacturing_job"}
    for query in jobs.values():
        assert stack.prometheus.values_of("job", query.expr) == [JOB]
    seen: set[str] = set()
    for query in queries:
        named = set(re.findall(r"\bspacetraders_daemon_manufacturing_\w+", query.expr))
        selectors = re.findall(r"\b(spacetraders_daemon_manufacturing_\w+)\{([^}]*)\}", query.expr)
        assert {name for name, _ in selectors} == named, f"{query.place} selects no job"
        for name, matchers in selectors:
            filled = re.sub(r"\$(manufacturing_)?job\b", JOB, matchers)
            filled = re.sub(r"\$(manufacturing_)?database\b", "spacetraders", filled)
            filled = re.sub(r"\$\w+", ".*", filled)
            found = stack.prometheus.at(f"count by (job) ({name}{{{filled}}})")
            assert {dict(labels)["job"] for labels in found} <= {JOB}, query.place
            seen |= {name} if found else set()
    assert len(seen) > 15


def test_dropping_the_daemons_series_leaves_the_exporters(server: Server, tmp_path: Path) -> None:
    drop = yaml.safe_load(block("yaml", "metric_relabel_configs"))
    with joined(server, tmp_path, **drop) as stack:
        found = stack.prometheus.at('count by (job) ({__name__=~"spacetraders_daemon_.+"})')
        assert {dict(labels)["job"] for labels in found} == {JOB, daemon.JOB}
        found = stack.prometheus.at('count by (job) ({__name__=~"spacetraders_daemon_manufacturing_.+"})')
        assert {dict(labels)["job"] for labels in found} == {JOB}


def firing(prometheus: Prometheus) -> dict[str, Json]:
    """Return the labels of each alert that fires."""
    alerts = prometheus.ask("alerts")["alerts"]
    return {alert["labels"]["alertname"]: alert["labels"] for alert in alerts if alert["state"] == "firing"}


def test_no_alert_fires_but_the_exporters_own(server: Server, tmp_path: Path) -> None:
    with joined(server, tmp_path) as stack:
        installed = {rule["name"] for group in stack.prometheus.ask("rules")["groups"] for rule in group["rules"]}
        assert "BotDown" in installed
        assert all(name.startswith("MfgNotify") for name in installed - {"BotDown"})
        # Before the first scrape, alerts that the exporter is missing are right. Look at what was evaluated since.
        stack.prometheus.wait_for_scrape(time.time())
        since = datetime.now(UTC).isoformat()
        eventually(lambda: all(group["lastEvaluation"] > since for group in stack.prometheus.ask("rules")["groups"]))
        assert stack.prometheus.ask("alerts")["alerts"] == []
        stack.exporter.kill()
        alerts = eventually(lambda: firing(stack.prometheus), lambda found: len(found) == 2)
        assert alerts.keys() == {"MfgNotifyExporterDown", "MfgNotifyNoLeader"}
        # By these a watcher can tell them from its own.
        assert {(labels["job"], labels["database"]) for labels in alerts.values()} == {(JOB, "spacetraders")}
