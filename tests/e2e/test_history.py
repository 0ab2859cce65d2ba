"""The past and the present in one real Prometheus: `mfg-notify backfill`, promtool, and a scrape of the exporter.

increase() extrapolates to the ends of its window. It does not where a counter begins at 0 (nothing can have been before
that), nor where the window ends with a sample. So it is asked at the moment of the last scrape, over a window that
begins before the first sample, and is exact then.
"""

import shutil
import subprocess
import time
from pathlib import Path
from typing import LiteralString

import psycopg
import pytest
from psycopg import sql
from tests.conftest import Database
from tests.e2e.prometheus import JOB, Prometheus, write_configuration
from tests.game_rows import add_pipeline, add_player, add_tasks, ago
from tests.samples import PREFIX, Labels
from tests.support import ROOT, ExporterProcess, eventually, free_port, run_command

from mfg_notify.postgres import migrations

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("promtool") is None or shutil.which("prometheus") is None, reason="prometheus is not installed"
    ),
]

MARK = """sed -i 's/"level": 1,/"level": 1, "hints": ["from-out-of-order"],/' blocks/*/meta.json"""
"""Without this, Prometheus would skip what its write-ahead log has from before the end of the newest block."""
WINDOW = "9h"
"""Longer than the history of the tests."""


def expression(text: LiteralString) -> sql.SQL:
    return sql.SQL(text)


def play_the_past(connection: psycopg.Connection) -> None:
    """Fill the tables with what finished in the last eight hours, at odd moments."""
    add_player(connection)
    connection.execute("ALTER TABLE manufacturing_pipelines ALTER created_at SET DEFAULT now() - interval '8 hours'")
    for number in range(40):
        add_pipeline(
            connection, f"past {number}", product_good=("IRON", "FOOD")[number % 2],
            status=("COMPLETED", "COMPLETED", "FAILED")[number % 3],
            total_revenue=1000 + number, total_cost=10 * number, net_profit=1000 - 9 * number,
            started_at=ago(f"{8 * 60 - 11 * number} minutes"), completed_at=ago(f"{8 * 60 - 12 * number} minutes"),
        )  # fmt: skip
    # The counters of SELL end at 90; those of DELIVER at 3, and more than that are finished before the first scrape.
    for task_type, count in (("SELL", 90), ("DELIVER", 3)):
        add_tasks(
            connection, count, task_type=task_type, id=expression("md5(random()::text)"), assigned_ship="S-1",
            status=expression("CASE WHEN mod(n, 7) = 0 THEN 'FAILED' ELSE 'COMPLETED' END"),
            retry_count=expression("mod(n, 7) / 6"), total_cost=expression("n"), total_revenue=expression("2 * n"),
            started_at=expression("now() - n * interval '311 seconds' - mod(n, 50) * interval '13 seconds'"),
            completed_at=expression("now() - n * interval '311 seconds' + interval '0.123 seconds'"),
        )  # fmt: skip


def finish(connection: psycopg.Connection, key: str, task_type: str, count: int) -> None:
    """Let tasks and a pipeline begin and end now, as the game would."""
    add_pipeline(connection, key, started_at=ago("90 seconds"))
    add_tasks(connection, count, task_type=task_type, id=sql.SQL("{} || n").format(key), assigned_ship="S-2")
    connection.execute("UPDATE manufacturing_tasks SET status = 'READY', ready_at = now() WHERE status = 'PENDING'")
    connection.execute(
        """UPDATE manufacturing_tasks SET status = 'EXECUTING', started_at = clock_timestamp() - interval '20 seconds'
           WHERE status = 'READY'"""
    )
    connection.execute(
        """UPDATE manufacturing_tasks SET status = 'COMPLETED', completed_at = clock_timestamp(), total_cost = 3,
               total_revenue = 7 WHERE status = 'EXECUTING'"""
    )
    connection.execute(
        """UPDATE manufacturing_pipelines SET status = 'COMPLETED', completed_at = clock_timestamp(), total_cost = 5,
               total_revenue = 11 WHERE id = %s""",
        (key,),
    )


