"""Where it is measured: a server of its own, databases with and without triggers, pgbench, exporters, the peer."""

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
from collections.abc import Iterator
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
"""Everything else as PostgreSQL comes: every commit is flushed to disk."""
TASKS = 2_000
PATIENCE = 120.0
"""Seconds until something that should happen has failed."""


class BenchmarkError(Exception):
    """Something that is measured did not work."""


@dataclass(frozen=True)
class Writing:
    """What pgbench saw: transactions a second, and the latency of each transaction in milliseconds."""

    rate: float
    latencies: list[float]

    def percentile(self, percent: int) -> float:
        """Return a percentile of the latencies."""
        return quantiles(self.latencies, n=100)[percent - 1]


@dataclass
class Stage:
    """The server, and what runs beside it. A context manager."""

    version: str = ""
    _stack: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Self:
        self.server = self._stack.enter_context(EmbeddedPostgres(18, SETTINGS))
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
        """Return the one value that a query gives."""
        with self.connect(database) as connection:
            return connection.execute(query).fetchall()[0][0]

    def make_game(self, database: str, *, triggers: bool) -> None:
        """Make a database with the game's tables and 2,000 tasks, with our triggers or without."""
        with self.connect("postgres") as connection:
            for text in ("DROP DATABASE IF EXISTS {} WITH (FORCE)", "CREATE DATABASE {}"):
                connection.execute(sql.SQL(text).format(sql.Identifier(database)))

        async def make() -> None:
            async with await psycopg.AsyncConnection.connect(self.dsn(database), autocommit=True) as connection:
                await create_tables(connection)

        anyio.run(make)
        with self.connect(database) as connection:
            connection.execute((HERE / "game.sql").read_bytes().replace(b":tasks", str(TASKS).encode()))
            if triggers:
                migrations.up(connection, "public", print)
            connection.execute("VACUUM ANALYZE")

    def settle(self, database: str) -> None:
        """Bring a database to rest, so that what ran before does not show in what is measured next."""
        with self.connect(database) as connection:
            connection.execute("VACUUM ANALYZE manufacturing_tasks")
            connection.execute("CHECKPOINT")

    def write(self, database: str, script: str, clients: int, seconds: float, rate: float | None = None) -> Writing:
        """Let pgbench play a script, of this folder or by its path: prepared, `clients` at once, as fast as they can.

        With a `rate` they send so many transactions a second together, at random times.
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
            # The third field is the time of the transaction; with a rate it counts from when it was due.
            lines = [line.split() for log in Path(folder).iterdir() for line in log.read_text().splitlines()]
        latencies = [(int(line[2]) - (int(line[6]) if rate else 0)) / 1000 for line in lines]
        found = re.search(r"tps = ([\d.]+)", done.stdout)
        if found is None:
            raise BenchmarkError(done.stdout)
        return Writing(float(found[1]), latencies)

    @contextmanager
    def exporter(self, database: str, *options: str, program: tuple[str, ...] = ("mfg_notify",)) -> Iterator["Running"]:
        """Run an exporter as a process; ready when the block begins."""
        port = free_port()
        command = [sys.executable, "-m", *program, "run", "--dsn", self.dsn(database), "--log.level", "warning"]
        with Running([*command, "--web.listen-address", f"127.0.0.1:{port}", *options], port) as running:
            running.wait_for("/-/ready")
            yield running

    @contextmanager
    def peer(self, database: str) -> Iterator["Running | None"]:
        """Run Debian's prometheus-postgres-exporter with the specification's polling queries; None without it."""
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
        """Start it."""
        self.port = port
        self.begun = time.monotonic()
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
        """Ask for a page; 0 where nobody answers."""
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
        """Wait until a page answers 200; return the seconds since the start of the process."""
        while self.get(path)[0] != 200:
            if self.process.poll() is not None:
                raise BenchmarkError((self.process.stderr.read() if self.process.stderr else b"").decode())
            if time.monotonic() - self.begun > PATIENCE:
                raise BenchmarkError(f"{path} did not answer: {self.get(path)}")
            # What takes seconds is not asked for so often that the asking counts.
            time.sleep(0.005 if time.monotonic() - self.begun < 2 else 0.1)
        return time.monotonic() - self.begun

    def number(self, name: str) -> float:
        """Return the sum of all samples of that name."""
        _, page = self.get("/metrics")
        return sum(map(float, re.findall(rf"^{name}(?:\{{.*\}})? (\S+)$", page, re.MULTILINE)))

    @property
    def cpu_seconds(self) -> float:
        """Processor time used so far."""
        times = self.usage.cpu_times()
        return times.user + times.system

    @property
    def memory_mib(self) -> float:
        """Memory that is resident now."""
        return self.usage.memory_info().rss / 2**20

    @property
    def peak_mib(self) -> float:
        """The most memory that was ever resident."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        return int(found[1]) / 1024 if found else math.nan


def free_port() -> int:
    """Return a TCP port that nobody has at the moment."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
