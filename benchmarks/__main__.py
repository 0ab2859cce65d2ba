"""`make bench`: measures everything, writes results.json, and the tables and the chart of docs/explanation from it."""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import psycopg
from rich.console import Console

from benchmarks import measures, report
from benchmarks.books import books_in_folds
from benchmarks.stage import BenchmarkError, Stage

say = Console(highlight=False, soft_wrap=True, stderr=True).print
Measure = Callable[[Stage, Callable[[str], None]], dict[str, Any]]


def plan(*, quick: bool) -> dict[str, Measure]:
    """Return the measurements by name, in order. A quick run shows that they work; its figures mean nothing."""
    few, second = (1, 2.0) if quick else (3, 5.0)

    def of(measure: Callable[..., dict[str, Any]], **options: Any) -> Measure:  # noqa: ANN401
        return lambda stage, say: measure(stage, say, **options)

    return {
        "writers": of(measures.writers, rounds=1 if quick else 5, seconds=second),
        "factories": of(measures.factories, rounds=1 if quick else 5, seconds=second),
        "latency": of(measures.latency, rounds=few, seconds=3 * second),
        "wal": of(measures.wal, changes=500 if quick else 5_000),
        "large update": of(measures.large_update, rounds=1 if quick else 9, rows=1_000 if quick else 100_000),
        "delay": of(measures.delay, seconds=3 if quick else 20),
        "at rest": of(measures.at_rest, seconds=3 if quick else 60),
        "backlog": of(measures.backlog, events=20_000 if quick else 1_000_000),
        "books": of(books_in_folds, folds={5: 20, 100: 10} if quick else {5: 2_000, 100: 400, 2_000: 60}),
        "pages": of(measures.pages, scrapes=5 if quick else 100),
        "history": of(measures.history, histories=(1_000, 5_000) if quick else measures.HISTORIES),
        "a day": of(measures.a_day, changes=5_000 if quick else 4_320_000),
    }


def machine(stage: Stage) -> dict[str, str]:
    """Describe the machine and the software of this run."""
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)  # noqa: S607
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    return {
        "processor": f"{model}, {os.cpu_count()} cores",
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "PostgreSQL": stage.version,
        "Python": platform.python_version(),
        "psycopg": psycopg.__version__,
        "revision": git.stdout.strip(),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
    }


def main() -> int:
    """Measure what the arguments name and merge it into the existing results."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"only these: {', '.join(plan(quick=True))}")
    parser.add_argument("--quick", action="store_true", help="short runs whose figures are printed but not written")
    parser.add_argument(
        "--postgres",
        metavar="DIR",
        type=Path,
        help="measure the PostgreSQL whose initdb, pg_ctl and postgres are in this folder, not the embedded one; its "
        "results go to results-VERSION.json and into no document",
    )
    options = parser.parse_args()
    measurements = plan(quick=options.quick)
    if unknown := set(options.names) - measurements.keys():
        parser.error(f"there is no measurement {', '.join(sorted(unknown))}")
    started = time.monotonic()
    with Stage(options.postgres) as stage:
        file = report.RESULTS
        if options.postgres is not None:
            file = file.with_name(f"results-{stage.version.split('.')[0]}.json")
        results: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        results["machine"] = machine(stage)
        # Several measurements use these two databases, whichever of them run.
        for name in ("bare", "ours"):
            stage.make_game(name, triggers=name == "ours")
        for name, measure in measurements.items():
            if options.names and name not in options.names:
                continue
            say(f"[bold]{name}[/]")
            try:
                results[name] = measure(stage, lambda text: say(f"  {text}"))
            except BenchmarkError as error:
                say(f"[red]{name}: {error}")
                return 1
            say(json.dumps(results[name], indent=1))
            if not options.quick:
                file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    say(f"{(time.monotonic() - started) / 60:.0f} minutes")
    if not options.quick and options.postgres is None:
        report.plot(results)
        return subprocess.run([sys.executable, "docs/generate.py"], check=False).returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
