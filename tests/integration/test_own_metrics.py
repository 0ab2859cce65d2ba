"""The exporter about itself: every mfg_notify_* metric has a test here that makes it move."""

import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import anyio
import psycopg
import pytest
from psycopg import sql
from tests.conftest import Database
from tests.support import PATIENCE, exporting, page_of, samples, settled, value
from tests.web_configuration import Setting

from mfg_notify.core.catalogue import EXPORTER_METRICS, SELF_PREFIX
from mfg_notify.exporter import Exporter, Settings

pytestmark = pytest.mark.anyio


@dataclass
class Gauges:
    """An exporter, and a game that it watches."""

    exporter: Exporter
    game: psycopg.Connection
    database: Database
    channel: str

    def of(self, name: str, **labels: str) -> float:
        """Return one of the exporter's own numbers, 0 where it is absent."""
        found = samples(page_of(self.exporter))
        for suffix in ("", "_count"):
            if (number := found.get((SELF_PREFIX + name + suffix, frozenset(labels.items())))) is not None:
                return number
        return 0.0

    async def until(self, name: str, reached: Callable[[float], bool], **labels: str) -> None:
        """Wait until one of its numbers is as asked for; it is looked at whenever the exporter has done something."""
        with anyio.fail_after(PATIENCE):
            await self.exporter.wait_until(lambda _: reached(self.of(name, **labels)))

    def notify(self, payload: str) -> None:
        """Send something on the channel, as whoever knows its name could."""
        self.game.execute("SELECT pg_notify(%s, %s)", (self.channel, payload))

    def insert(self, rows: int = 1) -> None:
        """Add tasks."""
        self.game.execute(
            """INSERT INTO manufacturing_tasks (id, player_id, task_type, status, good)
               SELECT gen_random_uuid()::text, 1, 'COLLECT_SELL', 'READY', 'G' FROM generate_series(1, %s)""",
            (rows,),
        )


@pytest.fixture
async def floor(installed: Database) -> AsyncIterator[Gauges]:
    with installed.connect() as game:
        game.execute("INSERT INTO players (agent_symbol, token) VALUES ('A', 'x')")
        channel = game.execute("SELECT channel FROM mfg_notify.settings").fetchall()[0][0]
        async with exporting(installed.dsn, reconcile_interval=0.1) as exporter:
            await exporter.wait_until(lambda state: state.folds > 2)
            yield Gauges(exporter, game, installed, channel)


async def test_how_it_is(floor: Gauges) -> None:
    before = Exporter(Settings(floor.database.dsn))
    page = page_of(before)
    for name in ("connected", "leader", "ready"):
        assert value(page, SELF_PREFIX + name) == 0
        assert floor.of(name) == 1
    assert floor.of("standby") == 0
    assert floor.of("polling") == 0  # test_quiet.py makes it move
    async with exporting(floor.database.dsn) as second:
        assert value(page_of(second), "mfg_notify_standby") == 1
    assert [n for (name, _), n in samples(page).items() if name == "mfg_notify_build_info"] == [1]


async def test_events_by_payload(floor: Gauges) -> None:
    floor.insert()
    await floor.until("events_applied_total", lambda n: n == 1, table="task", op="I")
    assert floor.of("notifications_received_total") == 1
    assert floor.of("event_delay_seconds") == 1
    assert floor.of("events_replayed_total") == 0
    assert floor.of("series") > 0


async def test_events_by_the_journal_alone(floor: Gauges) -> None:
    # The first of them is announced before anyone knows that there are so many; then one notification says `fold`.
    floor.insert(102)
    await floor.until("events_replayed_total", lambda n: n == 101)
    assert floor.of("events_applied_total", table="task", op="I") == 102
    assert floor.of("notifications_received_total") == 2


async def test_repeated_and_forged_payloads(floor: Gauges) -> None:
    with floor.database.connect() as listening:
        listening.execute(sql.SQL("LISTEN {}").format(sql.Identifier(floor.channel)))
        floor.insert()
        [payload] = [n.payload for n in listening.notifies(timeout=PATIENCE, stop_after=1) if "task" in n.payload]
    version, _, rest = payload.split(",", 2)
    floor.notify(payload)
    floor.notify(f"{version},999999,{rest}")
    floor.notify("junk")
    floor.notify("barrier 999999")
    floor.notify("ping 999999")
    await floor.until("events_rejected_total", lambda n: n == 1, reason="malformed")
    await floor.until("events_rejected_total", lambda n: n >= 1, reason="ghost")
    await floor.until("events_applied_total", lambda n: n >= 1, table="task", op="I")
    page = await settled(floor.exporter, floor.game)
    assert value(page, "manufacturing_tasks_ready_total", player_id="1", task_type="COLLECT_SELL") == 1
    assert floor.of("events_duplicate_total") + floor.of("events_rejected_total", reason="ghost") == 2


