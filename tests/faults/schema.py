"""Schemas: ours is locked, dropped or revoked, its disk is full, its triggers are off; the game alters its tables."""

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import LiteralString

import psycopg
from psycopg import errors, sql
from tenacity import Retrying, retry_if_exception_type, wait_random_exponential
from tests.faults.rig import Rig, fault
from tests.samples import number, total
from tests.support import ExporterProcess, eventually, to_trigger_role

from mfg_notify.postgres import migrations

GAME = "public.manufacturing_pipelines, public.manufacturing_tasks, public.manufacturing_factory_states"
HARM_CHANGES = 25
"""Minimum of changes of the game during a harm, and of changed rows that a harm must make the triggers give up."""


def changes(rig: Rig) -> int:
    """Return how many rows the game has changed."""
    return int(rig.ask("SELECT count(*) FROM audit.change")[0][0])


def play_on(rig: Rig) -> None:
    """Wait until the game has gone on for a while."""
    before = changes(rig)
    eventually(lambda: changes(rig) >= before + HARM_CHANGES)


def lose_some(rig: Rig) -> None:
    """Wait until the triggers have given up some changed rows."""
    before = rig.lost()
    eventually(lambda: rig.lost() >= before + HARM_CHANGES)


def patiently(rig: Rig, statements: Callable[[psycopg.Connection], None], *, lock: LiteralString = GAME) -> None:
    """Execute statements in one transaction that takes its locks first, or gives up quickly and retries.

    So the game never waits long for these locks.
    """

    def execute() -> None:
        with rig.connect() as connection, connection.transaction():
            connection.execute("SET LOCAL lock_timeout = '50ms'")
            connection.execute(f"LOCK TABLE {lock} IN ACCESS EXCLUSIVE MODE")
            statements(connection)

    Retrying(
        retry=retry_if_exception_type((errors.LockNotAvailable, errors.DeadlockDetected)),
        wait=wait_random_exponential(multiplier=0.02, max=0.2),
    )(execute)


def install(rig: Rig) -> None:
    """Install what is missing, as `mfg-notify migrate up` does."""
    with rig.connect() as connection:
        assert migrations.up(connection, "public", lambda _: None), "migrate up found nothing to do"


# --------------------------------------------------------------------------- locked, dropped, revoked --


@contextmanager
def locked(rig: Rig, statement: LiteralString) -> Iterator[None]:
    with rig.connect() as connection, connection.transaction(force_rollback=True):
        connection.execute(statement)
        yield


@contextmanager
def changed(rig: Rig, statement: LiteralString, back: LiteralString) -> Iterator[None]:
    patiently(rig, lambda connection: connection.execute(statement), lock="mfg_notify.event")  # type: ignore[arg-type]
    yield
    rig.ask(back)


@contextmanager
def dropped(rig: Rig, statement: LiteralString) -> Iterator[None]:
    def drop(connection: psycopg.Connection) -> None:
        # Events that are not folded yet go with the journal. They are lost, but no trigger gave them up.
        connection.execute(
            "UPDATE audit.event a SET gone = true FROM mfg_notify.event e WHERE (a.id, a.xid) = (e.id, e.xid)"
        )
        connection.execute(statement)

    if " event" in statement or ".event" in statement:
        patiently(rig, drop, lock="mfg_notify.event")
    else:
        rig.ask(statement)
    yield
    install(rig)


HARMLESS = (
    "LOCK TABLE mfg_notify.total IN ACCESS EXCLUSIVE MODE",
    "LOCK TABLE mfg_notify.lease IN ACCESS EXCLUSIVE MODE",
    "ALTER SEQUENCE mfg_notify.lost CYCLE",
)
"""Locks on objects that only a fold writes. Triggers do not need them, so nothing is lost."""
LOCKS = (
    "LOCK TABLE mfg_notify.event IN ACCESS EXCLUSIVE MODE",
    "LOCK TABLE mfg_notify.settings IN ACCESS EXCLUSIVE MODE",
    "ALTER SEQUENCE mfg_notify.event_id_seq CYCLE",
    "ALTER SEQUENCE mfg_notify.folded CYCLE",
    "ALTER SEQUENCE mfg_notify.notify_disabled CYCLE",
)
CHANGES = (
    (
        to_trigger_role("REVOKE ALL ON ALL TABLES IN SCHEMA mfg_notify FROM %1$s"),
        to_trigger_role(
            "GRANT SELECT, INSERT ON mfg_notify.event TO %1$s;"
            " GRANT SELECT, INSERT, DELETE ON mfg_notify.pending_commit TO %1$s;"
            " GRANT SELECT ON mfg_notify.settings TO %1$s"
        ),
    ),
    ("ALTER TABLE mfg_notify.event RENAME TO elsewhere", "ALTER TABLE mfg_notify.elsewhere RENAME TO event"),
    (
        "ALTER TABLE mfg_notify.event ADD CONSTRAINT never CHECK (false) NOT VALID",
        "ALTER TABLE mfg_notify.event DROP CONSTRAINT never",
    ),
)
DROPS = (
    "DROP FUNCTION mfg_notify.write_events",
    "DROP FUNCTION mfg_notify.payload",
    "DROP TABLE mfg_notify.settings CASCADE",
    "DROP TABLE mfg_notify.event CASCADE",
)


