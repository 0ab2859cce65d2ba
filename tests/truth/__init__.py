"""The truth: what `/metrics` must say, recounted in SQL from an audit of the game's own writes.

Owns the schema `audit` (audit.sql: what happened; truth.sql: what it means). Shares no code with the
exporter and never imports it, so that a mistake made there is not repeated here.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, LiteralString

import psycopg
from tests.samples import PREFIX as PREFIX
from tests.samples import Labels as Labels
from tests.samples import Series as Series
from tests.samples import read as read_samples

WAIT = "manufacturing_task_wait_seconds"

FED_BY_EVENTS = frozenset({"manufacturing_profit_rate", "manufacturing_margin_percent"})
"""Gauges that no look at the live rows can mend."""

Connection = psycopg.Connection[Any]


def install(connection: Connection) -> None:
    """Create the schema `audit` anew and audit the game's three tables, which must be empty."""
    here = Path(__file__).parent
    with connection.transaction():
        for script in ("audit.sql", "truth.sql"):
            connection.execute((here / script).read_bytes())


def copy_journal(connection: Connection) -> None:
    """Copy what reaches the journal, so that lost events can be identified. As a superuser, before the game begins."""
    with connection.transaction():
        connection.execute((Path(__file__).parent / "journal.sql").read_bytes())


def read_counters(connection: Connection) -> dict[Series, int]:
    """Return the settled totals by (metric without prefix, labels): credits, microseconds, plain counts.

    Histograms are bucket rows that do not add up, plus a sum row. The wait for a ship is left out.
    """
    rows = _read(connection, "SELECT metric, labels, n FROM audit.counter")
    return {(metric, _labels(labels)): n for metric, labels, n in rows}


def read_gauges(connection: Connection) -> dict[Series, float]:
    """Return what each gauge must be now by (metric without prefix, labels)."""
    rows = _read(connection, "SELECT metric, labels, value FROM audit.gauge")
    return {(metric, _labels(labels)): value for metric, labels, value in rows}


