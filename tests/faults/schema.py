"""Our own schema is locked, dropped, revoked; its disk is full; its triggers are off; the game changes its tables."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import LiteralString

import psycopg
from psycopg import errors
from tenacity import Retrying, retry_if_exception_type, wait_random_exponential
from tests.faults.rig import Rig, fault
from tests.support import eventually

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
    "LOCK TABLE mfg_notify.owner IN ACCESS EXCLUSIVE MODE",
    "ALTER SEQUENCE mfg_notify.lost CYCLE",
    "ALTER SEQUENCE mfg_notify.folded CYCLE",
)
"""Locks of what only a fold writes and a trigger does not need: nothing is lost by them."""
LOCKS = (
    "LOCK TABLE mfg_notify.event IN ACCESS EXCLUSIVE MODE",
    "LOCK TABLE mfg_notify.settings IN ACCESS EXCLUSIVE MODE",
    "ALTER SEQUENCE mfg_notify.event_id_seq CYCLE",
)
CHANGES = (
    (
        "REVOKE ALL ON ALL TABLES IN SCHEMA mfg_notify FROM mfg_notify_owner",
        "GRANT SELECT, INSERT ON mfg_notify.event TO mfg_notify_owner;"
        " GRANT SELECT ON mfg_notify.settings TO mfg_notify_owner",
    ),
    ("ALTER TABLE mfg_notify.event RENAME TO elsewhere", "ALTER TABLE mfg_notify.elsewhere RENAME TO event"),
    (
        "ALTER TABLE mfg_notify.event ADD CONSTRAINT never CHECK (false) NOT VALID",
        "ALTER TABLE mfg_notify.event DROP CONSTRAINT never",
    ),
)
DROPS = (
    "DROP FUNCTION mfg_notify.announce",
    "DROP FUNCTION mfg_notify.task_image CASCADE",
    "DROP TABLE mfg_notify.settings CASCADE",
    "DROP TABLE mfg_notify.event CASCADE",
)


@fault("our schema locked, dropped, revoked", settings={"log_line_prefix": "%x "})
def schema_harmed(rig: Rig) -> None:
    rig.copy_journal()
    with rig.exporter() as exporter:
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
