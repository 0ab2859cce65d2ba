"""Exemplars: which pipeline or task was the last to fall into a bucket of a histogram.

Owns what an exemplar is, and which one of two is the last. It never decides which buckets are shown: that is
`capped_totals`. The database does not keep exemplars, so a restart forgets them.
"""

from mfg_notify.core.catalogue import HISTOGRAMS
from mfg_notify.core.events import Event
from mfg_notify.core.rules import Increment, SampleKey

Exemplar = tuple[int, str, int]
"""When the event of an observation was written (epoch microseconds of the database's clock), the id of its pipeline or
task, and what was observed in stored units."""
Exemplars = dict[SampleKey, Exemplar]
"""The last exemplar of each bucket, by the key of the bucket's total."""

INCREMENTS_MINIMUM = 3
"""Increments of an event with an observation: the observation is two of them, and a counter moves as well."""
_BUCKETS = frozenset(f"{metric.name}_bucket" for metric in HISTOGRAMS)


def note_exemplars(noted: Exemplars, event: Event, found: list[Increment]) -> None:
    """Note the observations among the increments of an event."""
    # Folds pass here with every second event, so it makes as few objects as it can.
    bucket = None
    for key, n in found:
        if bucket is not None:  # what follows a bucket is the sum: the observation itself
            keep_last(noted, bucket, (event.at, event.change.key, n))
            bucket = None
        elif key[0] in _BUCKETS:
            bucket = key


def keep_last(noted: Exemplars, bucket: SampleKey, exemplar: Exemplar) -> None:
    """Note an exemplar unless a later one is known. Of two at the same time, the order must not decide."""
    known = noted.get(bucket)
    if known is None or exemplar > known:
        noted[bucket] = exemplar
