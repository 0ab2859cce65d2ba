"""`mfg-notify verify`: proves that the numbers are what happened, or says what is missing.

Owns the words of the proof. What is compared is in `core.books`, how it is read in `postgres.books`.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

from anyio.from_thread import start_blocking_portal

from mfg_notify.core.books import TABLES, Books, Difference, changed_rows
from mfg_notify.errors import DatabaseUnavailable, SchemaTooNew
from mfg_notify.postgres import books
from mfg_notify.postgres.books import Reading
from mfg_notify.postgres.connection import connect
from mfg_notify.postgres.installation import check_installation

NAMED_MAXIMUM = 20
"""Accounts and metrics that differ and are named."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a check has found, and how many seconds it took."""

    books: Reading
    seconds: float
    accepted: bool
    """The differences have been entered, so that the next check balances."""
    unrecorded: Mapping[str, int]
    """Rows by source that were changed without an event, as entered so far."""
    accepted_totals: Mapping[str, int]
    """What was changed in the totals of each metric, as accepted so far."""
    lost: int
    """Changes that the triggers have given up since the installation."""

    @property
    def balanced(self) -> bool:
        """Tell whether the books and the journal explain every row, and the folds every total."""
        return not self.books.differences and not self.books.changed_totals


def verify(
    conninfo: str,
    schema: str,
    *,
    accept: bool = False,
    on_progress: Callable[[int], None] = lambda _: None,
) -> Report:
    """Check the books in one snapshot of the database; it only reads, unless it shall `accept` the differences.

    `on_progress` is told how many events of the journal have been read. Raise `DatabaseError`.
    """
    # In a thread of its own, so that a program with an event loop can call it, too.
    with start_blocking_portal() as portal:
        return portal.call(partial(_verify, conninfo, schema, on_progress, accept=accept))


async def _verify(conninfo: str, schema: str, on_progress: Callable[[int], None], *, accept: bool) -> Report:
    started = time.monotonic()
    async with AsyncExitStack() as stack:
        connection = await connect(conninfo, read_only=not accept)
        stack.push_async_callback(connection.close)
        await check_installation(connection, schema)
        found = await books.check(connection, schema, on_progress=on_progress)
        if found is None:
            raise DatabaseUnavailable("the server has cancelled the check")
        if found.unknown_versions:
            raise SchemaTooNew(
                f"{found.unknown_versions} events in the journal are of a newer version; upgrade mfg-notify"
            )
        entered: Reading | Books = found
        accepted = accept and bool(found.differences or found.changed_totals)
        if accepted:
            entered = await books.carry_forward(connection, None, found)
        lost = await books.count_lost(connection)
        return Report(found, time.monotonic() - started, accepted, entered.unrecorded, entered.accepted, lost)


def to_json(report: Report) -> dict[str, Any]:
    """Return the report for programs."""
    found = report.books
    return {
        "balanced": report.balanced,
        "snapshot": found.snapshot,
        "at": found.read_at,
        "seconds": round(report.seconds, 3),
        "journal_events": found.journal_events,
        "tables": {
            TABLES[source]: {"rows": rows, "players": players, "statuses": statuses}
            for source, (rows, players, statuses) in _summaries(found)
        },
        "metrics": found.metrics,
        "changed_rows": {TABLES[source]: n for source, n in changed_rows(found.differences).items()},
        "differences": [
            {
                "table": TABLES[difference.account[0]],
                "player_id": difference.account[1],
                "status": difference.account[2],
                "recorded": difference.recorded,
                "counted": difference.counted,
            }
            for difference in found.differences
        ],
        "changed_totals": [
            {"metric": total.metric, "added": total.added, "stored": total.stored, "at_limit": total.at_limit}
            for total in found.changed_totals
        ],
        "unrecorded": {TABLES[source]: n for source, n in sorted(report.unrecorded.items())},
        "accepted_totals": dict(sorted(report.accepted_totals.items())),
        "lost": report.lost,
        "accepted": report.accepted,
    }


