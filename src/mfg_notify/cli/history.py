"""`mfg-notify backfill`: writes the past as OpenMetrics with timestamps, for promtool."""

import os
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mfg_notify.cli.options import DURATION, connection_options
from mfg_notify.core.catalogue import CATALOGUE, MICROSECONDS_PER_SECOND
from mfg_notify.core.history import (
    KEEPALIVE,
    MILLISECOND,
    MOMENTS_MAXIMUM,
    Points,
    Timeline,
    lay_out_journal,
    lay_out_rows,
)
from mfg_notify.core.tuning import Tuning
from mfg_notify.errors import OptionError, UsageError
from mfg_notify.exposition import render_head, render_points
from mfg_notify.files import FILE_MODE, readable_errors
from mfg_notify.postgres import history
from mfg_notify.postgres.connection import BlockingConnection, complete_conninfo

LEFT_OUT = (
    "Not in it, because no row says it: supply transitions and factory cycles; waits for a ship; deliveries to "
    "construction sites; attempts that a later one has overwritten, with their failures, costs and durations; rows "
    "that were deleted."
)
OWN_LABELS = frozenset(label for metric in CATALOGUE for label in metric.labels) | {"le"}
UPDATE_ROWS = 2_000
"""Rows between two updates of the progress."""

Item = TypeVar("Item")
Labels = tuple[tuple[str, str], ...]


