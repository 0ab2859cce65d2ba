"""The books: how many rows are live according to the events, and how far the database differs from that.

Owns what an event adds to the balance, what an entry is, and the comparison. Where entries are stored and how live rows
are counted is in `postgres.books`. `db/triggers/0002_seed.up.sql` opens the books by the same rules.

An entry takes the old row out of its account and puts the new one into another. So in any one snapshot of the database,
the balance together with the events that are still in the journal is the number of live rows, account by account. If it
is not, rows were changed without an event.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import Struct

from mfg_notify.core.capped_totals import limited
from mfg_notify.core.catalogue import PIPELINE_LIVE, SUPPLY_LEVELS, TASK_LIVE
from mfg_notify.core.events import BOTH, Change, FactoryChange, FactoryImage, PipelineImage, TaskImage, table_of

TABLES = {
    "pipeline": "manufacturing_pipelines",
    "task": "manufacturing_tasks",
    "factory": "manufacturing_factory_states",
}
"""The game's tables by the `source` of an account."""
_LIVE = {"pipeline": frozenset(PIPELINE_LIVE), "task": frozenset(TASK_LIVE)}
_LEVELS = frozenset(SUPPLY_LEVELS)


Account = tuple[str, int, str]
"""What rows are counted by: the source (pipeline, task or factory), the player and a live status; of a factory its
supply level, '' if it has none."""


def account(source: str, player_id: int, status: str) -> Account | None:
    """Return the account of a row, or None if it is not live. Every row of a factory is, because it has no status."""
    live = _LIVE.get(source)
    if live is None:
        return source, player_id, status if status in _LEVELS else ""
    return (source, player_id, status) if status in live else None


def _standing(image: PipelineImage | TaskImage | FactoryImage | None) -> str | None:
    """Return the status of a row, the supply level of a factory ('' if it has none), or None if there is no row."""
    if image is None:
        return None
    return image.current_supply or "" if isinstance(image, FactoryImage) else image.status


_Move = tuple[str, int, str | None, str | None]
"""Source, player, and the statuses before and after; None is no row. Levels of supply are statuses of factories."""


class Balance:
    """Rows by account, or what a run of events adds to them. Order matters only to a TRUNCATE."""

    def __init__(self) -> None:
        self.truncated: set[str] = set()
        """Sources whose table was truncated: their accounts have begun at 0 since."""
        self._accounts: dict[Account, int] = {}
        self._moves: dict[_Move, int] = {}
        """What is not entered in the accounts yet. Few moves are common to many events."""

    def add(self, changes: Iterable[Change]) -> None:
        """Enter changes; those of one table must come in order of their ids."""
        # Every event passes here, so most of them, updates, are looked at as little as possible.
        moves, both, factory = self._moves, BOTH, FactoryChange
        old: Any
        new: Any
        for change in changes:
            old, new = change.old, change.new
            if old is None or new is None or change.booked is not both:
                self._add_unusual(change)
                continue
            if change.__class__ is factory:
                before, after = old.current_supply or "", new.current_supply or ""
            else:
                before, after = old.status, new.status
            if before != after:
                move = (table_of(change), new.player_id, before, after)
                moves[move] = moves.get(move, 0) + 1

    def _add_unusual(self, change: Change) -> None:
        source, image = table_of(change), change.new or change.old
        if image is None:
            self.truncate(source)
            return
        counts_old, counts_new = change.booked
        before = _standing(change.old) if counts_old else None
        after = _standing(change.new) if counts_new else None
        if before != after:
            self._add_move((source, image.player_id, before, after))

    def _add_move(self, move: _Move) -> None:
        self._moves[move] = self._moves.get(move, 0) + 1

    def add_malformed(self, body: str) -> None:
        """Enter what can be told of a journal row that is not an event, if a trigger has written it.

        A row whose credits no bigint can hold is live all the same.
        """
        try:
            parts = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            return
        move = _malformed_move(parts)
        if move is not None:
            self._add_move(move)

    def accounts(self) -> dict[Account, int]:
        """Return the rows by account, or what has been added to them; none is 0."""
        accounts = self._accounts
        for (source, player_id, before, after), n in self._moves.items():
            if before is not None and (left := account(source, player_id, before)) is not None:
                accounts[left] = accounts.get(left, 0) - n
            if after is not None and (entered := account(source, player_id, after)) is not None:
                accounts[entered] = accounts.get(entered, 0) + n
        self._moves.clear()
        return {place: n for place, n in accounts.items() if n}

    def rows(self) -> tuple[tuple[str, int, str, int], ...]:
        """Return the same as rows of an entry."""
        return tuple((*place, n) for place, n in self.accounts().items())

    def add_rows(self, rows: Iterable[tuple[str, int, str, int]]) -> None:
        """Add rows of an entry."""
        for source, player_id, status, n in rows:
            place = (source, player_id, status)
            self._accounts[place] = self._accounts.get(place, 0) + n

    def truncate(self, source: str) -> None:
        """Begin the accounts of a source at 0."""
        self.truncated.add(source)
        self._accounts = {place: n for place, n in self.accounts().items() if place[0] != source}


