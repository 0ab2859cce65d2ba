"""Owns the world of the simulated game: what one player's manufacturing would do, on a virtual clock.

A discrete-event simulation in game seconds. It decides everything from its seed and yields transactions of frozen
rows; it knows no database and no wall clock. `game` plays it.
"""

import heapq
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from types import MappingProxyType
from typing import Any, Final, TypeAlias, cast

# ------------------------------------------------------------------------------------------------- options --


@dataclass(frozen=True, slots=True)
class GameOptions:
    """How the game is played.

    `speed` is game seconds a wall second. `rate`, where given, takes its place: about that many row-changing
    statements a second over all players, and game time flows as that needs; 0 or less, or infinity, is as fast as
    possible. `era_hours` is how long a universe lasts, on average, in game hours.
    """

    seed: int = 1
    players: int = 3
    speed: float = 30.0
    rate: float | None = None
    era_hours: float = 30.0


# ------------------------------------------------------------------------------------------------ the game --


@dataclass(frozen=True, slots=True)
class Product:
    """What a factory makes, and from what; without inputs it is a source."""

    good: str
    inputs: tuple[str, ...]


PRODUCTS: Final = (
    Product("LASER_RIFLES", ("DIAMONDS", "PLATINUM", "ADVANCED_CIRCUITRY")),
    Product("ELECTRONICS", ("SILICON_CRYSTALS", "COPPER")),
    Product("ADVANCED_CIRCUITRY", ("ELECTRONICS", "MICROPROCESSORS")),
    Product("CLOTHING", ("FABRICS",)),
    Product("FAB_MATS", ("IRON", "QUARTZ_SAND")),
    Product("MACHINERY", ("IRON",)),
    Product("MEDICINE", ("FABRICS", "POLYNUCLEOTIDES")),
    Product("SHIP_PLATING", ("ALUMINUM", "MACHINERY")),
    Product("JEWELRY", ("GOLD", "SILVER", "PRECIOUS_STONES")),
    Product("FOOD", ("FERTILIZERS",)),
    Product("EQUIPMENT", ("ALUMINUM", "PLASTICS")),
)
SOURCES: Final = tuple(Product(good, ()) for good in ("LIQUID_HYDROGEN", "AMMONIA_ICE", "PRECIOUS_STONES"))
PRICES: Final[Mapping[str, int]] = MappingProxyType({
    "ADVANCED_CIRCUITRY": 3700, "ALUMINUM": 170, "AMMONIA_ICE": 60, "CLOTHING": 4900, "COPPER": 130, "DIAMONDS": 90,
    "ELECTRONICS": 1900, "EQUIPMENT": 2300, "FABRICS": 1100, "FAB_MATS": 1600, "FERTILIZERS": 95, "FOOD": 260,
    "GOLD": 120, "IRON": 110, "JEWELRY": 1500, "LASER_RIFLES": 9800, "LIQUID_HYDROGEN": 45, "MACHINERY": 780,
    "MEDICINE": 3100, "MICROPROCESSORS": 2100, "PLASTICS": 280, "PLATINUM": 140, "POLYNUCLEOTIDES": 170,
    "PRECIOUS_STONES": 85, "QUARTZ_SAND": 25, "SHIP_PLATING": 4200, "SILICON_CRYSTALS": 75, "SILVER": 110,
})  # fmt: skip
SUPPLY_LEVELS: Final = ("SCARCE", "LIMITED", "MODERATE", "HIGH", "ABUNDANT")
ACTIVITIES: Final = ("WEAK", "GROWING", "STRONG", "RESTRICTED", None)
AGENTS: Final = (
    "TORWIND",
    "ENDURANCE",
    "BRASSGATE",
    "MERIDIAN",
    "KESTREL",
    "OLDHARBOUR",
    "NORTHPOLE",
    "QUILLON",
)
FACTORY_ORBITS: Final = ("A1", "B7", "C42", "D40", "E43", "F49", "G51", "H57", "J61", "K88")

LIVE_TASK: Final = frozenset({"PENDING", "READY", "ASSIGNED", "EXECUTING"})
HOLDING: Final = frozenset({"ASSIGNED", "EXECUTING"})
LIVE_PIPELINE: Final = frozenset({"PLANNING", "EXECUTING"})
COLLECTING: Final = frozenset({"COLLECT_SELL", "COLLECT"})
DELIVERING: Final = frozenset({"ACQUIRE_DELIVER", "STORAGE_ACQUIRE_DELIVER", "DELIVER"})
# A construction site does not wait, and what has been made should be sold.
URGENT: Final = frozenset({*COLLECTING, "SELL", "STORAGE_ACQUIRE_DELIVER", "DELIVER_TO_CONSTRUCTION"})
# Median length of each type of task, in game seconds.
TASK_SECONDS: Final[Mapping[str, float]] = MappingProxyType({
    "ACQUIRE_DELIVER": 105, "COLLECT_SELL": 125, "STORAGE_ACQUIRE_DELIVER": 85, "DELIVER_TO_CONSTRUCTION": 140,
    "LIQUIDATE": 55, "ACQUIRE": 50, "DELIVER": 40, "COLLECT": 35, "SELL": 50,
})  # fmt: skip
SHORTEST_TASK_SECONDS: Final = 10.0
LONGEST_TASK_SECONDS: Final = 600.0

