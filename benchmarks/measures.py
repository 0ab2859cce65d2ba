"""The measurements, one function each. Configurations that are compared run in alternating rounds."""

import http.client
import json
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from psycopg import sql

from benchmarks import witness
from benchmarks.stage import PATIENCE, BenchmarkError, Running, Stage

Figures = dict[str, Any]
Say = Callable[[str], None]
STATISTICS_LAG = 12
"""Seconds until the server's statistics include a session that has become idle."""
CHANGES_A_TRANSACTION = 10
"""For measurements of changes, which should not be bound by the cost of commits."""
HISTORIES = (10_000, 1_000_000, 5_000_000)


@contextmanager
def listening(stage: Stage, database: str, channel: str) -> Iterator[None]:
    """Listen in a thread until the block ends, as an exporter without a journal would."""
    done = threading.Event()
    with stage.connect(database) as connection:
        connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))

        def listen() -> None:
            while not done.is_set():
                for notification in connection.notifies(timeout=0.2):
                    json.loads(notification.payload)

        thread = threading.Thread(target=listen)
        thread.start()
        yield
        done.set()
        thread.join()


def writers(stage: Stage, say: Say, *, rounds: int, seconds: float) -> Figures:
    """Measure the throughput of writers without triggers, with triggers, with exporters, and with plain pg_notify."""
    stage.make_game("bare", triggers=False)
    stage.make_game("ours", triggers=True)
    stage.make_game("naive", triggers=False)
    with stage.connect("naive") as connection:
        connection.execute((Path(__file__).parent / "naive.sql").read_bytes())
    rates: defaultdict[tuple[str, str, int], list[float]] = defaultdict(list)

    def play(name: str, database: str, script: str) -> None:
        before = last_event(database)
        for clients in (1, 8):
            stage.settle(database)
            rates[script, name, clients].append(stage.write(database, f"{script}.sql", clients, seconds).rate)
        if database == "ours" and (last_event(database) > before) is (script == "save"):
            raise BenchmarkError(f"{script}.sql does not do what it says: the triggers watch other columns")

    def last_event(database: str) -> int:
        if database != "ours":
            return 0
        with stage.connect(database) as connection:
            [(last,)] = connection.execute("SELECT last_value FROM mfg_notify.event_id_seq").fetchall()
            return int(last)

    for number in range(rounds):
        say(f"writers: round {number + 1} of {rounds}")
        for script in ("change", "save"):
            play("none", "bare", script)
            with stage.exporter("ours"):
                pass  # an exporter that stops disables NOTIFY in the triggers
            play("triggers", "ours", script)
            with stage.exporter("ours"):
                play("exporter", "ours", script)
        with stage.exporter("ours", "--notify", "always"):
            play("always", "ours", "change")
        with listening(stage, "naive", "changes"):
            play("plain", "naive", "change")
    found: Figures = {}
    for script, name, clients in rates:
        ratios = [a / b for a, b in zip(rates[script, name, clients], rates[script, "none", clients], strict=True)]
        found[f"{script} {name} {clients}"] = {"rate": median(rates[script, name, clients]), "ratio": median(ratios)}
    return found


def factories(stage: Stage, say: Say, *, rounds: int, seconds: float) -> Figures:
    """Throughput of writers that change a factory's supply, with 50 live pipelines and 15,000 stale factory rows.

    The keys are those of `writers`, with the script `supply`.
    """
    stage.make_game("bare factories", triggers=False, more="factories.sql")
    stage.make_game("our factories", triggers=True, more="factories.sql")
    rates: defaultdict[tuple[str, int], list[float]] = defaultdict(list)

    def play(name: str, database: str) -> None:
        for clients in (1, 8):
            stage.settle(database)
            rates[name, clients].append(stage.write(database, "supply.sql", clients, seconds).rate)

    for number in range(rounds):
        say(f"factories: round {number + 1} of {rounds}")
        play("none", "bare factories")
        with stage.exporter("our factories"):
            pass  # an exporter that leaves disables NOTIFY
        play("triggers", "our factories")
        with stage.exporter("our factories"):
            play("exporter", "our factories")
        with stage.exporter("our factories", "--notify", "always"):
            play("always", "our factories")
    return {
        f"supply {name} {clients}": {
            "rate": median(measured),
            "ratio": median(ours / bare for ours, bare in zip(measured, rates["none", clients], strict=True)),
        }
        for (name, clients), measured in rates.items()
    }