@fault("our schema locked, dropped, revoked", settings={"log_line_prefix": "%x "})
def schema_harmed(rig: Rig) -> None:
    rig.copy_journal()
    # While NOTIFY is disabled, triggers use fewer objects, and some of these harms would not affect them.
    with rig.exporter("--notify", "always") as exporter:
        exporter.wait_ready()
        with rig.game():
            rig.wait_for_events(exporter, 20)
            for _ in range(rig.rounds(1, 10)):
                for lock in HARMLESS:
                    before = rig.lost()
                    with locked(rig, lock):
                        play_on(rig)
                    rig.harm("harmless locks")
                    if rig.lost() != before:
                        rig.violation(f"I6: changes were given up under {lock}")
                harms = [
                    *(locked(rig, lock) for lock in LOCKS),
                    *(changed(rig, *change) for change in CHANGES),
                    *(dropped(rig, drop) for drop in DROPS),
                ]
                for harm in rig.random.sample(harms, len(harms)):
                    with harm:
                        lose_some(rig)
                    rig.harm("harms to the schema")
                    exporter.wait_ready()
                    rig.wait_for_events(exporter, 5)
        rig.check(exporter, missed=True)
    check_warnings(rig)


def check_warnings(rig: Rig) -> None:
    """Check that no transaction of the game got more than two warnings.

    The first opens the circuit breaker of the transaction; a second may come from the next statement.
    """
    transactions = re.findall(
        r"^(\d+) WARNING:  mfg-notify did not", rig.server.log.read_text(errors="replace"), re.MULTILINE
    )
    warnings = Counter(transactions)
    rig.report.counts["transactions with warnings"] += len(warnings)
    rig.report.figure("warnings of one transaction", max(warnings.values(), default=0))
    if any(count > 2 for count in warnings.values()):
        rig.violation(f"I4: {max(warnings.values())} warnings in one transaction")


# ------------------------------------------------------------------------------------------- disk full --

DISK = 4 << 20
"""Size of the disk that holds the journal, in bytes."""


@contextmanager
def small_disk(rig: Rig) -> Iterator[Path]:
    """Mount a small disk that the server can write to."""
    folder = rig.server.folder / "small"
    folder.mkdir()
    user = rig.server.folder.stat().st_uid
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK},uid={user},mode=0700", "mfg-notify-test", folder], check=True
    )
    try:
        yield folder
    finally:
        # Lazily, because the server may still have files open there.
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(folder: Path) -> None:
    """Write until the disk is full."""
    with (folder / "ballast").open("ab", buffering=0) as ballast, suppress(OSError):
        while True:
            ballast.write(bytes(4096))


@fault("disk full", settings={"log_line_prefix": "%x "}, needs=("root", "mount"))
def disk_full(rig: Rig) -> None:
    rig.copy_journal()
    with small_disk(rig) as folder, rig.exporter() as exporter:
        place = folder / "journal"
        place.mkdir()
        shutil.chown(place, user=rig.server.folder.stat().st_uid)
        with rig.connect() as connection:
            connection.execute(sql.SQL("CREATE TABLESPACE small LOCATION {}").format(str(place)))
            connection.execute("ALTER TABLE mfg_notify.event SET TABLESPACE small")
            connection.execute("ALTER INDEX mfg_notify.event_pkey SET TABLESPACE small")
        exporter.wait_ready()
        with rig.game():
            rig.wait_for_events(exporter, 20)
            for _ in range(rig.rounds(2, 20)):
                before = rig.lost()

                def loses_changes(before: int = before) -> bool:
                    # Fill the disk again each time, because vacuum frees space.
                    fill(folder)
                    return rig.lost() >= before + HARM_CHANGES

                eventually(loses_changes)
                rig.harm("full disks")
                (folder / "ballast").unlink()
                rig.wait_for_events(exporter, HARM_CHANGES)
        rig.check(exporter, missed=True)
        rig.ask("ALTER TABLE mfg_notify.event SET TABLESPACE pg_default")
    check_warnings(rig)


# -------------------------------------------------------------------------------------- triggers are off --


