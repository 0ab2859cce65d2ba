"""Watches /metrics and the books throughout a fault.

No counter falls (I2), none is ahead of the commits (I3), and the recorded events explain every live row.
"""

import http.client
import re
import threading
import time
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

from tests.samples import read
from tests.truth import PREFIX, WAIT, Series

from mfg_notify.diagnosis.verify import verify
from mfg_notify.errors import DatabaseError

INTERVAL = 0.05
"""Seconds between two scrapes."""
BOOKS_INTERVAL = 10.0
"""Seconds between two checks of the books."""
TIMEOUT = 5.0
"""Seconds after which a scrape counts as unanswered."""
MAY_FALL = f"{PREFIX}manufacturing_pipeline_profit_credits_sum"
"""Losses are negative observations."""


class CounterHistory:
    """Records the highest value of every counter, when it rose, and every fall."""

    def __init__(self) -> None:
        self.highest: dict[str, float] = {}
        self.rises: defaultdict[str, list[tuple[int, float]]] = defaultdict(list)
        """Series as it is written on the page → (epoch microseconds at which the page had arrived, value)."""
        self.shown: defaultdict[str, list[tuple[int, int, float]]] = defaultdict(list)
        """The same whenever a value has changed or come back: epoch microseconds of the request and of the answer."""
        self.falls: list[str] = []
        self._lines: set[str] = set()
        self._rising: frozenset[str] = frozenset()

    def record(self, page: str, asked_at: int | None = None) -> str:
        """Record a text page that was asked for at this time (epoch microseconds), and return it."""
        at = time.time_ns() // 1000
        lines = set(page.split("\n"))
        new_lines = lines - self._lines
        if any(line.startswith("# TYPE") for line in new_lines):
            self._rising = names_that_rise(lines)
        for line in new_lines:
            series, _, text = line.rpartition(" ")
            name = series.partition("{")[0]
            if "_seconds" in name and text.startswith("-"):
                self.falls.append(f"{series} is a negative time: {text}")
            if name not in self._rising:
                continue
            value, before = float(text), self.highest.get(series, 0.0)
            self.shown[series].append((at if asked_at is None else asked_at, at, value))
            if value < before:
                self.falls.append(f"{series} fell from {before} to {value}")
            elif value > before:
                self.highest[series] = value
                self.rises[series].append((at, value))
        self._lines = lines
        return page

    def ahead_of(self, history: Mapping[Series, list[tuple[int, float]]]) -> list[str]:
        """Return the values that were shown before their commit; `history` comes from `truth.read_history`."""
        found = []
        for written, shown in self.rises.items():
            series = series_of(written)
            # Waiting times are measured by two clocks, so only their count is known exactly.
            if series[0].startswith(PREFIX + WAIT) and not series[0].endswith("_count"):
                continue
            # Series beyond the limit are summed under `other`, which the truth does not know unless it is a cost type.
            summed = [label for label, value in series[1] if value == "other"]
            if summed and (summed != ["cost_type"] or series not in history):
                continue
            committed = history.get(series, [])
            for at, value in shown:
                steps = bisect_right(committed, at, key=lambda step: step[0])
                truth = committed[steps - 1][1] if steps else 0.0
                if value > truth * (1 + 1e-9):
                    found.append(f"{written} was shown as {value} when {truth} was committed")
                    break
        return found


def falls_between(histories: Sequence[CounterHistory]) -> list[str]:
    """Return where one exporter has shown less than another before it: what falls under `max without (instance)`."""
    found = []
    for series in dict.fromkeys(series for history in histories for series in history.shown):
        shown = [one for history in histories for one in history.shown[series]]
        answers = deque(sorted((answered, value) for _, answered, value in shown))
        highest = 0.0
        for asked, _, value in sorted(shown):
            # Only answers that had arrived before this was asked for.
            while answers and answers[0][0] < asked:
                highest = max(highest, answers.popleft()[1])
            if value < highest:
                found.append(f"{series} fell from {highest} to {value} from one exporter to another")
                break
    return found


class _Watching(ABC):
    """Does something again and again in a thread until the block ends, which raises what the thread has raised."""

    def __init__(self) -> None:
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name=type(self).__name__)
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
        try:
            self._watch()
        except BaseException as crash:  # noqa: BLE001 - raised when the block ends
            self._crash = crash

    @abstractmethod
    def _watch(self) -> None: ...


class Watch(_Watching):
    """Scrapes one address in a thread until the block ends. Exporters there may come and go."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self.counters = CounterHistory()
        self.scrapes = 0
        self.unanswered = 0
        self.polling_scrapes = 0
        """Scrapes at which the triggers did not notify and the exporter polled."""
        self.slowest_seconds = 0.0
        """Slowest answered scrape since this was last set to 0."""
        self._port = port

    def _watch(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=TIMEOUT)
        try:
            while not self._done.wait(INTERVAL):
                started, asked_at = time.monotonic(), time.time_ns() // 1000
                try:
                    connection.request("GET", "/metrics", headers={"Accept-Encoding": "identity"})
                    response = connection.getresponse()
                    page = response.read().decode()
                except (OSError, http.client.HTTPException):
                    # No exporter answers at the moment: it was killed or is stopped.
                    self.unanswered += 1
                    connection.close()
                    continue
                if response.status != http.client.OK:
                    # Too many others ask at the moment.
                    self.unanswered += 1
                    continue
                self.scrapes += 1
                self.slowest_seconds = max(self.slowest_seconds, time.monotonic() - started)
                self.polling_scrapes += "\nmfg_notify_polling 1" in page
                self.counters.record(page, asked_at)
        finally:
            with suppress(OSError):
                connection.close()


class BooksWatch(_Watching):
    """Checks the books in a thread until the block ends, as `mfg-notify verify` does."""

    def __init__(self, dsn: str) -> None:
        super().__init__()
        self.checks = 0
        self.unanswered = 0
        self.differences: list[str] = []
        self._dsn = dsn

    def _watch(self) -> None:
        while not self._done.wait(BOOKS_INTERVAL):
            try:
                self.check()
            except DatabaseError:
                # The fault keeps the server from answering, or has taken our schema away.
                self.unanswered += 1

    def check(self) -> None:
        """Check the books once. Raise `DatabaseError` if the database does not answer."""
        report = verify(self._dsn, "public")
        self.checks += 1
        self.differences += [f"{report.books.snapshot}: {found}" for found in report.books.differences]
        self.differences += [f"{report.books.snapshot}: {found}" for found in report.books.changed_totals]


def names_that_rise(lines: Iterable[str]) -> frozenset[str]:
    """Return the names of the game's samples that must never fall, according to the page's TYPE lines."""
    names: set[str] = set()
    for line in lines:
        if (found := re.fullmatch(rf"# TYPE ({PREFIX}\w+) (counter|histogram)", line)) is None:
            continue
        parts = ("_bucket", "_count", "_sum") if found.group(2) == "histogram" else ("",)
        names.update(found.group(1) + part for part in parts)
    return frozenset(names - {MAY_FALL})


def series_of(written: str) -> Series:
    """Return a series as it is written on the page by its name and labels."""
    [(series, _)] = read(written + " 0\n")
    return series
