"""Owns the rows of the simulated game: one frozen type for each table of the game that the world writes.

A row's fields are its table's columns, without player_id. `id`, `pipeline_id` and `task_id` are numbers that the world
counts itself, and times are seconds of game time; `commands` replaces both with the values of a real database.
Nothing here decides what happens.
"""

from dataclasses import dataclass
from typing import Final, TypeAlias

LIVE_PIPELINE_STATUSES: Final = frozenset({"PLANNING", "EXECUTING"})
LIVE_TASK_STATUSES: Final = frozenset({"PENDING", "READY", "ASSIGNED", "EXECUTING"})
SHIP_HOLDING_STATUSES: Final = frozenset({"ASSIGNED", "EXECUTING"})
"""A task has a ship to itself in these statuses."""
MAX_RETRIES: Final = 3


@dataclass(frozen=True, slots=True)
class Material:
    """One entry of a construction pipeline's materials: units that the site needs, and units that have arrived."""

    trade_symbol: str
    target_quantity: int
    delivered_quantity: int = 0


@dataclass(frozen=True, slots=True)
class PipelineRow:
    """A row of manufacturing_pipelines."""

    id: int
    sequence_number: int
    pipeline_type: str
    product_good: str
    sell_market: str
    expected_price: int
    created_at: float
    construction_site: str | None = None
    materials: tuple[Material, ...] = ()
    status: str = "PLANNING"
    total_cost: int = 0
    total_revenue: int = 0
    net_profit: int = 0
    error_message: str | None = None
    started_at: float | None = None
    completed_at: float | None = None


@dataclass(frozen=True, slots=True)
class TaskRow:
    """A row of manufacturing_tasks."""

    id: int
    pipeline_id: int | None
    task_type: str
    good: str
    quantity: int
    created_at: float
    source_market: str | None = None
    target_market: str | None = None
    factory_symbol: str | None = None
    priority: int = 0
    max_retries: int = MAX_RETRIES
    status: str = "PENDING"
    assigned_ship: str | None = None
    actual_quantity: int = 0
    retry_count: int = 0
    total_cost: int = 0
    total_revenue: int = 0
    error_message: str | None = None
    collect_phase_completed: bool = False
    acquire_phase_completed: bool = False
    phase_completed_at: float | None = None
    ready_at: float | None = None
    started_at: float | None = None
    completed_at: float | None = None


@dataclass(frozen=True, slots=True)
class DependencyRow:
    """A row of manufacturing_task_dependencies."""

    task_id: int
    depends_on_id: int


@dataclass(frozen=True, slots=True)
class Delivery:
    """One entry of a factory row's delivered_inputs. A required input has an entry from the start."""

    good: str
    delivered: bool = False
    quantity: int = 0
    ship: str = ""


@dataclass(frozen=True, slots=True)
class FactoryRow:
    """A row of manufacturing_factory_states: a factory as one pipeline sees it."""

    id: int
    factory_symbol: str
    output_good: str
    pipeline_id: int | None
    required_inputs: tuple[str, ...]
    delivered_inputs: tuple[Delivery, ...]
    created_at: float
    all_inputs_delivered: bool = False
    current_supply: str | None = None
    previous_supply: str | None = None
    ready_for_collection: bool = False
    inputs_completed_at: float | None = None
    ready_at: float | None = None


@dataclass(frozen=True, slots=True)
class ShipRow:
    """A row of ships. `cargo_capacity` is in units; a satellite has none."""

    ship_symbol: str
    assignment_status: str = "idle"
    container_id: str | None = None
    role: str = "HAULER"
    dedicated_fleet: str | None = None
    cargo_capacity: int = 0


@dataclass(frozen=True, slots=True)
class MarketRow:
    """A row of market_data."""

    waypoint_symbol: str
    good_symbol: str
    supply: str
    activity: str | None
    purchase_price: int
    sell_price: int
    trade_volume: int
    last_updated: float


Row: TypeAlias = PipelineRow | TaskRow | DependencyRow | FactoryRow | ShipRow | MarketRow
