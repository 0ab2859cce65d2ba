"""The exporter's own metrics: for each of them, a test here makes it move."""

import re
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import anyio
import psycopg
import pytest
from psycopg import sql
from tests.conftest import Database
from tests.game_rows import add_player, add_task, add_tasks
from tests.samples import number, samples, value
from tests.support import PATIENCE, eventually, exporting, page_of, settled
from tests.web_configuration import Setting

from mfg_notify.core.catalogue import EXPORTER_METRICS, SELF_PREFIX
from mfg_notify.core.tuning import Tuning
from mfg_notify.exporter import Exporter, Settings
from mfg_notify.exposition import Page

pytestmark = pytest.mark.anyio


@dataclass
class Bench:
    """An exporter, and a connection of the game that it counts."""

    exporter: Exporter
    game: psycopg.Connection
    database: Database
    channel: str

    def of(self, name: str, **labels: str) -> float:
        """Return one of the exporter's own metrics, of a histogram its count; 0 if it is absent."""
        page, full = page_of(self.exporter), SELF_PREFIX + name
        return number(page, full, **labels) or number(page, full + "_count", **labels)

    async def until(self, name: str, reached: Callable[[float], bool], **labels: str) -> None:
        """Wait until one of its metrics satisfies `reached`, which is checked whenever its state changes."""
        with anyio.fail_after(PATIENCE):
            await self.exporter.wait_until(lambda _: reached(self.of(name, **labels)))

    def notify(self, payload: str) -> None:
        """Send a payload on the channel, as anyone who knows its name could."""
        self.game.execute("SELECT pg_notify(%s, %s)", (self.channel, payload))

    def insert(self, rows: int = 1) -> None:
        """Add tasks."""
        add_tasks(self.game, rows, status="READY", id=sql.SQL("gen_random_uuid()"))


@pytest.fixture
async def bench(installed: Database) -> AsyncIterator[Bench]:
    with installed.connect() as game:
        add_player(game)
        channel = game.execute("SELECT channel FROM mfg_notify.settings").fetchall()[0][0]
        async with exporting(installed.dsn, reconcile_interval=0.1) as exporter:
            await exporter.wait_until(lambda state: state.folds > 2)
            yield Bench(exporter, game, installed, channel)


async def test_state(bench: Bench) -> None:
    before = Exporter(Settings(bench.database.dsn))
    page = page_of(before)
    for name in ("connected", "leader", "ready"):
        assert value(page, SELF_PREFIX + name) == 0
        assert bench.of(name) == 1
    assert bench.of("standby") == 0
    assert bench.of("polling") == 0  # test_notify_mode.py makes it move
    async with exporting(bench.database.dsn) as second:
        assert value(page_of(second), "mfg_notify_standby") == 1
    assert [n for (name, _), n in samples(page).items() if name == "mfg_notify_build_info"] == [1]


async def test_events_by_payload(bench: Bench) -> None:
    bench.insert()
    await bench.until("events_applied_total", lambda n: n == 1, table="task", op="I")
    assert bench.of("notifications_received_total") == 1
    assert bench.of("event_delay_seconds") == 1
    assert bench.of("events_replayed_total") == 0
    assert bench.of("series") > 0


async def test_events_from_the_journal(bench: Bench) -> None:
    # The first event is announced by itself, because the rows are not counted yet. `fold` announces the others.
    bench.insert(102)
    await bench.until("events_replayed_total", lambda n: n == 101)
    assert bench.of("events_applied_total", table="task", op="I") == 102
    assert bench.of("notifications_received_total") == 2


