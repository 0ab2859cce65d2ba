"""The arithmetic of payloads and folds: settled totals, what is pending before them, and when to trust which.

Owns addition and order: what an event adds is `rules`, how totals are stored is `postgres.journal`.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto

from mfg_notify.core.events import Event
from mfg_notify.core.rules import Completion, SampleKey, completion, increments, last_seen

PENDING_MAXIMUM = 20_000
"""Events that may wait for a fold; a bound on memory, whoever floods the channel."""


@dataclass(slots=True)
class Settlement:
    """What a run of events adds, summed. Order matters to completions and last_seen only, row by row."""

    increments: dict[SampleKey, int] = field(default_factory=dict)
    completions: dict[str, Completion] = field(default_factory=dict)
    """By pipeline; the last word counts."""
    last_seen: dict[tuple[str, int, str], int] = field(default_factory=dict)
    """Latest time (epoch microseconds) by kind, player and key."""

    def add(self, events: Iterable[Event]) -> None:
        """Add events; the ids of one row rise."""
        summed, seen = self.increments, self.last_seen
        for event in events:
            for key, n in increments(event):
                summed[key] = summed.get(key, 0) + n
            done = completion(event)
            if done is not None:
                self.completions[done.pipeline_id] = done
            for place, at in last_seen(event):
                if at > seen.get(place, -1):
                    seen[place] = at


def settle(events: Iterable[Event]) -> Settlement:
    """Sum up events; the ids of one row rise."""
    settlement = Settlement()
    settlement.add(events)
    return settlement


@dataclass(frozen=True, slots=True)
class _Announced:
    """An event that a payload has brought and no fold has confirmed yet, and what it adds."""

    event: Event
    settlement: Settlement


class Arrival(Enum):
    """What became of a payload."""

    COUNTED = auto()
    DUPLICATE = auto()
    """Counted before: the fold was quicker, or the payload came twice."""
    LEFT_TO_FOLD = auto()
    """Not in step with the journal now, or too much is pending: the fold that is due has it."""


class Counters:
    """The settled totals, and in front of them what payloads have announced and no fold has confirmed yet.

    Folds of this exporter follow each other generation by generation, so what a fold adds can be added here; a gap
    in the generations, or a broken connection, means reading the totals again (`resync`). Notifications come in the
    order of commits and after their commit is visible. So the barrier that a fold sends proves that every notification
    of an event folded up to then has come, and only from then on a payload can be trusted to be news. Ids prove
    nothing of the kind: they are not in the order of commits.
    """

    def __init__(self) -> None:
        self._base: dict[SampleKey, int] = {}
        self._generation: int | None = None
        self._latest = -1
        self._pending: dict[int, _Announced] = {}
        self._impostors = 0
        self._early: dict[int, int] = {}
        self._barrier = -1
        self._resynced_at = 0

    @property
    def barrier(self) -> int:
        """Highest own barrier seen on this connection, -1 before the first."""
        return self._barrier

    @property
    def synced(self) -> bool:
        """Tell whether payloads are counted as they come."""
        return self._generation is not None and self._barrier >= self._resynced_at

    def disconnect(self) -> None:
        """Trust nothing until the next `resync`: notifications were missed, the outcome of a COMMIT is unknown."""
        self._generation = None
        self._early.clear()
        self._barrier = -1

    def resync(self, totals: Mapping[SampleKey, int], generation: int, folded: Iterable[Event] = ()) -> None:
        """Take over totals that were read as of this generation. One more fold must follow.

        `folded` are the events of the fold that came before. Where no other fold can have happened since the last one
        that was known, what is pending beside them is in the journal still, or nowhere: it stays pending until the
        journal is drained.
        """
        self._base = dict(totals)
        if self.is_rewind(generation):
            # Barriers bear the numbers of generations: those seen so far prove nothing of these.
            self._barrier = -1
        if generation == self._latest + 1:
            for event in folded:
                self._pending.pop(event.id, None)
        else:
            self._pending.clear()
        self._generation = self._resynced_at = self._latest = generation
        self._early.clear()

    def is_rewind(self, generation: int) -> bool:
        """Tell whether a fold of this generation shows that the database was set back: they only rise."""
        return generation <= self._latest

    def follows(self, generation: int) -> bool:
        """Tell whether a fold of this generation can just be `confirm`ed; otherwise `resync`."""
        return self._generation is not None and generation == self._generation + 1

    def receive(self, event: Event) -> Arrival:
        """Count an event that a payload has brought, unless it is counted already."""
        if event.id in self._early or event.id in self._pending:
            return Arrival.DUPLICATE
        if not self.synced or len(self._pending) >= PENDING_MAXIMUM:
            return Arrival.LEFT_TO_FOLD
        self._pending[event.id] = _Announced(event, settle((event,)))
        return Arrival.COUNTED

    def receive_barrier(self, generation: int) -> None:
        """Take note that every notification of an event folded up to this generation has come."""
        self._barrier = max(self._barrier, generation)
        self._early = {number: at for number, at in self._early.items() if at > generation}

    def confirm(self, events: Iterable[Event], settlement: Settlement, generation: int) -> list[Event]:
        """Settle a committed fold that `follows`; return the events that no payload had brought before.

        A payload with the number of an event that says something else was forged, and is dropped as a ghost.
        """
        news = []
        for event in events:
            announced = self._pending.pop(event.id, None)
            if announced is None or announced.event != event:
                self._impostors += announced is not None
                news.append(event)
                # Its notification is still on the way, unless the barrier has overtaken the reply to the COMMIT.
                if generation > self._barrier:
                    self._early[event.id] = generation
        for key, n in settlement.increments.items():
            self._base[key] = self._base.get(key, 0) + n
        self._generation = self._latest = generation
        return news

    def pending(self) -> frozenset[int]:
        """Return the ids that wait for a fold."""
        return frozenset(self._pending)

    def discard_unconfirmed(self, suspects: frozenset[int]) -> int:
        """Drop what was pending before the journal was drained and is so still; return how many ghosts there were.

        A committed event is in the journal until a fold takes it. What the journal does not have was forged, or its
        transaction was lost in a crash of the server.
        """
        ghosts = suspects & self._pending.keys()
        for number in ghosts:
            del self._pending[number]
        impostors, self._impostors = self._impostors, 0
        return len(ghosts) + impostors

    def announced(self) -> Iterator[Settlement]:
        """Yield what the pending events bring, one by one, in the order in which they came."""
        return (announced.settlement for announced in self._pending.values())

    def exposed(self) -> dict[SampleKey, int]:
        """Return settled and pending together, label sets in order of arrival."""
        totals = dict(self._base)
        for settlement in self.announced():
            for key, n in settlement.increments.items():
                totals[key] = totals.get(key, 0) + n
        return totals
