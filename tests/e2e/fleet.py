"""A fleet: many games in one cluster, an exporter each, Prometheus as an agent, and two stores that it writes to.

Owns the processes, what they take, and the comparison of the stores with the games. Never decides what dies when.
As a program, `python -m tests.e2e.fleet RATE DSN…`, it plays one game in each of these databases until it is killed.
"""

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import anyio
import httpx
import psutil
import psycopg
import yaml
from psycopg import sql
from tests import truth
from tests.conftest import Postgres, create_game_tables
from tests.e2e.prometheus import JOB, SHIPPED, Json, hurried
from tests.samples import Series, total
from tests.support import PATIENCE, ExporterProcess, Process, eventually, free_port, wait_exact

from mfg_notify.demo.embedded import EmbeddedPostgres
from mfg_notify.demo.game import play
from mfg_notify.demo.world import GameOptions
from mfg_notify.postgres import migrations

SETTINGS = {"track_commit_timestamp": "on", "max_connections": "200"}
"""The audit relies on commit times; twenty exporters and games with three players each need 100 connections. Everything
else is PostgreSQL's default, so its memory is that of a fresh one."""
COUNTED = f'{{job="{JOB}",__name__=~"{truth.PREFIX}.*"}}'
LONG = 4 * PATIENCE
"""Seconds that something may take that twenty processes do at once on two cores."""
TARGET_LABELS = {"job", "instance", "database"}
FALLING = truth.PREFIX + "manufacturing_pipeline_profit_credits_sum"
"""The sum of profits: a loss lowers it, so it has no increase."""
SECONDS = "_seconds_sum"
MICROSECONDS = 1_000_000

Points = list[tuple[float, float]]
"""(seconds since the epoch, value), in order of time."""


class Member:
    """A program of the fleet that dies and comes back with the data and the address that it had."""

    def __init__(self, start: Callable[[], Process]) -> None:
        """Start it."""
        self._start = start
        self.process = start()

    def start(self) -> None:
        """Start it again."""
        self.process = self._start()

    def close(self) -> None:
        """Kill it."""
        self.process.close()


def start_agent(folder: Path, port: int) -> Process:
    """Start Prometheus as an agent in the folder of its configuration, and wait until it scrapes."""
    process = Process(
        [
            *("prometheus", "--enable-feature=agent", f"--config.file={folder / 'agent.yml'}"),
            *(f"--storage.agent.path={folder / 'agent'}", f"--web.listen-address=127.0.0.1:{port}"),
        ]
    )
    process.wait_for("Server is ready to receive web requests")
    return process


def start_store(folder: Path, port: int) -> Process:
    """Start VictoriaMetrics with its data in a folder, and wait until it serves."""
    process = Process(
        [
            *("victoria-metrics", f"-storageDataPath={folder}", f"-httpListenAddr=127.0.0.1:{port}"),
            "-search.latencyOffset=0s",
        ]
    )
    process.wait_for("pprof handlers are exposed")
    return process


def write_configuration(
    folder: Path, targets: dict[str, str], stores: Sequence[int], interval: float, modulus: int = 1, number: int = 0
) -> None:
    """Write the shipped configuration of an agent with this interval, its targets by database, and ports of stores."""
    configuration: Json = yaml.safe_load((SHIPPED / "agent.yml").read_text(encoding="utf-8"))
    configuration["global"]["scrape_interval"] = hurried(interval)
    hashed, kept = configuration["scrape_configs"][0]["relabel_configs"]
    hashed["modulus"], kept["regex"] = modulus, str(number)
    queue = {"batch_send_deadline": hurried(min(interval, 5)), "max_backoff": hurried(min(interval, 5))}
    for entry, port in zip(configuration["remote_write"], stores, strict=True):
        entry |= {"url": f"http://127.0.0.1:{port}/api/v1/write", "queue_config": queue}
    (folder / "targets").mkdir(parents=True)
    (folder / "agent.yml").write_text(yaml.safe_dump(configuration, sort_keys=False), encoding="utf-8")
    for database, target in targets.items():
        entry = {"targets": [target], "labels": {"database": database}}
        (folder / "targets" / f"{database}.yml").write_text(yaml.safe_dump([entry]), encoding="utf-8")