def switch_triggers(rig: Rig, verb: LiteralString) -> None:
    def switch(connection: psycopg.Connection) -> None:
        for table in GAME.split(", "):
            for operation in ("insert", "update", "delete", "statement"):
                connection.execute(f"ALTER TABLE {table} {verb} TRIGGER mfg_notify_{operation}".encode())

    patiently(rig, switch)


def corrections(page: str) -> float:
    """Return how many series of gauges reconciliations have corrected."""
    return total(page, "mfg_notify_reconcile_corrections_total")


@contextmanager
def corrected(exporter: ExporterProcess) -> Iterator[None]:
    """Run a block whose changes make no events, and wait until a reconciliation corrects gauges."""
    before = corrections(exporter.page())
    yield
    eventually(lambda: corrections(exporter.page()) > before)


INSERT = """INSERT INTO manufacturing_tasks (id, player_id, task_type, status, good)
SELECT %s || n, (SELECT min(id) FROM players), 'LIQUIDATE', 'PENDING', 'G' FROM generate_series(1, 20) n"""


@fault("triggers disabled, replica role, data-only restore")
def triggers_off(rig: Rig) -> None:
    rig.copy_journal()
    with rig.exporter() as exporter:
        exporter.wait_ready()
        with rig.game():
            rig.wait_for_events(exporter, 20)
            for round_ in range(rig.rounds(1, 10)):
                with corrected(exporter):
                    switch_triggers(rig, "DISABLE")
                    rig.harm("triggers disabled")
                    wait_for_triggers(exporter, 0)
                    play_on(rig)
                    switch_triggers(rig, "ENABLE")
                    wait_for_triggers(exporter, 4)
                with corrected(exporter), rig.connect() as connection:
                    connection.execute("SET session_replication_role = replica")
                    connection.execute(INSERT, (f"replica {round_} ",))
                    connection.execute(
                        "UPDATE manufacturing_tasks SET status = 'READY' WHERE starts_with(id, 'replica')"
                    )
                    rig.harm("writes of a replica")
                rig.wait_for_events(exporter, 10)
                restore(rig, exporter, f"restored {round_} ")
                rig.harm("data-only restores")
                rig.wait_for_events(exporter, 10)
        rig.check(exporter, missed=True, known=False)
        log = exporter.read_log()
    for message in ("triggers are missing or disabled", "the gauges were wrong: events were missed"):
        if message not in log:
            rig.violation(f"the log does not say: {message}")


def wait_for_triggers(exporter: ExporterProcess, count: int) -> None:
    """Wait until the exporter reports this number of enabled triggers for each table."""
    tables = [table.removeprefix("public.") for table in GAME.split(", ")]
    eventually(
        lambda: {number(exporter.page(), "mfg_notify_triggers_installed", table=table) for table in tables} == {count}
    )


