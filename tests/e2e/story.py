"""The evening that the end to end tests look at: a game is played, the exporter dies and is restarted, things go wrong.

Everything is real but the game's player and the daemon (see daemon.py). What happens is waited for, by asking
Prometheus; nothing depends on how fast the machine is.
"""

import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, LiteralString
from uuid import uuid4

import psycopg
import yaml
from psycopg.types.json import Jsonb
from tests import truth
from tests.conftest import Database, Server
from tests.e2e import daemon
from tests.e2e.prometheus import JOB, Prometheus, write_configuration
from tests.game_rows import NOW, add_pipeline, add_player, add_task, ago
from tests.samples import Labels, Series
from tests.support import ExporterProcess, eventually, simulated_game

from mfg_notify.core.catalogue import PREFIX

GAME = ("--players", "3", "--rate", "250")
ACT = 600
"""Changes that each act of the story waits for."""
EAGER = ("--reconcile-interval", "500ms")
GONE = f'absent_over_time({PREFIX}manufacturing_revenue_total{{job="{JOB}"}}[1s])'
"""1 while the game's metrics have not been seen for a second."""


@dataclass
class Story:
    """The outcome, and the servers that the tests can still ask."""

    database: Database
    connection: psycopg.Connection
    prometheus: Prometheus
    exporter: ExporterProcess
    guest: int
    """Id of a player for the rows that the tests write themselves."""
    began: float
    pause: float = 0.0
    """When the game was paused, and everything had been counted and scraped."""
    interval: float = 0.0
    """When it was paused again, many changes and a restart later."""
    truth_at: dict[float, dict[Series, float]] = field(default_factory=dict)
    """The recount of the audit at these two moments."""
    differences: list[str] = field(default_factory=list)
    """Between Prometheus at `interval`, gauges included, and the truth."""
    gaps: list[tuple[float, float]] = field(default_factory=list)
    """Start and end of each time without a ready exporter."""

    def execute(self, query: LiteralString, *values: object) -> list[tuple[Any, ...]]:
        """Execute a statement, as the game would; return its rows."""
        cursor = self.connection.execute(query, values or None)
        return cursor.fetchall() if cursor.description else []

    def settle(self) -> float:
        """Wait until everything that was committed is counted and scraped; return the time."""
        eventually(lambda: self.execute("SELECT count(*) FROM mfg_notify.event") == [(0,)])
        # A fold that has committed may not have been counted yet.
        folds = 'mfg_notify_fold_duration_seconds_count{job="mfg-notify"}'
        self.prometheus.wait_for_scrape(time.time())
        before = self.prometheus.number(folds) or 0.0
        self.execute("SELECT pg_notify((SELECT channel FROM mfg_notify.settings), 'fold')")
        eventually(lambda: self.prometheus.number(folds) or 0.0, lambda number: number > before)
        self.prometheus.wait_for_scrape(time.time())
        return time.time()

    def recount(self) -> float:
        """Settle, and keep the recount of the audit under the time."""
        now = self.settle()
        self.truth_at[now] = truth.expected_samples(self.connection)
        return now

    def page(self) -> str:
        """Return the game's metrics in Prometheus now, as a page."""
        known = self.prometheus.at(f'{{__name__=~"{PREFIX}.*", job="{JOB}"}}')
        return "".join(f"{_written(labels)} {value!r}\n" for labels, value in sorted(known.items(), key=str))

    def some_more(self, events: int = ACT) -> None:
        """Wait until Prometheus has scraped this many more events."""
        applied = f'sum(mfg_notify_events_applied_total{{job="{JOB}"}})'
        before = self.prometheus.number(applied) or 0.0
        eventually(lambda: self.prometheus.number(applied) or 0.0, lambda n: n >= before + events)


def _written(labels: Labels) -> str:
    given = {name: value for name, value in labels if name not in {"__name__", "job", "instance", "database"}}
    escaped = (
        f'{name}="' + value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n") + '"'
        for name, value in sorted(given.items())
    )
    return f"{dict(labels)['__name__']}{{{','.join(escaped)}}}"


