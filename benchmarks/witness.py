"""An exporter that also writes down how late each event reached its state: `python -m benchmarks.witness FILE run …`.

A delay is from the trigger's clock_timestamp() to the moment of counting, by the same clock: both run here.
"""

import sys
import time
from array import array
from collections.abc import Sequence
from pathlib import Path

from mfg_notify.cli import main
from mfg_notify.core.events import Event
from mfg_notify.exporter.metering import EventMeter


def witness(delays: "array[float]") -> None:
    """Make every exporter of this process write the milliseconds down."""
    record = EventMeter.record

    def record_and_note(self: EventMeter, events: Sequence[Event]) -> None:
        record(self, events)
        now = time.time_ns() / 1000
        delays.extend((now - event.at) / 1000 for event in events)

    EventMeter.record = record_and_note  # type: ignore[method-assign]


if __name__ == "__main__":
    file = Path(sys.argv[1])
    sys.argv[:2] = ["mfg-notify"]
    seen: "array[float]" = array("d")
    witness(seen)
    try:
        main()
    finally:
        file.write_bytes(seen.tobytes())
