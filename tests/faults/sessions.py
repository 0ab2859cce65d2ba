"""Unusual sessions of the game: isolation levels, long and prepared transactions, time-outs, odd settings."""

import os
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import LiteralString

import psycopg
from psycopg import errors
from tests.faults.rig import Rig, fault
from tests.game_rows import add_task
from tests.samples import number

WORKERS = 4
LONG = 300
"""Seconds that the long transaction is open in the soak."""
SNAPSHOT_MINUTES = float(os.environ.get("MFG_NOTIFY_SOAK_SNAPSHOT_MINUTES") or 1)
"""For which a snapshot is held open in the soak. Below 60: what leaves the last hour cannot be compared."""
TASKS = 40
SETUP = """
INSERT INTO players (id, agent_symbol, token) VALUES (901, 'ODD', 'x');
INSERT INTO manufacturing_pipelines (id, player_id, product_good, sell_market, expected_price, status)
SELECT 'odd-' || i, 901, 'GOOD_' || i, 'M', 1, 'EXECUTING' FROM generate_series(1, 6) i;
INSERT INTO manufacturing_factory_states (factory_symbol, output_good, player_id, pipeline_id, required_inputs)
SELECT 'F-' || i % 3, 'GOOD', 901, 'odd-' || i, '[]' FROM generate_series(1, 6) i;
INSERT INTO manufacturing_tasks (id, pipeline_id, player_id, task_type, status, good)
SELECT 'odd-' || i, 'odd-' || 1 + i % 6, 901, 'COLLECT_SELL', 'READY', 'G' FROM generate_series(1, 40) i
"""
LEVELS = ("SCARCE", "LIMITED", "MODERATE", "HIGH", "ABUNDANT")
REFUSED = (errors.SerializationFailure, errors.DeadlockDetected, errors.QueryCanceled)
"""Errors that PostgreSQL itself may raise in such transactions; the game retries them."""
KINDS: dict[str, tuple[LiteralString, ...]] = {
    "SERIALIZABLE": ("SET default_transaction_isolation = serializable",),
    "REPEATABLE READ": ("SET default_transaction_isolation = 'repeatable read'",),
    "statement_timeout 50 ms": ("SET statement_timeout = '50ms'",),
    "odd settings": (
        "SET timezone = 'Asia/Kathmandu'",
        "SET datestyle = 'German, DMY'",
        "SET intervalstyle = sql_standard",
        "SET search_path = public, pg_catalog",
        "SET client_encoding = 'LATIN1'",
        "SET standard_conforming_strings = off",
        "SET bytea_output = escape",
        "SET extra_float_digits = 0",
        "SET lock_timeout = '5s'",
        "SET plan_cache_mode = force_generic_plan",
        "SET enable_hashjoin = off",
        "SET enable_mergejoin = on",
        "SET transform_null_equals = on",
        "SET array_nulls = off",
        "SET quote_all_identifiers = on",
        "SET client_min_messages = error",
    ),
}
"""First statements of a session of the game, by the name of the kind."""


def transact(game: psycopg.Connection, random: Random) -> None:
    """Play one transaction that reads rows that others write."""
    task = f"odd-{random.randrange(1, TASKS + 1)}"
    with game.transaction():
        [(ready,)] = game.execute("SELECT count(*) FROM manufacturing_tasks WHERE status = 'READY'").fetchall()
        match random.randrange(4):
            case 0:
                game.execute("SELECT id FROM manufacturing_tasks WHERE id = %s FOR UPDATE", (task,))
                game.execute(
                    """UPDATE manufacturing_tasks SET status = 'ASSIGNED', assigned_ship = %s, ready_at = now()
                       WHERE id = %s""",
                    (f"SHIP-{ready}", task),
                )
            case 1:
                game.execute(
                    """UPDATE manufacturing_tasks SET status = 'COMPLETED', started_at = now() - interval '12 s',
                           completed_at = now(), total_revenue = total_revenue + 3 WHERE id = %s""",
                    (task,),
                )
            case 2:
                game.execute(
                    """UPDATE manufacturing_factory_states SET current_supply = %s, ready_for_collection = %s
                       WHERE pipeline_id = %s""",
                    (random.choice(LEVELS), random.random() < 0.5, f"odd-{random.randrange(1, 7)}"),
                )
            case _:
                game.execute(
                    "UPDATE manufacturing_tasks SET status = 'READY', retry_count = %s WHERE id = %s",
                    (random.randrange(4), task),
                )


def work(rig: Rig, seed: int, kind: str, transactions: int) -> Counter[str]:
    """Play transactions in a session of a kind; return how often each SQLSTATE was raised."""
    random = Random(seed)
    refused: Counter[str] = Counter()
    with rig.connect() as game:
        for statement in KINDS[kind]:
            game.execute(statement)
        for _ in range(transactions):
            try:
                transact(game, random)
            except REFUSED as error:
                refused[error.sqlstate or ""] += 1
            except psycopg.Error as error:
                rig.violation(f"I4: the game received an error: {type(error).__name__}: {error}")
    return refused


