"""The lease: which exporter folds, and the heartbeat that renews it.

One row in the database. Its holder renews it every second; an exporter that finds it expired, by the database's clock,
takes it over.
"""

from collections.abc import Callable
from dataclasses import dataclass

from mfg_notify.postgres.connection import Connection, translated_errors
from mfg_notify.postgres.queries import QUERY

LEASE_LOST = "mfg_notify.lease has lost its row; `mfg-notify doctor` says how to restore it"


@dataclass(frozen=True, slots=True)
class Reply:
    """What a heartbeat has brought back."""

    holds_lease: bool
    clock: int
    """The database's clock in epoch microseconds."""
    asked_at: float
    """The caller's clock in the middle between sending and the answer: the server read its own somewhere in between."""
    notify_disabled: bool
    commit_duration: float
    """Seconds that the COMMIT took; it notifies, so this shows how long notifying commits take now."""


async def acquire(
    connection: Connection, holder: str, duration: float, *, from_the_dead: bool
) -> tuple[bool, int | None]:
    """Try to take the lease, which expires `duration` seconds after a heartbeat.

    Return whether `holder` holds it now, and the generation of the last fold, None if the lease has lost its row.

    With `from_the_dead` also take one that has not expired from a holder whose backend is gone. In any case disconnect
    a holder that is silent and keeps the row locked, so that the next attempt can succeed.
    """
    with translated_errors():
        parameters = {"holder": holder, "duration": duration, "from_the_dead": from_the_dead}
        acquired, generation = await (await connection.execute(QUERY["acquire_lease"], parameters)).fetchone() or (
            False,
            None,
        )
        if not acquired:
            await connection.execute(QUERY["terminate_silent_holder"], {"duration": duration})
        return acquired, generation


async def heartbeat(connection: Connection, holder: str, channel: str, ping: str, clock: Callable[[], float]) -> Reply:
    """Renew the lease if `holder` holds it, and send `ping` on the channel; `clock` returns monotonic seconds."""
    parameters = {"holder": holder, "channel": channel, "ping": ping}
    with translated_errors():
        # In a transaction of its own, so that the COMMIT can be measured by itself.
        async with connection.transaction():
            sent = clock()
            rows = await (await connection.execute(QUERY["heartbeat"], parameters)).fetchall()
            answered = clock()
        committed = clock()
    _, holds_lease, database_clock, notify_disabled = rows[0]
    return Reply(holds_lease, database_clock, (sent + answered) / 2, notify_disabled, committed - answered)


async def release(connection: Connection, holder: str) -> None:
    """Give the lease back, so that the next exporter need not wait for it to expire."""
    with translated_errors():
        await connection.execute(QUERY["release_lease"], {"holder": holder})
