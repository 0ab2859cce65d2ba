"""A real Prometheus with the shipped configuration and rules, and questions to it."""

import copy
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import httpx
import yaml
from tests.samples import Labels
from tests.support import ROOT, Process, eventually

SHIPPED = ROOT / "prometheus"
JOB = "mfg-notify"
SCRAPE_INTERVAL = 0.5
EVALUATION_INTERVAL = 1.0
"""Seconds; the shipped ones are of the length that people wait."""

Json = dict[str, Any]


def hurried(seconds: float) -> str:
    """Return a duration as Prometheus writes it."""
    return f"{round(1000 * seconds)}ms"


def read_shipped() -> tuple[Json, dict[str, Json]]:
    """Return the configuration as shipped, and the files of rules by name."""
    rules = {path.name: yaml.safe_load(path.read_text(encoding="utf-8")) for path in SHIPPED.glob("rules/*.yml")}
    return yaml.safe_load((SHIPPED / "prometheus.yml").read_text(encoding="utf-8")), rules


def shipped_alert(name: str) -> str:
    """Return the expression of an alert as shipped."""
    [expr] = [
        rule["expr"]
        for file in read_shipped()[1].values()
        for group in file["groups"]
        for rule in group["rules"]
        if rule.get("alert") == name
    ]
    return str(expr)


def shortened(expr: str, durations: Mapping[str, str]) -> str:
    """Return an expression with other durations and thresholds, all of which it must have."""
    for shipped, short in durations.items():
        assert shipped in expr, f"{shipped} is not in {expr}"
        expr = expr.replace(shipped, short)
    return expr


def write_configuration(folder: Path, target: str, more_jobs: list[Json], *more_targets: str) -> Path:
    """Write the shipped configuration for a test: other targets, shorter intervals, and jobs beside ours."""
    configuration, rules = read_shipped()
    configuration["global"] = {
        "scrape_interval": hurried(SCRAPE_INTERVAL),
        "evaluation_interval": hurried(EVALUATION_INTERVAL),
    }
    configuration["scrape_configs"][0]["static_configs"][0]["targets"] = [target, *more_targets]
    configuration["scrape_configs"] += more_jobs
    (folder / "rules").mkdir(parents=True)
    for name, file in rules.items():
        for group in file["groups"]:
            if "interval" in group:
                group["interval"] = hurried(EVALUATION_INTERVAL)
        (folder / "rules" / name).write_text(yaml.safe_dump(file, sort_keys=False), encoding="utf-8")
    written = folder / "prometheus.yml"
    written.write_text(yaml.safe_dump(configuration, sort_keys=False), encoding="utf-8")
    return written


def undo_the_hurry(configuration: Json, rules: Mapping[str, Json]) -> tuple[Json, dict[str, Json]]:
    """Return what was written for a test with the shipped target and intervals, and without the jobs beside ours."""
    shipped, shipped_rules = read_shipped()
    configuration, restored = copy.deepcopy(configuration), copy.deepcopy(dict(rules))
    configuration["global"] |= shipped["global"]
    del configuration["scrape_configs"][1:]
    ours, as_shipped = configuration["scrape_configs"][0], shipped["scrape_configs"][0]
    ours["static_configs"][0]["targets"] = as_shipped["static_configs"][0]["targets"]
    for name, file in restored.items():
        for group, shipped_group in zip(file["groups"], shipped_rules[name]["groups"], strict=True):
            if "interval" in group:
                group["interval"] = shipped_group["interval"]
    return configuration, restored


class Prometheus:
    """A Prometheus process, with its data in the folder of its configuration."""

    def __init__(self, configuration: Path, *options: str) -> None:
        """Start it, with further options."""
        self._server = Process(
            [
                *("prometheus", f"--config.file={configuration}", "--web.listen-address=127.0.0.1:0"),
                *(f"--storage.tsdb.path={configuration.parent / 'data'}", *options),
            ]
        )
        self.address = self._server.find(r'msg="Listening on" address=(\S+)').group(1)
        # It listens before it has read what it has stored.
        self._server.wait_for("Server is ready to receive web requests")
        self._client = httpx.Client(base_url=f"http://{self.address}/api/v1", timeout=30)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()
        self._server.close()

    def ask(self, path: str, **parameters: str) -> Any:  # noqa: ANN401
        """Ask the API; an error of a query fails the test with its words."""
        if path.startswith("query"):
            answer = self._client.post(path, data=parameters).json()
        else:
            answer = self._client.get(path, params=parameters).json()
        assert answer["status"] == "success", f"{parameters}: {answer['error']}"
        assert not answer.get("warnings"), answer["warnings"]
        return answer["data"]

    def values_of(self, label: str, selector: str) -> list[str]:
        """Return the values of a label over the series of a selector."""
        values: list[str] = self.ask(f"label/{label}/values", **{"match[]": selector})
        return values

    def at(self, expr: str, time: float | None = None) -> dict[Labels, float]:
        """Evaluate at one moment, now unless another is given."""
        moment = {} if time is None else {"time": f"{time:.3f}"}
        data = self.ask("query", query=expr, **moment)
        assert data["resultType"] == "vector", data["resultType"]
        return {frozenset(series["metric"].items()): float(series["value"][1]) for series in data["result"]}

    def number(self, expr: str, time: float | None = None) -> float | None:
        """Evaluate what is one number; None where there is none."""
        found = self.at(expr, time)
        assert len(found) <= 1, found
        return next(iter(found.values()), None)

    def over(self, expr: str, start: float, end: float, step: float) -> dict[Labels, dict[float, float]]:
        """Evaluate over a range of time: the values by moment."""
        data = self.ask("query_range", query=expr, start=f"{start:.3f}", end=f"{end:.3f}", step=f"{step:.3f}")
        return {
            frozenset(series["metric"].items()): {float(at): float(value) for at, value in series["values"]}
            for series in data["result"]
        }

    def exemplars(self, expr: str, start: float) -> dict[Labels, list[Json]]:
        """Return the exemplars by series, in order of time, from `start` until now."""
        data = self.ask("query_exemplars", query=expr, start=f"{start:.3f}", end=f"{time.time():.3f}")
        return {frozenset(series["seriesLabels"].items()): series["exemplars"] for series in data}

    def wait_for(self, expr: str) -> dict[Labels, float]:
        """Wait until an expression returns data."""
        return eventually(lambda: self.at(expr))

    def wait_for_scrape(self, since: float) -> None:
        """Wait until the exporter has answered a scrape that began after this moment."""
        # timestamp() is that of a sample only where it stands around a bare selector. Prometheus aligns the times of
        # scrapes, so they may be off by some milliseconds.
        answered = f'min(timestamp(up{{job="{JOB}"}}) and up{{job="{JOB}"}} == 1)'
        eventually(lambda: self.number(answered), lambda at: (at or 0.0) > since + 0.01)