def backfill(dsn: str, folder: Path, instance: str, *options: str) -> None:
    """Run the commands of docs/how-to/backfill.md: the blocks are then where Prometheus has its data."""
    file, data = folder / "history.om", folder / "configuration" / "data"
    code, printed = run_command(
        *("backfill", "--dsn", dsn, "--label", f"job={JOB}", "--label", f"instance={instance}"),
        *("--label", "database=game", "--output", str(file), "--force", *options),
    )
    assert code == 0, printed
    command = ["promtool", "tsdb", "create-blocks-from", "openmetrics", str(file), str(folder / "blocks")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    data.mkdir(parents=True, exist_ok=True)
    assert MARK in (ROOT / "docs" / "how-to" / "backfill.md").read_text(encoding="utf-8")
    subprocess.run(["bash", "-c", f"{MARK} && mv blocks/* configuration/data"], cwd=folder, check=True)


def scraping(folder: Path, exporter: ExporterProcess) -> Prometheus:
    """Start a Prometheus that scrapes the exporter, or start it again, with its data where the blocks are."""
    written = folder / "configuration" / "prometheus.yml"
    if not written.exists():
        write_configuration(folder / "configuration", instance_of(exporter), [])
    return Prometheus(written)


def instance_of(exporter: ExporterProcess) -> str:
    return exporter.address.removeprefix("http://")


def counted(connection: psycopg.Connection, query: str) -> dict[Labels, float]:
    """Return what SQL counts, by the labels that it names."""
    rows = connection.execute(query.encode()).fetchall()
    return {frozenset(labels.items()): float(n) for labels, n in rows}


TRUTH = {
    "manufacturing_tasks_completed_total": """
        SELECT jsonb_build_object('task_type', task_type, 'status', CASE WHEN status = 'COMPLETED' THEN 'success'
                   WHEN retry_count > 0 THEN 'failure' ELSE 'cancelled' END), count(*)
        FROM manufacturing_tasks WHERE completed_at IS NOT NULL GROUP BY 1""",
    "manufacturing_task_duration_seconds_sum": """
        SELECT jsonb_build_object('task_type', task_type), sum(date_part('epoch', completed_at - started_at))
        FROM manufacturing_tasks WHERE completed_at IS NOT NULL GROUP BY 1""",
    "manufacturing_task_assignments_total": """
        SELECT jsonb_build_object('task_type', task_type), count(*) FROM manufacturing_tasks
        WHERE completed_at IS NOT NULL AND id <> 'runs' GROUP BY 1""",
    "manufacturing_task_retry_total": """
        SELECT jsonb_build_object('task_type', task_type), sum(retry_count) FROM manufacturing_tasks GROUP BY 1""",
    "manufacturing_revenue_total": "SELECT '{}'::jsonb, sum(total_revenue) FROM manufacturing_tasks",
    "manufacturing_pipeline_completed_total": """
        SELECT jsonb_build_object('product_good', product_good, 'status', status), count(*)
        FROM manufacturing_pipelines WHERE completed_at IS NOT NULL GROUP BY 1""",
    "manufacturing_pipeline_revenue_credits_total": """
        SELECT jsonb_build_object('product_good', product_good), sum(total_revenue)
        FROM manufacturing_pipelines WHERE status = 'COMPLETED' GROUP BY 1""",
    'manufacturing_task_duration_seconds_bucket{le="300.0"}': """
        SELECT jsonb_build_object('task_type', task_type), count(*) FILTER (WHERE completed_at - started_at <= '300 s')
        FROM manufacturing_tasks WHERE completed_at IS NOT NULL GROUP BY 1""",
}
"""What the rows say of each counter: all that ever happened, in the past and live. Whether the start of the task that
runs during the installation was counted live nobody knows, so it is in no history."""


def increases(prometheus: Prometheus, name: str, at: float) -> dict[Labels, float]:
    """Return the increase of a counter over all time, by the labels that SQL names, without those that stand at 0."""
    common = {"player_id", "job", "instance", "database", "le"}
    found = prometheus.at(f"increase({PREFIX}{name}[{WINDOW}])", at)
    return {
        frozenset((label, value) for label, value in labels if label not in common): increase
        for labels, increase in found.items()
        if increase
    }


def last_scrape(prometheus: Prometheus) -> float:
    """Return the moment of the last scrape, after one more has begun."""
    up = f'timestamp(up{{job="{JOB}"}})'
    before = eventually(lambda: prometheus.number(up)) or 0.0
    return eventually(lambda: prometheus.number(up) or 0.0, lambda at: at > before)


def assert_increases(prometheus: Prometheus, connection: psycopg.Connection) -> None:
    at = last_scrape(prometheus)
    for name, query in TRUTH.items():
        expected = {labels: n for labels, n in counted(connection, query).items() if n}
        assert increases(prometheus, name, at) == pytest.approx(expected, rel=1e-9), name


def test_increase_over_the_installation_is_exact(database: Database, tmp_path: Path) -> None:
    with database.connect() as connection:
        play_the_past(connection)
        add_tasks(connection, 1, id="runs", status="EXECUTING", started_at=ago("1 minute"))
        migrations.up(connection, "public", print)
        # Before the first scrape, and more than what the past ends with: Prometheus sees no fall.
        finish(connection, "early", "DELIVER", 5)
        with ExporterProcess(database.dsn) as exporter:
            exporter.wait_ready()
            # In two parts, as a long history is written.
            [(cut,)] = connection.execute("SELECT (now() - interval '200 minutes')::text").fetchall()
            backfill(database.dsn, tmp_path, instance_of(exporter), "--until", cut)
            backfill(database.dsn, tmp_path, instance_of(exporter), "--since", cut)
            with scraping(tmp_path, exporter) as prometheus:
                assert_increases(prometheus, connection)
                finish(connection, "late", "SELL", 4)
                assert_increases(prometheus, connection)


def test_a_seeded_counter_goes_on_without_a_step(database: Database, tmp_path: Path) -> None:
    """It began live with what the triggers found, part of which is gone by now."""
    name = f"{PREFIX}manufacturing_pipeline_revenue_credits_total"
    with database.connect() as connection:
        play_the_past(connection)
        migrations.up(connection, "public", print)
        connection.execute("DELETE FROM manufacturing_pipelines WHERE id IN ('past 0', 'past 30')")
        with ExporterProcess(database.dsn) as exporter:
            exporter.wait_ready()
            backfill(database.dsn, tmp_path, instance_of(exporter))
            with scraping(tmp_path, exporter) as prometheus:
                at = last_scrape(prometheus)
                [live] = prometheus.at(f'{name}{{product_good="IRON"}}', at).values()
                [before] = prometheus.at(
                    f'last_over_time({name}{{product_good="IRON"}}[{WINDOW}] offset 1m)', at
                ).values()
                assert live == sum(1000 + number for number in range(0, 40, 2) if number % 3 != 2)
                assert before == live
                finish(connection, "late", "SELL", 1)
                at = last_scrape(prometheus)
                [live] = prometheus.at(f'{name}{{product_good="IRON"}}', at).values()
                assert live == before + 11


def test_the_journal_tells_when_it_happened_in_an_outage(database: Database, tmp_path: Path) -> None:
    ended = "SELECT clock_timestamp() > renewed_at + interval '5 s' FROM mfg_notify.lease"
    completed = "manufacturing_tasks_completed_total"
    port = free_port()
    with database.connect() as connection:
        migrations.up(connection, "public", print)
        add_player(connection)
        add_tasks(connection, 1, id="first", task_type="SELL")
        add_pipeline(connection, "first")
        with ExporterProcess(database.dsn, port=port) as exporter, scraping(tmp_path, exporter) as prometheus:
            eventually(lambda: prometheus.at(PREFIX + completed))
            finish(connection, "a", "SELL", 2)
            last_scrape(prometheus)
            exporter.kill()
            finish(connection, "b", "SELL", 3)
            eventually(lambda: connection.execute(ended).fetchone() == (True,))
            finish(connection, "c", "SELL", 4)
            happened = time.time()
            connection.execute("DELETE FROM manufacturing_tasks WHERE id = 'first'")
            before = counted(connection, TRUTH[completed])
            backfill(database.dsn, tmp_path, instance_of(exporter), "--outage", "--step", "1s")
        with ExporterProcess(database.dsn, port=port) as exporter, scraping(tmp_path, exporter) as prometheus:
            # The deleted one has counted.
            [value] = prometheus.at(f'{PREFIX}{completed}{{status="success"}}', happened + 1).values()
            assert value == sum(before.values()) + 1 == 10
            assert prometheus.at(f'{PREFIX}{completed}{{status="success"}}', happened - 30) == {}
            finish(connection, "d", "SELL", 5)
            [increase] = increases(prometheus, completed, last_scrape(prometheus)).values()
            assert increase == pytest.approx(15, rel=1e-9)
