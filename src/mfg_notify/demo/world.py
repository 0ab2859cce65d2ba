"""Owns the world of the simulated game: one player's manufacturing, as a discrete-event simulation.

Time is game seconds on a virtual clock, and the seed decides everything. The world yields transactions; it knows no
database and no wall clock. Here is what both of the game's daemons do; `classic` and `construction` have the rest.
`game` plays worlds, `economy` has the numbers.
"""

import heapq
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from random import Random
from typing import Any, ClassVar, Final, Literal, TypeAlias

from mfg_notify.demo import economy
from mfg_notify.demo.economy import COLLECTING, PRODUCTS, SOURCES, Factory
from mfg_notify.demo.rows import (
    LIVE_TASK_STATUSES,
    SHIP_HOLDING_STATUSES,
    DependencyRow,
    FactoryRow,
    PipelineRow,
    ShipRow,
    TaskRow,
)
from mfg_notify.demo.statements import (
    CloseEra,
    DeletePipeline,
    DeleteTask,
    Enter,
    Insert,
    Save,
    Scan,
    Statement,
    Transaction,
)

Daemon: TypeAlias = Literal["classic", "construction"]
"""The daemon of late 2025, or that of August 2026."""


@dataclass(frozen=True, slots=True)
class GameOptions:
    """How the game is played.

    `speed` is game seconds per wall second. `rate`, if given, replaces it: about that many row-changing statements a
    second over all players, with game time passing as fast as that needs; 0 or less, or infinity, is as fast as
    possible. `era_hours` is the mean length of a universe in game hours: a universe is reset every week.
    """

    seed: int = 1
    players: int = 3
    speed: float = 30.0
    rate: float | None = None
    era_hours: float = 168.0
    daemon: Daemon = "classic"


AGENT_NAMES: Final = (
    "TORWIND",
    "ENDURANCE",
    "BRASSGATE",
    "MERIDIAN",
    "KESTREL",
    "OLDHARBOUR",
    "NORTHPOLE",
    "QUILLON",
)
WAYPOINT_SUFFIXES: Final = ("A1", "B7", "C42", "D40", "E43", "F49", "G51", "H57", "J61", "K88")
CONSTRUCTION_SITES: Final = 20
SATELLITE: Final = 2
"""Number of the ship that every player owns from the start and that carries nothing."""
CARGO_CAPACITIES: Final = (40, 60, 80)
"""Units that a hauler can carry; the command ship carries the least."""

URGENT: Final = frozenset({*COLLECTING, "SELL", "STORAGE_ACQUIRE_DELIVER", "DELIVER_TO_CONSTRUCTION"})
"""Task types with a higher priority: a construction site does not wait, and finished products should be sold."""

COORDINATOR_SECONDS: Final = 5.0
MAINTENANCE_SECONDS: Final = 15.0
MONITOR_SECONDS: Final = 45.0
LIVE_PIPELINES: Final = 6
SPARED_PIPELINES: Final = 4
"""The first pipelines of an era are spared most incidents, so that a newcomer sees some succeed."""
ROLLBACK_SHARE: Final = 0.008
FAILED_ATTEMPT_SHARE: Final = 0.035


@dataclass(slots=True)
class Task:
    """A task's row, and what the daemon knows about the task besides."""

    row: TaskRow
    factory: Factory | None = None
    needs: tuple[int, ...] = ()
    ship: str | None = None
    """The ship that works on it. The construction daemon only keeps it here."""
    attempt: int = 0
    """Grows with every move, so that an action scheduled for an earlier attempt finds out that it is too late."""
    always_fails: bool = False
    dropped: bool = False
    """Cancelled for good: no other task waits for it."""


@dataclass(slots=True)
class Pipeline:
    """A live pipeline's row, its tasks, and, with the classic daemon, its view of the factories it uses."""

    row: PipelineRow
    tasks: dict[int, Task] = field(default_factory=dict)
    views: dict[str, FactoryRow] = field(default_factory=dict)
    factories: dict[str, Factory] = field(default_factory=dict)
    resupplied_at: float = 0.0


