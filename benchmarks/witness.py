"""An exporter that records the delay of each event: `python -m benchmarks.witness FILE run …`.

A delay runs from the trigger's clock_timestamp() to the moment of counting. Both use this machine's clock.
"""

import sys
import time
from array import array
from collections.abc import Sequence
from pathlib import Path

from mfg_notify.cli import main
from mfg_notify.core.events import Event
from mfg_notify.exporter.metering import EventMeter


def record_delays(delays: "array[float]") -> None:
    """Make every exporter of this process append the delays in milliseconds."""
    record = EventMeter.record

    def record_with_delays(self: EventMeter, events: Sequence[Event]) -> None:
        record(self, events)
        now = time.time_ns() / 1000
        delays.extend((now - event.at) / 1000 for event in events)

    EventMeter.record = record_with_delays  # type: ignore[method-assign]


if __name__ == "__main__":
    file = Path(sys.argv[1])
    sys.argv[:2] = ["mfg-notify"]
    recorded: "array[float]" = array("d")
    record_delays(recorded)
    try:
        main()
    finally:
        file.write_bytes(recorded.tobytes())