async def test_duplicates(floor: Gauges) -> None:
    with floor.database.connect() as listening:
        listening.execute(sql.SQL("LISTEN {}").format(sql.Identifier(floor.channel)))
        with floor.game.transaction():
            floor.insert()
            # The same payload once more in the same commit: different text, same event.
            body = floor.game.execute(
                """SELECT '[' || version || ', ' || id || ',' || xid::text || ',' || to_json(at)::text || ','
                          || body || ']' FROM mfg_notify.event ORDER BY id DESC LIMIT 1"""
            ).fetchall()[0][0]
            floor.notify(body)
    await floor.until("events_duplicate_total", lambda n: n == 1)


async def test_ping_fold_and_reconciliation(floor: Gauges) -> None:
    await floor.until("listener_roundtrip_seconds", lambda n: n > 0)
    await floor.until("fold_duration_seconds", lambda n: n > 3)
    await floor.until("reconcile_duration_seconds", lambda n: n > 3)
    for name in ("fold_last_success_timestamp_seconds", "reconcile_last_success_timestamp_seconds"):
        before = floor.of(name)
        await floor.until(name, lambda n, before=before: n > before)  # type: ignore[misc]


async def test_reconnects(floor: Gauges) -> None:
    floor.game.execute(
        """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
           WHERE datname = current_database() AND application_name = 'mfg-notify'"""
    )
    await floor.until("reconnects_total", lambda n: n == 1, reason="unavailable")
    await floor.until("connected", lambda n: n == 1)


async def test_corrections_and_triggers(floor: Gauges) -> None:
    floor.game.execute("ALTER TABLE manufacturing_tasks DISABLE TRIGGER mfg_notify_insert")
    floor.insert()
    metric = "manufacturing_tasks_ready_total"
    await floor.until("reconcile_corrections_total", lambda n: n == 1, metric=metric)
    assert floor.of("triggers_installed", table="manufacturing_tasks") == 3
    assert floor.of("triggers_installed", table="manufacturing_pipelines") == 4


async def test_journal_and_lost_statements(floor: Gauges) -> None:
    floor.game.execute("INSERT INTO mfg_notify.event (version, body) VALUES (99, 'of tomorrow')")
    await floor.until("journal_rows", lambda n: n == 1)
    await floor.until("journal_oldest_age_seconds", lambda n: n > 0)
    await floor.until("ready", lambda n: n == 0)
    assert "upgrade mfg-notify" in floor.exporter.readiness()[1]
    floor.game.execute("DELETE FROM mfg_notify.event")
    await floor.until("ready", lambda n: n == 1)
    floor.game.execute("ALTER TABLE mfg_notify.event ADD CONSTRAINT broken CHECK (version = 99) NOT VALID")
    floor.insert()
    floor.game.execute("ALTER TABLE mfg_notify.event DROP CONSTRAINT broken")
    await floor.until("lost_changes_total", lambda n: n == 1)


async def test_notification_queue(floor: Gauges) -> None:
    with floor.database.connect() as sleepy:
        sleepy.execute("LISTEN something")
        with sleepy.transaction():
            sleepy.execute("SELECT 1")
            for _ in range(20):
                floor.game.execute(
                    "SELECT count(pg_notify('something', i || repeat('x', 7000))) FROM generate_series(1, 99) i"
                )
            await floor.until("notification_queue_usage_ratio", lambda n: n > 0)


async def test_series_dropped(floor: Gauges) -> None:
    floor.insert()
    await settled(floor.exporter, floor.game)
    small = Exporter(Settings(floor.database.dsn, series_maximum=20))
    small._counters, small._floor, small._presentable = floor.exporter._counters, floor.exporter._floor, True
    found = samples(page_of(small))
    assert found["mfg_notify_series_dropped", frozenset()] > 0
    assert found["mfg_notify_series", frozenset()] <= 20


async def test_a_database_that_was_set_back(floor: Gauges) -> None:
    floor.game.execute("UPDATE mfg_notify.lease SET generation = 0")
    await floor.until("rewinds_total", lambda n: n == 1)


def test_a_web_configuration_that_becomes_wrong(tmp_path: Path) -> None:
    setting = Setting.in_folder(tmp_path)
    setting.write()
    with setting.exporter() as exporter:
        assert value(exporter.page(), "mfg_notify_web_config_failures_total") == 0
        setting.write(nonsense={})
        for _ in range(2):
            assert value(exporter.page(), "mfg_notify_web_config_failures_total") == 1


def test_every_metric_has_its_test() -> None:
    tests = Path(__file__).read_text(encoding="utf-8")
    missing = [m.name for m in EXPORTER_METRICS if not re.search(rf'["_]{m.name}["{{]', tests)]
    assert missing == []