def expected_samples(connection: Connection) -> dict[Series, float]:
    """Return the samples of every counter and histogram as the page must show them, in base units.

    Those of a player whose era is closed are not shown.

    Of the wait for a ship only `_count` is known exactly, and only that is here.
    """
    histograms = _histograms(connection)
    hidden = {player for (player,) in _read(connection, "SELECT player_id FROM audit.hidden_player()")}
    samples: dict[Series, float] = {}
    buckets: defaultdict[Series, dict[str, int]] = defaultdict(dict)
    for (metric, labels), n in read_counters(connection).items():
        family, _, part = metric.rpartition("_")
        if family not in histograms:
            samples[PREFIX + metric, labels] = float(n)
        elif part == "bucket":
            bound = dict(labels)["le"]
            buckets[family, labels - {("le", bound)}][bound] = n
        else:
            samples[PREFIX + metric, labels] = n / histograms[family][0]
    for (family, labels), counts in buckets.items():
        unit, bounds = histograms[family]
        seen = 0
        for bound in [str(edge // unit) for edge in bounds] + ["+Inf"]:
            seen += counts.get(bound, 0)
            samples[f"{PREFIX}{family}_bucket", labels | {("le", _printed(bound))}] = float(seen)
        samples[f"{PREFIX}{family}_count", labels] = float(seen)
    for labels, n in _read(connection, "SELECT labels, n FROM audit.wait_count"):
        samples[f"{PREFIX}{WAIT}_count", _labels(labels)] = float(n)
    return {place: value for place, value in samples.items() if dict(place[1])["player_id"] not in hidden}


def read_history(connection: Connection) -> dict[Series, list[tuple[int, float]]]:
    """Return how each sample of every counter and histogram rose: (epoch microseconds of the commit, value after it).

    In base units, in order of time. The server must keep commit times (track_commit_timestamp).
    """
    histograms = _histograms(connection)
    history: defaultdict[Series, list[tuple[int, float]]] = defaultdict(list)
    stored: Counter[Series] = Counter()
    rows = _read(
        connection,
        """SELECT (extract(epoch FROM pg_xact_commit_timestamp(c.xid::xid)) * 1000000)::bigint AS committed,
                  i.metric, i.labels, sum(i.n)::bigint
           FROM audit.increment AS i JOIN audit.change AS c ON c.id = i.change_id
           GROUP BY 1, 2, 3 ORDER BY 1""",
    )
    for committed, metric, given, n in rows:
        labels = _labels(given)
        family, _, part = metric.rpartition("_")
        unit, bounds = histograms.get(family, (1, ()))
        if family in histograms and part == "bucket":
            le = given["le"]
            rest = labels - {("le", le)}
            places = [(f"{PREFIX}{family}_count", rest)]
            printed = [str(edge // unit) for edge in bounds] + ["+Inf"]
            places += [
                (f"{PREFIX}{family}_bucket", rest | {("le", _printed(bound))}) for bound in printed[printed.index(le) :]
            ]
            unit = 1
        else:
            places = [(PREFIX + metric, labels)]
        for place in places:
            stored[place] += n
            history[place].append((committed, stored[place] / unit))
    return dict(history)


def compare_totals(connection: Connection) -> list[str]:
    """Return every difference between `mfg_notify.total` and the truth, in plain words."""
    counted = {place: n for place, n in read_counters(connection).items() if n}
    settled = _read_settled(connection)
    return sorted(
        f"{_written(place)} is settled as {settled.get(place, 0)} and must be {counted.get(place, 0)}"
        for place in counted.keys() | settled.keys()
        if counted.get(place) != settled.get(place)
    )


def _read_settled(connection: Connection) -> dict[Series, int]:
    rows = _read(
        connection,
        "SELECT metric, labels, n FROM mfg_notify.total"
        " WHERE n <> 0 AND NOT starts_with(metric, 'manufacturing_task_wait_seconds')",
    )
    return {(metric, _labels(labels)): n for metric, labels, n in rows}


def count_given_up(connection: Connection) -> int:
    """Return how many transactions of the game have lost events because a trigger gave up: statements at least.

    Needs `copy_journal`.
    """
    return int(_read(connection, "SELECT count(*) FROM audit.missed WHERE given_up")[0][0])


def compare_bounds(connection: Connection) -> list[str]:
    """Return every total that lies outside of what the lost events leave open, in plain words.

    Needs `copy_journal`.
    """
    bounds = {
        (metric, _labels(labels)): (least or 0, most or 0)
        for metric, labels, least, most in _read(connection, "SELECT metric, labels, least, most FROM audit.bound")
    }
    settled = _read_settled(connection)
    return sorted(
        f"{_written(place)} is settled as {settled.get(place, 0)} and must be {least} to {most}"
        for place in bounds.keys() | settled.keys()
        for least, most in [bounds.get(place, (0, 0))]
        if not least <= settled.get(place, 0) <= most
    )


def compare_gauges(page_text: str, connection: Connection) -> list[str]:
    """Return every difference in those gauges that are functions of the live rows alone, in plain words."""
    names = {name for (name,) in _read(connection, "SELECT metric FROM audit.family WHERE kind = 'gauge'")}
    names -= FED_BY_EVENTS
    found = compare(page_text, connection)
    return [text for text in found if text.partition("{")[0].removeprefix(PREFIX) in names]


def compare(page_text: str, connection: Connection) -> list[str]:
    """Return every difference between a text page and the truth, in plain words; none means exact.

    Metrics that the truth does not know (starvation, the market's, the exporter's own) are passed over.
    """
    with connection.transaction():  # one now() for all that is read
        kinds = dict(_read(connection, "SELECT metric, kind FROM audit.family"))
        counted = expected_samples(connection)
        gauges = {(PREFIX + name, labels): value for (name, labels), value in read_gauges(connection).items()}

    differences: list[str] = []
    page: dict[Series, float] = {}
    for series, value in read_samples(page_text):
        if series in page:
            differences.append(f"{_written(series)} is on the page twice")
        page[series] = value

    for series, value in counted.items():
        # Only a sum in seconds is a fraction, so only it may differ in its last digits.
        exact = not series[0].endswith("_seconds_sum")
        differences += _difference(series, value, page.get(series), exact=exact)
    for series, value in gauges.items():
        differences += _difference(series, value, page.get(series), exact=False)

    known_gauges = {PREFIX + name for name, kind in kinds.items() if kind == "gauge"}
    known_counters = set(_counter_samples(kinds))
    for series, value in page.items():
        if series[0] in known_gauges and series not in gauges:
            differences.append(f"{_written(series)} is {value} on the page and must not be there")
        elif series[0] in known_counters and series not in counted and value != 0:
            differences.append(f"{_written(series)} is {value} on the page and must be 0")
    return sorted(differences)


def _read(connection: Connection, query: LiteralString) -> list[tuple[Any, ...]]:
    with connection.transaction():
        # Compiling the large views takes longer than running them (4.6 s instead of 1.2 s).
        connection.execute("SET LOCAL jit = off")
        return connection.execute(query).fetchall()


def _histograms(connection: Connection) -> dict[str, tuple[int, list[int]]]:
    """Return the unit in which each histogram is summed, and its bounds in that unit."""
    families = _read(connection, "SELECT metric, unit, bounds FROM audit.family WHERE kind = 'histogram'")
    return {metric: (unit, bounds) for metric, unit, bounds in families}


def _printed(bound: str) -> str:
    # As prometheus_client prints a float; the two differ only from a million on.
    return bound if bound == "+Inf" else repr(float(bound))


def _counter_samples(kinds: Mapping[str, str]) -> Iterator[str]:
    """Yield the sample names of all counters and histograms whose values are known exactly."""
    for name, kind in kinds.items():
        if kind == "counter":
            yield PREFIX + name
        elif kind == "histogram":
            yield f"{PREFIX}{name}_count"
            if name != WAIT:
                yield f"{PREFIX}{name}_bucket"
                yield f"{PREFIX}{name}_sum"


def _difference(series: Series, must: float, found: float | None, *, exact: bool) -> list[str]:
    if found is None:
        return [f"{_written(series)} is not on the page and must be {must}"]
    if found == must or (not exact and math.isclose(found, must, rel_tol=1e-9)):
        return []
    return [f"{_written(series)} is {found} on the page and must be {must}"]


def _labels(labels: Mapping[str, str]) -> Labels:
    return frozenset(labels.items())


def _written(series: Series) -> str:
    name, labels = series
    return name + "{" + ",".join(f"{label}={value!r}" for label, value in sorted(labels)) + "}"