async def test_repeated_and_forged_payloads(bench: Bench) -> None:
    with bench.database.connect() as listening:
        listening.execute(sql.SQL("LISTEN {}").format(sql.Identifier(bench.channel)))
        bench.insert()
        [payload] = [n.payload for n in listening.notifies(timeout=PATIENCE, stop_after=1) if "task" in n.payload]
    version, _, rest = payload.split(",", 2)
    bench.notify(payload)
    bench.notify(f"{version},999999,{rest}")
    bench.notify("junk")
    bench.notify("barrier 999999")
    bench.notify("ping 999999")
    await bench.until("events_rejected_total", lambda n: n == 1, reason="malformed")
    await bench.until("events_rejected_total", lambda n: n >= 1, reason="unconfirmed")
    await bench.until("events_applied_total", lambda n: n >= 1, table="task", op="I")
    page = await settled(bench.exporter, bench.game)
    assert value(page, "manufacturing_tasks_ready_total", player_id="1", task_type="SELL") == 1
    assert bench.of("events_duplicate_total") + bench.of("events_rejected_total", reason="unconfirmed") == 2


async def test_duplicates(bench: Bench) -> None:
    with bench.database.connect() as listening:
        listening.execute(sql.SQL("LISTEN {}").format(sql.Identifier(bench.channel)))
        with bench.game.transaction():
            bench.insert()
            # The same event again in the same commit. The text differs, because PostgreSQL drops equal notifications.
            body = bench.game.execute(
                """SELECT '[' || version || ', ' || id || ',' || xid::text || ',' || to_json(at)::text || ','
                          || body || ']' FROM mfg_notify.event ORDER BY id DESC LIMIT 1"""
            ).fetchall()[0][0]
            bench.notify(body)
    await bench.until("events_duplicate_total", lambda n: n == 1)


async def test_ping_fold_and_reconciliation(bench: Bench) -> None:
    await bench.until("listener_roundtrip_seconds", lambda n: n > 0)
    await bench.until("fold_duration_seconds", lambda n: n > 3)
    await bench.until("reconcile_duration_seconds", lambda n: n > 3)
    for name in ("fold_last_success_timestamp_seconds", "reconcile_last_success_timestamp_seconds"):
        before = bench.of(name)
        await bench.until(name, lambda n, before=before: n > before)  # type: ignore[misc]


async def test_reconnects(bench: Bench) -> None:
    bench.game.execute(
        """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
           WHERE datname = current_database() AND application_name = 'mfg-notify'"""
    )
    await bench.until("reconnects_total", lambda n: n == 1, reason="unavailable")
    await bench.until("connected", lambda n: n == 1)


async def test_corrections_and_triggers(bench: Bench) -> None:
    bench.game.execute("ALTER TABLE manufacturing_tasks DISABLE TRIGGER mfg_notify_insert")
    bench.insert()
    metric = "manufacturing_tasks_ready_total"
    await bench.until("reconcile_corrections_total", lambda n: n == 1, metric=metric)
    assert bench.of("triggers_installed", table="manufacturing_tasks") == 3
    assert bench.of("triggers_installed", table="manufacturing_pipelines") == 4


async def test_journal_and_lost_changes(bench: Bench) -> None:
    bench.game.execute("INSERT INTO mfg_notify.event (version, body) VALUES (99, 'of tomorrow')")
    await bench.until("journal_rows", lambda n: n == 1)
    await bench.until("journal_oldest_age_seconds", lambda n: n > 0)
    await bench.until("ready", lambda n: n == 0)
    assert "upgrade mfg-notify" in bench.exporter.readiness()[1]
    bench.game.execute("DELETE FROM mfg_notify.event")
    await bench.until("ready", lambda n: n == 1)
    bench.game.execute("ALTER TABLE mfg_notify.event ADD CONSTRAINT broken CHECK (version = 99) NOT VALID")
    bench.insert()
    bench.game.execute("ALTER TABLE mfg_notify.event DROP CONSTRAINT broken")
    await bench.until("lost_changes_total", lambda n: n == 1)


async def test_imbalance(bench: Bench) -> None:
    await bench.until("books_last_balanced_timestamp_seconds", lambda n: n > 0)
    await bench.until("imbalance_rows", lambda n: n == 0, table="manufacturing_tasks")
    bench.game.execute("ALTER TABLE manufacturing_tasks DISABLE TRIGGER mfg_notify_insert")
    bench.insert(3)
    bench.game.execute("ALTER TABLE manufacturing_tasks ENABLE TRIGGER mfg_notify_insert")
    await bench.until("imbalance_rows", lambda n: n == 3, table="manufacturing_tasks")
    await bench.until("imbalance_rows", lambda n: n == 0, table="manufacturing_tasks")
    await bench.until("unrecorded_changes_total", lambda n: n == 3, table="manufacturing_tasks")