def restore(rig: Rig, exporter: ExporterProcess, prefix: str) -> None:
    """Restore rows as `pg_restore --data-only --disable-triggers` does."""
    table = "public.manufacturing_tasks"
    with rig.connect() as connection:
        connection.execute(INSERT, (prefix,))
        rows = sql.SQL("SELECT * FROM manufacturing_tasks WHERE starts_with(id, {})").format(prefix)
        with connection.cursor().copy(sql.SQL("COPY ({}) TO STDOUT").format(rows)) as copy:
            dump = b"".join(bytes(piece) for piece in copy)
        connection.execute("DELETE FROM manufacturing_tasks WHERE starts_with(id, %s)", (prefix,))
    rig.wait_for_events(exporter, 1)

    def load(connection: psycopg.Connection) -> None:
        for switch in ("DISABLE", "ENABLE"):
            connection.execute(f"ALTER TABLE {table} {switch} TRIGGER ALL".encode())
            # The audit's trigger stays on.
            connection.execute(f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER audit_change".encode())
            if switch == "DISABLE":
                with connection.cursor().copy("COPY public.manufacturing_tasks FROM STDIN") as copy:
                    copy.write(dump)

    with corrected(exporter):
        patiently(rig, load)


# -------------------------------------------------------------------------------- the game changes its tables --

MIGRATION = (
    "ALTER TABLE manufacturing_tasks ADD COLUMN IF NOT EXISTS era_id integer",
    "ALTER TABLE manufacturing_pipelines ADD COLUMN IF NOT EXISTS era_id integer DEFAULT 7 NOT NULL",
    "CREATE INDEX IF NOT EXISTS idx_manufacturing_tasks_era ON manufacturing_tasks (era_id)",
    "ALTER TABLE manufacturing_factory_states ADD COLUMN IF NOT EXISTS note text",
    "ALTER TABLE manufacturing_tasks ALTER COLUMN priority SET DEFAULT 1",
    "ALTER TABLE manufacturing_tasks ALTER COLUMN priority TYPE bigint",
)
"""Additive statements that GORM sends at boot after its structs have grown."""
ALTERATIONS = (
    "ALTER TABLE manufacturing_pipelines ALTER COLUMN status TYPE text",
    "ALTER TABLE manufacturing_pipelines ALTER COLUMN total_cost TYPE bigint",
    "ALTER TABLE manufacturing_tasks ALTER COLUMN assigned_ship TYPE text",
    "ALTER TABLE manufacturing_tasks ALTER COLUMN total_revenue TYPE bigint",
    "ALTER TABLE manufacturing_tasks ALTER COLUMN good TYPE text",
    "ALTER TABLE manufacturing_factory_states ALTER COLUMN current_supply TYPE text",
    "ALTER TABLE manufacturing_factory_states ALTER COLUMN inputs_completed_at TYPE timestamptz(3)",
    "ALTER TABLE manufacturing_tasks DROP COLUMN era_id",
    "ALTER TABLE manufacturing_pipelines DROP COLUMN era_id",
    "ALTER TABLE manufacturing_factory_states RENAME COLUMN note TO remark",
    "VACUUM FULL manufacturing_tasks",
    "VACUUM FULL manufacturing_pipelines",
)
"""They spare the columns that the simulated game selects, because it would fail then without our triggers, too."""
MUTILATIONS = (
    (
        "ALTER TABLE manufacturing_tasks RENAME COLUMN ready_at TO was_ready_at",
        "ALTER TABLE manufacturing_tasks RENAME COLUMN was_ready_at TO ready_at",
        "public.manufacturing_tasks.ready_at",
    ),
    (
        "ALTER TABLE manufacturing_pipelines DROP COLUMN net_profit",
        "ALTER TABLE manufacturing_pipelines ADD COLUMN net_profit integer DEFAULT 0",
        "public.manufacturing_pipelines.net_profit",
    ),
)
"""A harmful statement for a watched column, the statement that repairs it, and the column's name."""


@fault("DDL by the game")
def game_changes_tables(rig: Rig) -> None:
    rig.copy_journal()
    with rig.exporter() as exporter, rig.connect() as old_session:
        exporter.wait_ready()
        with rig.game():
            rig.wait_for_events(exporter, 20)
            old_session.execute(INSERT, ("old session ",))
            for statement in (*MIGRATION, *rig.random.sample(ALTERATIONS, len(ALTERATIONS))):
                alter(rig, statement)
                rig.harm("alterations of the game's tables")
                save_in_old_session(rig, old_session)
            play_on(rig)
            before = rig.lost()
            rig.wait_for_events(exporter, HARM_CHANGES)
            save_in_old_session(rig, old_session)
            if rig.lost() > before:
                rig.violation("I6: the triggers keep giving up changes after the game has altered its tables")
        for harm, repair, name in MUTILATIONS * rig.rounds(1, 3):
            mutilate(rig, exporter, old_session, harm, repair, name)
        with rig.game():
            rig.wait_for_events(exporter, 50)
        rig.check(exporter, missed=True)


def alter(rig: Rig, statement: LiteralString) -> None:
    if statement.startswith("VACUUM"):
        rig.ask(statement)
    else:
        patiently(rig, lambda connection: connection.execute("SET search_path = public; " + statement))  # type: ignore[arg-type]


def save_in_old_session(rig: Rig, old_session: psycopg.Connection) -> None:
    """Write in a session that was opened before the tables changed, and that has prepared these statements."""
    try:
        for status in ("READY", "PENDING"):
            old_session.execute(
                "UPDATE manufacturing_tasks SET status = %s WHERE starts_with(id, 'old session')", (status,)
            )
    except psycopg.Error as error:
        rig.violation(f"I4: the game received an error: {error}")


def mutilate(
    rig: Rig,
    exporter: ExporterProcess,
    old_session: psycopg.Connection,
    harm: LiteralString,
    repair: LiteralString,
    name: str,
) -> None:
    """Remove a watched column, check that the exporter reports it, and restore the column."""

    def reconnects_for_schema(page: str) -> float:
        return number(page, "mfg_notify_reconnects_total", reason="schema_not_ready")

    before = reconnects_for_schema(exporter.page())
    alter(rig, harm)
    rig.harm("watched columns removed")
    answer = eventually(lambda: exporter.get("/-/ready"), lambda answer: answer.status_code == 503)
    eventually(lambda: exporter.get("/-/ready").text, lambda text: name in text)
    save_in_old_session(rig, old_session)
    page = eventually(exporter.page, lambda page: reconnects_for_schema(page) > before)
    if number(page, "mfg_notify_ready") != 0:
        rig.violation(f"ready without a required column: {answer.text}")
    if name not in exporter.read_log():
        rig.violation(f"the log does not name {name}")
    alter(rig, repair)
    exporter.wait_ready()
    save_in_old_session(rig, old_session)
