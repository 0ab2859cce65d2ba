"""Notifications → ledger: what the listener has received is parsed, counted, and turned into a due fold.

Owns the parsing of payloads. A payload counts as our own if the server says that our own backend sent it, which nobody
can forge; every other payload is untrusted input.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mfg_notify.core.counters import Arrival
from mfg_notify.core.events import Event, decode_payload
from mfg_notify.core.ledger import Ledger
from mfg_notify.core.notify_mode import NotifyMode
from mfg_notify.core.schedule import Schedule
from mfg_notify.core.tuning import Tuning
from mfg_notify.errors import MalformedEvent
from mfg_notify.exporter.leadership import Leadership
from mfg_notify.exporter.metering import EventMeter
from mfg_notify.exposition import Telemetry
from mfg_notify.postgres.journal import BARRIER
from mfg_notify.postgres.listener import FOLD, PING, Listener


class Intake:
    """Takes notifications of one session. `wake` wakes up the session's loop."""

    def __init__(
        self,
        listener: Listener,
        backend_pid: int,
        ledger: Ledger,
        schedule: Schedule,
        notify_mode: NotifyMode,
        leadership: Leadership,
        meter: EventMeter,
        telemetry: Telemetry,
        clock: Callable[[], float],
        tuning: Tuning,
        wake: Callable[[], None],
    ) -> None:
        """`backend_pid` is the backend of the working connection: what it notifies counts as our own."""
        self._listener = listener
        self._backend_pid = backend_pid
        self._ledger = ledger
        self._schedule = schedule
        self._notify_mode = notify_mode
        self._leadership = leadership
        self._meter = meter
        self._telemetry = telemetry
        self._clock = clock
        self._tuning = tuning
        self._wake = wake
        self._counting_on_arrival = False

    @contextmanager
    def count_on_arrival(self) -> Iterator[None]:
        """Count what arrives during the block at once: waking up the loop for it would cost more than counting it."""
        self._counting_on_arrival = True
        try:
            yield
        finally:
            self._counting_on_arrival = False

    def on_arrival(self) -> None:
        """React to notifications that have just been queued."""
        if self._counting_on_arrival:
            due = self._schedule.fold_due
            self.drain()
            waits = self._ledger.awaits_barrier or self._ledger.needs_snapshot
            if self._schedule.fold_due >= due and not waits:
                return
        self._wake()

    def drain(self) -> None:
        """Take every queued notification, count it, and say when a fold is due for it."""
        events: list[Event] = []
        for notification in self._listener.take():
            payload = notification.payload
            own = notification.pid == self._backend_pid
            if own and payload.startswith(BARRIER):
                self._ledger.receive_barrier(int(payload.removeprefix(BARRIER)))
            elif own and payload.startswith(PING):
                self._leadership.receive_ping(int(payload.removeprefix(PING)))
            elif payload.startswith((PING, BARRIER)):
                continue  # of another session
            elif self._ledger.leading:
                self._telemetry.notifications_received.inc()
                self._take_payload(payload, events)
            elif payload != FOLD:
                self._hear(payload)
        now = self._clock()
        if events:
            self._meter.record(events)
            self._schedule.announced(len(events), now)
        if skipped := self._listener.take_skipped():
            self._telemetry.notifications_received.inc(skipped)
            self._schedule.request_fold(now, self._tuning.deferred_fold_delay)
        self._notify_mode.count_silence(now)
        if self._notify_mode.needs_update:
            self._schedule.fold_at_once(now)

    def _hear(self, payload: str) -> None:
        """Remember the event of a payload that another exporter counts."""
        try:
            event = decode_payload(payload)
        except MalformedEvent:
            return  # counted by the exporter that leads
        self._ledger.hear(event)

    def _take_payload(self, payload: str, counted: list[Event]) -> None:
        """Count the event of a payload, or ask for the fold that does."""
        tuning, now = self._tuning, self._clock()
        if payload == FOLD:
            self._schedule.request_fold(now, tuning.deferred_fold_delay)
            return
        try:
            event = decode_payload(payload)
        except MalformedEvent:
            self._telemetry.events_rejected.labels("malformed").inc()
            self._schedule.request_fold(now, tuning.confirming_fold_delay)
            return
        match self._ledger.announce(event):
            case Arrival.COUNTED:
                counted.append(event)
            case Arrival.DUPLICATE:
                self._telemetry.events_duplicate.inc()
                self._schedule.request_fold(now, tuning.confirming_fold_delay)
            case Arrival.DEFERRED:
                self._schedule.request_fold(now, tuning.deferred_fold_delay)
