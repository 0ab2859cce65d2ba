"""`mfg-notify backfill` as a user calls it: options, rights, locks and memory; and the past of the demo."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any, LiteralString

import anyio
import pytest
from psycopg import sql
from tests.conftest import Database
from tests.game_rows import add_pipeline, add_player, add_task, add_tasks, ago
from tests.support import ROOT, ExporterProcess, clean_environment, eventually, run_command

from mfg_notify.core.catalogue import PREFIX
from mfg_notify.demo import history as demo_history
from mfg_notify.demo.game import play
from mfg_notify.demo.world import GameOptions
from mfg_notify.postgres import history, migrations

LABELS = ("--label", "job=mfg-notify", "--label", "instance=x")
PAST: dict[str, Any] = {"status": "COMPLETED", "started_at": ago("70 minutes"), "completed_at": ago("1 hour")}


def expression(text: LiteralString) -> sql.SQL:
    return sql.SQL(text)


def install(database: Database) -> None:
    """Install the triggers in a game with a finished pipeline and two finished tasks; one does not say when."""
    with database.connect() as connection:
        add_player(connection)
        add_pipeline(connection, **PAST, total_revenue=50, created_at=ago("2 hours"))
        add_task(connection, **PAST)
        add_task(connection, "undated", status="COMPLETED")
        migrations.up(connection, "public", print)


def test_it_writes_to_standard_output_and_says_what_is_missing(database: Database) -> None:
    install(database)
    code, printed = run_command("backfill", "--dsn", database.dsn, *LABELS, "--output", "-")
    assert code == 0, printed
    labels = 'player_id="1",task_type="SELL",status="success",job="mfg-notify",instance="x"'
    assert f"{PREFIX}manufacturing_tasks_completed_total{{{labels}}} 1 " in printed
    assert "supply transitions" in printed
    assert "not in it either: 1\n" in printed
    assert re.search(r"wrote [1-9][\d,]* samples of [1-9]\d* series", printed)


def test_it_replaces_a_file_only_by_force(database: Database, tmp_path: Path) -> None:
    install(database)
    file = tmp_path / "history.om"
    file.write_text("mine")
    command = ("backfill", "--dsn", database.dsn, *LABELS, "--output", str(file))
    code, printed = run_command(*command)
    assert (code, file.read_text()) == (1, "mine")
    assert "--force" in printed
    code, printed = run_command(*command, "--force")
    assert code == 0, printed
    assert file.read_text().endswith("# EOF\n")
    assert [each.name for each in tmp_path.iterdir()] == ["history.om"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--step", "6m"), "1ms to 5m"),
        (("--since", "yesterday"), "is not a time"),
        (("--since", "2020-01-01", "--until", "2019-01-01"), "nothing to write"),
        (("--since", "1980-01-01", "--step", "1s"), "a longer --step"),
        (("--until", "2999-01-01"), "after the installation"),
        (("--label", "job"), "must look like"),
        (("--label", "__name__=x"), "must look like"),
        (("--label", "status=x"), "already"),
        (("--label", "a=1", "--label", "a=2"), "already"),
        (("--outage", "--since", "2026-01-01"), "excludes"),
    ],
)
def test_a_wrong_option_is_named(database: Database, tmp_path: Path, options: tuple[str, ...], said: str) -> None:
    install(database)
    code, printed = run_command("backfill", "--dsn", database.dsn, "--output", str(tmp_path / "x"), *options)
    assert code == 2, printed
    assert said in printed
    assert not list(tmp_path.iterdir())


def test_it_needs_the_triggers_to_know_where_the_past_ends(database: Database, tmp_path: Path) -> None:
    code, printed = run_command("backfill", "--dsn", database.dsn, "--output", str(tmp_path / "x"))
    assert code == 1
    assert "migrate up" in printed


def test_labels_of_the_target_are_asked_for(database: Database) -> None:
    install(database)
    _, printed = run_command("backfill", "--dsn", database.dsn, "--label", "job=mfg-notify", "--output", "-")
    assert "without --label instance" in printed


def test_the_installation_keeps_its_moment_when_it_is_repaired(database: Database) -> None:
    install(database)
    with database.connect() as connection:
        ask = """SELECT installed_at, (SELECT array_agg(seed ORDER BY metric) FROM mfg_notify.total)
                 FROM mfg_notify.settings"""
        before = connection.execute(ask).fetchone()
        assert before is not None
        assert (before[0] is not None, before[1]) == (True, [0, 50])
        connection.execute("DROP TRIGGER mfg_notify_insert ON manufacturing_tasks")
        assert migrations.up(connection, "public", print)
        assert connection.execute(ask).fetchone() == before


@pytest.mark.slow
def test_the_role_of_the_exporter_may_run_it(exporter_dsn: str, installed: Database) -> None:
    with installed.connect() as connection:
        add_player(connection)
        add_task(connection)
        with ExporterProcess(exporter_dsn) as exporter:
            exporter.wait_ready()
            code, printed = run_command("backfill", "--dsn", exporter_dsn, *LABELS, "--outage", "--output", "-")
            assert code == 1
            assert "an exporter is running" in printed
        # The template was installed long before the row.
        connection.execute("UPDATE mfg_notify.settings SET installed_at = now() + interval '1 s'")
        connection.execute("UPDATE manufacturing_tasks SET status = 'FAILED', completed_at = now()")
        ended = """SELECT clock_timestamp() > greatest(renewed_at + interval '6 s', installed_at)
                   FROM mfg_notify.lease, mfg_notify.settings"""
        eventually(lambda: connection.execute(ended).fetchone() == (True,))
    for more in ((), ("--outage",)):
        code, printed = run_command("backfill", "--dsn", exporter_dsn, *LABELS, *more, "--output", "-")
        assert code == 0, printed
        assert 'status="cancelled"' in printed


def test_no_lock_outlives_the_query(database: Database) -> None:
    install(database)
    with database.connect() as connection, history.connect(database.dsn, "public") as reading:
        past = history.read_past(reading, "public")
        assert past.first is not None
        pipelines, tasks = history.read_rows(reading, "public", past.first, past.installed_at, past.installed_at)
        connection.execute("SET lock_timeout = '1s'")
        connection.execute("ALTER TABLE manufacturing_tasks ADD extra integer")
        held = "SELECT backend_xmin IS NOT NULL FROM pg_stat_activity WHERE pid = %s"
        assert connection.execute(held, (reading.info.backend_pid,)).fetchone() == (False,)
        assert (len(list(pipelines)), len(list(tasks))) == (1, 1)


def test_a_row_that_cannot_be_read_is_left_out(database: Database) -> None:
    with database.connect() as connection:
        add_player(connection)
        connection.execute("ALTER TABLE manufacturing_tasks ALTER total_cost TYPE numeric")
        add_task(connection, "bad", **PAST, total_cost=expression("'NaN'"))
        add_task(connection, "good", **PAST)
        migrations.up(connection, "public", print)
    code, printed = run_command("backfill", "--dsn", database.dsn, *LABELS, "--output", "-")
    assert code == 0, printed
    assert "1 tasks cannot be read" in printed
    assert re.search(r'tasks_completed_total\{[^}]*status="success"[^}]*\} 1 ', printed)


def test_the_game_may_be_in_another_schema(database: Database) -> None:
    with database.connect() as connection:
        add_player(connection)
        add_task(connection, **PAST)
        connection.execute("ALTER SCHEMA public RENAME TO spacetraders")
        migrations.up(connection, "spacetraders", print)
    command = ("backfill", "--dsn", database.dsn, "--game-schema", "spacetraders", *LABELS, "--output", "-")
    code, printed = run_command(*command)
    assert code == 0, printed
    assert 'status="success"' in printed


def peak_memory(dsn: str, file: Path) -> int:
    """Run the command; return the peak of its resident memory in KiB."""
    # Unlike ru_maxrss this begins with the program, and not with the process that has started it.
    code = (
        "import re, sys; from mfg_notify.cli import main; main(sys.argv[1:], standalone_mode=False);"
        r"print(*re.findall(r'VmHWM:\s*(\d+)', open('/proc/self/status').read()))"
    )
    command = [sys.executable, "-c", code, "backfill", "--dsn", dsn, *LABELS, "--output", str(file), "--force"]
    done = subprocess.run(command, cwd=ROOT, env=clean_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.thorough
@pytest.mark.slow
def test_memory_does_not_grow_with_the_rows(database: Database, tmp_path: Path) -> None:
    spread: dict[str, Any] = {
        "status": "COMPLETED",
        "started_at": expression("now() - mod(n, 86000) * interval '1 second' - interval '2 minutes'"),
        "completed_at": expression("now() - mod(n, 86000) * interval '1 second' - interval '1 minute'"),
        "assigned_ship": "S-1",
    }
    with database.connect() as connection:
        add_player(connection)
        add_tasks(connection, 30_000, **spread)
        add_tasks(
            connection, 1, **(spread | {"id": "first", "completed_at": ago("1 day"), "started_at": ago("25 hours")})
        )
        migrations.up(connection, "public", print)
        few = peak_memory(database.dsn, tmp_path / "history.om")
        connection.execute("ALTER TABLE manufacturing_tasks DISABLE TRIGGER USER")
        add_tasks(connection, 300_000, **(spread | {"id": expression("'more' || n")}))
        # The rows were there before, as far as their times say.
        many = peak_memory(database.dsn, tmp_path / "history.om")
    counted = re.findall(r"tasks_completed_total\{.*\} (\d+) ", (tmp_path / "history.om").read_text())
    assert max(map(int, counted)) == 330_001
    # 300,000 rows take at least 100 MB if they are kept.
    assert many - few < 30_000, f"{few} KiB with 30,000 rows, {many} KiB with 330,000"


def test_the_demo_begins_with_a_day_of_history(database: Database) -> None:
    options = GameOptions(seed=5, players=1, rate=0)
    inserted = anyio.run(demo_history.insert, database.dsn, options)

    async def go_on() -> None:
        await play(database.dsn, options, statements=600)

    anyio.run(go_on)
    with database.connect() as connection:
        tables = "manufacturing_pipelines", "manufacturing_tasks"
        ended = "SELECT count(*), min(completed_at) > now() - interval '25 hours', max(completed_at) <= now() FROM {}"
        found = [connection.execute(sql.SQL(ended).format(sql.Identifier(table))).fetchone() for table in tables]
        assert all(row is not None and row[0] > 500 and row[1:] == (True, True) for row in found), found
        assert inserted > 4_000
        # The game that follows is that of the same player, and knows no row of the past.
        assert connection.execute("SELECT count(*) FROM players").fetchone() == (1,)
        goods = "SELECT count(DISTINCT product_good) FROM manufacturing_pipelines"
        [(all_goods,)] = connection.execute(goods).fetchall()
        assert all_goods <= 6