COORDINATE_SECONDS: Final = 5.0
MAINTAIN_SECONDS: Final = 15.0
MONITOR_SECONDS: Final = 45.0
# A pipeline that has come to nothing for this long is recycled.
PATIENCE_SECONDS: Final = 3300.0
RESUPPLY_SECONDS: Final = 240.0
LIVE_PIPELINES: Final = 6
MAX_RETRIES: Final = 3

# What goes wrong, each once a round: the first round comes fast, so that a newcomer soon has seen everything.
# An omen waits for the next row that reaches its stage; the others strike at once.
DEFERRED_INCIDENTS: Final = (
    "jinx", "cancel planning", "fail planning", "abandon", "hold ready", "cancel pending", "cancel ready",
    "cancel assigned", "fail assigned", "unassign", "park assigned", "park executing",
)  # fmt: skip
IMMEDIATE_INCIDENTS: Final = ("restart", "recycle", "cancel executing", "delete finished", "delete live", "borrow ship")

# -------------------------------------------------------------------------------------------------- its rows --
# A row's fields are the columns of its table, without player_id. `id` and `pipeline_id` are numbers of this world;
# moments are game seconds. `play` puts real ones in their place.


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
    materials: tuple[tuple[str, int], ...] = ()
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
    """What has come of one input; a required one has an entry from the start."""

    good: str
    delivered: bool = False
    quantity: int = 0
    ship: str = ""


@dataclass(frozen=True, slots=True)
class FactoryRow:
    """A row of manufacturing_factory_states."""

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
    """A row of ships."""

    ship_symbol: str
    assignment_status: str = "idle"
    container_id: str | None = None
    role: str = "HAULER"
    dedicated_fleet: str | None = None


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

# -------------------------------------------------------------------------------------- what is done to them --


@dataclass(frozen=True, slots=True)
class Enter:
    """A player enters a new universe: a new row of players, and all later rows are its own."""

    agent_symbol: str
    token: str


@dataclass(frozen=True, slots=True)
class Insert:
    """One INSERT."""

    row: Row


@dataclass(frozen=True, slots=True)
class Save:
    """GORM's Save: UPDATE every column, and if there was no such row, INSERT … ON CONFLICT DO UPDATE."""

    row: Row
    before: Row | None = None


@dataclass(frozen=True, slots=True)
class Assign:
    """SELECT … FOR UPDATE, then UPDATE of the status and the ship."""

    row: TaskRow
    before: TaskRow


@dataclass(frozen=True, slots=True)
class DeletePipeline:
    """DELETE of a pipeline; its tasks and factory rows go with it by cascade."""

    id: int
    status: str


@dataclass(frozen=True, slots=True)
class DeleteTask:
    """DELETE of one task."""

    id: int


@dataclass(frozen=True, slots=True)
class Scan:
    """All rows of a waypoint's market deleted and inserted again."""

    waypoint_symbol: str
    rows: tuple[MarketRow, ...]


@dataclass(frozen=True, slots=True)
class Scrub:
    """The end of an era: the player's factory rows, live pipelines, live tasks and ships deleted."""


Statement: TypeAlias = Enter | Insert | Save | Assign | DeletePipeline | DeleteTask | Scan | Scrub


@dataclass(frozen=True, slots=True)
class Transaction:
    """Statements that are committed together, or rolled back together, at a moment of game time."""

    at: float
    statements: tuple[Statement, ...]
    rolled_back: bool = False


def name_move(statement: Statement) -> str | None:
    """Name what a statement does to a pipeline, a task or a factory; None where it does nothing worth counting."""
    match statement:
        case Assign(row, before):
            return f"task {before.status} → {row.status}"
        case Insert(PipelineRow() as row) | Save(PipelineRow() as row, None):
            return f"pipeline → {row.status}"
        case Insert(TaskRow() as row):
            return f"task → {row.status}"
        case Save(PipelineRow() as row, PipelineRow() as old) if row.status != old.status:
            return f"pipeline {old.status} → {row.status}"
        case Save(TaskRow() as row, TaskRow() as old) if row.status != old.status:
            cancelled = row.status == "FAILED" and row.retry_count == old.retry_count
            return f"task {old.status} → {row.status}{' (cancelled)' if cancelled else ''}"
        case Save(FactoryRow() as row, FactoryRow() as old) if row.current_supply != old.current_supply:
            cycle = row.ready_for_collection and not old.ready_for_collection
            return f"factory {old.current_supply or 'unknown'} → {row.current_supply}{' (cycle)' if cycle else ''}"
        case Save(FactoryRow() as row, FactoryRow() as old) if row == old:
            return "factory unchanged"
        case DeletePipeline(status=status):
            return f"pipeline {status} deleted"
        case DeleteTask():
            return "task deleted"
        case Scan():
            return "market scan"
        case Scrub():
            return "era ended"
        case _:
            return None


# ------------------------------------------------------------------------------------------------- the world --