def work_together(rig: Rig, kind: str, transactions: int) -> Counter[str]:
    """Play transactions in several sessions of a kind at once; return how often each SQLSTATE was raised."""
    with ThreadPoolExecutor(WORKERS) as pool:
        counts = [
            pool.submit(work, rig, rig.random.randrange(1 << 30), kind, transactions) for _ in range(WORKERS)
        ]  # fmt: skip
        return sum((count.result() for count in counts), Counter[str]())


@fault("isolation, a long transaction, time-outs, odd sessions")
def unusual_sessions(rig: Rig) -> None:
    rig.ask(SETUP)
    transactions = rig.rounds(60, 1500)
    with rig.exporter() as exporter, rig.connect() as long:
        exporter.wait_ready()
        # The event of the long transaction has a low id, and is committed long after thousands of others were folded.
        opened = time.monotonic()
        long.execute("BEGIN")
        add_task(long, "long", player_id=901, status="FAILED")
        with rig.game(rate=50):
            for kind in KINDS:
                for sqlstate, n in work_together(rig, kind, transactions).items():
                    rig.report.counts[f"{sqlstate} in sessions of {kind}"] += n
                rig.report.counts["transactions of unusual sessions"] += WORKERS * transactions
            rig.wait_for_events(exporter, 20)
            rig.wait_until(opened + rig.rounds(0, LONG))
        long.execute("COMMIT")
        rig.check(exporter)
    compare_with_control(rig, transactions)


def compare_with_control(rig: Rig, transactions: int) -> None:
    """Measure how many serializable transactions fail with the triggers and without them."""
    for ours in (False, True):
        for table in ("pipelines", "tasks", "factory_states"):
            # The triggers of the audit read too, so they are disabled in both cases.
            rig.ask(f"ALTER TABLE manufacturing_{table} DISABLE TRIGGER USER")
            for operation in ("insert", "update", "delete") if ours else ():
                rig.ask(f"ALTER TABLE manufacturing_{table} ENABLE TRIGGER mfg_notify_{operation}")
        failed = work_together(rig, "SERIALIZABLE", transactions)["40001"]
        share = 100 * failed / (WORKERS * transactions)
        rig.report.figure(f"serialization failures {'with' if ours else 'without'} triggers in %", share)


# With this setting the triggers do not notify, because PREPARE TRANSACTION refuses a transaction that has notified.
@fault("prepared transactions", settings={"max_prepared_transactions": "20"})
def prepared_transactions(rig: Rig) -> None:
    rig.ask(SETUP)
    with rig.exporter() as exporter, rig.connect() as game:
        exporter.wait_ready()
        with rig.game():
            for number in range(rig.rounds(30, 500)):
                name = f"two phases {number}"
                game.execute("BEGIN")
                game.execute(
                    "UPDATE manufacturing_tasks SET status = %s, total_revenue = total_revenue + 1 WHERE id = %s",
                    ("READY" if number % 2 else "COMPLETED", f"odd-{rig.random.randrange(1, TASKS + 1)}"),
                )
                game.execute(f"PREPARE TRANSACTION '{name}'".encode())
                rig.harm("prepared transactions")
                end = "COMMIT" if rig.random.random() < 0.7 else "ROLLBACK"
                game.execute(f"{end} PREPARED '{name}'".encode())
            rig.wait_for_events(exporter, 20)
        rig.check(exporter)


@fault("a snapshot is held open")
def snapshot_held_open(rig: Rig) -> None:
    # After an hour a reconciliation takes seconds, because dead rows cannot be removed from the game's indexes either.
    with rig.exporter("--reconcile-interval", f"{rig.rounds(1, 30)}s") as exporter, rig.connect() as forgotten:
        exporter.wait_ready()
        forgotten.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        forgotten.execute("SELECT 1")
        rig.harm("snapshots held open")
        started = time.monotonic()
        ends = started + rig.rounds(2, round(60 * SNAPSHOT_MINUTES))
        with rig.game():
            while time.monotonic() < ends:
                rig.wait_for_events(exporter, 200)
                if (ready := exporter.get("/-/ready")).status_code != 200:
                    rig.violation(f"not ready while a snapshot is held open: {ready.text}")
        page, elapsed = exporter.page(), time.monotonic() - started
        # What folds have taken for their events is part of it, so the share may exceed a tenth on a busy machine.
        rig.report.figure("share of time in folds", number(page, "mfg_notify_fold_duration_seconds_sum") / elapsed)
        rig.report.figure("folds", number(page, "mfg_notify_fold_duration_seconds_count"))
        rig.check(exporter)
        forgotten.rollback()
