"""A model of PostgreSQL that knows visibility and order, and keeps the truth.

Transaction ids are handed out at the first write and event ids at the write of an event; both in rising order, neither
in the order of commits. Notifications go out when a transaction commits, to everyone who listens then, in one order. A
sequence (`notify_disabled`, the last id) changes at once and survives a rollback. A fold holds the row of the lease
from its beginning to its end. The whole state can be saved and restored.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from tests.simulation.agenda import Agenda

from mfg_notify.core.capped_totals import CappedTotals
from mfg_notify.core.catalogue import PIPELINE_LIVE, TASK_LIVE
from mfg_notify.core.counters import Settlement, Waiting
from mfg_notify.core.events import (
    Change,
    Event,
    FactoryImage,
    PipelineChange,
    PipelineImage,
    TaskChange,
    TaskImage,
)
from mfg_notify.core.ledger import Fold, Snapshot, Totals
from mfg_notify.core.live_state import LiveRows, RecentActivity
from mfg_notify.core.rules import Completion, SampleKey, increments
from mfg_notify.core.visibility import Visibility

Sums = dict[SampleKey, int]
FOLD = "fold"
LEASE_TIMEOUT = 5.0
EPOCH = 1_800_000_000 * 1_000_000
"""The database's clock, in epoch microseconds, when the model's time is 0."""


def add(totals: Sums, event: Event) -> None:
    """Add what an event adds."""
    for key, n in increments(event):
        totals[key] = totals.get(key, 0) + n


@dataclass(slots=True)
class Rows:
    """The committed rows of the game."""

    pipelines: dict[str, PipelineImage] = field(default_factory=dict)
    tasks: dict[str, TaskImage] = field(default_factory=dict)
    factories: dict[int, FactoryImage] = field(default_factory=dict)

    def apply(self, change: Change) -> None:
        """Carry out a change."""
        if isinstance(change, TaskChange):
            _apply(self.tasks, change.key, change.operation, change.new)
        elif isinstance(change, PipelineChange):
            _apply(self.pipelines, change.key, change.operation, change.new)
        else:
            _apply(self.factories, int(change.key or 0), change.operation, change.new)

    def copy(self) -> "Rows":
        """Return a copy that later changes do not touch."""
        return Rows(dict(self.pipelines), dict(self.tasks), dict(self.factories))

    def live(self) -> LiveRows:
        """Return the live rows, as a snapshot reads them."""
        pipelines = {key: row for key, row in self.pipelines.items() if row.status in PIPELINE_LIVE}
        tasks = {key: row for key, row in self.tasks.items() if row.status in TASK_LIVE}
        factories = {
            key: row for key, row in self.factories.items() if row.pipeline_id is None or row.pipeline_id in pipelines
        }
        return LiveRows(pipelines, tasks, factories)


def _apply(table: dict[Any, Any], key: str | int, operation: str, new: object) -> None:
    if operation == "T":
        table.clear()
    elif new is None:
        table.pop(key, None)
    else:
        table[key] = new


@dataclass(frozen=True, slots=True)
class Moment:
    """What was true at a time, for the invariants."""

    at: float
    truth: Sums
    complete: bool
    """A standby has read or heard the whole journal; a long backlog it has not."""


@dataclass(eq=False, slots=True)
class Transaction:
    """A transaction of the game. The first event is written at once, the others when it ends."""

    xid: int
    changes: list[Change] = field(default_factory=list)
    written: list[Event] = field(default_factory=list)
    says: list[Event | str] = field(default_factory=list)
    silent: bool = False
    """It has written an event while NOTIFY was disabled."""


@dataclass(eq=False, slots=True)
class FoldTransaction:
    """A fold that is under way: it holds the row of the lease."""

    backend: "Backend"
    xid: int
    xmin: int
    last_id: int
    events: list[Event]


class Receiver(Protocol):
    """Who carries notifications to a client."""

    has_stood_by: bool

    def send(self, backend: "Backend", sender: int, said: list[Event | str]) -> None:
        """Carry notifications of one commit."""


class Backend:
    """The two connections of one session, as the server sees them."""

    def __init__(self, pid: int, name: str, receiver: "Receiver") -> None:
        self.pid = pid
        self.name = name
        self.receiver = receiver
        self.alive = True
        self.listening = True
        self.notified_until = 0.0
        """When the last notification arrives that was sent so far: they overtake each other never."""

    def __repr__(self) -> str:
        return f"{self.name}#{self.pid}"


@dataclass(slots=True)
class State:
    """Everything that a restore brings back."""

    rows: Rows = field(default_factory=Rows)
    journal: dict[int, Event] = field(default_factory=dict)
    totals: Sums = field(default_factory=dict)
    truth: Sums = field(default_factory=dict)
    recent: dict[str, Completion] = field(default_factory=dict)
    latest: dict[tuple[str, int, str], int] = field(default_factory=dict)
    generation: int = 0
    holder: str | None = None
    holder_pid: int = 0
    renewed_at: float = -1e9
    last_id: int = 0
    next_xid: int = 10
    notify_disabled: bool = False

    def copy(self) -> "State":
        """Return a copy that later changes do not touch."""
        return State(
            self.rows.copy(),
            dict(self.journal),
            dict(self.totals),
            dict(self.truth),
            dict(self.recent),
            dict(self.latest),
            self.generation,
            self.holder,
            self.holder_pid,
            self.renewed_at,
            self.last_id,
            self.next_xid,
            self.notify_disabled,
        )


class Database:
    """One server. What it returns is what the statements in `mfg_notify.postgres` return."""

    def __init__(self, agenda: Agenda) -> None:
        self._agenda = agenda
        self.state = State()
        self.running: dict[int, object] = {}
        """Open transactions by xid."""
        self.latest_completed = 9
        self.backends: dict[int, Backend] = {}
        self._last_pid = 100
        self.fold: FoldTransaction | None = None
        self.queue_full = False
        self.up = True
        self.timeline = 1
        """Rises with each promotion."""
        self.contested_until = 0.0
        """Until then a holder may not know yet that its lease was taken from it before it expired."""

    # ------------------------------------------------------------------------------------------ transactions --

    def assign_xid(self, owner: object) -> int:
        """Return a new transaction id; the transaction runs until `end`."""
        xid = self.state.next_xid
        self.state.next_xid += 1
        self.running[xid] = owner
        return xid

    def end(self, xid: int) -> None:
        """End a transaction, whichever way."""
        del self.running[xid]
        self.latest_completed = max(self.latest_completed, xid)

    def xmin(self) -> int:
        """Return the lowest xid that a snapshot taken now does not consider ended."""
        return min(self.running, default=self.latest_completed + 1)

    def clock(self) -> int:
        """Return the database's clock in epoch microseconds."""
        return EPOCH + round(self._agenda.now * 1_000_000)

    # ---------------------------------------------------------------------------------------------- the game --

    def change(self, transaction: Transaction, change: Change, announced: bool) -> None:
        """Change a row, as a statement of the game does with our trigger behind it."""
        transaction.changes.append(change)
        if not transaction.written:
            self._write(transaction, change, announced)

    def flush(self, transaction: Transaction, announced: bool) -> None:
        """Write the buffered events, as the deferred trigger does just before the transaction commits."""
        for change in transaction.changes[len(transaction.written) :]:
            self._write(transaction, change, announced)

    def _write(self, transaction: Transaction, change: Change, announced: bool) -> None:
        state = self.state
        state.last_id += 1
        event = Event(state.last_id, transaction.xid, self.clock(), change)
        transaction.written.append(event)
        transaction.silent = transaction.silent or state.notify_disabled
        if not (state.notify_disabled or self.queue_full):
            transaction.says.append(event if announced else FOLD)

    def commit(self, transaction: Transaction) -> None:
        """Make everything visible, then notify."""
        state = self.state
        self.end(transaction.xid)
        for change in transaction.changes:
            state.rows.apply(change)
        for event in transaction.written:
            state.journal[event.id] = event
            add(state.truth, event)
        if transaction.says:
            self.notify(0, transaction.says)

    def roll_back(self, transaction: Transaction) -> None:
        """Undo everything; ids stay used up."""
        self.end(transaction.xid)

    # ------------------------------------------------------------------------------- connections, notifications --

    def connect(self, name: str, receiver: "Receiver") -> Backend:
        """Open a pair of connections, one of which listens."""
        self._last_pid += 1
        backend = self.backends[self._last_pid] = Backend(self._last_pid, name, receiver)
        return backend

    def disconnect(self, backend: Backend) -> None:
        """End the server's side of a session; what it has not committed is undone."""
        if backend.alive:
            backend.alive = backend.listening = False
            del self.backends[backend.pid]
            if self.fold is not None and self.fold.backend is backend:
                self.end(self.fold.xid)
                self.fold = None

    def notify(self, sender: int, said: list[Event | str]) -> None:
        """Send notifications of one commit to everyone who listens."""
        for backend in self.backends.values():
            if backend.listening:
                backend.receiver.send(backend, sender, said)

    # ------------------------------------------------------------------------------------ statements: the lease --

    def acquire(self, backend: Backend, from_the_dead: bool) -> tuple[bool, int]:
        """Take the lease if it is free, mine or expired, and from the dead also if its holder's backend is gone.

        Return whether it was taken, and the generation.
        """
        state = self.state
        silent = abs(self._agenda.now - state.renewed_at) > LEASE_TIMEOUT
        available = state.holder in (None, backend.name) or silent
        if not available and from_the_dead and state.holder_pid not in self.backends:
            available = True
            if not backend.receiver.has_stood_by:
                self.contested_until = max(self.contested_until, state.renewed_at + LEASE_TIMEOUT)
        if available and self.fold is None:
            state.holder, state.holder_pid, state.renewed_at = backend.name, backend.pid, self._agenda.now
            self.end(self.assign_xid(backend))
            return True, state.generation
        if silent and self.fold is not None and self.fold.backend is not backend:
            self._agenda.note(f"the server ends {self.fold.backend}, a silent holder")
            self.disconnect(self.fold.backend)
        return False, state.generation

    def heartbeat(self, backend: Backend, ping: int) -> tuple[bool, int, bool]:
        """Renew the lease and send a ping. Return whether the backend holds it, the clock, whether NOTIFY is off."""
        state = self.state
        self.end(self.assign_xid(backend))
        if holds := state.holder == backend.name:
            state.renewed_at, state.holder_pid = self._agenda.now, backend.pid
        self.notify(backend.pid, [f"ping {ping}"])
        return holds, self.clock(), state.notify_disabled

    def release(self, backend: Backend) -> None:
        """Give the lease back."""
        if self.state.holder == backend.name:
            self.state.holder = None

    # ------------------------------------------------------------------------------------ statements: the fold --

    def enable_notify(self) -> None:
        """Let the triggers notify."""
        self.state.notify_disabled = False

    def begin_fold(self, backend: Backend, disable_notify: bool) -> bool:
        """Begin a fold: lock the lease. Return False if another holds it."""
        state = self.state
        if state.holder != backend.name:
            return False
        xmin = self.xmin()
        state.renewed_at = self._agenda.now
        self.fold = FoldTransaction(backend, self.assign_xid(backend), xmin, state.last_id, [])
        if disable_notify:
            state.notify_disabled = True
        return True

    def take_events(self, limit: int, after: int) -> list[Event]:
        """Take events out of the journal, those with the lowest ids first."""
        assert self.fold is not None
        taken, journal = {event.id for event in self.fold.events}, self.state.journal
        found = sorted(number for number in journal if number > after and number not in taken)[:limit]
        events = [journal[number] for number in found]
        self.fold.events += events
        return events

    def commit_fold(self, number: int, settlement: Settlement, chunk: int) -> Fold:
        """Add the settlement to the totals and commit; the barrier is part of it."""
        fold, state = self.fold, self.state
        assert fold is not None
        self.end(fold.xid)
        self.fold = None
        state.generation += 1
        for event in fold.events:
            del state.journal[event.id]
        for key, n in settlement.increments.items():
            state.totals[key] = state.totals.get(key, 0) + n
        for done in settlement.completions.values():
            if done.profit is None:
                state.recent.pop(done.pipeline_id, None)
            else:
                state.recent[done.pipeline_id] = done
        for place, at in settlement.last_seen.items():
            if at > state.latest.get(place, -1):
                state.latest[place] = at
        self.notify(fold.backend.pid, [f"barrier {number}"])
        drained = len(fold.events) < chunk
        return Fold(number, state.generation, fold.events, settlement, 0, drained, fold.xid, fold.xmin, fold.last_id)

    def read_totals(self) -> tuple[Totals, frozenset[int]]:
        """Read the totals whole. Also return the ids in the journal, for the invariants."""
        state = self.state
        activity = RecentActivity(dict(state.recent), dict(state.latest))
        return Totals(state.generation, CappedTotals(totals=state.totals), activity), frozenset(state.journal)

    def follow(self, asked: frozenset[int], newest: int) -> tuple[Totals, Waiting, Moment]:
        """Read totals and journal in one snapshot; of the events not `asked` for, the `newest` ids."""
        journal, after = self.state.journal, self.state.last_id - newest
        unheard = [event for number, event in journal.items() if number > after and number not in asked]
        waiting = Waiting(self._visibility(), asked, asked & journal.keys(), unheard)
        complete = all(number > after or number in asked for number in journal)
        return self.read_totals()[0], waiting, Moment(self._agenda.now, dict(self.state.truth), complete)

    def read_snapshot(self) -> Snapshot:
        """Read the live rows in one snapshot."""
        return Snapshot(self.state.rows.live(), self._visibility())

    def _visibility(self) -> Visibility:
        next_xid = self.latest_completed + 1
        return Visibility(next_xid, frozenset(xid for xid in self.running if xid < next_xid))

    # ------------------------------------------------------------------------------------------ going back --

    def restore(self, state: State, *, in_place: bool) -> None:
        """Set everything back. `in_place`: restored through a connection, so the cluster's xids go on."""
        next_xid = self.state.next_xid
        assert not self.running
        self.contested_until = self._agenda.now + LEASE_TIMEOUT
        self.state = state.copy()
        if in_place:
            self.state.next_xid = next_xid
        self.latest_completed = self.state.next_xid - 1

    def check_totals(self) -> str | None:
        """Return what is wrong with I1: totals and journal together are the truth."""
        found = dict(self.state.totals)
        for event in self.state.journal.values():
            add(found, event)
        return (
            None
            if found == self.state.truth
            else f"I1: totals and journal are not the truth: {differences(found, self.state.truth)}"
        )


def differences(found: Mapping[SampleKey, int], expected: Mapping[SampleKey, int]) -> str:
    """Return the first keys that differ."""
    keys = [key for key in {**found, **expected} if found.get(key, 0) != expected.get(key, 0)]
    return ", ".join(f"{key[0]}{list(key[1])} {found.get(key, 0)} for {expected.get(key, 0)}" for key in keys[:4])