@dataclass(slots=True)
class _Factory:
    """A factory as it is, whoever looks: supply from 0 to 100, and what delivered inputs will still become."""

    symbol: str
    product: Product
    supply: float
    home: float
    work: float = 0.0

    @property
    def level(self) -> str:
        return SUPPLY_LEVELS[min(4, int(self.supply // 20))]

    @property
    def ready(self) -> bool:
        return self.supply >= 60


@dataclass(slots=True)
class _Job:
    """A task and what the daemon knows about it besides its row."""

    row: TaskRow
    factory: _Factory | None = None
    needs: tuple[int, ...] = ()
    attempt: int = 0
    jinxed: bool = False
    dropped: bool = False  # cancelled for good: nobody waits for it


@dataclass(slots=True)
class _Run:
    """A live pipeline with its tasks and its view of factories."""

    row: PipelineRow
    jobs: dict[int, _Job]
    views: dict[str, FactoryRow]
    factories: dict[str, _Factory]
    resupplied_at: float = 0.0


class World:
    """One player's game. `transactions` yields the same sequence for the same options and index, without end."""

    def __init__(self, options: GameOptions, index: int = 0) -> None:
        self._options = options
        self._index = index
        # A text seed is hashed the same way by every process.
        self._random = Random(f"{options.seed}/{index}")
        self._now = 0.0
        self._era = 0
        self._queue: list[tuple[float, int, int, Callable[[], None]]] = []
        self._order = 0
        self._numbers = 0
        self._ready: deque[Transaction] = deque()
        self._begin_era()

    def transactions(self) -> Iterator[Transaction]:
        """Yield what happens, in order of game time."""
        while True:
            while self._ready:
                yield self._ready.popleft()
            at, _, era, action = heapq.heappop(self._queue)
            if era == self._era:
                self._now = at
                action()

    # -- the clock

    def _after(self, seconds: float, action: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._queue, (self._now + max(seconds, 0.001), self._order, self._era, action))

    def _between(self, low: float, high: float) -> float:
        return self._random.uniform(low, high)

    def _number(self) -> int:
        self._numbers += 1
        return self._numbers

    def _commit(self, *statements: Statement) -> None:
        if not statements:
            return
        # Now and then a whole transaction is rolled back and done again, as after a serialization failure.
        if self._random.random() < 0.008:
            self._ready.append(Transaction(self._now, statements, rolled_back=True))
        self._ready.append(Transaction(self._now, statements))

    # -- eras

    def _begin_era(self) -> None:
        self._era += 1
        self._runs: dict[int, _Run] = {}
        self._loose: dict[int, _Job] = {}
        self._finished: deque[tuple[int, str]] = deque(maxlen=60)
        self._omens: deque[str] = deque()
        self._incidents: list[str] = []
        self._round = 0
        self._sequence = 0
        self._plans: list[str] = []
        agent = f"{AGENTS[self._index % len(AGENTS)]}{self._index // len(AGENTS) or ''}"
        letters = "".join(self._random.choices("BCDFGHJKMNPQRSTVXZ", k=2))
        self._system = f"X1-{letters}{self._random.randint(10, 99)}"
        products = (*self._random.sample(PRODUCTS, 4), *self._random.sample(SOURCES, 1))
        # What CONSTRUCTION needs is always made somewhere.
        products = tuple(dict.fromkeys((*products, next(p for p in PRODUCTS if p.good == "FAB_MATS"))))
        orbits = self._random.sample(FACTORY_ORBITS, len(products) + 3)
        self._factories = [
            _Factory(
                f"{self._system}-{orbit}", product,
                supply=self._between(35, 58) if product.inputs else self._between(55, 85),
                home=self._between(30, 48) if product.inputs else self._between(66, 82),
            )
            for product, orbit in zip(products, orbits, strict=False)
        ]  # fmt: skip
        self._markets = [f"{self._system}-{orbit}" for orbit in orbits[len(products) :]]
        self._site = f"{self._system}-I{self._random.randint(52, 79)}"
        self._ships = {
            symbol: ShipRow(symbol, role="HAULER" if number > 1 else "COMMAND")
            for number in range(1, self._random.randint(9, 12) + 1)
            for symbol in (f"{agent}-{number:X}",)
        }
        self._commit(Enter(agent, f"token-of-{agent}-{self._era}"))
        self._commit(*(Insert(ship) for ship in self._ships.values()))
        for waypoint in (*self._markets, *(factory.symbol for factory in self._factories)):
            self._scan(waypoint)
        for number, kind in enumerate(("COLLECTION", "OLDER", "CONSTRUCTION", "FABRICATION", "FABRICATION")):
            self._after(2 + 4 * number, partial(self._plan, kind))
        self._after(25, self._watch_plans)
        self._after(COORDINATE_SECONDS, self._coordinate)
        self._after(MAINTAIN_SECONDS, self._maintain)
        self._after(3, self._monitor)
        self._after(24, self._strike)
        self._after(60, self._liquidate)
        self._after(40, self._scan_somewhere)
        self._after(self._options.era_hours * 3600 * self._between(0.7, 1.3), self._end_era)

    def _end_era(self) -> None:
        self._commit(Scrub())
        self._begin_era()

    # -- planning

    def _watch_plans(self) -> None:
        if len(self._runs) < LIVE_PIPELINES:
            if not self._plans:
                self._plans = ["FABRICATION"] * 5 + ["COLLECTION"] * 4 + ["CONSTRUCTION", "OLDER"]
                self._random.shuffle(self._plans)
            self._plan(self._plans.pop())
        self._after(self._between(20, 45), self._watch_plans)

    def _choose_factory(self, *, source: bool | None) -> _Factory:
        return self._random.choice([f for f in self._factories if source is None or source != bool(f.product.inputs)])

    def _plan(self, kind: str) -> None:
        """Insert a pipeline with its tasks and its factories in one transaction."""
        self._sequence += 1
        if kind == "CONSTRUCTION":
            factory = next(f for f in self._factories if f.product.good == "FAB_MATS")
        else:
            factory = self._choose_factory(source=None if kind == "COLLECTION" else False)
        good = factory.product.good
        row = PipelineRow(
            id=self._number(),
            sequence_number=self._sequence,
            pipeline_type="FABRICATION" if kind == "OLDER" else kind,
            product_good=good,
            sell_market=self._random.choice(self._markets),
            expected_price=self._priced(good, 0.95, 1.1),
            created_at=self._now,
            construction_site=self._site if kind == "CONSTRUCTION" else None,
            materials=((good, 400),) if kind == "CONSTRUCTION" else (),
        )
        run = _Run(row, {}, {}, {}, resupplied_at=self._now)
        self._draw_up(run, kind, factory)
        jobs = run.jobs.values()
        statements: tuple[Statement, ...] = (
            Insert(row),
            *(Insert(job.row) for job in jobs),
            *(Insert(DependencyRow(job.row.id, need)) for job in jobs for need in job.needs),
        )
        if self._omen("abandon"):
            self._ready.append(Transaction(self._now, statements, rolled_back=True))
            return
        self._runs[row.id] = run
        self._commit(*statements)
        for view in run.views.values():
            self._commit(Save(view))
        self._after(self._between(8, 22), partial(self._launch, row.id))

    def _draw_up(self, run: _Run, kind: str, factory: _Factory) -> None:
        """Fill in a pipeline's tasks and its view of the factories."""
        self._view(run, factory)
        good, market = factory.product.good, run.row.sell_market
        inputs: list[int] = []
        if kind == "CONSTRUCTION":
            for _ in range(self._random.randint(1, 3)):
                inputs += self._deliver(run, factory, "STORAGE_ACQUIRE_DELIVER", factory.product.inputs[0])
            for _ in range(self._random.randint(1, 3)):
                needs = tuple(self._random.sample(inputs, 1))
                self._add(run, "DELIVER_TO_CONSTRUCTION", good, factory, needs, target=self._site)
            return
        if kind == "OLDER":
            for each in factory.product.inputs:
                bought = self._add(run, "ACQUIRE", each, None, (), source=self._random.choice(self._markets))
                inputs.append(self._add(run, "DELIVER", each, factory, (bought,), target=factory.symbol))
            taken = self._add(run, "COLLECT", good, factory, tuple(inputs), source=factory.symbol)
            self._add(run, "SELL", good, None, (taken,), target=market)
            return
        if kind == "FABRICATION":
            for each in factory.product.inputs:
                maker = next((f for f in self._factories if f.product.good == each and f.product.inputs), None)
                before: list[int] = []
                if maker is not None and maker.symbol not in run.factories:
                    self._view(run, maker)
                    for part in maker.product.inputs:
                        before += self._deliver(run, maker, "ACQUIRE_DELIVER", part)
                for _ in range(self._random.choice((1, 1, 2))):
                    inputs += self._deliver(run, factory, "ACQUIRE_DELIVER", each, tuple(before))
        for _ in range(self._random.choice((1, 2, 2, 3))):
            self._add(run, "COLLECT_SELL", good, factory, tuple(inputs), source=factory.symbol, target=market)

    def _view(self, run: _Run, factory: _Factory) -> None:
        inputs = factory.product.inputs if run.row.pipeline_type != "COLLECTION" else ()
        run.factories[factory.symbol] = factory
        run.views[factory.symbol] = FactoryRow(
            id=self._number(),
            factory_symbol=factory.symbol,
            output_good=factory.product.good,
            pipeline_id=run.row.id,
            required_inputs=inputs,
            delivered_inputs=tuple(Delivery(each) for each in inputs),
            created_at=self._now,
            current_supply=self._random.choice((None, None, "")),
        )

    def _deliver(
        self, run: _Run, factory: _Factory, task_type: str, good: str, needs: tuple[int, ...] = ()
    ) -> list[int]:
        source = self._random.choice(self._markets)
        return [self._add(run, task_type, good, factory, needs, source=source, target=factory.symbol)]

    def _add(
        self,
        run: _Run | None,
        task_type: str,
        good: str,
        factory: _Factory | None,
        needs: tuple[int, ...],
        *,
        source: str | None = None,
        target: str | None = None,
    ) -> int:
        dear = PRICES[good] > 500 and task_type not in COLLECTING | {"SELL", "LIQUIDATE"}
        row = TaskRow(
            id=self._number(),
            pipeline_id=run.row.id if run else None,
            task_type=task_type,
            good=good,
            quantity=self._random.randint(4, 9) if dear else self._random.randint(20, 40),
            created_at=self._now,
            source_market=source,
            target_market=target,
            factory_symbol=factory.symbol if factory else None,
            priority=self._random.choice((0, 0, 5, 10)) + (10 if task_type in URGENT else 0),
        )
        (run.jobs if run else self._loose)[row.id] = _Job(row, factory, needs)
        return row.id

    def _launch(self, run_id: int) -> None:
        run = self._runs.get(run_id)
        if run is None or run.row.status != "PLANNING":
            return
        if self._omen("cancel planning"):
            self._close(run, "CANCELLED", "a better product was found")
        elif self._omen("fail planning"):
            self._close(run, "FAILED", "no market sells the inputs")
        else:
            self._commit(self._turn(run, status="EXECUTING", started_at=self._now))

    # -- rows

    def _turn(self, run: _Run, **changes: Any) -> Save:  # noqa: ANN401 - dataclasses.replace takes any column
        before, run.row = run.row, replace(run.row, **changes)
        return Save(run.row, before)

    def _move(self, job: _Job, status: str, **changes: Any) -> list[Statement]:  # noqa: ANN401
        """Move a task to a status; a ship that it held and no longer holds becomes idle in the same transaction."""
        before, job.row = job.row, replace(job.row, status=status, **changes)
        job.attempt += 1
        statements: list[Statement] = [Save(job.row, before)]
        if before.status in HOLDING and status not in HOLDING and before.assigned_ship:
            statements.append(self._free(before.assigned_ship))
        return statements

    def _free(self, ship: str) -> Save:
        before, self._ships[ship] = self._ships[ship], ShipRow(ship, role=self._ships[ship].role)
        return Save(self._ships[ship], before)

    def _back_to_ready(self, job: _Job) -> list[Statement]:
        # The ship stays on the row when an execution is rolled back; an assignment gives it back.
        ship = job.row.assigned_ship if job.row.status == "EXECUTING" else None
        return self._move(
            job, "READY", ready_at=self._now, started_at=None, assigned_ship=ship, phase_completed_at=None
        )

    def _park(self, job: _Job) -> list[Statement]:
        return self._move(job, "PENDING", ready_at=None, started_at=None, assigned_ship="")

    def _cancel(self, job: _Job, why: str) -> list[Statement]:
        """Give a task up for good before it ran: no retry is counted, and it never started."""
        job.dropped = True
        return self._move(job, "FAILED", completed_at=self._now, started_at=None, error_message=why)

    def _fail(self, job: _Job, why: str) -> list[Statement]:
        """Fail an attempt; what was bought before it failed is a cost all the same."""
        spent = self._random.random() < 0.5 and job.row.status == "EXECUTING"
        cost, _ = self._account(job) if spent else (job.row.total_cost, 0)
        return self._move(
            job, "FAILED", completed_at=self._now, retry_count=job.row.retry_count + 1,
            error_message=why, total_cost=cost,
        )  # fmt: skip

    def _omen(self, name: str) -> bool:
        if name in self._omens:
            self._omens.remove(name)
            return True
        return False

    def _jobs(self) -> list[_Job]:
        return [*(job for run in self._runs.values() for job in run.jobs.values()), *self._loose.values()]

    def _run_of(self, job: _Job) -> _Run | None:
        return self._runs.get(job.row.pipeline_id) if job.row.pipeline_id is not None else None

    # -- tasks

    def _coordinate(self) -> None:
        """Find what has become ready, and give ships to it."""
        for job in self._jobs():
            if job.row.status == "PENDING" and self._can_start(job):
                if job.row.pipeline_id is not None and self._redundant(job) and self._omen("cancel pending"):
                    self._commit(*self._cancel(job, "no longer needed"))
                else:
                    self._commit(*self._move(job, "READY", ready_at=self._now))
            elif job.row.status == "READY":
                if not self._can_start(job) or self._omen("hold ready"):
                    self._commit(*self._move(job, "PENDING", ready_at=None, assigned_ship=None))
                elif job.row.pipeline_id is not None and self._redundant(job) and self._omen("cancel ready"):
                    self._commit(*self._cancel(job, "another task does it"))
        waiting = [job for job in self._jobs() if job.row.status == "READY"]
        waiting.sort(key=lambda job: (-job.row.priority, job.row.ready_at or 0.0))
        for job in waiting[: self._random.choice((1, 2, 2, 3))]:
            idle = [ship for ship, row in self._ships.items() if row.assignment_status == "idle"]
            if not idle:
                break
            self._assign(job, self._random.choice(idle))
        self._after(COORDINATE_SECONDS * self._between(0.8, 1.2), self._coordinate)

    def _can_start(self, job: _Job) -> bool:
        run = self._run_of(job)
        if run is None:
            return job.row.pipeline_id is None
        if run.row.status != "EXECUTING":
            return False
        for need in job.needs:
            before = run.jobs.get(need)
            if before is not None and before.row.status != "COMPLETED" and not before.dropped:
                return False
        if job.row.task_type in COLLECTING and job.factory is not None:
            return run.views[job.factory.symbol].ready_for_collection
        return True

    def _redundant(self, job: _Job) -> bool:
        run = self._run_of(job)
        return (
            run is not None
            and not job.jinxed
            and any(
                other.row.task_type == job.row.task_type and other.row.good == job.row.good and not other.dropped
                for other in run.jobs.values()
                if other is not job
            )
        )

    def _assign(self, job: _Job, ship: str) -> None:
        before, job.row = job.row, replace(job.row, status="ASSIGNED", assigned_ship=ship)
        job.attempt += 1
        idle = self._ships[ship]
        self._ships[ship] = replace(idle, assignment_status="active", container_id=f"worker-{job.row.id}")
        self._commit(Assign(job.row, before), Save(self._ships[ship], idle))
        self._after(self._between(2, 9), partial(self._begin, job, job.attempt))

    def _begin(self, job: _Job, attempt: int) -> None:
        if job.attempt != attempt:
            return
        if job.row.pipeline_id is not None and self._redundant(job) and self._omen("cancel assigned"):
            self._commit(*self._cancel(job, "no longer needed"))
        elif self._omen("fail assigned"):
            self._commit(*self._fail(job, "the ship was lost before it left"))
        elif self._omen("unassign"):
            self._commit(*self._back_to_ready(job))
        elif self._omen("park assigned"):
            self._commit(*self._park(job))
        else:
            self._execute(job)

    def _execute(self, job: _Job) -> None:
        run = self._run_of(job)
        if run and run.row.sequence_number > 3 and run.row.pipeline_type == "FABRICATION" and self._omen("jinx"):
            job.jinxed = True
            job.row = replace(job.row, priority=50)
        self._commit(*self._move(job, "EXECUTING", started_at=self._now))
        median = TASK_SECONDS[job.row.task_type]
        seconds = median * math.exp(self._random.gauss(0, 0.45))
        seconds = min(max(seconds, SHORTEST_TASK_SECONDS), LONGEST_TASK_SECONDS)
        end: Callable[[_Job, int], None] = self._succeed
        if job.jinxed:
            seconds, end = self._between(SHORTEST_TASK_SECONDS, 20), self._break
        elif self._random.random() < 0.035:
            seconds, end = max(SHORTEST_TASK_SECONDS, seconds * self._between(0.2, 0.9)), self._break
        elif self._omen("park executing"):
            seconds, end = self._between(10, 25), self._give_way
        self._after(seconds, partial(end, job, job.attempt))
        if job.row.task_type in {"ACQUIRE_DELIVER", "COLLECT_SELL", "STORAGE_ACQUIRE_DELIVER"}:
            self._after(seconds * self._between(0.3, 0.6), partial(self._half_way, job, job.attempt))

    def _half_way(self, job: _Job, attempt: int) -> None:
        """Note the end of the first phase: a Save that moves nothing that counts."""
        if job.attempt != attempt:
            return
        done = "collect_phase_completed" if job.row.task_type == "COLLECT_SELL" else "acquire_phase_completed"
        changes: dict[str, Any] = {done: True, "phase_completed_at": self._now}
        before, job.row = job.row, replace(job.row, **changes)
        self._commit(Save(job.row, before))

    def _give_way(self, job: _Job, attempt: int) -> None:
        if job.attempt == attempt:
            self._commit(*self._park(job))

    def _break(self, job: _Job, attempt: int) -> None:
        if job.attempt == attempt:
            why = self._random.choice(("market price above the limit", "not enough fuel", "cargo hold is full"))
            self._commit(*self._fail(job, why))

    def _succeed(self, job: _Job, attempt: int) -> None:
        if job.attempt != attempt:
            return
        cost, revenue = self._account(job)
        ship = job.row.assigned_ship or ""
        done = self._move(
            job, "COMPLETED", completed_at=self._now, actual_quantity=job.row.quantity,
            total_cost=cost, total_revenue=revenue, error_message=None,
        )  # fmt: skip
        run = self._run_of(job)
        if run is not None and job.factory is not None:
            if job.row.task_type in DELIVERING:
                done.append(self._receive(run, job, ship))
                job.factory.work += self._between(13, 21)
            elif job.row.task_type in COLLECTING:
                job.factory.supply = max(4.0, job.factory.supply - self._between(11, 19))
            elif job.row.task_type == "DELIVER_TO_CONSTRUCTION":
                job.factory.supply = max(4.0, job.factory.supply - self._between(2, 6))
        self._loose.pop(job.row.id, None)
        self._commit(*done)

    def _receive(self, run: _Run, job: _Job, ship: str) -> Save:
        """Enter a delivery in the pipeline's view of the factory."""
        factory = cast("_Factory", job.factory)
        view = run.views[factory.symbol]
        held = {each.good: each for each in view.delivered_inputs}
        old = held.get(job.row.good, Delivery(job.row.good))
        held[job.row.good] = Delivery(old.good, delivered=True, quantity=old.quantity + job.row.quantity, ship=ship)
        if self._random.random() < 0.05:
            # The hold was not empty: a good that nobody asked for.
            held["FUEL"] = Delivery("FUEL", delivered=True, quantity=self._random.randint(1, 5), ship=ship)
        complete = view.all_inputs_delivered or all(held[each].delivered for each in view.required_inputs)
        run.views[factory.symbol] = replace(
            view,
            delivered_inputs=tuple(held.values()),
            all_inputs_delivered=complete,
            inputs_completed_at=view.inputs_completed_at or (self._now if complete else None),
        )
        return Save(run.views[factory.symbol], view)

    def _priced(self, good: str, low: float, high: float) -> int:
        return round(PRICES[good] * self._between(low, high))

    def _account(self, job: _Job) -> tuple[int, int]:
        """Return what an attempt costs and earns, in credits; about one sale in eight is a bad one."""
        quantity, good, fuel = job.row.quantity, job.row.good, self._random.randint(60, 420)
        sold = self._between(0.35, 0.7) if self._random.random() < 0.13 else self._between(0.85, 1.15)
        match job.row.task_type:
            case "COLLECT_SELL":
                paid = quantity * self._priced(good, 0.5, 0.72)
                return paid + fuel, round(quantity * PRICES[good] * sold)
            case "ACQUIRE_DELIVER" | "ACQUIRE":
                return quantity * self._priced(good, 0.9, 1.15) + fuel, 0
            case "STORAGE_ACQUIRE_DELIVER":
                return quantity * self._priced(good, 0.15, 0.3) + fuel, 0
            case "COLLECT":
                return quantity * self._priced(good, 0.5, 0.72), 0
            case "SELL":
                return fuel, round(quantity * PRICES[good] * sold)
            case "LIQUIDATE":
                return fuel, round(quantity * PRICES[good] * self._between(0.3, 0.6))
            case _:
                return fuel, 0

    def _liquidate(self) -> None:
        """Sell what lies in some hold: a task that belongs to no pipeline."""
        good = self._random.choice([factory.product.good for factory in self._factories])
        number = self._add(None, "LIQUIDATE", good, None, (), target=self._random.choice(self._markets))
        self._commit(Insert(self._loose[number].row))
        self._after(self._between(90, 260), self._liquidate)

    # -- upkeep

    def _maintain(self) -> None:
        """Retry what failed, end what is over, and see to runs that are stuck."""
        for job in list(self._loose.values()):
            if job.row.status == "FAILED":
                self._retry(job)
        for run in list(self._runs.values()):
            for job in run.jobs.values():
                if job.row.status == "FAILED" and not job.dropped:
                    if job.row.retry_count >= job.row.max_retries:
                        self._close(run, "FAILED", f"{job.row.task_type} failed {job.row.retry_count} times")
                        break
                    self._retry(job)
            if run.row.status == "EXECUTING":
                self._see_to(run)
        self._after(MAINTAIN_SECONDS * self._between(0.8, 1.2), self._maintain)

    def _retry(self, job: _Job) -> None:
        if job.row.retry_count >= job.row.max_retries:
            self._loose.pop(job.row.id, None)
            return
        forgiven = self._random.random() < 0.5
        self._commit(
            *self._move(
                job, "PENDING", ready_at=None, started_at=None, completed_at=None, assigned_ship=None,
                phase_completed_at=None, total_cost=0 if forgiven else job.row.total_cost,
            )
        )  # fmt: skip

    def _see_to(self, run: _Run) -> None:
        if all(job.row.status == "COMPLETED" or job.dropped for job in run.jobs.values()):
            self._close(run, "COMPLETED", None)
            return
        started = run.row.started_at or self._now
        if self._now - started > PATIENCE_SECONDS:
            self._recycle(run)
            return
        stuck = all(
            job.row.status in {"COMPLETED", "PENDING"} or job.dropped for job in run.jobs.values()
        ) and any(
            job.row.task_type in COLLECTING and self._inputs_are_there(run, job) for job in run.jobs.values()
        )  # fmt: skip
        if not stuck or self._now - run.resupplied_at < RESUPPLY_SECONDS:
            return
        # The inputs have come but the factory's output is still short: deliver once more.
        run.resupplied_at = self._now
        for factory in run.factories.values():
            if factory.product.inputs and not factory.ready:
                good = self._random.choice(factory.product.inputs)
                for number in self._deliver(run, factory, "ACQUIRE_DELIVER", good):
                    self._commit(Insert(run.jobs[number].row))

    def _inputs_are_there(self, run: _Run, job: _Job) -> bool:
        return job.row.status == "PENDING" and all(
            run.jobs[need].row.status == "COMPLETED" or run.jobs[need].dropped for need in job.needs
        )

    def _close(self, run: _Run, status: str, why: str | None) -> None:
        self._commit(*self._ending(run, status, why))

    def _ending(self, run: _Run, status: str, why: str | None) -> list[Statement]:
        """End a pipeline: its unfinished tasks fail with it, and the sums of all its tasks are written now."""
        statements: list[Statement] = []
        reason = f"the pipeline was {status.lower()}"
        for job in run.jobs.values():
            if job.row.status == "EXECUTING":
                statements += self._fail(job, reason)
            elif job.row.status in LIVE_TASK:
                statements += self._cancel(job, reason)
        cost = sum(job.row.total_cost for job in run.jobs.values())
        revenue = sum(job.row.total_revenue for job in run.jobs.values())
        statements.append(
            self._turn(
                run, status=status, completed_at=self._now, error_message=why,
                total_cost=cost, total_revenue=revenue, net_profit=revenue - cost,
            )
        )  # fmt: skip
        del self._runs[run.row.id]
        self._finished.append((run.row.id, status))
        return statements

    def _recycle(self, run: _Run) -> None:
        """Cancel a pipeline that came to nothing and delete what it had not done, in one transaction."""
        statements: list[Statement] = []
        for job in list(run.jobs.values()):
            if job.row.status in {"PENDING", "READY"}:
                statements.append(DeleteTask(job.row.id))
                del run.jobs[job.row.id]
        self._commit(*statements, *self._ending(run, "CANCELLED", "recycled"))

    def _monitor(self) -> None:
        """Let the factories work, then look at them: one Save a row, most of which change nothing."""
        for factory in self._factories:
            step = min(factory.work, self._between(5, 9))
            factory.work -= step
            pull = 0.03 if factory.product.inputs else 0.08
            factory.supply += step + pull * (factory.home - factory.supply) + self._random.gauss(0, 0.8)
            factory.supply = min(max(factory.supply, 2.0), 98.0)
        for run in list(self._runs.values()):
            for symbol, view in list(run.views.items()):
                factory = run.factories[symbol]
                changes: dict[str, Any] = {}
                if view.current_supply != factory.level:
                    changes = {"current_supply": factory.level, "previous_supply": view.current_supply}
                if view.ready_for_collection != factory.ready:
                    changes |= {"ready_for_collection": factory.ready, "ready_at": self._now}
                if not view.required_inputs and not view.all_inputs_delivered:
                    changes |= {"all_inputs_delivered": True, "inputs_completed_at": self._now}
                run.views[symbol] = replace(view, **changes)
                self._commit(Save(run.views[symbol], view))
        self._after(MONITOR_SECONDS * self._between(0.95, 1.05), self._monitor)

    def _scan_somewhere(self) -> None:
        self._scan(self._random.choice((*self._markets, *(factory.symbol for factory in self._factories))))
        self._after(self._between(45, 110), self._scan_somewhere)

    def _scan(self, waypoint: str) -> None:
        here = [factory for factory in self._factories if factory.symbol == waypoint]
        # What a waypoint trades is a matter of its name, not of chance: the same goods at every scan.
        goods = Random(waypoint).sample(sorted(PRICES), 6)
        rows = [self._quote(waypoint, good, self._random.choice(SUPPLY_LEVELS)) for good in goods]
        for factory in here:
            rows = [row for row in rows if row.good_symbol != factory.product.good]
            rows.append(self._quote(waypoint, factory.product.good, factory.level))
        self._commit(Scan(waypoint, tuple(rows)))

    def _quote(self, waypoint: str, good: str, supply: str) -> MarketRow:
        price = self._priced(good, 0.85, 1.2)
        return MarketRow(
            waypoint, good, supply, self._random.choice(ACTIVITIES),
            purchase_price=price, sell_price=round(price * 0.94), trade_volume=self._random.choice((20, 40, 60, 100)),
            last_updated=self._now,
        )  # fmt: skip

    # -- what goes wrong

    def _strike(self) -> None:
        if not self._incidents:
            self._round += 1
            self._incidents = [*DEFERRED_INCIDENTS, *IMMEDIATE_INCIDENTS]
            self._random.shuffle(self._incidents)
            if self._round == 1:
                # These take longest to show: first, so that the first quarter of an hour has seen everything.
                first = ["jinx", "cancel planning", "fail planning", "park executing"]
                self._incidents = [name for name in self._incidents if name not in first] + first[::-1]
        incident = self._incidents.pop()
        if incident in DEFERRED_INCIDENTS:
            self._omens.append(incident)
        elif not self._trigger_incident(incident):
            self._incidents.insert(0, incident)
        self._after(self._between(18, 34) if self._round == 1 else self._between(90, 210), self._strike)

    def _trigger_incident(self, incident: str) -> bool:
        """Let something happen at once; False where there is nothing that it could happen to."""
        executing = [run for run in self._runs.values() if run.row.status == "EXECUTING"]
        # The first ones are spared, and so are those that are failing by themselves.
        old = [
            run for run in executing if run.row.sequence_number > 4 and not any(job.jinxed for job in run.jobs.values())
        ]
        busy = [job for job in self._jobs() if job.row.status == "EXECUTING"]
        idle = [ship for ship, row in self._ships.items() if row.assignment_status == "idle"]
        if incident == "restart" and busy:
            # The daemon starts again and finds tasks that nobody executes any more.
            for job in self._random.sample(busy, min(2, len(busy))):
                self._commit(*self._back_to_ready(job))
        elif incident == "recycle" and old:
            self._recycle(self._random.choice(old))
        elif incident == "cancel executing" and old:
            self._close(self._random.choice(old), "CANCELLED", "its market has collapsed")
        elif incident == "delete finished" and self._finished:
            number, status = self._finished.popleft()
            self._commit(DeletePipeline(number, status))
        elif incident == "delete live" and old:
            run = self._random.choice(old)
            ships = [job.row.assigned_ship for job in run.jobs.values() if job.row.status in HOLDING]
            for job in run.jobs.values():
                job.attempt += 1
            del self._runs[run.row.id]
            self._commit(
                DeletePipeline(run.row.id, run.row.status), *(self._free(ship) for ship in ships if ship)
            )  # fmt: skip
        elif incident == "borrow ship" and len(idle) > 1:
            ship = self._random.choice(idle)
            before = self._ships[ship]
            self._ships[ship] = replace(before, assignment_status="active", container_id=f"scout-{self._number()}")
            self._commit(Save(self._ships[ship], before))
            self._after(self._between(120, 400), lambda: self._commit(self._free(ship)))
        else:
            return False
        return True
