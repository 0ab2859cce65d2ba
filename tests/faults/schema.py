"""Our own schema is locked, dropped, revoked; its disk is full; its triggers are off; the game changes its tables."""

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
from tests.support import ExporterProcess, eventually, number

from mfg_notify.postgres import migrations

GAME = "public.manufacturing_pipelines, public.manufacturing_tasks, public.manufacturing_factory_states"
SUFFERING = 25
"""Changes of the game that a harm lasts for at least, and statements that it must make the triggers give up."""


def changes(rig: Rig) -> int:
    """Return how many rows the game has changed."""
    return int(rig.ask("SELECT count(*) FROM audit.change")[0][0])


def play_on(rig: Rig) -> None:
    """Wait until the game has gone on for a while."""
    before = changes(rig)
    eventually(lambda: changes(rig) >= before + SUFFERING)


def lose_some(rig: Rig) -> None:
    """Wait until the triggers have given up some statements."""
    before = rig.lost()
    eventually(lambda: rig.lost() >= before + SUFFERING)


def patiently(rig: Rig, statements: Callable[[psycopg.Connection], None], *, lock: LiteralString = GAME) -> None:
    """Execute statements in one transaction that has its locks first, or lets the game go on and tries again."""

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
    """Bring back what is missing, as `mfg-notify migrate up` does."""
    with rig.connect() as connection:
        assert migrations.up(connection, "public", lambda _: None), "nothing was found missing"


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
        # What has not been folded goes with the journal: lost, but by no trigger.
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
"""Locks of what only a fold writes and a trigger does not need: nothing is lost by them."""
LOCKS = (
    "LOCK TABLE mfg_notify.event IN ACCESS EXCLUSIVE MODE",
    "LOCK TABLE mfg_notify.settings IN ACCESS EXCLUSIVE MODE",
    "ALTER SEQUENCE mfg_notify.event_id_seq CYCLE",
    "ALTER SEQUENCE mfg_notify.folded CYCLE",
    "ALTER SEQUENCE mfg_notify.notify_disabled CYCLE",
)
CHANGES = (
    (
        "REVOKE ALL ON ALL TABLES IN SCHEMA mfg_notify FROM mfg_notify_owner",
        "GRANT SELECT, INSERT ON mfg_notify.event TO mfg_notify_owner;"
        " GRANT SELECT, INSERT, DELETE ON mfg_notify.pending_commit TO mfg_notify_owner;"
        " GRANT SELECT ON mfg_notify.settings TO mfg_notify_owner",
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
    # Triggers that are told to be quiet need less, and do not suffer from all of it.
    with rig.exporter("--notify", "always") as exporter:
        exporter.wait_ready()
        with rig.game():
            rig.some_more(exporter, 20)
            for _ in range(rig.rounds(1, 10)):
                for lock in HARMLESS:
                    before = rig.lost()
                    with locked(rig, lock):
                        play_on(rig)
                    rig.harm("harmless locks")
                    if rig.lost() != before:
                        rig.violation(f"I6: statements were given up under {lock}")
                harms = [
                    *(locked(rig, lock) for lock in LOCKS),
                    *(changed(rig, *change) for change in CHANGES),
                    *(dropped(rig, drop) for drop in DROPS),
                ]
                for harm in rig.chance.sample(harms, len(harms)):
                    with harm:
                        lose_some(rig)
                    rig.harm("harms to the schema")
                    exporter.wait_ready()
                    rig.some_more(exporter, 5)
        rig.check(exporter, missed=True)
    check_warnings(rig)


def check_warnings(rig: Rig) -> None:
    """Check that no transaction of the game was warned more than twice: the breaker, and one of the next statement."""
    said = re.findall(r"^(\d+) WARNING:  mfg-notify did not", rig.server.log.read_text(errors="replace"), re.MULTILINE)
    warnings = Counter(said)
    rig.report.counts["transactions that were warned"] += len(warnings)
    rig.report.figure("warnings of one transaction", max(warnings.values(), default=0))
    if any(count > 2 for count in warnings.values()):
        rig.violation(f"I4: {max(warnings.values())} warnings in one transaction")


# ------------------------------------------------------------------------------------------- disk full --

DISK = 4 << 20
"""Bytes of the disk that the journal is on while it gets full."""


@contextmanager
def small_disk(rig: Rig) -> Iterator[Path]:
    """Mount a small disk that the server may write to."""
    folder = rig.server.folder / "small"
    folder.mkdir()
    user = rig.server.folder.stat().st_uid
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK},uid={user},mode=0700", "mfg-notify-test", folder], check=True
    )
    try:
        yield folder
    finally:
        # The server may still have files open there.
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
            rig.some_more(exporter, 20)
            for _ in range(rig.rounds(2, 20)):
                before = rig.lost()

                def suffers(before: int = before) -> bool:
                    # What vacuum gives back is taken, too.
                    fill(folder)
                    return rig.lost() >= before + SUFFERING

                eventually(suffers)
                rig.harm("full disks")
                (folder / "ballast").unlink()
                rig.some_more(exporter, SUFFERING)
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
    """Return how many series of gauges a reconciliation had to correct."""
    return sum(map(float, re.findall(r"^mfg_notify_reconcile_corrections_total\S+ (\S+)$", page, re.MULTILINE)))


