"""Leader election: the lease, its heartbeat, and the ping through NOTIFY that goes out with each.

One exporter folds at a time. It holds a lease, a row in the database, which it renews with every heartbeat; another
takes the lease over if the heartbeats stop. Exactness does not depend on the lease: two leaders would still add each
event once. Owns the lease and the ping that is under way; never folds.

The leader shows the game's series until its last heartbeat is as old as a lease may become, even if it has lost the
database. So a standby takes over when the lease has expired or was given back, and the two never show them together.

    standby ── lease acquired ──▶ leader ── lease lost, found by a heartbeat or a fold ──▶ standby
"""

from collections.abc import Callable

import structlog

from mfg_notify.core.ledger import Ledger
from mfg_notify.core.notify_mode import NotifyMode
from mfg_notify.core.tuning import Tuning
from mfg_notify.errors import ListenerSilent
from mfg_notify.exporter.deadline import in_time
from mfg_notify.exporter.health import HealthReporter
from mfg_notify.exporter.status import Status
from mfg_notify.exposition import Telemetry
from mfg_notify.postgres import lease
from mfg_notify.postgres.connection import Connection
from mfg_notify.postgres.listener import PING, Listener

log = structlog.get_logger(__name__)


class Leadership:
    """The lease of one session. `instance_id` names this exporter in the database."""

    def __init__(
        self,
        connection: Connection,
        listener: Listener,
        channel: str,
        instance_id: str,
        ledger: Ledger,
        notify_mode: NotifyMode,
        status: Status,
        health: HealthReporter,
        telemetry: Telemetry,
        clock: Callable[[], float],
        tuning: Tuning,
    ) -> None:
        self._connection = connection
        self._listener = listener
        self._channel = channel
        self._instance_id = instance_id
        self._ledger = ledger
        self._notify_mode = notify_mode
        self._status = status
        self._health = health
        self._telemetry = telemetry
        self._clock = clock
        self._tuning = tuning
        self._ping_number = 0
        self._ping_sent_at: float | None = None
        """When the ping that has not come back was sent."""

    async def acquire(self) -> bool:
        """Try to take the lease. Return whether this exporter has just become the leader."""
        if self._ledger.leading:
            return False
        # An exporter that has just been started need not wait until the lease of one that was killed expires.
        starting = not self._status.state.stood_by
        trying = lease.acquire(self._connection, self._instance_id, self._tuning.lease_duration, from_the_dead=starting)
        acquired, generation = await in_time(self._tuning.answer_timeout, trying)
        if generation is not None and self._ledger.observe(generation):
            self._health.report_rewind()
        if not acquired:
            return False
        # Not again at each attempt of a session that never gets to work.
        (log.debug if self._status.has_reported_error else log.info)("became the active exporter")
        self._ledger.lead()
        await self._status.update(leader=True, standby=False, drained=False, reconciled=False)
        return True

    async def heartbeat(self) -> None:
        """Renew the lease, send a ping, read the database's clock, and see whether NOTIFY is enabled."""
        if self._ping_sent_at is None:
            self._ping_sent_at = self._clock()
            self._ping_number += 1
        started = self._clock()
        sending = lease.heartbeat(
            self._connection, self._instance_id, self._channel, f"{PING}{self._ping_number}", self._clock
        )
        reply = await in_time(self._tuning.answer_timeout, sending)
        self._notify_mode.measure_commit(reply.commit_duration)
        self._ledger.set_clock(reply.clock, reply.asked_at)
        if reply.notify_disabled != self._notify_mode.polling:
            self._notify_mode.invalidate()
        if not self._ledger.leading:
            if not self._status.state.standby:
                log.info("standing by: another exporter is active")
                self._ledger.step_down()
                await self._status.update(standby=True, stood_by=True, problem=None)
        elif not reply.holds_lease:
            await self.step_down()
        else:
            self._ledger.prove_lead(started)
            if self._status.state.reconciled:
                self._ledger.confirm_current()

    async def step_down(self) -> None:
        """Stand by: another exporter holds the lease."""
        log.warning("another exporter has taken over; standing by")
        self._ledger.step_down()
        await self._status.update(leader=False, standby=True, stood_by=True, drained=False, reconciled=False)

    async def release(self) -> None:
        """Give the lease back, so that the next exporter need not wait for it to expire."""
        self._ledger.release_lead()
        await in_time(self._tuning.answer_timeout, lease.release(self._connection, self._instance_id))

    def receive_ping(self, number: int) -> None:
        """Record that an own ping has come back."""
        if number == self._ping_number and self._ping_sent_at is not None:
            self._telemetry.listener_roundtrip.observe(self._clock() - self._ping_sent_at)
            self._ping_sent_at = None

    def check_ping(self) -> None:
        """Raise `ListenerSilent` if the ping that is under way takes too long.

        TCP keepalives notice neither a proxy that stalls nor a pooler that sends LISTEN and NOTIFY to different
        servers.
        """
        if self._ping_sent_at is None or self._clock() - self._ping_sent_at <= self._tuning.answer_timeout:
            return
        # During a long step it has come back and waits to be taken.
        if not self._listener.holds(f"{PING}{self._ping_number}"):
            raise ListenerSilent(
                f"an own notification did not come back within {self._tuning.answer_timeout:.0f} s: the network "
                "stalls, or a pooler in transaction mode (PgBouncer) is in the way; connect to PostgreSQL itself"
            )