async def test_notification_queue(bench: Bench) -> None:
    with bench.database.connect() as idle:
        idle.execute("LISTEN something")
        with idle.transaction():
            idle.execute("SELECT 1")
            for _ in range(20):
                bench.game.execute(
                    "SELECT count(pg_notify('something', i || repeat('x', 7000))) FROM generate_series(1, 99) i"
                )
            await bench.until("notification_queue_usage_ratio", lambda n: n > 0)


async def test_series_dropped(bench: Bench) -> None:
    bench.insert()
    await settled(bench.exporter, bench.game)
    exporter = bench.exporter
    small = Page(exporter.exposed_view, exporter.ledger.now, series_maximum=20)
    found = samples(small.render()[0].decode())
    assert found["mfg_notify_series_dropped", frozenset()] > 0
    assert found["mfg_notify_series", frozenset()] <= 20


async def test_rewinds(bench: Bench) -> None:
    bench.game.execute("UPDATE mfg_notify.lease SET generation = 0")
    await bench.until("rewinds_total", lambda n: n == 1)


def test_a_web_configuration_that_becomes_invalid(tmp_path: Path) -> None:
    setting = Setting.in_folder(tmp_path)
    setting.write()
    with setting.exporter() as exporter:
        assert value(exporter.page(), "mfg_notify_web_config_failures_total") == 0
        setting.write(nonsense={})
        eventually(lambda: value(exporter.page(), "mfg_notify_web_config_failures_total"), lambda n: n == 1)


@pytest.mark.slow
def test_responses_and_connections(tmp_path: Path) -> None:
    setting = Setting.in_folder(tmp_path)
    setting.write()
    with setting.exporter() as exporter:
        assert exporter.get("/nothing").status_code == 404
        page = exporter.page()
        assert value(page, "mfg_notify_http_responses_total", code="404") == 1
        assert value(page, "mfg_notify_http_connections_dropped_total", reason="request_timeout") is None
        host, port = exporter.address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=PATIENCE) as silent:
            assert silent.recv(1) == b""
        assert value(exporter.page(), "mfg_notify_http_connections_dropped_total", reason="request_timeout") == 1


async def test_a_row_that_cannot_be_read(bench: Bench) -> None:
    await bench.until("unreadable_rows", lambda n: n == 0, table="manufacturing_tasks")
    bench.game.execute("ALTER TABLE manufacturing_tasks ALTER player_id DROP NOT NULL")
    add_task(bench.game, "bad", player_id=None)
    await bench.until("unreadable_rows", lambda n: n == 1, table="manufacturing_tasks")


async def test_oldest_snapshot(installed: Database) -> None:
    """It is there while somebody holds a snapshot, under the process id of the session."""
    tuning = Tuning(old_snapshot_age=0.0)
    with installed.connect() as holder:
        labels = {"kind": "session", "holder": str(holder.info.backend_pid)}
        async with exporting(installed.dsn, reconcile_interval=0.1, tuning=tuning) as exporter:
            for held in (True, False):
                if held:
                    holder.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
                    holder.execute("SELECT 1")
                else:
                    holder.rollback()
                with anyio.fail_after(PATIENCE):
                    await exporter.wait_until(
                        lambda _, held=held: (
                            held  # type: ignore[misc]
                            is (
                                value(page_of(exporter), "mfg_notify_oldest_snapshot_age_seconds", **labels) is not None
                            )
                        )
                    )


def test_every_metric_has_its_test() -> None:
    tests = Path(__file__).read_text(encoding="utf-8")
    missing = [m.name for m in EXPORTER_METRICS if not re.search(rf'["_]{m.name}["{{]', tests)]
    assert missing == []
