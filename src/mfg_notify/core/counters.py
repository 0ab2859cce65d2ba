"""The arithmetic of a fold: events summed into what they add, and the settled totals in memory.

Owns addition and nothing else: what an event adds is `rules`, how totals are stored is `postgres.journal`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from mfg_notify.core.events import Event
from mfg_notify.core.rules import Completion, SampleKey, completion, increments, sightings


@dataclass(slots=True)
class Settlement:
    """What a run of events adds, summed. Order matters to completions and sightings only, row by row."""

    increments: dict[SampleKey, int] = field(default_factory=dict)
    completions: dict[str, Completion] = field(default_factory=dict)
    """By pipeline; the last word counts."""
    sightings: dict[tuple[str, int, str], int] = field(default_factory=dict)
    """Latest time (epoch microseconds) by kind, player and key."""

    def add(self, event: Event) -> None:
        """Add one event; ids rise."""
        summed = self.increments
        for key, n in increments(event):
            summed[key] = summed.get(key, 0) + n
        done = completion(event)
        if done is not None:
            self.completions[done.pipeline_id] = done
        for kind, player_id, name, at in sightings(event):
            place = (kind, player_id, name)
            if at > self.sightings.get(place, -1):
                self.sightings[place] = at


def settle(events: Iterable[Event]) -> Settlement:
    """Sum up events that come in order of id."""
    settlement = Settlement()
    for event in events:
        settlement.add(event)
    return settlement


class Totals:
    """The settled counters as `mfg_notify.total` holds them, kept in memory between folds.

    Folds of this exporter follow each other generation by generation, so what a fold adds can be added here. A gap in
    the generations means that someone else has folded: then the totals must be read again.
    """

    def __init__(self) -> None:
        self._n: dict[SampleKey, int] = {}
        self._generation: int | None = None

    @property
    def generation(self) -> int | None:
        """Generation of the last fold that is in here; None before the first reading."""
        return self._generation

    def follows(self, generation: int) -> bool:
        """Tell whether a fold of this generation can just be added."""
        return self._generation is not None and generation == self._generation + 1

    def add(self, settlement: Settlement, generation: int) -> None:
        """Add a committed fold that `follows`."""
        for key, n in settlement.increments.items():
            self._n[key] = self._n.get(key, 0) + n
        self._generation = generation

    def replace(self, totals: Mapping[SampleKey, int], generation: int) -> None:
        """Take over totals that were read from the database right after the fold of this generation."""
        self._n = dict(totals)
        self._generation = generation

    def forget(self) -> None:
        """Trust nothing until the next reading: after a connection broke, a COMMIT's outcome may be unknown."""
        self._generation = None

    def snapshot(self) -> dict[SampleKey, int]:
        """Return a copy that later folds do not change."""
        return dict(self._n)