class Store:
    """Questions to a VictoriaMetrics."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._client = httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1", timeout=10 * PATIENCE)

    def close(self) -> None:
        """Close the connections to it."""
        self._client.close()

    def number(self, expr: str) -> float:
        """Evaluate what is one number now; 0 where there is none."""
        return next((float(series["value"][1]) for series in self._ask(expr)), 0.0)

    def at(self, expr: str) -> dict[str, dict[Series, float]]:
        """Evaluate now what has names: the values by series, for each database."""
        found: dict[str, dict[Series, float]] = {}
        for each in self._ask(expr):
            database, series = _place(each["metric"])
            found.setdefault(database, {})[series] = float(each["value"][1])
        return found

    def _ask(self, expr: str) -> list[Json]:
        answer = self._client.get("query", params={"query": expr}).raise_for_status().json()
        result: list[Json] = answer["data"]["result"]
        return result

    def export(self) -> dict[str, dict[Series, Points]]:
        """Return all that it has stored of the games: for each database the points of each series."""
        stored: dict[str, dict[Series, Points]] = {}
        with self._client.stream("GET", "export", params={"match[]": COUNTED}) as answer:
            for line in answer.raise_for_status().iter_lines():
                read = json.loads(line)
                database, series = _place(read["metric"])
                # A stale marker is null.
                points = [
                    (at / 1000, float(value))
                    for at, value in zip(read["timestamps"], read["values"], strict=True)
                    if value is not None
                ]
                stored.setdefault(database, {})[series] = points
        return stored


def _place(metric: dict[str, str]) -> tuple[str, Series]:
    labels = frozenset((name, text) for name, text in metric.items() if name not in {*TARGET_LABELS, "__name__"})
    return metric["database"], (metric["__name__"], labels)


def counted(series: Series, value: float) -> int:
    """Return a value of a counter as the integer that it is: microseconds if it is a sum of seconds."""
    if series[0].endswith(SECONDS):
        return round(value * MICROSECONDS)
    assert value.is_integer(), f"{series} is {value}"
    return int(value)


def increase(values: Sequence[int]) -> tuple[int, int]:
    """Return the sum of the steps of a counter that began at 0, and how often it fell, which resets it to 0."""
    steps = [new - old if new >= old else new for old, new in pairwise([0, *values])]
    return sum(steps), sum(new < old for old, new in pairwise(values))


@dataclass(frozen=True)
class Findings:
    """What a store has, compared with one or more games."""

    differences: tuple[str, ...] = ()
    series: int = 0
    points: int = 0
    increases: int = 0
    """The sum of all increases of what is counted in ones or in credits."""
    first_points: int = 0
    """The part of it that is the first point of a series."""

    def __add__(self, other: "Findings") -> "Findings":
        return Findings(
            self.differences + other.differences,
            self.series + other.series,
            self.points + other.points,
            self.increases + other.increases,
            self.first_points + other.first_points,
        )


def compare(
    game: str, expected: dict[Series, float], stored: dict[Series, Points], pure: dict[Series, float], since: float
) -> Findings:
    """Compare what a store has of one game with what its database counts.

    The last point of each counter must not be older than `since` and be the count; so must be the sum of its
    increases, both by `increase` over the raw points and by `pure`, which is what the store says.
    """
    differences: list[str] = []
    series_seen = points_seen = increases = first_points = 0
    for series, value in expected.items():
        points = stored.get(series, [])
        must = counted(series, value)
        written = f"{game}: {series[0]}{dict(series[1])}"
        if not points or points[-1][0] < since:
            differences.append(f"{written} has no point after the end of the game")
            continue
        values = [counted(series, value) for _, value in points]
        series_seen += 1
        points_seen += len(values)
        if values[-1] != must:
            differences.append(f"{written} ends with {values[-1]} and must end with {must}")
        if series[0] == FALLING:
            continue
        summed, resets = increase(values)
        if resets or summed != must:
            differences.append(f"{written} has increased by {summed}, with {resets} resets, and must by {must}")
        if (said := counted(series, pure.get(series, 0.0))) != must:
            differences.append(f"{written} has increased by {said} by increase_pure() and must by {must}")
        if not series[0].endswith(SECONDS):
            increases += summed
            first_points += values[0]
    return Findings(tuple(differences), series_seen, points_seen, increases, first_points)


class Fleet:
    """All of it, running. Made by `fleet`."""

    def __init__(
        self, server: EmbeddedPostgres, dsns: dict[str, str], folder: Path, interval: float, stack: ExitStack
    ) -> None:
        """Start exporters, two stores and the agent, which scrapes every `interval` seconds."""
        self.server = server
        self.dsns = dsns
        self.interval = interval
        self._stack = stack
        self.began = time.time()
        ports = {game: free_port() for game in dsns}
        self.exporters: dict[str, Member] = {}
        for game, dsn in dsns.items():
            self.exporters[game] = self._add(partial(ExporterProcess, dsn, port=ports[game]))
            # One after another: twenty that start at once on two cores each take longer than a test waits.
            self.exporter(game).wait_ready()
        self.stores = [self._stack.enter_context(closing(Store(free_port()))) for _ in range(2)]
        self.store_members = [
            self._add(partial(start_store, folder / f"store-{number}", store.port))
            for number, store in enumerate(self.stores)
        ]
        targets = {game: f"127.0.0.1:{port}" for game, port in ports.items()}
        write_configuration(folder, targets, [store.port for store in self.stores], interval)
        agent_port = free_port()
        self.agent = self._add(partial(start_agent, folder, agent_port))
        self._agent_client = self._stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{agent_port}"))

    def _add(self, start: Callable[[], Process]) -> Member:
        return self._stack.enter_context(closing(Member(start)))

    def exporter(self, game: str) -> ExporterProcess:
        """Return the exporter of a game that runs now."""
        process = self.exporters[game].process
        assert isinstance(process, ExporterProcess)
        return process

    @contextmanager
    def load(self, rate: float) -> Iterator[Process]:
        """Play in every game until the block ends, with so many changes a second in each."""
        with Process([sys.executable, "-m", "tests.e2e.fleet", str(rate), *self.dsns.values()]) as process:
            yield process

    def changes(self) -> dict[str, int]:
        """Return how many changes each game has committed."""
        return {game: _number(dsn, "SELECT count(*) FROM audit.change") for game, dsn in self.dsns.items()}

    def connections(self) -> int:
        """Return how many connections the exporters hold."""
        return _number(
            self.server.dsn(),
            "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'mfg-notify%' AND datname LIKE 'game%'",
        )

    def retries(self, store: Store) -> float:
        """Return how many samples the agent has had to send again to a store."""
        page = self._agent_client.get("/metrics").raise_for_status().text
        lines = [line for line in page.splitlines() if f":{store.port}/" in line]
        return total("\n".join(lines) + "\n", "prometheus_remote_storage_samples_retried_total")

    def wait_scraped(self, since: float) -> None:
        """Wait until both stores have a scrape of every game that began after this moment."""
        expr = f'count(timestamp(mfg_notify_leader{{job="{JOB}"}}) > {since:.3f})'
        for store in self.stores:
            eventually(
                lambda store=store: store.number(expr),  # type: ignore[misc]
                lambda found: found == len(self.dsns),
                patience=LONG,
            )

    def examine(self) -> Findings:
        """Wait until every page is exact and stored, and compare both stores with the games, which must have ended."""
        expected: dict[str, dict[Series, float]] = {}
        for game, dsn in self.dsns.items():
            with psycopg.connect(dsn, autocommit=True) as connection:
                wait_exact(self.exporter(game), connection)
                expected[game] = truth.expected_samples(connection)
        since = time.time()
        self.wait_scraped(since)

        def compared() -> Findings:
            findings = Findings()
            for store in self.stores:
                stored = store.export()
                pure = store.at(f"increase_pure({COUNTED}[{time.time() - self.began + 60:.0f}s]) keep_metric_names")
                for game in self.dsns:
                    findings += compare(game, expected[game], stored.get(game, {}), pure.get(game, {}), since)
            return findings

        # The agent sends a scrape in several batches. What is there after the patience is the finding.
        deadline = time.monotonic() + PATIENCE
        return eventually(compared, lambda found: not found.differences or time.monotonic() > deadline, LONG)


@contextmanager
def fleet(postgres: Postgres, games: int, folder: Path, interval: float) -> Iterator[Fleet]:
    """Run a fleet of so many games until the block ends."""
    with postgres.make(SETTINGS) as server, ExitStack() as stack:
        template = server.dsn("template_of_games")
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute("CREATE DATABASE template_of_games")
            create_game_tables(template)
            with psycopg.connect(template, autocommit=True) as installing:
                truth.install(installing)
                migrations.up(installing, "public", print)
            names = [f"game{number:02}" for number in range(games)]
            for name in names:
                connection.execute(
                    sql.SQL("CREATE DATABASE {} TEMPLATE template_of_games").format(sql.Identifier(name))
                )
        yield Fleet(server, {name: server.dsn(name) for name in names}, folder, interval, stack)


def _number(dsn: str, query: str) -> int:
    with psycopg.connect(dsn, autocommit=True) as connection:
        [(found,)] = connection.execute(query.encode()).fetchall()
        return int(found)


# --------------------------------------------------------------------------------------------------- what it takes --


@dataclass(frozen=True)
class Usage:
    """What a layer takes: MiB of memory, shared pages in proportion, and the share of one core."""

    memory: float
    cpu: float


def measure(layers: Mapping[str, Sequence[int]], seconds: float) -> dict[str, Usage]:
    """Measure processes and their children for so many seconds, by layer."""
    began = time.monotonic()
    before = {layer: _processor_seconds(pids) for layer, pids in layers.items()}
    eventually(lambda: time.monotonic() >= began + seconds, patience=seconds + PATIENCE)
    elapsed = time.monotonic() - began
    return {
        layer: Usage(
            sum(process.memory_full_info().pss for process in _family(pids)) / 2**20,
            (_processor_seconds(pids) - before[layer]) / elapsed,
        )
        for layer, pids in layers.items()
    }


def _family(pids: Iterable[int]) -> list[psutil.Process]:
    parents = [psutil.Process(pid) for pid in pids]
    return parents + [child for parent in parents for child in parent.children(recursive=True)]


def _processor_seconds(pids: Iterable[int]) -> float:
    # Those of children that have ended are in the times of their parents.
    return sum(sum(process.cpu_times()[:4]) for process in _family(pids))


async def _play_all(rate: float, dsns: Sequence[str]) -> None:
    async with anyio.create_task_group() as tasks:
        for seed, dsn in enumerate(dsns):
            tasks.start_soon(partial(play, dsn, GameOptions(seed=seed, rate=rate), reconnect=True))


if __name__ == "__main__":
    anyio.run(_play_all, float(sys.argv[1]), sys.argv[2:])
