"""The test bed of the measurements: a server, databases with and without triggers, pgbench, exporters, and the peer.

The peer is prometheus-postgres-exporter with the polling queries of the specification.
"""

import http.client
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles
from typing import Any, LiteralString, Self

import anyio
import psutil
import psycopg
from psycopg import sql

from mfg_notify.demo.embedded import EmbeddedPostgres
from mfg_notify.demo.game import create_tables
from mfg_notify.postgres import migrations

HERE = Path(__file__).parent
SETTINGS = {
    "shared_buffers": "1GB",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "1h",
    "maintenance_work_mem": "512MB",
    "max_connections": "100",
}
"""All other settings are PostgreSQL's defaults, so every commit is flushed to disk."""
TASKS = 2_000
PATIENCE = 120.0
"""Seconds until a wait fails."""


class BenchmarkError(Exception):
    """A program under measurement failed."""


@dataclass(frozen=True)
class Writing:
    """What pgbench measured: transactions a second, and the latency of each transaction in milliseconds."""

    rate: float
    latencies: list[float]

    def percentile(self, percent: int) -> float:
        """Return a percentile of the latencies."""
        return quantiles(self.latencies, n=100)[percent - 1]


@dataclass
class Stage:
    """The server and the programs that run beside it. A context manager.

    `binaries` is a folder with initdb, pg_ctl and postgres, None for the embedded PostgreSQL. `settings` are added to
    those of every measurement.
    """

    binaries: Path | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    version: str = ""
    _stack: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Self:
        self.server = self._stack.enter_context(
            EmbeddedPostgres(settings=SETTINGS | dict(self.settings), binaries=self.binaries)
        )
        self.scratch = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        self.scratch.chmod(0o755)
        with self.connect("postgres") as connection:
            self.version = connection.execute("SHOW server_version").fetchall()[0][0]
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def dsn(self, database: str) -> str:
        """Return the conninfo of a database."""
        return self.server.dsn(database)

    def connect(self, database: str) -> psycopg.Connection[Any]:
        """Open a connection in autocommit mode."""
        return psycopg.connect(self.dsn(database), autocommit=True)

    def ask(self, database: str, query: LiteralString) -> Any:  # noqa: ANN401
        """Return the single value of a query."""
        with self.connect(database) as connection:
            return connection.execute(query).fetchall()[0][0]

    def make_game(self, database: str, *, triggers: bool, more: str | None = None, empty: bool = False) -> None:
        """Drop and create a database with the game's tables and 2,000 tasks, and our triggers if asked for.

        `more` names a script of this folder that adds rows before the triggers are installed. With `empty` there are
        no rows but those.
        """
        with self.connect("postgres") as connection:
            for text in ("DROP DATABASE IF EXISTS {} WITH (FORCE)", "CREATE DATABASE {}"):
                connection.execute(sql.SQL(text).format(sql.Identifier(database)))

        async def make() -> None:
            async with await psycopg.AsyncConnection.connect(self.dsn(database), autocommit=True) as connection:
                await create_tables(connection)

        anyio.run(make)
        with self.connect(database) as connection:
            if not empty:
                connection.execute((HERE / "game.sql").read_bytes().replace(b":tasks", str(TASKS).encode()))
            if more is not None:
                connection.execute((HERE / more).read_bytes())
            if triggers:
                migrations.up(connection, "public", print)
            connection.execute("VACUUM ANALYZE")

    def settle(self, database: str) -> None:
        """Vacuum and checkpoint, so that earlier writes do not affect the next measurement."""
        with self.connect(database) as connection:
            connection.execute("VACUUM ANALYZE manufacturing_tasks")
            connection.execute("VACUUM ANALYZE manufacturing_factory_states")
            connection.execute("CHECKPOINT")

    def write(self, database: str, script: str, clients: int, seconds: float, rate: float | None = None) -> Writing:
        """Run a pgbench script, named relative to this folder or by its path, with prepared statements.

        `clients` run at once as fast as they can, or together at a `rate` of transactions a second, at random times.
        """
        with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
            done = subprocess.run(
                [
                    *(shutil.which("pgbench") or "pgbench", "--no-vacuum", "--protocol=prepared"),
                    *(f"--file={HERE / script}", f"--client={clients}", f"--jobs={min(clients, 2)}"),
                    *(f"--time={round(seconds)}", "--log", f"--log-prefix={folder}/log", f"--define=tasks={TASKS}"),
                    *([f"--rate={rate}"] if rate else []),
                    self.dsn(database),
                ],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                raise BenchmarkError(done.stderr)
            # The third field is the transaction's duration. With a rate it includes the time since the transaction was
            # due, which the seventh field has.
            lines = [line.split() for log in Path(folder).iterdir() for line in log.read_text().splitlines()]
        latencies = [(int(line[2]) - (int(line[6]) if rate else 0)) / 1000 for line in lines]
        found = re.search(r"tps = ([\d.]+)", done.stdout)
        if found is None:
            raise BenchmarkError(done.stdout)
        return Writing(float(found[1]), latencies)

    def start_exporter(self, database: str, *options: str, program: tuple[str, ...] = ("mfg_notify",)) -> "Running":
        """Start an exporter as a process."""
        port = free_port()
        command = [sys.executable, "-m", *program, "run", "--dsn", self.dsn(database), "--log.level", "warning"]
        return Running([*command, "--web.listen-address", f"127.0.0.1:{port}", *options], port)

    @contextmanager
    def exporter(self, database: str, *options: str, program: tuple[str, ...] = ("mfg_notify",)) -> Iterator["Running"]:
        """Run an exporter as a process, which is ready when the block begins."""
        with self.start_exporter(database, *options, program=program) as running:
            running.wait_for("/-/ready")
            yield running

    @contextmanager
    def peer(self, database: str) -> Iterator["Running | None"]:
        """Run Debian's prometheus-postgres-exporter with the specification's queries. Yield None if not installed."""
        if (program := shutil.which("prometheus-postgres-exporter")) is None:
            yield None
            return
        port = free_port()
        user = "user=postgres sslmode=disable"
        with Running(
            [
                *(program, "--disable-default-metrics", "--disable-settings-metrics"),
                *("--no-collector.bgwriter", "--no-collector.database"),
                *(f"--extend.query-path={HERE / 'peer.yaml'}", f"--web.listen-address=127.0.0.1:{port}"),
            ],
            port,
            {"DATA_SOURCE_NAME": f"host={self.server.folder} dbname={database} {user}"},
        ) as running:
            running.wait_for("/")
            yield running


class Running:
    """A process that serves HTTP."""

    def __init__(self, command: list[str], port: int, environment: dict[str, str] | None = None) -> None:
        """Start the process."""
        self.port = port
        self.started = time.monotonic()
        self.process = subprocess.Popen(command, env=os.environ | (environment or {}), stderr=subprocess.PIPE)
        self.usage = psutil.Process(self.process.pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        finally:
            if self.process.stderr is not None:
                self.process.stderr.close()

    def get(self, path: str) -> tuple[int, str]:
        """Return the status and the text of a page; status 0 if the process does not answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except OSError:
            return 0, ""
        finally:
            connection.close()

    def wait_for(self, path: str) -> float:
        """Wait until a page answers with 200; return the seconds since the start of the process."""
        while self.get(path)[0] != 200:
            if self.process.poll() is not None:
                raise BenchmarkError((self.process.stderr.read() if self.process.stderr else b"").decode())
            if time.monotonic() - self.started > PATIENCE:
                raise BenchmarkError(f"{path} did not answer: {self.get(path)}")
            # Poll less often after two seconds, so that polling does not distort a long measurement.
            time.sleep(0.005 if time.monotonic() - self.started < 2 else 0.1)
        return time.monotonic() - self.started

    def number(self, name: str) -> float:
        """Return the sum of all samples of a name on /metrics."""
        _, page = self.get("/metrics")
        return sum(map(float, re.findall(rf"^{name}(?:\{{.*\}})? (\S+)$", page, re.MULTILINE)))

    @property
    def cpu_seconds(self) -> float:
        """Processor time used so far."""
        times = self.usage.cpu_times()
        return times.user + times.system

    @property
    def memory_mib(self) -> float:
        """Resident memory now."""
        return self.usage.memory_info().rss / 2**20

    @property
    def peak_mib(self) -> float:
        """Peak of the resident memory."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        return int(found[1]) / 1024 if found else math.nan


def free_port() -> int:
    """Return a free TCP port."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