@contextmanager
def played(server: Server, folder: Path) -> Iterator[Story]:
    """Play the story; the block begins at its end, with an exporter that runs with the default options."""
    with ExitStack() as stack:
        database = stack.enter_context(contextmanager(server.clone)(server.installed))
        connection = stack.enter_context(database.connect())
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        bot = daemon.Daemon()
        beside = stack.enter_context(daemon.serving(bot, f"127.0.0.1:{port}"))
        prometheus = stack.enter_context(Prometheus(_configure(folder, port, beside)))

        def exporter(*options: str) -> ExporterProcess:
            return stack.enter_context(ExporterProcess(database.dsn, "--collect-market", *options, port=port))

        guest = add_player(connection, "GUEST")
        story = Story(database, connection, prometheus, exporter(), guest, time.time())
        story.exporter.wait_ready()
        prometheus.wait_for_scrape(time.time())

        with simulated_game(database.dsn, *GAME) as game:
            prometheus.wait_for(f'{PREFIX}manufacturing_pipeline_queue_depth{{job="{JOB}"}}')
            story.some_more()
            with _paused(game):
                story.pause = story.recount()
                # The first sample after the pause began is to be as the last one before it.
                prometheus.wait_for_scrape(time.time())
            bot.restart()
            story.some_more(ACT // 4)
            with _gone(story, signal.SIGKILL):
                story.exporter = exporter(*EAGER)
            story.some_more()
        story.interval = story.recount()
        story.differences = truth.compare(story.page(), connection)

        for trouble in (broken_trigger, locked_journal, forgery, no_database, rewind, event_of_tomorrow):
            trouble(story)
        bad_luck(story)
        a_site(story)

        with simulated_game(database.dsn, *GAME):
            story.some_more(ACT // 4)
            with _gone(story, signal.SIGTERM):
                story.exporter = exporter()
            story.some_more(ACT // 4)
        story.settle()
        yield story


def _configure(folder: Path, port: int, beside: str) -> Path:
    drop_everything = [{"action": "drop", "source_labels": ["__name__"], "regex": ".+"}]
    return write_configuration(
        folder,
        f"127.0.0.1:{port}",
        [
            {
                "job_name": daemon.JOB,
                "metrics_path": daemon.DAEMON_PATH,
                "static_configs": [{"targets": [beside]}],
            },
            {
                # Only to see that Prometheus can read it: all samples are dropped, because they would be duplicates.
                "job_name": daemon.OLDER_FORMAT_JOB,
                "metrics_path": daemon.OLDER_FORMAT_PATH,
                "static_configs": [{"targets": [beside]}],
                "metric_relabel_configs": drop_everything,
            },
        ],
    )


@contextmanager
def _paused(game: subprocess.Popen[bytes]) -> Iterator[None]:
    game.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        game.send_signal(signal.SIGCONT)


@contextmanager
def _gone(story: Story, by: signal.Signals) -> Iterator[None]:
    """End the exporter, and let the game go on until Prometheus misses it; the block starts another one."""
    since = time.time()
    story.exporter.process.send_signal(by)
    story.exporter.process.wait(30)
    story.prometheus.wait_for(GONE)
    yield
    story.exporter.wait_ready()
    story.prometheus.wait_for_scrape(time.time())
    story.gaps.append((since, time.time()))


# ------------------------------------------------------------------------------------------ what goes wrong --
# No incident changes a counter: rows that move only a gauge are enough.


def waiting_task(story: Story) -> None:
    """Insert a task that waits: a gauge, and no counter, moves."""
    add_task(story.connection, str(uuid4()), player_id=story.guest, task_type="LIQUIDATE", good="IRON")


def broken_trigger(story: Story) -> None:
    """Miss a change: the gauges are corrected."""
    story.execute("ALTER TABLE manufacturing_tasks DISABLE TRIGGER mfg_notify_insert")
    waiting_task(story)
    story.prometheus.wait_for("mfg_notify_triggers_installed == 3")
    corrections = 'mfg_notify_reconcile_corrections_total{metric="manufacturing_tasks_pending_total"}'
    story.prometheus.wait_for(corrections)
    # Prometheus sees no increase in a series that begins at 1, so do it again.
    waiting_task(story)
    story.prometheus.wait_for(f"{corrections} >= 2")
    story.execute("ALTER TABLE manufacturing_tasks ENABLE TRIGGER mfg_notify_insert")
    story.prometheus.wait_for("min(mfg_notify_triggers_installed) == 4")


def locked_journal(story: Story) -> None:
    """Lose a change."""
    with story.database.connect() as other, other.transaction():
        other.execute("LOCK TABLE mfg_notify.event IN ACCESS EXCLUSIVE MODE")
        waiting_task(story)
    story.prometheus.wait_for("mfg_notify_lost_changes_total > 0")


def forgery(story: Story) -> None:
    """Send a payload that is no event, twice: Prometheus sees no increase in a series that begins at 1."""
    for number in (1, 2):
        story.execute("SELECT pg_notify((SELECT channel FROM mfg_notify.settings), 'nonsense')")
        story.prometheus.wait_for(f'mfg_notify_events_rejected_total{{reason="malformed"}} >= {number}')


def no_database(story: Story) -> None:
    """Refuse all connections for a while, twice."""
    name = psycopg.sql.Identifier(story.database.name)
    allow = psycopg.sql.SQL("ALTER DATABASE {} WITH ALLOW_CONNECTIONS {}")
    for _ in range(2):
        before = story.prometheus.number("sum(mfg_notify_reconnects_total)") or 0.0
        with story.database.connect(dbname="postgres") as elsewhere:
            elsewhere.execute(allow.format(name, psycopg.sql.SQL("false")))
            elsewhere.execute(
                """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                   WHERE datname = %s AND application_name = 'mfg-notify'""",
                (story.database.name,),
            )
            story.prometheus.wait_for("mfg_notify_connected == 0")
            elsewhere.execute(allow.format(name, psycopg.sql.SQL("true")))
        story.prometheus.wait_for("mfg_notify_ready == 1")
        assert story.prometheus.number("sum(mfg_notify_reconnects_total)") == before + 1


def rewind(story: Story) -> None:
    """Make the database look older than what was counted, with the same totals."""
    story.execute("UPDATE mfg_notify.lease SET generation = 0")
    story.prometheus.wait_for("mfg_notify_rewinds_total > 0")


def event_of_tomorrow(story: Story) -> None:
    """Leave an old event in the journal that this exporter does not know."""
    story.execute(
        "INSERT INTO mfg_notify.event (version, at, body) VALUES (99, now() - interval '10 minutes', 'of tomorrow')"
    )
    story.prometheus.wait_for("mfg_notify_journal_oldest_age_seconds > 300 and delta(mfg_notify_journal_rows[3s]) >= 0")
    story.execute("DELETE FROM mfg_notify.event WHERE version = 99")
    story.prometheus.wait_for("mfg_notify_journal_rows == 0 and mfg_notify_ready == 1")


def bad_luck(story: Story) -> None:
    """Let a player lose money, retry often, and wait for ever."""
    player = add_player(story.connection, "UNLUCKY")
    run: dict[str, object] = {"player_id": player, "product_good": "FOOD", "started_at": ago("60 s")}
    loss = {"total_cost": 900, "total_revenue": 100, "net_profit": -800}
    with story.connection.transaction():
        add_pipeline(story.connection, "loss", status="COMPLETED", completed_at=NOW, **run, **loss)
        add_pipeline(story.connection, "endless", status="EXECUTING", **run)
        for name, kind in (("one", "ACQUIRE"), ("two", "SELL")):
            waiting: dict[str, object] = {"status": "READY", "ready_at": ago("2 hours")}
            add_task(story.connection, name, player_id=player, task_type=kind, good="FOOD", **waiting)
    assignments = f'{PREFIX}manufacturing_task_assignments_total{{player_id="{player}", task_type="ACQUIRE"}}'
    story.prometheus.wait_for(f"{assignments} == 0")
    story.execute(
        """UPDATE manufacturing_tasks SET status = 'ASSIGNED', assigned_ship = 'BOAT', retry_count = 9,
           total_cost = 900 WHERE id = 'one'"""
    )
    story.prometheus.wait_for(f"increase({assignments}[1h]) > 0")


def a_site(story: Story) -> None:
    """Deliver to a construction site that will not be complete."""
    site = [{"tradeSymbol": "FAB_MATS", "targetQuantity": 4000, "deliveredQuantity": 0}]
    building: dict[str, object] = {"construction_site": "X1-I52", "pipeline_type": "CONSTRUCTION"}
    add_pipeline(story.connection, "site", player_id=story.guest, status="EXECUTING", materials=Jsonb(site), **building)
    delivered = f'{PREFIX}manufacturing_construction_delivered_units{{construction_site="X1-I52"}}'
    story.prometheus.wait_for(f"{delivered} == 0")
    site[0]["deliveredQuantity"] = 60
    story.execute("UPDATE manufacturing_pipelines SET materials = %s WHERE id = 'site'", Jsonb(site))
    story.prometheus.wait_for(f"{delivered} == 60")


def written_configuration(folder: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return the configuration and the rules of the test's Prometheus."""
    rules = {path.name: yaml.safe_load(path.read_text(encoding="utf-8")) for path in folder.glob("rules/*.yml")}
    return yaml.safe_load((folder / "prometheus.yml").read_text(encoding="utf-8")), rules