@contextmanager
def corrected(exporter: ExporterProcess) -> Iterator[None]:
    """Let the block do what makes no event, and wait until the exporter says that it missed some."""
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
            rig.some_more(exporter, 20)
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
                rig.some_more(exporter, 10)
                restore(rig, exporter, f"restored {round_} ")
                rig.harm("data-only restores")
                rig.some_more(exporter, 10)
        rig.check(exporter, missed=True, known=False)
        log = exporter.read_log()
    for said in ("triggers are missing or disabled", "the gauges were wrong: events were missed"):
        if said not in log:
            rig.violation(f"the log does not say that {said}")


def wait_for_triggers(exporter: ExporterProcess, count: int) -> None:
    """Wait until the exporter says that each table has so many triggers enabled."""
    tables = [table.removeprefix("public.") for table in GAME.split(", ")]
    eventually(
        lambda: {number(exporter.page(), "mfg_notify_triggers_installed", table=table) for table in tables} == {count}
    )


def restore(rig: Rig, exporter: ExporterProcess, prefix: str) -> None:
    """Bring back rows as `pg_restore --data-only --disable-triggers` does."""
    table = "public.manufacturing_tasks"
    with rig.connect() as connection:
        connection.execute(INSERT, (prefix,))
        rows = sql.SQL("SELECT * FROM manufacturing_tasks WHERE starts_with(id, {})").format(prefix)
        with connection.cursor().copy(sql.SQL("COPY ({}) TO STDOUT").format(rows)) as copy:
            dump = b"".join(bytes(piece) for piece in copy)
        connection.execute("DELETE FROM manufacturing_tasks WHERE starts_with(id, %s)", (prefix,))
    rig.some_more(exporter, 1)

    def load(connection: psycopg.Connection) -> None:
        for switch in ("DISABLE", "ENABLE"):
            connection.execute(f"ALTER TABLE {table} {switch} TRIGGER ALL".encode())
            # The audit sees everything.
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
"""What GORM does at boot when its structs have grown: additive."""
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
"""None of a column that the simulated game selects: those it could not survive without our triggers either."""
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
"""Harm to a watched column, what mends it, and its name."""


@fault("DDL by the game")
def game_changes_tables(rig: Rig) -> None:
    rig.copy_journal()
    with rig.exporter() as exporter, rig.connect() as quiet:
        exporter.wait_ready()
        with rig.game():
            rig.some_more(exporter, 20)
            quiet.execute(INSERT, ("quiet ",))
            for statement in (*MIGRATION, *rig.chance.sample(ALTERATIONS, len(ALTERATIONS))):
                alter(rig, statement)
                rig.harm("changes of the game's tables")
                save_quietly(rig, quiet)
            play_on(rig)
            before = rig.lost()
            rig.some_more(exporter, SUFFERING)
            save_quietly(rig, quiet)
            if rig.lost() > before:
                rig.violation("I6: the triggers go on losing after the game has changed its tables")
        for harm, mend, name in MUTILATIONS * rig.rounds(1, 3):
            mutilate(rig, exporter, quiet, harm, mend, name)
        with rig.game():
            rig.some_more(exporter, 50)
        rig.check(exporter, missed=True)


def alter(rig: Rig, statement: LiteralString) -> None:
    if statement.startswith("VACUUM"):
        rig.ask(statement)
    else:
        patiently(rig, lambda connection: connection.execute("SET search_path = public; " + statement))  # type: ignore[arg-type]


def save_quietly(rig: Rig, quiet: psycopg.Connection) -> None:
    """Write in a session that has been open all the while, with statements that it keeps prepared."""
    try:
        for status in ("READY", "PENDING"):
            quiet.execute("UPDATE manufacturing_tasks SET status = %s WHERE starts_with(id, 'quiet')", (status,))
    except psycopg.Error as error:
        rig.violation(f"I4: the game was refused: {error}")


def mutilate(
    rig: Rig, exporter: ExporterProcess, quiet: psycopg.Connection, harm: LiteralString, mend: LiteralString, name: str
) -> None:
    """Take a watched column away, look whether that is said, and bring it back."""

    def gave_up(page: str) -> float:
        return number(page, "mfg_notify_reconnects_total", reason="schema_not_ready")

    before = gave_up(exporter.page())
    alter(rig, harm)
    rig.harm("watched columns taken away")
    answer = eventually(lambda: exporter.get("/-/ready"), lambda answer: answer.status_code == 503)
    eventually(lambda: exporter.get("/-/ready").text, lambda text: name in text)
    save_quietly(rig, quiet)
    page = eventually(exporter.page, lambda page: gave_up(page) > before)
    if number(page, "mfg_notify_ready") != 0:
        rig.violation(f"ready without a column that is needed: {answer.text}")
    if name not in exporter.read_log():
        rig.violation(f"the log does not name {name}")
    alter(rig, mend)
    exporter.wait_ready()
    save_quietly(rig, quiet)
