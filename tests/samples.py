"""Reads samples from a text page of metrics. Never imports the exporter, because `tests.truth` checks it with this."""

import re
from collections.abc import Iterator

from prometheus_client.parser import text_string_to_metric_families

PREFIX = "spacetraders_daemon_"
"""Of all metrics of the game."""

Labels = frozenset[tuple[str, str]]
Series = tuple[str, Labels]
"""The name of a sample, and its labels."""


def read(page: str) -> Iterator[tuple[Series, float]]:
    """Yield every sample of a page, in order. A series that is there twice comes twice."""
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            yield (sample.name, frozenset(sample.labels.items())), sample.value


def samples(page: str) -> dict[Series, float]:
    """Return every sample of a page by name and labels."""
    return dict(read(page))


def samples_of(page: str, name: str) -> dict[Labels, float]:
    """Return the samples of one name by labels. Parses only their lines, so it suits polling a large page."""
    lines = [line for line in page.split("\n") if line.startswith((name + "{", name + " "))]
    return {labels: value for (_, labels), value in read("".join(f"{line}\n" for line in lines))}


def value(page: str, name: str, **labels: str) -> float | None:
    """Return one sample of a page, None if it is absent. Metrics of the game may be named without the prefix."""
    full = PREFIX + name if name.startswith("manufacturing_") else name
    return samples_of(page, full).get(frozenset(labels.items()))


def number(page: str, name: str, **labels: str) -> float:
    """Return one sample of a page, 0 if it is absent."""
    return value(page, name, **labels) or 0.0


def total(page: str, name: str) -> float:
    """Return the sum of all samples of a name."""
    return sum(samples_of(page, name).values())


def applied(page: str) -> float:
    """Return how many events an exporter has counted since it started."""
    return total(page, "mfg_notify_events_applied_total")


def reconnects(page: str) -> float:
    """Return how many connections an exporter has given up since it started."""
    return total(page, "mfg_notify_reconnects_total")


def gains_only(page: str) -> str:
    """Return the page without the sign of negative sums of profits.

    The parser of OpenMetrics refuses them, Prometheus takes them.
    """
    return re.sub(r"(?m)^(\w+_pipeline_profit_credits_sum\{.*\}) -", r"\1 ", page)