def latency(stage: Stage, say: Say, *, rounds: int, seconds: float) -> Figures:
    """Measure the latency of a game transaction at 200 changes a second, with triggers and exporter, and without."""
    found: defaultdict[str, list[float]] = defaultdict(list)
    for number in range(rounds):
        say(f"latency: round {number + 1} of {rounds}")
        for name, database in (("bare", "bare"), ("again", "bare"), ("ours", "ours")):
            stage.settle(database)
            if database == "ours":
                with stage.exporter("ours"):
                    writing = stage.write(database, "change.sql", 4, seconds, 200)
            else:
                writing = stage.write(database, "change.sql", 4, seconds, 200)
            for percent in (50, 99):
                found[f"{name} p{percent}"].append(writing.percentile(percent))
    return {name: median(values) for name, values in found.items()} | {
        "added p99": [a - b for a, b in zip(found["ours p99"], found["bare p99"], strict=True)],
        "noise p99": [a - b for a, b in zip(found["again p99"], found["bare p99"], strict=True)],
    }


def large_update(stage: Stage, say: Say, *, rounds: int, rows: int = 100_000) -> Figures:
    """Measure one UPDATE of many rows, with triggers and without."""
    times: defaultdict[str, list[float]] = defaultdict(list)
    for database, triggers in (("bare large", False), ("ours large", True)):
        stage.make_game(database, triggers=triggers)
        with stage.connect(database) as connection:
            connection.execute(
                """INSERT INTO manufacturing_tasks (id, player_id, task_type, status, good, source_market)
                   SELECT 'l' || g, 1, 'COLLECT_SELL', 'READY', 'G', 'X1-AB12-C3' FROM generate_series(1, %s) g""",
                (rows,),
            )
    for number in range(rounds):
        say(f"large update: round {number + 1} of {rounds}")
        for database in ("bare large", "ours large"):
            with stage.connect(database) as connection:
                if database == "ours large":
                    connection.execute("TRUNCATE mfg_notify.event")
                connection.execute("VACUUM ANALYZE manufacturing_tasks")
                connection.execute("CHECKPOINT")
                started = time.perf_counter()
                connection.execute(
                    """UPDATE manufacturing_tasks SET status = CASE status WHEN 'READY' THEN 'PENDING' ELSE 'READY' END
                       WHERE id LIKE 'l%'"""
                )
                times[database].append(time.perf_counter() - started)
    ratios = [a / b for a, b in zip(times["ours large"], times["bare large"], strict=True)]
    return {"bare s": median(times["bare large"]), "ours s": median(times["ours large"]), "ratio": median(ratios)}