class World(ABC):
    """One player's game. The same options and index always give the same transactions.

    What goes wrong are incidents. Each one happens once per round; the first round is fast, so a newcomer soon sees all
    of them. A deferred incident waits for the next row that reaches its stage; an immediate one happens at once.
    """

    deferred_incidents: ClassVar[tuple[str, ...]]
    immediate_incidents: ClassVar[tuple[str, ...]] = (
        "restart", "recycle", "cancel executing", "delete finished", "delete live", "borrow ship",
    )  # fmt: skip
    slowest_incidents: ClassVar[tuple[str, ...]]
    """These take longest to show, so the first round begins with them and a quarter of an hour shows everything."""
    incident_seconds: ClassVar[tuple[float, float]]
    """Bounds of the time between two incidents after the first round, in game seconds."""
    always_made: ClassVar[tuple[str, ...]]
    """Goods that some factory makes in every era."""

    def __init__(self, options: GameOptions, index: int = 0) -> None:
        self._options = options
        self._index = index
        # Random hashes a text seed in the same way in every process.
        self._random = Random(f"{options.seed}/{index}")
        self._now = 0.0
        self._era = 0
        self._queue: list[tuple[float, int, int, Callable[[], None]]] = []
        self._order = 0
        self._last_number = 0
        self._pending: deque[Transaction] = deque()
        self._begin_era()

    def transactions(self) -> Iterator[Transaction]:
        """Yield transactions in order of game time, without end."""
        while True:
            while self._pending:
                yield self._pending.popleft()
            at, _, era, action = heapq.heappop(self._queue)
            if era == self._era:
                self._now = at
                action()

    # -- what the two daemons do in their own way

    @abstractmethod
    def _start_daemon(self) -> None:
        """Schedule what the daemon does besides, at the beginning of an era."""

    @abstractmethod
    def _plan_next(self) -> None:
        """Insert another pipeline."""

    @abstractmethod
    def _assign(self, task: Task, ship: str) -> None:
        """Give a ready task to an idle ship."""

    @abstractmethod
    def _advance(self, pipeline: Pipeline) -> None:
        """Close an executing pipeline that is done, or add the tasks that it needs now."""

    @abstractmethod
    def _may_cancel(self, task: Task) -> bool:
        """Tell whether the pipeline can end without this task."""

    @abstractmethod
    def _restart(self) -> bool:
        """Restart the daemon, which then finds tasks that no worker executes; return False if there are none."""

    def _end_player(self) -> tuple[Statement, ...]:
        """Return what the daemon does to the player whose universe was reset."""
        return (CloseEra(),)

    def _give_up(self, task: Task, reason: str) -> list[Statement]:
        """End a live task because its pipeline ends."""
        return self._cancel(task, reason)

    # -- the clock

    def _after(self, seconds: float, action: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._queue, (self._now + max(seconds, 0.001), self._order, self._era, action))

    def _between(self, low: float, high: float) -> float:
        return self._random.uniform(low, high)

    def _next_number(self) -> int:
        self._last_number += 1
        return self._last_number

    def _commit(self, *statements: Statement) -> None:
        if not statements:
            return
        # Some transactions are rolled back and tried again, as after a serialization failure.
        if self._random.random() < ROLLBACK_SHARE:
            self._pending.append(Transaction(self._now, statements, rolled_back=True))
        self._pending.append(Transaction(self._now, statements))

    # -- eras

    def _begin_era(self) -> None:
        self._era += 1
        self._pipelines: dict[int, Pipeline] = {}
        self._adhoc_tasks: dict[int, Task] = {}
        self._finished: deque[tuple[int, str]] = deque(maxlen=60)
        self._deferred_incidents: deque[str] = deque()
        self._upcoming_incidents: list[str] = []
        self._round = 0
        self._sequence = 0
        agent = f"{AGENT_NAMES[self._index % len(AGENT_NAMES)]}{self._index // len(AGENT_NAMES) or ''}"
        letters = "".join(self._random.choices("BCDFGHJKMNPQRSTVXZ", k=2))
        self._system = f"X1-{letters}{self._random.randint(10, 99)}"
        products = (*self._random.sample(PRODUCTS, 4), *self._random.sample(SOURCES, 1))
        products = tuple(dict.fromkeys((*products, *(p for p in PRODUCTS if p.good in self.always_made))))
        suffixes = self._random.sample(WAYPOINT_SUFFIXES, len(products) + 3)
        self._factories = [
            economy.build_factory(self._random, f"{self._system}-{suffix}", product)
            for product, suffix in zip(products, suffixes, strict=False)
        ]
        self._markets = [f"{self._system}-{suffix}" for suffix in suffixes[len(products) :]]
        self._sites = [f"{self._system}-I{number}" for number in range(52, 52 + CONSTRUCTION_SITES)]
        self._ships = {
            ship.ship_symbol: ship
            for number in range(1, self._random.randint(10, 13) + 1)
            for ship in (self._build_ship(f"{agent}-{number:X}", number),)
        }
        self._commit(Enter(agent, f"token-of-{agent}-{self._era}"))
        self._commit(*(Insert(ship) for ship in self._ships.values()))
        for waypoint in (*self._markets, *(factory.symbol for factory in self._factories)):
            self._scan(waypoint)
        self._after(25, self._keep_planning)
        self._after(COORDINATOR_SECONDS, self._coordinate)
        self._after(MAINTENANCE_SECONDS, self._maintain)
        self._after(24, self._next_incident)
        self._after(60, self._liquidate)
        self._after(40, self._scan_somewhere)
        self._after(self._options.era_hours * 3600 * self._between(0.7, 1.3), self._end_era)
        self._start_daemon()

    def _build_ship(self, symbol: str, number: int) -> ShipRow:
        if number == SATELLITE:
            return ShipRow(symbol, role="SATELLITE")
        if number == 1:
            return ShipRow(symbol, role="COMMAND", cargo_capacity=min(CARGO_CAPACITIES))
        return ShipRow(symbol, role="HAULER", cargo_capacity=self._random.choice(CARGO_CAPACITIES))

    def _end_era(self) -> None:
        self._commit(*self._end_player())
        self._begin_era()

    # -- planning

    def _keep_planning(self) -> None:
        if len(self._pipelines) < LIVE_PIPELINES:
            self._plan_next()
        self._after(self._between(20, 45), self._keep_planning)

    def _choose_site(self) -> str:
        """Return a construction site that no live pipeline supplies: a site has one live pipeline at most."""
        supplied = {pipeline.row.construction_site for pipeline in self._pipelines.values()}
        return self._random.choice([site for site in self._sites if site not in supplied])

    def _insert_plan(self, pipeline: Pipeline) -> bool:
        """Insert a pipeline with its tasks in one transaction; return False if the daemon abandons it."""
        statements = (Insert(pipeline.row), *self._inserts(pipeline.tasks.values()))
        if self._take_deferred("abandon"):
            self._pending.append(Transaction(self._now, statements, rolled_back=True))
            return False
        self._pipelines[pipeline.row.id] = pipeline
        self._commit(*statements)
        self._after(self._between(8, 22), partial(self._start, pipeline.row.id))
        return True

    def _inserts(self, tasks: Collection[Task]) -> list[Statement]:
        """Return the INSERTs of tasks and of what they depend on."""
        return [
            *(Insert(task.row) for task in tasks),
            *(Insert(DependencyRow(task.row.id, need)) for task in tasks for need in task.needs),
        ]

    def _add_delivery(
        self, pipeline: Pipeline, factory: Factory, task_type: str, good: str, needs: tuple[int, ...] = ()
    ) -> int:
        source = self._random.choice(self._markets)
        return self._add_task(pipeline, task_type, good, factory, needs, source=source, target=factory.symbol)

    def _add_task(
        self,
        pipeline: Pipeline | None,
        task_type: str,
        good: str,
        factory: Factory | None,
        needs: tuple[int, ...],
        *,
        source: str | None = None,
        target: str | None = None,
        quantity: int | None = None,
    ) -> int:
        """Add a task and return its id. Without a quantity it moves what is usual for its type."""
        row = TaskRow(
            id=self._next_number(),
            pipeline_id=pipeline.row.id if pipeline else None,
            task_type=task_type,
            good=good,
            quantity=quantity or economy.quantity(self._random, good, task_type),
            created_at=self._now,
            source_market=source,
            target_market=target,
            factory_symbol=factory.symbol if factory else None,
            priority=self._random.choice((0, 0, 5, 10)) + (10 if task_type in URGENT else 0),
        )
        (pipeline.tasks if pipeline else self._adhoc_tasks)[row.id] = Task(row, factory, needs)
        return row.id

    def _start(self, pipeline_id: int) -> None:
        pipeline = self._pipelines.get(pipeline_id)
        if pipeline is None or pipeline.row.status != "PLANNING":
            return
        if self._take_deferred("cancel planning"):
            self._close(pipeline, "CANCELLED", "a better product was found")
        elif self._take_deferred("fail planning"):
            self._close(pipeline, "FAILED", "no market sells the inputs")
        else:
            self._commit(self._update(pipeline, status="EXECUTING", started_at=self._now))

    # -- changes of rows

    def _update(self, pipeline: Pipeline, **changes: Any) -> Save:  # noqa: ANN401 - dataclasses.replace takes any column
        before, pipeline.row = pipeline.row, replace(pipeline.row, **changes)
        return Save(pipeline.row, before)

    def _move(self, task: Task, status: str, **changes: Any) -> list[Statement]:  # noqa: ANN401
        """Move a task to a status, and release its ship in the same transaction if the new status holds none."""
        before, task.row = task.row, replace(task.row, status=status, **changes)
        task.attempt += 1
        statements: list[Statement] = [Save(task.row, before)]
        if task.ship is not None and status not in SHIP_HOLDING_STATUSES:
            statements.append(self._release(task.ship))
            task.ship = None
        return statements

    def _hold(self, task: Task, ship: str) -> Save:
        """Let a ship work on a task, and return the Save of the ship's row."""
        task.ship = ship
        task.attempt += 1
        return self._save_ship(ship, "active", f"worker-{task.row.id}")

    def _release(self, ship: str) -> Save:
        return self._save_ship(ship, "idle", None)

    def _save_ship(self, ship: str, status: str, container_id: str | None) -> Save:
        before = self._ships[ship]
        self._ships[ship] = replace(before, assignment_status=status, container_id=container_id)
        return Save(self._ships[ship], before)

    def _idle_ships(self) -> list[str]:
        """Return the idle ships that can carry something."""
        return [symbol for symbol, row in self._ships.items() if row.assignment_status == "idle" and row.cargo_capacity]

    def _enter_material(self, pipeline: Pipeline, good: str, units: int) -> Save:
        """Enter what has arrived at the construction site in the pipeline's materials."""
        return self._update(
            pipeline,
            materials=tuple(
                replace(each, delivered_quantity=each.delivered_quantity + units) if each.trade_symbol == good else each
                for each in pipeline.row.materials
            ),
        )

    def _cancel(self, task: Task, reason: str) -> list[Statement]:
        """Cancel a task for good before it ran. It counts no retry and never started."""
        task.dropped = True
        return self._move(task, "FAILED", completed_at=self._now, started_at=None, error_message=reason)

    def _take_deferred(self, incident: str) -> bool:
        """Take a deferred incident off the list if it waits there; return whether it does."""
        if incident in self._deferred_incidents:
            self._deferred_incidents.remove(incident)
            return True
        return False

    def _known_tasks(self) -> list[Task]:
        of_pipelines = (task for pipeline in self._pipelines.values() for task in pipeline.tasks.values())
        return [*of_pipelines, *self._adhoc_tasks.values()]

    def _pipeline_of(self, task: Task) -> Pipeline | None:
        return self._pipelines.get(task.row.pipeline_id) if task.row.pipeline_id is not None else None

    # -- tasks

    def _coordinate(self) -> None:
        """Move tasks between PENDING and READY, then assign idle ships to the most urgent ready ones."""
        for task in self._known_tasks():
            if task.row.status == "PENDING" and self._can_start(task):
                if self._may_cancel(task) and self._take_deferred("cancel pending"):
                    self._commit(*self._cancel(task, "no longer needed"))
                else:
                    self._commit(*self._move(task, "READY", ready_at=self._now))
            elif task.row.status == "READY" and task.ship is None:
                if not self._can_start(task) or self._take_deferred("hold ready"):
                    self._commit(*self._move(task, "PENDING", ready_at=None, assigned_ship=None))
                elif self._may_cancel(task) and self._take_deferred("cancel ready"):
                    self._commit(*self._cancel(task, "another task does it"))
        waiting = [task for task in self._known_tasks() if task.row.status == "READY" and task.ship is None]
        waiting.sort(key=lambda task: (-task.row.priority, task.row.ready_at or 0.0))
        for task in waiting[: self._random.choice((1, 2, 2, 3))]:
            idle = self._idle_ships()
            if not idle:
                break
            self._assign(task, self._random.choice(idle))
        self._after(COORDINATOR_SECONDS * self._between(0.8, 1.2), self._coordinate)

    def _can_start(self, task: Task) -> bool:
        """Tell whether a task's pipeline is executing and the tasks that it needs are done."""
        pipeline = self._pipeline_of(task)
        if pipeline is None:
            return task.row.pipeline_id is None
        if pipeline.row.status != "EXECUTING":
            return False
        needed = (pipeline.tasks.get(need) for need in task.needs)
        return all(each is None or each.row.status == "COMPLETED" or each.dropped for each in needed)

    def _liquidate(self) -> None:
        """Sell leftover cargo with an ad-hoc task, which belongs to no pipeline."""
        good = self._random.choice([factory.product.good for factory in self._factories])
        number = self._add_task(None, "LIQUIDATE", good, None, (), target=self._random.choice(self._markets))
        self._commit(Insert(self._adhoc_tasks[number].row))
        self._after(self._between(90, 260), self._liquidate)

    # -- upkeep

    def _maintain(self) -> None:
        """Retry failed tasks, close pipelines that have finished or failed, and advance the others."""
        for task in list(self._adhoc_tasks.values()):
            if task.row.status == "FAILED":
                self._retry(task)
        for pipeline in list(self._pipelines.values()):
            for task in pipeline.tasks.values():
                if task.row.status == "FAILED" and not task.dropped:
                    if task.row.retry_count >= task.row.max_retries:
                        self._close(pipeline, "FAILED", f"{task.row.task_type} failed {task.row.retry_count} times")
                        break
                    self._retry(task)
            if pipeline.row.status == "EXECUTING":
                self._advance(pipeline)
        self._after(MAINTENANCE_SECONDS * self._between(0.8, 1.2), self._maintain)

    def _retry(self, task: Task) -> None:
        if task.row.retry_count >= task.row.max_retries:
            self._adhoc_tasks.pop(task.row.id, None)
            return
        cost_is_reset = self._random.random() < 0.5
        self._commit(
            *self._move(
                task, "PENDING", ready_at=None, started_at=None, completed_at=None, assigned_ship=None,
                phase_completed_at=None, total_cost=0 if cost_is_reset else task.row.total_cost,
            )
        )  # fmt: skip

    def _close(self, pipeline: Pipeline, status: str, reason: str | None) -> None:
        self._commit(*self._ending(pipeline, status, reason))

    def _ending(self, pipeline: Pipeline, status: str, reason: str | None) -> list[Statement]:
        """End a pipeline: give up its live tasks, and write the sums of all its tasks into its row."""
        statements: list[Statement] = []
        reason_of_tasks = f"the pipeline was {status.lower()}"
        for task in pipeline.tasks.values():
            if task.row.status in LIVE_TASK_STATUSES:
                statements += self._give_up(task, reason_of_tasks)
        cost = sum(task.row.total_cost for task in pipeline.tasks.values())
        revenue = sum(task.row.total_revenue for task in pipeline.tasks.values())
        statements.append(
            self._update(
                pipeline, status=status, completed_at=self._now, error_message=reason,
                total_cost=cost, total_revenue=revenue, net_profit=revenue - cost,
            )
        )  # fmt: skip
        del self._pipelines[pipeline.row.id]
        self._finished.append((pipeline.row.id, status))
        return statements

    def _recycle(self, pipeline: Pipeline) -> None:
        """Cancel a pipeline and delete its waiting tasks, in one transaction."""
        statements: list[Statement] = []
        for task in list(pipeline.tasks.values()):
            if task.row.status in {"PENDING", "READY"} and task.ship is None:
                statements.append(DeleteTask(task.row.id))
                del pipeline.tasks[task.row.id]
        self._commit(*statements, *self._ending(pipeline, "CANCELLED", "recycled"))

    def _scan_somewhere(self) -> None:
        self._scan(self._random.choice((*self._markets, *(factory.symbol for factory in self._factories))))
        self._after(self._between(45, 110), self._scan_somewhere)

    def _scan(self, waypoint: str) -> None:
        factories = [factory for factory in self._factories if factory.symbol == waypoint]
        self._commit(Scan(waypoint, economy.market_rows(self._random, waypoint, factories, self._now)))

    # -- incidents

    def _next_incident(self) -> None:
        """Trigger or defer the next incident of the round; one that cannot happen now goes to the end of the round."""
        if not self._upcoming_incidents:
            self._round += 1
            self._upcoming_incidents = [*self.deferred_incidents, *self.immediate_incidents]
            self._random.shuffle(self._upcoming_incidents)
            if self._round == 1:
                others = [incident for incident in self._upcoming_incidents if incident not in self.slowest_incidents]
                self._upcoming_incidents = [*others, *reversed(self.slowest_incidents)]
        incident = self._upcoming_incidents.pop()
        if incident in self.deferred_incidents:
            self._deferred_incidents.append(incident)
        elif not self._trigger_incident(incident):
            self._upcoming_incidents.insert(0, incident)
        self._after(self._between(*((18, 34) if self._round == 1 else self.incident_seconds)), self._next_incident)

    def _trigger_incident(self, incident: str) -> bool:
        """Make an incident happen at once; return False if there is nothing that it could happen to."""
        # Pipelines that fail anyway are spared too.
        old = [
            pipeline
            for pipeline in self._pipelines.values()
            if pipeline.row.status == "EXECUTING"
            and pipeline.row.sequence_number > SPARED_PIPELINES
            and not any(task.always_fails for task in pipeline.tasks.values())
        ]
        idle = self._idle_ships()
        if incident == "restart":
            return self._restart()
        if incident == "recycle" and old:
            self._recycle(self._random.choice(old))
        elif incident == "cancel executing" and old:
            self._close(self._random.choice(old), "CANCELLED", "its market has collapsed")
        elif incident == "delete finished" and self._finished:
            number, status = self._finished.popleft()
            self._commit(DeletePipeline(number, status))
        elif incident == "delete live" and old:
            pipeline = self._random.choice(old)
            for task in pipeline.tasks.values():
                task.attempt += 1
            del self._pipelines[pipeline.row.id]
            releases = (self._release(task.ship) for task in pipeline.tasks.values() if task.ship)
            self._commit(DeletePipeline(pipeline.row.id, pipeline.row.status), *releases)
        elif incident == "borrow ship" and len(idle) > 1:
            ship = self._random.choice(idle)
            self._commit(self._save_ship(ship, "active", f"scout-{self._next_number()}"))
            self._after(self._between(120, 400), lambda: self._commit(self._release(ship)))
        else:
            return False
        return True