_PLACES = {"pipeline": (3, 3), "task": (4, 4), "factory": (1, 4)}
"""Of the player among the numbers of an event as it is written, and of the status among its texts. The first text is
the old status."""
_BIGINT = 2**63


def _malformed_move(parts: Any) -> _Move | None:  # noqa: ANN401 - any JSON
    match parts:
        case ["pipeline" | "task" | "factory" as source, str(operation), [*texts], [*numbers], *_]:
            player_at, status_at = _PLACES[source]
            if len(numbers) <= player_at or len(texts) <= status_at:
                return None
            player_id, before, after = numbers[player_at], texts[0], texts[status_at]
            if type(player_id) is not int or not -_BIGINT <= player_id < _BIGINT:
                return None
            if not isinstance(before, str | None) or not isinstance(after, str | None):
                return None
            if source == "factory":
                before, after = before or "", after or ""
            match operation:
                case "U":
                    return source, player_id, before, after
                case "I" | "M":
                    return source, player_id, None, after
                case "D":
                    return source, player_id, after, None
    return None


class Entry(Struct, frozen=True, omit_defaults=True):
    """What one fold enters, or several together; in the database as JSON."""

    truncated: tuple[str, ...] = ()
    """Sources whose accounts begin at 0 before the rows are added."""
    rows: tuple[tuple[str, int, str, int], ...] = ()
    """What is added to the accounts: source, player, status, and the number of rows."""
    sums: dict[str, int] = {}
    """What has been added to the totals of each metric, in stored units. A sum stops at the ends of bigint."""
    unrecorded: dict[str, int] = {}
    """Rows by source that a check has found to be changed without an event; they are in `rows`."""
    accepted: dict[str, int] = {}
    """What was changed in the totals of each metric, and accepted as it is; it is in `sums`."""


class Books:
    """The sum of entries."""

    def __init__(self) -> None:
        self.balance = Balance()
        self.sums: Counter[str] = Counter()
        self.unrecorded: Counter[str] = Counter()
        self.accepted: Counter[str] = Counter()

    def add(self, entry: Entry) -> None:
        """Add an entry; they must come in order."""
        for source in entry.truncated:
            self.balance.truncate(source)
        self.balance.add_rows(entry.rows)
        self.sums.update(entry.sums)
        self.unrecorded.update(entry.unrecorded)
        self.accepted.update(entry.accepted)

    def carried_forward(self) -> Entry:
        """Return one entry in place of all."""
        sums = {metric: limited(n) for metric, n in self.sums.items()}
        accepted = {metric: limited(n) for metric, n in self.accepted.items() if n}
        return Entry((), self.balance.rows(), sums, dict(self.unrecorded), accepted)


@dataclass(frozen=True, slots=True)
class Difference:
    """An account that has other rows in the database than in the books."""

    account: Account
    recorded: int
    """Rows according to the balance and the journal."""
    counted: int
    """Rows in the table."""

    @property
    def missing(self) -> int:
        """Rows that the books lack; negative if they have too many."""
        return self.counted - self.recorded


def compare(recorded: Mapping[Account, int], counted: Mapping[Account, int]) -> list[Difference]:
    """Return the accounts that differ, in order."""
    return [
        Difference(place, recorded.get(place, 0), counted.get(place, 0))
        for place in sorted(recorded.keys() | counted.keys())
        if recorded.get(place, 0) != counted.get(place, 0)
    ]


NAMED_MAXIMUM = 6
"""Accounts that a log line names."""


def describe_differences(differences: Sequence[Difference]) -> str:
    """Return the first few differences as `player 1 READY -5`: the rows that the books lack, or have too many."""
    named = []
    for difference in differences[:NAMED_MAXIMUM]:
        _, player_id, status = difference.account
        named.append(f"player {player_id} {status} {difference.missing:+}")
    more = len(differences) - len(named)
    return ", ".join([*named, *([f"and {more} more"] if more else [])])


def changed_rows(differences: Iterable[Difference]) -> dict[str, int]:
    """Return by source how many rows were changed without an event: the fewest that explain the differences.

    A row that has moved from one account to another is missing in one and surplus in the other.
    """
    missing: dict[str, int] = dict.fromkeys(TABLES, 0)
    surplus: dict[str, int] = dict.fromkeys(TABLES, 0)
    for difference in differences:
        side = missing if difference.missing > 0 else surplus
        side[difference.account[0]] += abs(difference.missing)
    return {source: max(missing[source], surplus[source]) for source in TABLES}