def delay(stage: Stage, say: Say, *, seconds: float) -> Figures:
    """Measure the delay from the trigger to the exporter's state, at several rates."""
    found: Figures = {}
    for rate, clients in ((1, 1), (50, 2), (1_000, 4), (5_000, 8)):
        say(f"delay: {rate} changes a second")
        stage.settle("ours")
        file = stage.scratch / f"delays {rate}"
        with stage.exporter("ours", program=("benchmarks.witness", str(file))) as exporter:
            writing = stage.write("ours", "change.sql", clients, max(seconds, 30 if rate == 1 else 0), rate)
            exporter.wait_for("/-/ready")
        delays = [1000 * (counted - at) for at, counted in witness.read(file)]
        # The first tenth shows the start of exporter and writers rather than their steady state.
        steady = sorted(delays[len(delays) // 10 :])
        cuts = quantiles(steady, n=100)
        found[str(rate)] = {"reached": writing.rate, "p50": cuts[49], "p99": cuts[98], "most": steady[-1]}
    return found


def backlog(stage: Stage, say: Say, *, events: int) -> Figures:
    """Measure how fast an exporter folds the events that gathered while none ran."""
    stage.make_game("backlog", triggers=True)
    say(f"backlog: {events} events")
    with stage.connect("backlog") as connection:
        connection.execute(
            """INSERT INTO mfg_notify.event (body)
               SELECT json_build_array('task', 'U',
                   ARRAY[(ARRAY['READY', 'ASSIGNED', 'EXECUTING'])[1 + g %% 3], 'SHIP-' || g %% 400, 't' || g %% 100000,
                         (ARRAY['ACQUIRE_DELIVER', 'COLLECT_SELL', 'LIQUIDATE'])[1 + g %% 3],
                         (ARRAY['ASSIGNED', 'EXECUTING', 'COMPLETED'])[1 + g %% 3], 'SHIP-' || g %% 400],
                   ARRAY[0, 0, 0, 0, 1 + g %% 20, 0, 50, 120, 10],
                   ARRAY[seen.at, seen.at, CASE WHEN g %% 3 = 2 THEN seen.at + interval '90 s' END])
               FROM generate_series(1, %s) g, LATERAL (SELECT to_timestamp(1700000000 + g / 1e6) AS at) AS seen""",
            (events,),
        )
        connection.execute("VACUUM ANALYZE mfg_notify.event")
    started = time.monotonic()
    with stage.exporter("backlog") as exporter:
        seconds = time.monotonic() - started
        with stage.connect("backlog") as connection:
            if connection.execute("SELECT EXISTS (SELECT FROM mfg_notify.dead_letter)").fetchone() != (False,):
                raise BenchmarkError("the events of this measurement are not those of the triggers")
        return {"events a second": events / seconds, "seconds": seconds, "peak MiB": exporter.peak_mib}


def history(stage: Stage, say: Say, *, histories: tuple[int, ...]) -> Figures:
    """Measure reconciliation, start and the peer's scrape with 20,000 live tasks and a growing history."""
    found: Figures = {}
    stage.make_game("history", triggers=False)
    existing = 0
    with stage.connect("history") as connection:
        connection.execute((Path(__file__).parent / "live.sql").read_bytes())
        for rows in histories:
            say(f"history: {rows} finished tasks")
            # History was there before the triggers, so it makes no events.
            connection.execute("SET session_replication_role = replica")
            connection.execute(
                (Path(__file__).parent / "finished.sql").read_text(), {"first": existing + 1, "last": rows}
            )
            connection.execute("RESET session_replication_role")
            existing = rows
            connection.execute("VACUUM ANALYZE")
            connection.execute("CHECKPOINT")
            if rows == histories[0]:
                install(stage, "history")
            found[str(rows)] = _with_history(stage)
    return found


def install(stage: Stage, database: str) -> None:
    """Install the triggers on tables that already have a history."""
    from mfg_notify.postgres import migrations

    with stage.connect(database) as connection:
        migrations.up(connection, "public", print)


def _with_history(stage: Stage) -> Figures:
    starts = []
    name = "mfg_notify_reconcile_duration_seconds"
    for _ in range(3):
        with stage.exporter("history", "--reconcile-interval", "1s") as exporter:
            starts.append(time.monotonic() - exporter.started)
            while exporter.number(f"{name}_count") < 2:
                time.sleep(0.05)
            before = exporter.number(f"{name}_sum"), exporter.number(f"{name}_count")
            while exporter.number(f"{name}_count") < before[1] + 8:
                time.sleep(0.05)
            reconcile_seconds = (exporter.number(f"{name}_sum") - before[0]) / (
                exporter.number(f"{name}_count") - before[1]
            )
    peers = []
    with stage.peer("history") as peer:
        for _ in range(4 if peer else 0):
            started = time.perf_counter()
            peer.get("/metrics")  # type: ignore[union-attr]
            peers.append(time.perf_counter() - started)
    return {
        "reconcile ms": 1000 * reconcile_seconds,
        "start s": median(starts),
        "peer ms": 1000 * median(peers[1:]) if peers else None,
    }


def pages(stage: Stage, say: Say, *, scrapes: int) -> Figures:
    """Measure scrapes of pages with 1,000 and 10,000 series, one and eight at a time, while the game changes them."""
    found: Figures = {}
    for wanted in (1_000, 10_000):
        database = f"page {wanted}"
        stage.make_game(database, triggers=True)
        with stage.connect(database) as connection, stage.exporter(database, "--reconcile-interval", "1s") as exporter:
            products = 20
            while (shown := _settled_series(exporter)) < wanted * 0.98:
                more = max(1, round((wanted - shown) / 42))
                connection.execute(
                    """INSERT INTO manufacturing_pipelines (id, player_id, product_good, sell_market, expected_price)
                       SELECT 'm' || g, 1 + g %% 5, 'MORE_' || g, 'M', 1 FROM generate_series(%s::int, %s::int) g""",
                    (products, products + more - 1),
                )
                products += more
            say(f"page: {shown:.0f} series")
            stop = threading.Event()
            writer = threading.Thread(target=_write_slowly, args=(stage, database, stop))
            writer.start()
            try:
                alone = _scrape(exporter.port, scrapes)
                together = _scrape_together(exporter.port, scrapes, 8)
            finally:
                stop.set()
                writer.join()
            found[str(wanted)] = {
                "series": shown,
                "alone p50": median(alone),
                "alone p99": quantiles(alone, n=100)[98],
                "eight p50": median(together),
                "eight p99": quantiles(together, n=100)[98],
            }
    return found


def _settled_series(exporter: Running) -> float:
    name = "mfg_notify_reconcile_duration_seconds_count"
    before = exporter.number(name)
    while exporter.number(name) < before + 2:
        time.sleep(0.02)
    return exporter.number("mfg_notify_series")


def _write_slowly(stage: Stage, database: str, stop: threading.Event) -> None:
    with stage.connect(database) as connection:
        while not stop.wait(0.02):
            connection.execute(
                "UPDATE manufacturing_tasks SET retry_count = retry_count + 1 WHERE id = 't' || 1 + random() * 1000"
            )


def _scrape(port: int, scrapes: int) -> list[float]:
    """Scrape one at a time; return the milliseconds of each scrape."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    durations = []
    for _ in range(scrapes):
        # The game changes something between two scrapes, so no page is served twice.
        time.sleep(0.05)
        started = time.perf_counter()
        connection.request("GET", "/metrics")
        connection.getresponse().read()
        durations.append(1000 * (time.perf_counter() - started))
    connection.close()
    return durations


def _scrape_together(port: int, scrapes: int, scrapers: int) -> list[float]:
    """Scrape with several clients at the same moment; return the milliseconds until the first byte of each scrape."""
    durations: list[float] = []
    barrier = threading.Barrier(scrapers)

    def scrape() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        for _ in range(scrapes):
            barrier.wait()
            started = time.perf_counter()
            connection.request("GET", "/metrics")
            answer = connection.getresponse()
            answer.read(1)
            durations.append(1000 * (time.perf_counter() - started))
            answer.read()
        connection.close()

    threads = [threading.Thread(target=scrape) for _ in range(scrapers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return durations


def at_rest(stage: Stage, say: Say, *, seconds: float) -> Figures:
    """Measure processor time, memory and transactions of the exporter at 50 changes a second."""
    say("at 50 changes a second")
    stage.settle("ours")
    with stage.exporter("ours") as exporter:
        stop = threading.Event()
        scraper = threading.Thread(target=lambda: _every_15_s(exporter, stop))
        scraper.start()
        commits = "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"
        time.sleep(STATISTICS_LAG)
        before, cpu, started = _transactions(stage, commits), exporter.cpu_seconds, time.monotonic()
        writing = stage.write("ours", "change.sql", 2, seconds, 50)
        elapsed = time.monotonic() - started
        used = exporter.cpu_seconds - cpu
        time.sleep(STATISTICS_LAG)
        sent = _transactions(stage, commits) - before - len(writing.latencies) - 2
        stop.set()
        scraper.join()
        return {
            "cpu %": 100 * used / elapsed,
            "MiB": exporter.memory_mib,
            "transactions/s": sent / (elapsed + STATISTICS_LAG),
            "changes/s": writing.rate,
        }


def _transactions(stage: Stage, query: Any) -> int:  # noqa: ANN401
    return int(stage.ask("ours", query))


def _every_15_s(exporter: Running, stop: threading.Event) -> None:
    while not stop.wait(15):
        exporter.get("/metrics")


def wal(stage: Stage, say: Say, *, changes: int = 5_000) -> Figures:
    """Measure write-ahead log per change, just after a checkpoint (with full pages) and later.

    Configurations: bare tables, triggers alone, triggers with an exporter that folds.
    """
    say("write-ahead log")
    found: Figures = {}
    for setup in ("bare", "ours", "exporter"):
        database = "bare" if setup == "bare" else "ours"
        stage.settle(database)
        with stage.exporter(database) if setup == "exporter" else nullcontext():
            for name in ("after a checkpoint", "later"):
                found[f"{setup} {name}"] = log_a_change(stage, database, changes)
    return found


def log_a_change(stage: Stage, database: str, changes: int) -> float:
    """Make about that many changes; return the bytes of write-ahead log for each."""
    with stage.connect(database) as connection:
        before = connection.execute("SELECT pg_current_wal_insert_lsn()").fetchall()[0][0]
        written = len(stage.write(database, "change.sql", 2, 6, changes / 6).latencies)
        [(size,)] = connection.execute("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), %s)", (before,)).fetchall()
    return float(size) / written


def a_day(stage: Stage, say: Say, *, changes: int) -> Figures:
    """Measure memory and sizes over the changes of a day at 50 a second, played as fast as possible in eight parts."""
    stage.make_game("day", triggers=True)
    script = stage.scratch / "day.sql"
    script.write_text(_many_changes((Path(__file__).parent / "change.sql").read_text(encoding="utf-8")))
    found: Figures = {"MiB": [], "journal MiB": [], "index MiB": [], "marks MiB": [], "totals MiB": []}
    done, started = 0, time.monotonic()
    with stage.exporter("day") as exporter:
        while done < changes:
            part = min(changes - done, changes // 8 + 1)
            written = 0
            while written < part:
                written += CHANGES_A_TRANSACTION * len(stage.write("day", str(script), 8, 20).latencies)
            done += written
            for name, relation in (
                ("journal MiB", "mfg_notify.event"), ("index MiB", "mfg_notify.event_pkey"),
                ("marks MiB", "mfg_notify.pending_commit"), ("totals MiB", "mfg_notify.total"),
            ):  # fmt: skip
                with stage.connect("day") as connection:
                    [(size,)] = connection.execute("SELECT pg_relation_size(%s::regclass)", (relation,)).fetchall()
                found[name].append(size / 2**20)
            exporter.get("/metrics")
            found["MiB"].append(exporter.memory_mib)
            say(f"a day: {done} of {changes} changes, {exporter.memory_mib:.0f} MiB")
        found["polling"] = exporter.number("mfg_notify_polling")
    return found | {"changes": done, "seconds": time.monotonic() - started}


def _many_changes(script: str) -> str:
    """Return a script with many changes per transaction, in row order so that no two transactions deadlock."""
    parts = (
        script.replace(
            "random(1, :tasks)", f"random({n} * :tasks / {CHANGES_A_TRANSACTION} + 1, "
            f"{n + 1} * :tasks / {CHANGES_A_TRANSACTION})"
        )
        for n in range(CHANGES_A_TRANSACTION)
    )  # fmt: skip
    return "BEGIN;\n" + "".join(parts) + "COMMIT;\n"
