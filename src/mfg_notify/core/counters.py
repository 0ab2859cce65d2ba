"""The arithmetic of payloads and folds: settled totals, and the announced events that no fold has confirmed yet.

Owns addition and the order in which payloads, folds and barriers may arrive. What an event adds is decided in `rules`,
how totals are stored in `postgres.journal`, and when to read them again in `ledger`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

from mfg_notify.core.books import Balance
from mfg_notify.core.capped_totals import CappedTotals, limited
from mfg_notify.core.events import Event
from mfg_notify.core.exemplars import INCREMENTS_MINIMUM, Exemplars, keep_last, note_exemplars
from mfg_notify.core.rules import Completion, SampleKey, completion, increments, last_seen
from mfg_notify.core.visibility import Visibility


@dataclass(slots=True)
class Settlement:
    """What a run of events adds, summed. Order matters to completions and last_seen row by row, and to a TRUNCATE."""

    increments: dict[SampleKey, int] = field(default_factory=dict)
    completions: dict[str, Completion] = field(default_factory=dict)
    """By pipeline; the last one counts."""
    last_seen: dict[tuple[str, int, str], int] = field(default_factory=dict)
    """Latest time (epoch microseconds) by kind, player and key."""
    balance: Balance = field(default_factory=Balance)
    exemplars: Exemplars = field(default_factory=dict)

    def add(self, events: Sequence[Event]) -> None:
        """Add events; the ids of one row must rise."""
        summed, seen = self.increments, self.last_seen
        for event in events:
            found = increments(event)
            for key, n in found:
                summed[key] = summed.get(key, 0) + n
            if len(found) >= INCREMENTS_MINIMUM:
                note_exemplars(self.exemplars, event, found)
            done = completion(event)
            if done is not None:
                self.completions[done.pipeline_id] = done
            for place, at in last_seen(event):
                if at > seen.get(place, -1):
                    seen[place] = at
        self.balance.add([event.change for event in events])


def settle(events: Sequence[Event]) -> Settlement:
    """Sum up events; the ids of one row must rise."""
    settlement = Settlement()
    settlement.add(events)
    return settlement


@dataclass(frozen=True, slots=True)
class _Announced:
    """An event that a payload has brought and no fold has confirmed yet, and what it adds."""

    event: Event
    settlement: Settlement


@dataclass(frozen=True, slots=True)
class Waiting:
    """What the journal held when a standby read the totals, in the same snapshot."""

    visibility: Visibility
    asked: frozenset[int]
    """Ids of events that this standby had heard before."""
    in_journal: frozenset[int]
    """Those of them that no fold had taken."""
    unheard: Sequence[Event]
    """The newest others that no fold had taken."""

    def may_add(self, event: Event) -> bool:
        """Tell whether the totals lack an event that was heard."""
        # One that was heard before has committed before. If it is neither in the journal nor folded, it was forged.
        return event.id in self.in_journal if event.id in self.asked else not self.visibility.sees(event.xid)


class Arrival(Enum):
    """What became of a payload."""

    COUNTED = auto()
    DUPLICATE = auto()
    """It was counted before: the fold was faster, or the payload came twice."""
    DEFERRED = auto()
    """The fold that is due counts it: the counters are not in step with the journal, too much is pending, or the cap on
    series is near, and a fold decides which label set has its own series."""


class Counters:
    """The settled totals and, before them, what payloads have announced and no fold has confirmed yet.

    Folds of one exporter follow each other generation by generation, so what a fold adds can be added in memory; a gap
    in the generations or a broken connection requires reading the totals again (`resync`). Notifications arrive in
    commit order and only after their commit is visible. So the barrier that a fold sends proves that every notification
    of an event folded up to then has arrived, and only from then on can a payload be trusted to be new. Ids prove
    nothing of the kind: they are not in commit order.

    A barrier carries the fold's number. The exporter counts its folds itself, because generations come again after a
    rewind.

    A standby follows the leader: it reads totals and journal now and then (`follow`) and adds the payloads that it
    hears (`hear`). What it knows is never more than what was committed, so it can tell after a takeover whether
    commits were lost.
    """

    def __init__(self, pending_maximum: int) -> None:
        self._pending_maximum = pending_maximum
        self._settled = CappedTotals()
        self._exemplars: Exemplars = {}
        """Of settled events, at most one for each bucket of `_settled`."""
        self._generation: int | None = None
        self._latest = -1
        self._seen = -1
        """The highest generation that was read, by this exporter as the leader or not, since the last rewind."""
        self._continuous = True
        """`_latest` is a fold that is known here, on this timeline: the next generation follows it without a gap."""
        self._following = False
        self._visibility: Visibility | None = None
        """Of the snapshot in which a standby last read the totals. They hold only transactions that it shows.

        None until the first reading of a session: a server that was restored hands out the same xids again.
        """
        self._pending: dict[int, _Announced] = {}
        self._mismatched = 0
        self._settled_before_announced: dict[int, int] = {}
        """Number of the fold by the id of an event whose notification is still on its way."""
        self._barrier = -1
        self._resynced_at = 0

    @property
    def barrier(self) -> int:
        """Highest number of an own fold whose barrier has come, -1 before the first."""
        return self._barrier

    @property
    def synced(self) -> bool:
        """Tell whether payloads are counted as they arrive."""
        return self._generation is not None and self._barrier >= self._resynced_at

    def disconnect(self) -> None:
        """Trust nothing until the next `resync`: notifications were missed, the outcome of a COMMIT is unknown."""
        self._generation = None
        self._visibility = None
        self._settled_before_announced.clear()

    def forget_pending(self) -> None:
        """Drop what is pending: nothing of it is shown any more, and another exporter folds it."""
        self._pending.clear()
        self._mismatched = 0
        self._following, self._visibility = False, None

    def expect_gap(self) -> None:
        """Read the totals before the next fold counts: another server may have handed out the next generations."""
        self._continuous = False

    # ---------------------------------------------------------------------------------------------- standing by --

    @property
    def following(self) -> bool:
        """Tell whether these are the totals of another exporter, which leads."""
        return self._following

    def observe(self, generation: int) -> bool:
        """Compare a generation that was read without folding. Return whether it shows that the database was rewound."""
        if generation >= max(self._latest, self._seen):
            self._seen = generation
            return False
        self._latest = self._seen = generation
        self._continuous = self._following = False
        self._visibility = None
        return True

    def follow(self, totals: CappedTotals, waiting: Waiting) -> None:
        """Take over the totals that another exporter has settled, and what was `waiting` for a fold then."""
        self._settled, self._visibility = totals, waiting.visibility
        self._following, self._continuous = True, False
        heard, self._pending = self._pending, {}
        for announced in heard.values():
            if waiting.may_add(announced.event):
                self._add_pending(announced.event, announced.settlement)
        for event in waiting.unheard:
            self._add_pending(event)

    def hear(self, event: Event) -> bool:
        """Add an event that another exporter shows, if the totals cannot have it. Return whether it was added."""
        # What the snapshot showed is in the totals, or was in the journal and is pending.
        if self._visibility is None or self._visibility.sees(event.xid) or event.id in self._pending:
            return False
        return self._add_pending(event)

    def _add_pending(self, event: Event, settlement: Settlement | None = None) -> bool:
        if len(self._pending) >= self._pending_maximum:
            return False
        settlement = settlement or settle((event,))
        if not self._settled.announce(settlement.increments):
            return False
        self._pending[event.id] = _Announced(event, settlement)
        return True

    @property
    def capped(self) -> bool:
        """Tell whether the cap on series has been reached, so that some totals are summed under `other`."""
        return self._settled.full

    def resync(self, totals: CappedTotals, generation: int, barrier: int, folded: Iterable[Event] = ()) -> None:
        """Take over totals that were read as of this generation. One more fold must follow.

        `barrier` proves that every notification of an event in the totals has arrived. `folded` are the events of the
        fold before the reading. If no other fold can have happened since the last known
        one, whatever else is pending is still in the journal, or nowhere: it stays pending until a fold drains the
        journal.
        """
        self._settled = totals
        # Another exporter may have counted since, or the database was rewound.
        self._exemplars.clear()
        if not self.has_gap(generation):
            for event in folded:
                self._pending.pop(event.id, None)
        else:
            self._pending.clear()
        self._generation = self._latest = self._seen = generation
        self._continuous = True
        self._resynced_at = barrier
        self._settled_before_announced.clear()

    def exceed(self, totals: CappedTotals) -> bool:
        """Tell whether a counter has fallen in totals that were read just now: the database was rewound or replaced."""
        # Which label sets are summed up may differ.
        return not self._settled.full and totals.lack(self._settled.copy())

    def lack(self, exposed: Mapping[SampleKey, int]) -> bool:
        """Tell whether a counter that was exposed before is higher than what is settled now."""
        return self._settled.lack(exposed)

    def is_rewind(self, generation: int) -> bool:
        """Tell whether a fold of this generation shows that the database was rewound: generations only rise."""
        return generation <= max(self._latest, self._seen)

    def has_gap(self, generation: int) -> bool:
        """Tell whether there may be folds between the last known one and this one."""
        return not self._continuous or generation != self._latest + 1

    def follows(self, generation: int) -> bool:
        """Tell whether a fold of this generation can be confirmed in memory; otherwise the totals must be read."""
        return self._generation is not None and generation == self._generation + 1

    def announce(self, event: Event) -> Arrival:
        """Count an event that a payload has brought, unless it was counted before."""
        if event.id in self._settled_before_announced or event.id in self._pending:
            return Arrival.DUPLICATE
        return Arrival.COUNTED if self.synced and self._add_pending(event) else Arrival.DEFERRED

    def receive_barrier(self, number: int) -> None:
        """Record that every notification of an event folded up to this fold has arrived."""
        self._barrier = max(self._barrier, number)
        self._settled_before_announced = {
            event: at for event, at in self._settled_before_announced.items() if at > number
        }

    def confirm(self, events: Iterable[Event], settlement: Settlement, generation: int, number: int) -> list[Event]:
        """Settle a committed fold that `follows`; return the events that no payload had brought before.

        A payload whose id belongs to an event with other contents was forged: it is dropped and counted as unconfirmed.
        """
        news = []
        for event in events:
            announced = self._pending.pop(event.id, None)
            if announced is None or announced.event != event:
                self._mismatched += announced is not None
                news.append(event)
                # Its notification is still on its way, unless the barrier arrived before the reply to the COMMIT.
                if number > self._barrier:
                    self._settled_before_announced[event.id] = number
        for key, n in settlement.increments.items():
            self._settled.add(key, n)
        for key, exemplar in settlement.exemplars.items():
            keep_last(self._exemplars, self._settled.place(key), exemplar)
        self._generation = self._latest = self._seen = generation
        return news

    def pending(self) -> frozenset[int]:
        """Return the ids that wait for a fold."""
        return frozenset(self._pending)

    def discard_unconfirmed(self, suspects: frozenset[int]) -> int:
        """Drop what was pending before the fold that drained the journal and still is; return how many those were.

        A committed event stays in the journal until a fold takes it. One that is not there was forged, or its
        transaction was lost in a crash of the server.
        """
        unconfirmed = suspects & self._pending.keys()
        for number in unconfirmed:
            del self._pending[number]
        mismatched, self._mismatched = self._mismatched, 0
        return len(unconfirmed) + mismatched

    def announced(self) -> Iterator[Settlement]:
        """Yield what each pending event adds, in order of arrival."""
        return (announced.settlement for announced in self._pending.values())

    def exposed(self) -> dict[SampleKey, int]:
        """Return settled and pending together, label sets in order of arrival."""
        totals = self._settled.copy()
        for settlement in self.announced():
            for key, n in settlement.increments.items():
                place = self._settled.place(key)
                totals[place] = limited(totals.get(place, 0) + n)
        return totals

    def exemplars(self) -> Exemplars:
        """Return the last exemplar of each bucket, settled or pending. A `resync` forgets the settled ones."""
        exemplars = self._exemplars.copy()
        for settlement in self.announced():
            for key, exemplar in settlement.exemplars.items():
                keep_last(exemplars, self._settled.place(key), exemplar)
        return exemplars
