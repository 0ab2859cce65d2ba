"""From the bucket of a histogram to the pipeline: what a real Prometheus keeps of the exemplars.

Needs prometheus (Debian: apt-get install prometheus).
"""

import shutil
import time
from pathlib import Path

import psycopg
import pytest
import yaml
from tests import game_rows
from tests.conftest import Database
from tests.e2e.prometheus import Json, Prometheus, write_configuration
from tests.support import ROOT, ExporterProcess, eventually

from mfg_notify.core.catalogue import PIPELINE_PROFIT, TASK_DURATION

pytestmark = pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed")
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
EXEMPLARS = [option for option in COMPOSE["services"]["prometheus"]["command"] if "exemplar" in option]
"""The option that compose.yaml gives to Prometheus."""
HOSTILE = "} 1 # {a=1} 2 \t💥"
ESCAPED = 'a "quoted" \\ \n word'
"""Needs escapes; this Prometheus keeps them, so what it returns is not the id itself."""


def complete(game: psycopg.Connection, key: str, profit: int) -> None:
    game.execute(
        """UPDATE manufacturing_pipelines SET status = 'COMPLETED', net_profit = %s, completed_at = now()
           WHERE id = %s""",
        (profit, key),
    )


def test_the_id_of_the_last_pipeline_of_a_bucket(installed: Database, tmp_path: Path) -> None:
    began = time.time() - 60
    with installed.connect() as game, ExporterProcess(installed.dsn) as exporter:
        exporter.wait_ready()
        target = exporter.address.removeprefix("http://")
        with Prometheus(write_configuration(tmp_path / "prometheus", target, []), *EXEMPLARS) as prometheus:

            def exemplars(selector: str) -> list[Json]:
                return [one for found in prometheus.exemplars(selector, began).values() for one in found]

            def last_of(le: str) -> str | None:
                found = exemplars(f'{PIPELINE_PROFIT.full_name}_bucket{{le="{le}"}}')
                return found[-1]["labels"]["pipeline_id"] if found else None

            game_rows.add_player(game)
            for key in ("loss", "first", "second", HOSTILE, ESCAPED):
                game_rows.add_pipeline(game, key, status="EXECUTING")
            for key, profit in (("loss", -250), ("first", 7_000), ("second", 10_000)):
                complete(game, key, profit)
            eventually(lambda: last_of("10000.0"), lambda key: key == "second")
            assert last_of("1000.0") == "loss"
            [shown] = exemplars(f'{PIPELINE_PROFIT.full_name}_bucket{{le="1000.0"}}')
            assert float(shown["value"]) == -250
            assert began < shown["timestamp"] < time.time()
            complete(game, HOSTILE, 9_999)
            eventually(lambda: last_of("10000.0"), lambda key: key == HOSTILE)
            assert last_of("1000.0") == "loss"

            game_rows.add_task(game, "t-1", status="EXECUTING", started_at=game_rows.ago("45 seconds"))
            game.execute("UPDATE manufacturing_tasks SET status = 'COMPLETED', completed_at = now()")
            task = f"{TASK_DURATION.full_name}_bucket"
            [(series, [of_task])] = eventually(lambda: prometheus.exemplars(task, began)).items()
            assert dict(series)["le"] == "60.0"
            assert of_task["labels"] == {"task_id": "t-1"}
            assert 30 < float(of_task["value"]) <= 60
            complete(game, ESCAPED, 50_000)
            eventually(lambda: last_of("50000.0"))
            prometheus.wait_for(f"{PIPELINE_PROFIT.full_name}_count == 5")
