"""What applied events add to the exporter's own metrics, whichever way they arrived."""

from collections import Counter
from collections.abc import Callable, Sequence

from mfg_notify.core.catalogue import MICROSECONDS_PER_SECOND
from mfg_notify.core.events import Event
from mfg_notify.core.ledger import Ledger
from mfg_notify.core.notify_mode import NotifyMode
from mfg_notify.exposition import Telemetry


class EventMeter:
    """Counts applied events and their delay, and tells the notify mode how fast they come."""

    def __init__(
        self, ledger: Ledger, notify_mode: NotifyMode, telemetry: Telemetry, clock: Callable[[], float]
    ) -> None:
        self._ledger = ledger
        self._notify_mode = notify_mode
        self._telemetry = telemetry
        self._clock = clock

    def record(self, events: Sequence[Event]) -> None:
        """Record events that have just been applied."""
        now = self._ledger.now()
        delays = [max(0, now - event.at) for event in events]
        self._notify_mode.count(len(events), self._clock(), max(delays, default=0) / MICROSECONDS_PER_SECOND)
        for (table, operation), n in Counter((event.table, event.change.operation) for event in events).items():
            self._telemetry.events_applied.labels(table, operation).inc(n)
        self._telemetry.event_delay.observe(delays)
