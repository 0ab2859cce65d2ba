"""An exporter that records when each event happened and was counted: `python -m benchmarks.witness FILE run …`.

An event happens at the trigger's clock_timestamp(), before its commit. Both moments are of this machine's clock. They
are written at once, so that a kill loses none.
"""

import sys
import time
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from mfg_notify.cli import main
from mfg_notify.core.events import Event
from mfg_notify.exporter.metering import EventMeter


def record_moments(file: BinaryIO) -> None:
    """Make every exporter of this process append both moments of each event, in seconds since the epoch."""
    record = EventMeter.record

    def record_with_moments(self: EventMeter, events: Sequence[Event]) -> None:
        record(self, events)
        now = time.time()
        file.write(array("d", [at for event in events for at in (event.at / 1e6, now)]).tobytes())

    EventMeter.record = record_with_moments  # type: ignore[method-assign]


def read(file: Path) -> list[tuple[float, float]]:
    """Return when each event happened and was counted, in seconds since the epoch."""
    moments: array[float] = array("d")
    moments.frombytes(file.read_bytes())
    return list(zip(moments[::2], moments[1::2], strict=True))


if __name__ == "__main__":
    with Path(sys.argv[1]).open("ab", buffering=0) as given:
        sys.argv[:2] = ["mfg-notify"]
        record_moments(given)
        main()
