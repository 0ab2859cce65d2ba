"""Looking at /metrics all the while: no counter ever falls (I2), and none is ahead of what was committed (I3)."""

import http.client
import re
import threading
import time
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Self

from prometheus_client.parser import text_string_to_metric_families
from tests.truth import PREFIX, WAIT, Series

INTERVAL = 0.05
"""Seconds between two looks."""
TIMEOUT = 5.0
"""Seconds after which a scrape counts as unanswered."""
MAY_FALL = f"{PREFIX}manufacturing_pipeline_profit_credits_sum"
"""Losses are negative observations."""


class Ratchet:
    """Remembers the highest value of every counter that was shown, when it rose, and whether one ever fell."""

    def __init__(self) -> None:
        self.highest: dict[str, float] = {}
        self.rises: defaultdict[str, list[tuple[int, float]]] = defaultdict(list)
        """Line without its value → (epoch microseconds when the page was in hand, value)."""
        self.falls: list[str] = []
        self._lines: set[str] = set()
        self._rising: frozenset[str] = frozenset()

    def look(self, page: str) -> str:
        """Take note of a text page, and give it back."""
        at = time.time_ns() // 1000
        lines = set(page.split("\n"))
        fresh = lines - self._lines
        if any(line.startswith("# TYPE") for line in fresh):
            self._rising = names_that_rise(lines)
        for line in fresh:
            place, _, text = line.rpartition(" ")
            name = place.partition("{")[0]
            if "_seconds" in name and text.startswith("-"):
                self.falls.append(f"{place} is {text}: a time that is negative")
            if name not in self._rising:
                continue
            value, before = float(text), self.highest.get(place, 0.0)
            if value < before:
                self.falls.append(f"{place} fell from {before} to {value}")
            elif value > before:
                self.highest[place] = value
                self.rises[place].append((at, value))
        self._lines = lines
        return page

    def ahead_of(self, history: Mapping[Series, list[tuple[int, float]]]) -> list[str]:
        """Return what was shown before it was committed; `history` is from `truth.read_history`."""
        found = []
        for place, shown in self.rises.items():
            series = _series(place)
            # The wait is measured by two clocks: only how many there were is known exactly.
            if series[0].startswith(PREFIX + WAIT) and not series[0].endswith("_count"):
                continue
            # What is past the cap on series is summed under `other`; the truth knows no such labels.
            if any(value == "other" for label, value in series[1] if label != "cost_type"):
                continue
            committed = history.get(series, [])
            for at, value in shown:
                place_in_time = bisect_right(committed, at, key=lambda step: step[0])
                truth = committed[place_in_time - 1][1] if place_in_time else 0.0
                if value > truth * (1 + 1e-9):
                    found.append(f"{place} was shown as {value} when {truth} was committed")
                    break
        return found


class Watch:
    """Scrapes one address in a thread of its own for as long as the block lasts, whoever answers there."""

    def __init__(self, port: int) -> None:
        self.ratchet = Ratchet()
        self.scrapes = 0
        self.unanswered = 0
        self.quiet = 0
        """Scrapes that saw the triggers told not to notify."""
        self.slowest_seconds = 0.0
        """Of the answered scrapes since it was last set to 0."""
        self._port = port
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"watch {port}")
        self._crash: BaseException | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        if self._crash is not None and error is None:
            raise self._crash

    def _run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=TIMEOUT)
        try:
            while not self._done.wait(INTERVAL):
                started = time.monotonic()
                try:
                    connection.request("GET", "/metrics", headers={"Accept-Encoding": "identity"})
                    page = connection.getresponse().read().decode()
                except (OSError, http.client.HTTPException):
                    # Nobody is there at the moment: it was killed, or is stopped.
                    self.unanswered += 1
                    connection.close()
                    continue
                self.scrapes += 1
                self.slowest_seconds = max(self.slowest_seconds, time.monotonic() - started)
                self.quiet += "\nmfg_notify_polling 1" in page
                self.ratchet.look(page)
        except BaseException as crash:  # noqa: BLE001 - raised where the block ends
            self._crash = crash
        finally:
            with suppress(OSError):
                connection.close()


def names_that_rise(lines: Iterable[str]) -> frozenset[str]:
    """Return the names of the game's samples on a page that must never fall, by the page's own word."""
    names: set[str] = set()
    for line in lines:
        if (found := re.fullmatch(rf"# TYPE ({PREFIX}\w+) (counter|histogram)", line)) is None:
            continue
        parts = ("_bucket", "_count", "_sum") if found.group(2) == "histogram" else ("",)
        names.update(found.group(1) + part for part in parts)
    return frozenset(names - {MAY_FALL})


def _series(place: str) -> Series:
    [family] = text_string_to_metric_families(place + " 0\n")
    [sample] = family.samples
    return sample.name, frozenset(sample.labels.items())
