"""The past as samples over time: what rows of the game, or events that wait in the journal, tell of each series.

Owns the timeline, and which parts of a row belong to which moment. What a finished row counts is decided in `rules`, by
the same function that counts live. It never guesses: what a row does not tell is left out.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import accumulate, groupby, islice
from operator import add
from typing import NamedTuple

from mfg_notify.core import catalogue
from mfg_notify.core.capped_totals import series_of
from mfg_notify.core.catalogue import BY_NAME, SETTLED_LABELS, TERMINAL, Kind, Metric
from mfg_notify.core.events import Event, PipelineChange, PipelineImage, TaskChange, TaskImage
from mfg_notify.core.live_state import HOUR, Labels
from mfg_notify.core.rules import SampleKey, increments
from mfg_notify.core.series import SILENT_AFTER

MILLISECOND = 1_000
"""Microseconds; Prometheus knows no shorter time."""
KEEPALIVE = 5 * 60 * 1_000_000
"""Microseconds after which Prometheus no longer shows the last sample of a series: its default lookback."""
MOMENTS_MAXIMUM = 1_000_000
"""Moments of a timeline at most. Each takes 8 bytes or more in every series of a player and product or task type."""

Samples = Iterator[tuple[int, tuple[float, ...]]]
"""Moments in epoch microseconds, each with a value, or of a histogram with all its values. Made as they are read."""

_HISTOGRAMS = frozenset(metric.name for metric in catalogue.HISTOGRAMS)
_TERMINAL = frozenset(TERMINAL)
_GROUPS = ("product_good", "task_type")
"""The second label of what is laid out together."""


@dataclass(frozen=True, slots=True)
class Timeline:
    """The moments that samples have: `since`, every whole `step` after it, and the end. Epoch microseconds.

    A sample tells what happened before its moment. The end is two moments: a millisecond before `until` all has been
    counted; `until` itself is the first moment of what comes after.
    """

    since: int
    until: int
    step: int
    last: int = field(init=False)
    """Place of the moment before `until`."""

    def __post_init__(self) -> None:
        last = -(-(self.until - MILLISECOND) // self.step) - self.since // self.step
        object.__setattr__(self, "last", max(1, last))

    @property
    def length(self) -> int:
        """Number of moments, `until` included."""
        return self.last + 2

    def moment(self, place: int) -> int:
        """Return the moment at a place, in epoch microseconds."""
        if 0 < place < self.last:
            return (self.since // self.step + place) * self.step
        return self.since if place == 0 else self.until - MILLISECOND * (place == self.last)

    def place(self, at: int) -> int:
        """Return the place of the first sample that tells what happened then; 0 for anything before `since`."""
        return 0 if at < self.since else min(at // self.step - self.since // self.step + 1, self.last)

    def covers(self, at: int) -> bool:
        """Tell whether something happened in this time."""
        return self.since <= at < self.until


class Points(NamedTuple):
    """The samples of one series, or of one histogram with all its parts, in order of time."""

    metric: Metric
    labels: Labels
    width: int
    """Values at a moment: 1, or the parts of a histogram."""
    samples: Samples
    """Of a histogram: its cumulative buckets, its count and its sum, in stored units."""


class Row(NamedTuple):
    """A row of the game as it is now, and when it was created (epoch microseconds)."""

    image: PipelineImage | TaskImage
    created_at: int | None

    @property
    def player(self) -> str:
        """The player, as a label value."""
        return str(self.image.player_id)

    @property
    def place(self) -> Labels:
        """Player, and product or task type."""
        image = self.image
        return self.player, image.product_good if isinstance(image, PipelineImage) else image.task_type


class _Book:
    """What happened, by series and place on the timeline. Values are differences.

    A counter that has a value in `at_start` begins with it, and goes on after the timeline. Without `at_start` all
    counters end here: with their value in `at_end`, at which their live series begins, or at 0. The sample that says so
    stands at `until`. Where the live series begins above 0, nothing else could tell Prometheus that the counter was
    reset.
    """

    def __init__(
        self, timeline: Timeline, at_end: Mapping[SampleKey, int], at_start: Mapping[SampleKey, int] | None = None
    ) -> None:
        self.timeline = timeline
        self._at_end = at_end
        self._at_start = at_start
        self._steps: dict[SampleKey, list[int]] = {}

    def touch(self, key: SampleKey) -> list[int]:
        """Return the differences of a series, which exists from now on even if nothing happens to it."""
        steps = self._steps.get(key)
        if steps is None:
            steps = self._steps[key] = self._nothing()
        return steps

    def add(self, key: SampleKey, at: int, n: int) -> None:
        """Add something that happened before the end."""
        self.touch(key)[self.timeline.place(at)] += n

    def add_interval(self, key: SampleKey, began: int | None, ended: int | None, n: int = 1) -> None:
        """Raise a gauge by n from one time to another; without an end, for good."""
        timeline = self.timeline
        if began is None or began >= timeline.until or (ended is not None and ended <= max(began, timeline.since)):
            return
        self.add(key, began, n)
        if ended is not None and ended < timeline.until:
            self.add(key, ended, -n)

    def close(self, place: Labels = ()) -> Iterator[Points]:
        """Take out the series whose labels begin like this, and yield their samples."""
        taken = {key: self._steps.pop(key) for key in list(self._steps) if _belongs(key, place)}
        histograms: dict[SampleKey, dict[SampleKey, list[int]]] = {}
        for key, steps in taken.items():
            name, labels = key
            series = series_of(key)
            if series[0] in _HISTOGRAMS:
                histograms.setdefault(series, {})[key] = steps
            elif BY_NAME[name].kind is Kind.GAUGE:
                if any(steps):
                    yield Points(BY_NAME[name], labels, 1, self._samples([steps], [0]))
            else:
                samples = self._samples([steps], [self._base(key, steps)], (self._end(key),))
                yield Points(BY_NAME[name], labels, 1, samples)
                if name == catalogue.PIPELINE_REVENUE.name:
                    yield from self._margin(labels, steps, taken)
        for (name, labels), parts in histograms.items():
            yield self._histogram(BY_NAME[name], labels, parts)

    def _nothing(self) -> list[int]:
        return [0] * (self.timeline.length - 1)

    def _base(self, key: SampleKey, steps: list[int]) -> int:
        if self._at_start is not None:
            return self._at_start.get(key, 0)
        # Amounts of rows may have risen since, but no counter begins below 0.
        return max(0, self._at_end[key] - sum(steps)) if key in self._at_end else 0

    def _end(self, key: SampleKey) -> int:
        return self._at_end.get(key, 0)

    def _margin(self, labels: Labels, earned: list[int], taken: Mapping[SampleKey, list[int]]) -> Iterator[Points]:
        revenue, cost = ((metric.name, labels) for metric in (catalogue.PIPELINE_REVENUE, catalogue.PIPELINE_COST))
        spent = taken.get(cost, self._nothing())
        if any(earned) or self._base(revenue, earned):
            both = self._samples([earned, spent], [self._base(revenue, earned), self._base(cost, spent)])
            yield Points(catalogue.MARGIN, labels, 1, ((at, (100 * (r - c) / r,)) for at, (r, c) in both if r))

    def _histogram(self, metric: Metric, labels: Labels, parts: Mapping[SampleKey, list[int]]) -> Points:
        buckets = [(f"{metric.name}_bucket", (*labels, le)) for le in (*map(str, metric.buckets), "+Inf")]
        single = [parts.get(key, self._nothing()) for key in buckets]
        bases = list(accumulate(self._base(key, steps) for key, steps in zip(buckets, single, strict=True)))
        cumulative = list(accumulate(single, lambda below, steps: list(map(add, below, steps))))
        key = (f"{metric.name}_sum", labels)
        total = parts.get(key, self._nothing())
        columns = [*cumulative, cumulative[-1], total]
        bases += [bases[-1], self._base(key, total)]
        return Points(metric, labels, len(columns), self._samples(columns, bases, (0,) * len(columns)))

    def _samples(self, columns: list[list[int]], bases: list[int], end: tuple[int, ...] | None = None) -> Samples:
        changes = [place for place, steps in enumerate(zip(*columns, strict=True)) if any(steps)]
        counts = zip(*map(accumulate, columns), strict=True)
        before = -1
        for place in self._places(changes, any(bases)):
            values = next(islice(counts, place - before - 1, None))
            yield self.timeline.moment(place), tuple(map(add, bases, values))
            before = place
        if end is not None and self._at_start is None:
            yield self.timeline.until, end

    def _places(self, changes: list[int], from_the_start: bool) -> Iterator[int]:
        """Yield where samples are: before and after each change, and in between as often as Prometheus needs.

        A series that begins at 0 begins one place before its first change, so that increase() sees the change.
        """
        keep = max(1, KEEPALIVE // self.timeline.step)
        last = self.timeline.length - 2
        place = 0 if from_the_start or not changes else max(0, changes[0] - 1)
        yield place
        for change in changes:
            if change > place:
                yield from range(place + keep, change - 1, keep)
                if change - 1 > place:
                    yield change - 1
                yield change
                place = change
        yield from range(place + keep, last, keep)
        if place < last:
            yield last


def _belongs(key: SampleKey, place: Labels) -> bool:
    name, labels = key
    if labels[: len(place)] != place:
        return False
    # A type of costs may have the name of a task type.
    return len(place) <= 1 or (SETTLED_LABELS.get(name) or BY_NAME[name].labels)[1] in _GROUPS


def lay_out_rows(
    rows: Iterable[Row],
    timeline: Timeline,
    last_changes: Mapping[int, int],
    seeds: Mapping[SampleKey, int],
    installed_at: int,
    *,
    counters: bool = True,
) -> Iterator[Points]:
    """Yield the series that rows tell, of pipelines or of tasks, in the order of player and product or task type.

    Counters and histograms are of rows finished before the installation; those in `seeds` end as the triggers found
    them. The series of a player end a day after the last change, as they do live. With `counters` off there are only
    gauges.
    """
    for player, of_player in groupby(rows, lambda row: row.player):
        own_seeds = {key: n for key, n in seeds.items() if key[1][0] == player}
        until = min(timeline.until, last_changes.get(int(player), 0) + SILENT_AFTER)
        book = _Book(replace(timeline, until=max(until, timeline.since + 2 * MILLISECOND)), own_seeds)
        for place, group in groupby(of_player, lambda row: row.place):
            for image, created_at in group:
                if counters:
                    _count(book, place, image, own_seeds, installed_at)
                if isinstance(image, PipelineImage):
                    _show_pipeline(book, place, image, created_at)
                else:
                    _show_task(book, place, image)
            yield from book.close(place)
        yield from book.close()


def _count(
    book: _Book, place: Labels, image: PipelineImage | TaskImage, seeds: dict[SampleKey, int], installed_at: int
) -> None:
    finished = image.completed_at if image.status in _TERMINAL else None
    if finished is None or not book.timeline.since <= finished < installed_at:
        return
    change = (
        PipelineChange("I", "", None, image) if isinstance(image, PipelineImage) else TaskChange("I", "", None, image)
    )
    for key, n in increments(Event(0, 0, finished, change)):
        if finished < book.timeline.until:
            book.add(key, finished, n)
        elif key in seeds:
            # It is part of what the triggers found, and comes after the end of this part of the past.
            seeds[key] -= n
    # A daemon that saves neither ASSIGNED nor EXECUTING starts a task with its end. So what ended after the
    # installation may have started live, whatever its started_at.
    if isinstance(image, TaskImage) and image.started_at is not None and book.timeline.covers(image.started_at):
        book.add((catalogue.TASK_ASSIGNMENTS.name, place), image.started_at, 1)


def _show_task(book: _Book, place: Labels, image: TaskImage) -> None:
    # A task that waits for another attempt may have the time of the last one.
    ended = image.completed_at if image.status in _TERMINAL else None
    if ended is not None or image.status == "EXECUTING":
        book.add_interval((catalogue.TASKS_EXECUTING.name, place), image.started_at, ended)


def _show_pipeline(book: _Book, place: Labels, image: PipelineImage, created_at: int | None) -> None:
    ended = image.completed_at
    if image.status in _TERMINAL and ended is None:
        return
    ended = ended if image.status in _TERMINAL else None
    planned = image.started_at if image.started_at is not None else ended
    book.add_interval((catalogue.PIPELINE_QUEUE_DEPTH.name, place[:1]), created_at, ended)
    book.add_interval((catalogue.PIPELINES.name, (*place, "PLANNING")), created_at, planned)
    book.add_interval((catalogue.PIPELINES.name, (*place, "EXECUTING")), image.started_at, ended)
    book.add_interval((catalogue.PIPELINE_RUNNING.name, place), image.started_at, ended)
    if image.status == "COMPLETED" and ended is not None:
        profit = image.total_revenue - image.total_cost
        book.add_interval((catalogue.PROFIT_RATE.name, place[:1]), ended, ended + HOUR, profit)


def lay_out_journal(events: Iterable[Event], totals: Mapping[SampleKey, int], timeline: Timeline) -> Iterator[Points]:
    """Yield the counters and histograms of the players to whom something happened, from their totals before that.

    What happened before the timeline is in their first sample.
    """
    book = _Book(timeline, {}, totals)
    players = set()
    for event in events:
        for key, n in increments(event):
            book.add(key, event.at, n)
            players.add(key[1][0])
    for key in totals:
        if key[1][0] in players:
            book.touch(key)
    yield from book.close()
