"""Rows, events and expectations for the unit tests, with everything that a case does not mention at a default.

An expectation is text, one sample a line: the metric's name without `manufacturing_`, its label values, the number.
"""

from mfg_notify.core.catalogue import MICROSECONDS_PER_SECOND
from mfg_notify.core.events import (
    Event,
    FactoryChange,
    FactoryImage,
    Material,
    Operation,
    PipelineChange,
    PipelineImage,
    TaskChange,
    TaskImage,
)
from mfg_notify.core.rules import SampleKey

SECOND = MICROSECONDS_PER_SECOND
NOW = 1_800_000_000 * SECOND
"""When every event was written, unless a case says otherwise."""

Image = PipelineImage | TaskImage | FactoryImage


def pipeline(
    status: str = "EXECUTING",
    *,
    player_id: int = 1,
    product_good: str = "RIFLES",
    total_cost: int = 0,
    total_revenue: int = 0,
    net_profit: int = 0,
    started_at: int | None = None,
    completed_at: int | None = None,
    site: str | None = None,
    materials: tuple[Material, ...] = (),
) -> PipelineImage:
    """Build a pipeline, for construction if there is a site."""
    return PipelineImage(
        player_id,
        product_good,
        status,
        total_cost,
        total_revenue,
        net_profit,
        started_at,
        completed_at,
        site,
        materials,
    )


def task(
    status: str = "PENDING",
    *,
    player_id: int = 1,
    task_type: str = "COLLECT_SELL",
    assigned_ship: str | None = None,
    retry_count: int = 0,
    total_cost: int = 0,
    total_revenue: int = 0,
    ready_at: int | None = None,
    started_at: int | None = None,
    completed_at: int | None = None,
    units: int | None = None,
) -> TaskImage:
    return TaskImage(
        player_id,
        task_type,
        status,
        assigned_ship,
        retry_count,
        total_cost,
        total_revenue,
        ready_at,
        started_at,
        completed_at,
        units,
    )


def factory(
    level: str | None = None,
    *,
    ready: bool = False,
    is_current: bool | None = True,
    player_id: int = 1,
    factory_symbol: str = "X1-F",
    output_good: str = "IRON",
    pipeline_id: str | None = None,
    delivered: int = 0,
    required: int = 0,
) -> FactoryImage:
    return FactoryImage(
        player_id, factory_symbol, output_good, pipeline_id, delivered, required, level, ready, is_current
    )


def event(old: Image | None, new: Image | None, *, number: int = 1, at: int = NOW, key: str = "row") -> Event:
    """Return the event of a row that goes from `old` to `new`."""
    operation: Operation = "I" if old is None else "D" if new is None else "U"
    change: PipelineChange | TaskChange | FactoryChange
    match old or new, old, new:
        case PipelineImage(), PipelineImage() | None as before, PipelineImage() | None as after:
            change = PipelineChange(operation, key, before, after)
        case TaskImage(), TaskImage() | None as before, TaskImage() | None as after:
            change = TaskChange(operation, key, before, after)
        case FactoryImage(), FactoryImage() | None as before, FactoryImage() | None as after:
            change = FactoryChange(operation, key, before, after)
        case _:
            raise AssertionError("an event has one or two images of one table")
    return Event(number, number, at, change)


def samples(expectation: str) -> dict[SampleKey, int]:
    """Read an expectation of settled totals."""
    found: dict[SampleKey, int] = {}
    for line in filter(None, map(str.strip, expectation.splitlines())):
        name, *labels, number = line.split()
        found["manufacturing_" + name, tuple(labels)] = int(number)
    return found


def gauge(expectation: str) -> dict[tuple[str, ...], float]:
    """Read an expectation of one gauge: the lines have no name."""
    found: dict[tuple[str, ...], float] = {}
    for line in filter(None, map(str.strip, expectation.splitlines())):
        *labels, number = line.split()
        found[tuple(labels)] = float(number)
    return found