class _Moment(click.ParamType[int]):
    """A time such as 2026-11-01 or 2026-11-01T12:00:00+01:00, in UTC unless it says otherwise; epoch microseconds."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:  # noqa: ANN401
        if isinstance(value, int):
            return value
        try:
            given = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is not a time such as 2026-11-01 or 2026-11-01T12:00:00+01:00", param, ctx)
        aware = given if given.tzinfo is not None else given.replace(tzinfo=UTC)
        return round(aware.timestamp() * 1000) * MILLISECOND


@click.command()
@connection_options
@click.option("--since", type=_Moment(), help="Begin here. Default: the first time in any row.")
@click.option("--until", type=_Moment(), help="End here. Default: the installation, where the live series begin.")
@click.option(
    "--step",
    type=DURATION,
    default="1m",
    show_default=True,
    help="Time between two samples, at most 5m; a series that stands still has one every 5 minutes.",
)
@click.option(
    "--label",
    "labels",
    multiple=True,
    metavar="NAME=VALUE",
    help="Label of all samples. Give those that Prometheus adds to the live series: job and instance.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, allow_dash=True),
    default=Path("history.om"),
    show_default=True,
    help="File to write; - is standard output.",
)
@click.option("--force", is_flag=True, help="Replace the file if it exists.")
@click.option(
    "--outage",
    is_flag=True,
    help="Write the time since the last exporter ended instead, from the journal. Run it before the next one starts.",
)
def backfill(
    dsn: str,
    game_schema: str,
    since: int | None,
    until: int | None,
    step: float,
    labels: tuple[str, ...],
    output: Path,
    *,
    force: bool,
    outage: bool,
) -> None:
    """Write the time before the installation as OpenMetrics, from the rows that the game keeps.

    promtool tsdb create-blocks-from openmetrics makes blocks of it. The series end where the live ones begin, so that
    increase() is right across the installation: nothing is missing and nothing counts twice. What the rows do not tell
    is left out, and named when the command ends.

    It only reads, and holds its locks no longer than the server needs to sort the rows. Memory grows with the number of
    steps, not of rows. Give --since and --until to write a long history in parts, which fit together.
    """
    more, step_length = _parse_labels(labels), round(step * 1000) * MILLISECOND
    if not MILLISECOND <= step_length <= KEEPALIVE:
        raise OptionError("--step must be 1ms to 5m: Prometheus does not show a sample that is older than 5 minutes")
    if outage and (since is not None or until is not None):
        raise OptionError("--outage knows when the last exporter ended: it excludes --since and --until")
    to_file = str(output) != "-"
    if to_file and output.exists() and not force:
        raise UsageError(f"{output} exists; name another file with --output, or replace it with --force")
    if missing := {"job", "instance"} - dict(more).keys():
        _say(f"without --label {' and '.join(sorted(missing))} these will be other series than those of a scrape")
    with history.connect(complete_conninfo(dsn, "mfg-notify backfill"), game_schema) as connection:
        _say("reading how far back the rows go")
        past = history.read_past(connection, game_schema)
        if outage:
            points, timeline = _read_outage(connection, game_schema, past, step_length)
        else:
            timeline = _timeline(past, since, until, step_length)
            points = _read_rows(connection, game_schema, past, timeline)
        with _open_output(output if to_file else None) as destination:
            samples, series = _write(points, more, destination, output.resolve().parent if to_file else None)
    _say(f"wrote {samples:,} samples of {series:,} series, from {_time(timeline.since)} to {_time(timeline.until)}")
    if not outage:
        _say(LEFT_OUT)
        if past.undated:
            _say(f"Finished rows that do not say when they were finished, and are not in it either: {past.undated:,}")


def _parse_labels(given: Iterable[str]) -> Labels:
    found: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII) or name.startswith("__") or not value:
            raise OptionError(f"--label {text!r} must look like job=mfg-notify")
        if name in OWN_LABELS or name in found:
            raise OptionError(f"--label {name}: the series have a label of that name already")
        found[name] = value
    return tuple(found.items())


def _timeline(past: history.Past, since: int | None, until: int | None, step: int) -> Timeline:
    # Whole milliseconds, and nothing that the triggers have not seen is after it.
    installed = -(-past.installed_at // MILLISECOND) * MILLISECOND
    end = installed if until is None else until
    if end > installed:
        raise OptionError(
            f"--until is after the installation ({_time(past.installed_at)}), from when on the exporter counts; for a "
            "time without an exporter see --outage"
        )
    if since is None:
        if past.first is None:
            raise UsageError("the game's tables have no row yet, so there is nothing to write")
        since = past.first // step * step
    return _checked(Timeline(since, end, step))


def _checked(timeline: Timeline) -> Timeline:
    if timeline.until - timeline.since < 2 * MILLISECOND:
        raise OptionError(f"there is nothing to write: from {_time(timeline.since)} to {_time(timeline.until)}")
    if timeline.length > MOMENTS_MAXIMUM:
        raise OptionError(
            f"from {_time(timeline.since)} to {_time(timeline.until)} there are {timeline.length:,} steps; at most "
            f"{MOMENTS_MAXIMUM:,} are possible: give a later --since or a longer --step"
        )
    return timeline


def _read_rows(
    connection: BlockingConnection, schema: str, past: history.Past, timeline: Timeline, *, counters: bool = True
) -> Iterator[Points]:
    _say("the server sorts the rows")
    # What the triggers found is also of the pipelines that were completed after the end.
    tables = history.read_rows(
        connection, schema, timeline.since, timeline.until, max(timeline.until, past.installed_at)
    )
    for name, rows, expected in zip(("pipelines", "tasks"), tables, (past.pipelines, past.tasks), strict=True):
        shown = _with_progress(rows, name, expected)
        yield from lay_out_rows(shown, timeline, past.last_changes, past.seeds, past.installed_at, counters=counters)
        if rows.unreadable:
            _say(f"{rows.unreadable:,} {name} cannot be read and are left out")


def _read_outage(
    connection: BlockingConnection, schema: str, past: history.Past, step: int
) -> tuple[Iterator[Points], Timeline]:
    journal = history.read_journal(connection)
    # An exporter that has lost its database shows its last numbers for as long as its lease may last.
    lasts = round(Tuning().lease_duration * MICROSECONDS_PER_SECOND)
    since = journal.heartbeat // MILLISECOND * MILLISECOND + lasts
    if since >= journal.clock:
        raise UsageError("an exporter is running or has just ended, so there is no outage to write")
    timeline = _checked(Timeline(since, journal.clock // MILLISECOND * MILLISECOND, step))

    def points() -> Iterator[Points]:
        yield from lay_out_journal(_with_progress(journal, "events", None), journal.totals, timeline)
        yield from _read_rows(connection, schema, past, timeline, counters=False)

    return points(), timeline


@contextmanager
def _open_output(file: Path | None) -> Iterator[IO[str]]:
    """Open the file under another name until it is complete; without a file, standard output."""
    if file is None:
        yield sys.stdout
        return
    with readable_errors(file):
        descriptor, beside = tempfile.mkstemp(dir=file.resolve().parent, prefix=f".{file.name}.")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as written:
                yield written
            Path(beside).chmod(FILE_MODE)
            Path(beside).replace(file)
        except BaseException:
            Path(beside).unlink(missing_ok=True)
            raise


def _write(points: Iterable[Points], labels: Labels, destination: IO[str], folder: Path | None) -> tuple[int, int]:
    """Write families one after the other; return the numbers of samples and series.

    Series arrive player by player, so each family is collected in a file of its own first, in the same folder.
    """
    samples, series = 0, Counter[str]()
    with ExitStack() as stack:
        families: dict[str, IO[str]] = {}
        for each in points:
            name = each.metric.name
            if name not in families:
                families[name] = stack.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8", dir=folder))
                families[name].write(render_head(each.metric))
            for lines in render_points(each, labels):
                families[name].write(lines)
                samples += each.width
            series[name] += each.width
        for metric in CATALOGUE:
            if metric.name in families:
                families[metric.name].seek(0)
                shutil.copyfileobj(families[metric.name], destination, 1 << 20)
                families[metric.name].close()
        destination.write("# EOF\n")
    return samples, series.total()


def _with_progress(items: Iterable[Item], name: str, expected: int | None) -> Iterator[Item]:
    console = Console(stderr=True)
    if not console.is_terminal:
        _say(f"reading {name}" if expected is None else f"reading {name}: {expected:,} at most")
        yield from items
        return
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(name, total=expected)
        for number, item in enumerate(items, 1):
            if number % UPDATE_ROWS == 0:
                progress.update(task, completed=number)
            yield item


def _say(text: str) -> None:
    click.echo(f"mfg-notify: {text}", err=True)


def _time(at: int) -> str:
    return datetime.fromtimestamp(at / MICROSECONDS_PER_SECOND, UTC).isoformat(timespec="milliseconds")