def _summaries(found: Reading) -> Iterator[tuple[str, tuple[int, int, int]]]:
    for source in found.sources:
        rows = {place: n for place, n in found.counted.items() if place[0] == source}
        players, statuses = {player_id for _, player_id, _ in rows}, {status for _, _, status in rows}
        yield source, (sum(rows.values()), len(players), len(statuses))


def describe(report: Report) -> Iterator[str]:
    """Yield the lines of the report, with rich's markup."""
    found = report.books
    if report.balanced:
        yield "[green]✓ balanced[/]: the recorded events explain every row and every total"
    else:
        yield "[red]✗ not balanced[/]"
    for source, (rows, players, statuses) in _summaries(found):
        kind = ("supply level", "supply levels") if source == "factory" else ("live status", "live statuses")
        what = ("row", "rows") if source == "factory" else ("live row", "live rows")
        counts = (_count(rows, *what), _count(players, "player", "players"), _count(statuses, *kind))
        yield f"  {TABLES[source]:<30} {', '.join(counts)}"
    yield f"  {'totals':<30} of {found.metrics} metrics"
    yield f"  {'journal':<30} {found.journal_events:,} events that are not folded yet"
    yield f"  {'snapshot':<30} {found.snapshot} at {found.read_at}, checked in {report.seconds:.2f} s"
    if any(report.unrecorded.values()):
        entered = ", ".join(f"{n:,} of {TABLES[source]}" for source, n in sorted(report.unrecorded.items()) if n)
        yield f"  {'entered since installation':<30} rows that were changed without an event: {entered}"
    if report.accepted_totals:
        changed = ", ".join(f"{metric} {n:+,}" for metric, n in sorted(report.accepted_totals.items()))
        yield f"  {'accepted since installation':<30} totals that somebody has changed: {changed}"
    if report.lost:
        given_up = _count(report.lost, "change", "changes")
        yield f"  {'lost':<30} {given_up} that the triggers gave up: see losses in mfg-notify doctor"
    if found.differences:
        yield from _describe_rows(found.differences)
    if found.changed_totals:
        yield from _describe_totals(found)
    if report.accepted:
        yield "[green]accepted[/]: the differences are entered, and the next check balances"
    elif not report.balanced:
        yield "  → to enter the differences, so that the next check balances: mfg-notify verify --accept"


def _count(n: int, singular: str, plural: str) -> str:
    return f"{n:,} {singular if n == 1 else plural}"


def _describe_rows(differences: list[Difference]) -> Iterator[str]:
    for source, n in changed_rows(differences).items():
        if n:
            yield f"[red]{TABLES[source]}[/]: at least {n:,} rows were changed without an event"
    for difference in differences[:NAMED_MAXIMUM]:
        source, player_id, status = difference.account
        place = f"{source:<8} player {player_id}, {status or 'no supply level'}"
        yield (
            f"  {place}: {difference.recorded:,} rows according to the events, {difference.counted:,} in the table "
            f"({difference.missing:+,})"
        )
    if len(differences) > NAMED_MAXIMUM:
        yield f"  and {len(differences) - NAMED_MAXIMUM} more"
    yield (
        "  → the counters lack what these changes meant. Triggers were disabled or gave up (mfg-notify doctor shows "
        "both), a session had session_replication_role = replica, data was restored without triggers, or somebody "
        "changed the journal or the books. A running exporter enters the difference"
    )


def _describe_totals(found: Reading) -> Iterator[str]:
    yield f"[red]mfg_notify.total[/]: {len(found.changed_totals)} metrics are not what the folds have added"
    for total in found.changed_totals[:NAMED_MAXIMUM]:
        reason = "; a total has stopped at the end of bigint" if total.at_limit else ""
        change = total.stored - total.added
        yield f"  {total.metric}: {total.added:,} added, {total.stored:,} stored ({change:+,}){reason}"
    yield "  → somebody has changed mfg_notify.total, in the unit it stores (credits, counts, microseconds)"
