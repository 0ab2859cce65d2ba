"""The protocol of announcements, folds and reconciliations: which number may be shown when.

A `Ledger` owns everything that an exporter knows about the game: counters, live rows, recent activity, the last
changes, and the offset of the database's clock. It is pure: its caller talks to the database and passes in what
came back. In the order in which the exporter calls it:

    attach(installation, …) a session has been opened
    observe(generation)     the lease has been read, and perhaps taken
    follow(totals, …)       another exporter leads, and its totals and the journal have been read
    lead()                  this exporter holds the lease
    announce(event)         a payload has arrived
    begin_fold()            a fold is about to be sent
    settle(fold)            its reply has arrived; the outcome may say that the totals must be read …
    resync(totals)          … and this passes them in
    receive_barrier(number) the notification that this fold sent has come back: so have all before it
    begin_reconciliation()  a snapshot of the live rows is about to be read
    reconcile(snapshot)     it has been read; it waits until everything that it shows has been applied
    finish_reconciliation() swap the live rows if that is the case
    disconnect(), step_down()

Two rules make the numbers exact. A fold moves events from the journal into the totals in one transaction, so the totals
hold each event exactly once. And a payload is counted before its fold only while the ledger is in step with the
journal, which the barrier proves (see `counters`).

Generations, event ids and transaction ids are comparable on one timeline of one server only. A session is connected to
one server process, so it never sees two timelines; between two sessions `attach` compares them.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from mfg_notify.core.board import LastChanges, Run
from mfg_notify.core.capped_totals import CappedTotals
from mfg_notify.core.catalogue import MICROSECONDS_PER_SECOND
from mfg_notify.core.counters import Arrival, Counters, Settlement, Waiting
from mfg_notify.core.events import Event
from mfg_notify.core.live_state import LiveRows, LiveState, RecentActivity
from mfg_notify.core.progress import Progress
from mfg_notify.core.row_details import EndedRows, RowDetails, describe_row
from mfg_notify.core.rules import SampleKey
from mfg_notify.core.series import Players, View
from mfg_notify.core.tuning import Tuning
from mfg_notify.core.visibility import Visibility


@dataclass(frozen=True, slots=True)
class Fold:
    """One committed fold. Events of one row of the game are in order of id; malformed rows count as nothing."""

    number: int
    """What `begin_fold` has returned; its barrier carries it."""
    generation: int
    events: Sequence[Event]
    settlement: Settlement
    malformed: int
    drained: bool
    """It found fewer events than it could take: nothing is left that was visible when it began."""
    xid: int
    xmin: int
    """The lowest transaction id that was running when it began."""
    last_id: int
    """The last event id that was handed out when it began."""


@dataclass(frozen=True, slots=True)
class Totals:
    """What the database holds as of a generation."""

    generation: int
    counters: CappedTotals
    activity: RecentActivity


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The live rows as of one snapshot of the database."""

    rows: LiveRows
    visibility: Visibility


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a fold has meant."""

    news: Sequence[Event] = ()
    """Events that are counted now and were not before."""
    replayed: int = 0
    """How many of these came through the journal alone, although the ledger was in step."""
    unconfirmed: int = 0
    """Announced events that the journal does not have."""
    rewound: bool = False
    """The database was set back: a restore, a failover that lost commits, or another copy in its place."""
    restarted: bool = False
    """The triggers were installed anew, and all totals have started again."""
    drained: bool = False
    """The journal was empty at a moment after this fold began."""
    needs_totals: bool = False
    """Nothing has been settled yet: read the totals and pass them to `resync`."""
    settled: bool = False
    """In step, and the journal is drained. Otherwise another fold must follow at once."""


class Ledger:
    """Everything that one exporter knows about the game. `clock` returns monotonic seconds."""

    def __init__(self, clock: Callable[[], float], clock_offset: int, tuning: Tuning) -> None:
        """Start empty; `clock_offset` (microseconds) is added to `clock` until the database's own clock is known."""
        self._clock = clock
        self._clock_offset = clock_offset
        self._tuning = tuning
        self._counters = Counters(tuning.pending_maximum)
        self._live = LiveState()
        self._activity = RecentActivity()
        self._changes = LastChanges()
        self._ended = EndedRows()
        self._players = Players()
        self._progress: Mapping[str, Progress] | None = None
        self._leading = self._drained = self._presentable = False
        self._proven_at = -math.inf
        self._folds = 0
        self._suspects: frozenset[int] = frozenset()
        """What was pending when the last fold began. If it drains the journal, it confirms all of it."""
        self._awaiting_totals: Fold | None = None
        self._rewind_known = False
        """The totals that are read next are known to be those of a rewound database."""
        self._expected: Mapping[SampleKey, int] | None = None
        """What was exposed before this exporter began to lead: a drained journal must confirm all of it."""
        self._floor: Mapping[SampleKey, int] | None = None
        """What another exporter may have shown, or this one before the server changed."""
        self._installation: str | None = None
        self._place: object = None
        self._reinstalled = False
        """The installation has changed. Whether the totals have started again, the next fold shows."""
        self._epoch = 0
        self._snapshot: Snapshot | None = None
        self._snapshot_barrier: int | None = None
        """The barrier that proves that everything the snapshot shows has been applied; None until a fold sends it."""
        self._current_at: int | None = None

    # ------------------------------------------------------------------------------------------------- clock --

    def now(self) -> int:
        """Return the database's clock in epoch microseconds, as far as it is known."""
        return round(self._clock() * MICROSECONDS_PER_SECOND) + self._clock_offset

    def set_clock(self, database_clock: int, asked_at: float) -> None:
        """Set the database's clock: it read `database_clock` (epoch microseconds) when `clock` read `asked_at`."""
        self._clock_offset = database_clock - round(asked_at * MICROSECONDS_PER_SECOND)

    # ------------------------------------------------------------------------------------------------ leading --

    @property
    def leading(self) -> bool:
        """Tell whether this exporter is the one that folds and counts."""
        return self._leading

    @property
    def drained(self) -> bool:
        """Tell whether the journal has been drained at least once since this exporter began to lead."""
        return self._drained

    def attach(self, installation: str, place: object = None) -> None:
        """Record which installation of the triggers a session works with, by something that each has for itself.

        `place` is the server, its timeline and the database. On another one, the database may lack what was exposed.
        """
        self._reinstalled = self._reinstalled or self._installation not in (None, installation)
        self._installation = installation
        if self._place not in (None, place):
            self._counters.expect_gap()
            self._expect()
        self._place = place

    def observe(self, generation: int) -> bool:
        """Compare the generation of the lease while not leading. Return whether it shows a rewind of the database."""
        if self._reinstalled or not self._counters.observe(generation):
            return False  # if it was installed anew, the next fold says that all totals have started again
        self._lose()
        self._rewind_known = True
        return True

    def follow(self, totals: Totals, waiting: Waiting) -> bool:
        """Take over what was read while another exporter leads. Return whether it shows a rewind."""
        if self._leading or self._reinstalled:
            return False
        rewound = self.observe(totals.generation)
        if not self._rewind_known and self._counters.exceed(totals.counters):
            self._lose()
            rewound = True
        self._rewind_known = False
        if self._expected is not None and not totals.counters.lack(self._expected):
            self._expected = None  # otherwise the journal may have the rest: the next leader knows
        self._counters.follow(totals.counters, waiting)
        return rewound

    def heard(self) -> frozenset[int]:
        """Return the ids of events that no totals have confirmed yet."""
        return self._counters.pending()

    def hear(self, event: Event) -> bool:
        """Record an event that a payload has brought while another exporter leads. Return whether it was news."""
        return self._counters.hear(event)

    def _expect(self) -> None:
        """Hold what was exposed, here or by the exporter that was followed, until it is known whether it was lost."""
        known = self._counters.exposed()
        self._expected = _highest(self._expected, known)
        self._floor = _highest(self._floor, known)
        if self._counters.following:
            self._counters.forget_pending()

    def _lose(self) -> None:
        """Hold what was exposed, here or by the exporter that was followed, and expect nothing of it any more."""
        self._floor = _highest(self._floor, self._counters.exposed())
        self._counters.forget_pending()
        self._rewind()

    def lead(self) -> None:
        """Begin to lead: nothing is known of what another exporter has folded meanwhile.

        If another may have led meanwhile, it has shown more than is known here, so show nothing until all is known.
        """
        if self._counters.following and not self._reinstalled:
            self._expect()
        self._live.ignore_next_difference()
        self._leading, self._drained = True, False
        self._presentable = self._presentable and self.proves_lead

    def prove_lead(self, at: float) -> None:
        """Record that a statement sent at `at` (seconds of `clock`) has renewed the lease and is committed."""
        self._proven_at = max(self._proven_at, at)

    @property
    def proves_lead(self) -> bool:
        """Tell whether no other exporter can lead: the lease was renewed and has not expired.

        It may still hold after a disconnect, so a short one leaves no gap in the series.
        """
        return self._clock() < self._proven_at + self._tuning.lease_duration

    def release_lead(self) -> None:
        """Record that the lease is about to be given back: another exporter may take it at once."""
        self._proven_at = -math.inf

    def disconnect(self) -> None:
        """Stop counting: notifications are being missed, and the outcome of a COMMIT under way is unknown."""
        self._counters.disconnect()
        self._leading = False
        self._forget_work_under_way()

    def step_down(self) -> None:
        """Stop leading because another exporter does. Nothing is shown until this one leads again."""
        self.disconnect()
        self.release_lead()
        self._counters.forget_pending()
        self._live = LiveState()
        self._changes.clear()
        self._ended = EndedRows()
        self._presentable = self._drained = False

    def _forget_work_under_way(self) -> None:
        self._awaiting_totals = None
        self._snapshot = self._snapshot_barrier = None

    # -------------------------------------------------------------------------------- announcements and folds --

    def announce(self, event: Event) -> Arrival:
        """Count an event that a payload has brought, unless it was counted before."""
        arrival = self._counters.announce(event)
        if arrival is Arrival.COUNTED:
            self._live.apply(event)
            self._changes.announce((event,))
        return arrival

    def receive_barrier(self, number: int) -> None:
        """Record that every notification of an event folded up to this fold has arrived."""
        self._counters.receive_barrier(number)

    def begin_fold(self) -> int:
        """Record what is pending before a fold looks into the journal: a drained journal must confirm it.

        Return the number of the fold, which no other fold of this exporter has.
        """
        self._suspects = self._counters.pending()
        self._folds += 1
        return self._folds

    def settle(self, fold: Fold) -> Outcome:
        """Settle a committed fold. If its outcome `needs_totals`, pass them to `resync` before anything else."""
        rewound, restarted = self._counters.is_rewind(fold.generation), False
        if rewound:
            restarted = self._rewind()
            fold = replace(fold, drained=False)
        if not self._counters.follows(fold.generation):
            self._awaiting_totals, self._rewind_known = fold, rewound or self._rewind_known
            return Outcome(needs_totals=True, rewound=rewound and not restarted, restarted=restarted)
        news = self._counters.confirm(fold.events, fold.settlement, fold.generation, fold.number)
        self._activity.add(fold.settlement)
        return self._complete(fold, news, followed=True)

    def resync(self, totals: Totals) -> Outcome:
        """Take over totals that were read after the fold that asked for them."""
        fold = self._awaiting_totals
        if fold is None:
            raise ValueError("no fold is waiting for totals")
        self._awaiting_totals = None
        rewound, restarted = not self._rewind_known and self._counters.exceed(totals.counters), False
        self._rewind_known = False
        if rewound:
            restarted = self._rewind()
            fold = replace(fold, drained=False)
        if self._counters.has_gap(totals.generation):
            # Events that another exporter has folded may never have been announced: the live rows lack them.
            self._live.request_resync()
        # If another exporter has folded meanwhile, the barrier of this fold says nothing about those events.
        barrier = fold.number if totals.generation == fold.generation else fold.number + 1
        self._counters.resync(totals.counters, totals.generation, barrier, fold.events)
        self._activity = totals.activity
        outcome = self._complete(fold, fold.events, followed=False)
        return replace(outcome, rewound=outcome.rewound or (rewound and not restarted), restarted=restarted)

    def _rewind(self) -> bool:
        """Forget what is no more. Return whether the triggers were installed anew, so that all totals start again."""
        self._expected = None
        self._changes.clear()
        self._ended = EndedRows()
        # The live rows are of a state that is no more, and a snapshot that waits may be, too: take another one.
        self._snapshot = self._snapshot_barrier = None
        self._live.request_resync()
        if not self._reinstalled:
            return False
        self._counters = Counters(self._tuning.pending_maximum)
        self._floor = None
        self._presentable = self._drained = False
        self._epoch += 1
        return True

    def _complete(self, fold: Fold, news: Sequence[Event], *, followed: bool) -> Outcome:
        self._reinstalled = False
        if self._drained:  # before that, the first snapshot is still to come
            for event in fold.events:
                self._live.apply(event)
        self._changes.settle(fold.events)
        self._ended.settle(fold.events)
        unconfirmed = self._confirm_drained(fold) if fold.drained else 0
        rewound = False
        if fold.drained and self._expected is not None:
            if rewound := self._counters.lack(self._expected):
                self._rewind()
            self._expected = None
        return Outcome(
            news=news,
            replayed=len(news) if followed else 0,
            unconfirmed=unconfirmed,
            rewound=rewound,
            drained=fold.drained,
            settled=fold.drained and followed,
        )

    def _confirm_drained(self, fold: Fold) -> int:
        self._drained = True
        unconfirmed = self._counters.discard_unconfirmed(self._suspects)
        if unconfirmed:
            self._live.request_resync()
        self._changes.forget_unconfirmed(self._counters.pending())
        if self._snapshot is not None and self._snapshot_barrier is None:
            self._snapshot_barrier = fold.number
        return unconfirmed

    # ---------------------------------------------------------------------------------------- reconciliation --

    @property
    def presentable(self) -> bool:
        """Tell whether there is something exact to show: a snapshot has been taken over since this exporter leads."""
        return self._presentable

    @property
    def needs_snapshot(self) -> bool:
        """Tell whether something happened that only a snapshot can settle, and none is under way."""
        return self._live.needs_snapshot and self._snapshot is None

    @property
    def reconciling(self) -> bool:
        """Tell whether a snapshot waits until everything that it shows has been applied."""
        return self._snapshot is not None

    @property
    def awaits_barrier(self) -> bool:
        """Tell whether the next step of a reconciliation depends on a barrier that is on its way."""
        return self._snapshot_barrier is not None

    def begin_reconciliation(self) -> None:
        """Keep the events that arrive from now on: the snapshot that is about to be read may not show them."""
        self._live.start_recording()

    def reconcile(self, snapshot: Snapshot) -> None:
        """Hold a snapshot of the live rows until the barrier of the next fold that drains the journal."""
        self._snapshot, self._snapshot_barrier = snapshot, None

    def finish_reconciliation(self) -> Counter[str] | None:
        """Swap the live rows if the barrier has come back. Return corrected series by gauge; None if nothing was done.

        By then everything that the snapshot shows has been applied, so a difference is an event that was missed.
        """
        snapshot, barrier = self._snapshot, self._snapshot_barrier
        if snapshot is None or barrier is None or self._counters.barrier < barrier:
            return None
        self._snapshot = self._snapshot_barrier = None
        corrections = self._live.reconcile(snapshot.rows, snapshot.visibility.sees)
        self._activity.prune(self.now())
        self._presentable = True
        self.confirm_current()
        return corrections

    def set_ships(self, ships: Mapping[tuple[int, str], bool]) -> None:
        """Take over the game's table of ships, which changes without events."""
        self._live.set_ships(ships)

    def set_players(self, players: Players) -> None:
        """Take over what the game knows of its players, which changes without events."""
        self._players = players

    def set_progress(self, progress: Mapping[str, Progress] | None) -> None:
        """Take over what live pipelines wait for; None if that cannot be known."""
        self._progress = progress

    # -------------------------------------------------------------------------------------------------- view --

    def confirm_current(self) -> None:
        """Record that what is shown is current: this exporter has just proved that it leads."""
        self._current_at = self.now()

    @property
    def current_at(self) -> int | None:
        """The database's clock (epoch microseconds) when what is shown was last known to be current."""
        return self._current_at

    def view(self) -> View | None:
        """Return everything that a scrape shows of the game, immutable; None while there is nothing exact to show."""
        if not self._presentable:
            return None
        activity = self._activity.copy()
        for settlement in self._counters.announced():
            activity.add(settlement)
        return View(
            self._counters.exposed(),
            self._live.gauges(),
            activity,
            players=self._players,
            capped=self._counters.capped,
            exemplars=self._counters.exemplars(),
            epoch=self._epoch,
            floor=self._floor,
        )

    def runs(self) -> list[Run]:
        """Return the live pipelines, the oldest first."""
        progress = self._progress or {}
        return sorted(
            (Run(key, row, progress.get(key)) for key, row in self._live.pipelines().items()), key=Run.sort_key
        )

    def last_changes(self) -> list[Event]:
        """Return the last change events, newest first."""
        return self._changes.newest()

    def row_details(self, kind: str, key: str) -> RowDetails:
        """Return what is known of one pipeline or task (one of `row_details.KINDS`)."""
        changes = [event for event in self.last_changes() if event.table == kind and event.change.key == key]
        ended = self._ended.find(kind, key)
        if ended is not None and ended not in changes:
            changes.append(ended)
        rows = self._live.pipelines() if kind == "pipeline" else self._live.tasks()
        return describe_row(
            rows.get(key),
            changes,
            self._ended.complete_since(kind),
            (self._progress or {}).get(key) if kind == "pipeline" else None,
            self._players.names,
        )


def _highest(one: Mapping[SampleKey, int] | None, other: Mapping[SampleKey, int]) -> Mapping[SampleKey, int]:
    return {**other, **{key: max(n, other.get(key, n)) for key, n in (one or {}).items()}}
