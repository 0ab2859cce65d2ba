"""Owns the world of the simulated game: what one player's manufacturing does, as a discrete-event simulation.

Time is game seconds on a virtual clock, and the seed decides everything. The world yields transactions; it knows no
database and no wall clock. `game` plays them, `economy` has the numbers.
"""

import heapq
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from typing import Any, Final, cast

from mfg_notify.demo import economy
from mfg_notify.demo.economy import COLLECTING, DELIVERING, PRODUCTS, SHORTEST_TASK_SECONDS, SOURCES, Factory
from mfg_notify.demo.rows import (
    LIVE_TASK_STATUSES,
    SHIP_HOLDING_STATUSES,
    Delivery,
    DependencyRow,
    FactoryRow,
    PipelineRow,
    ShipRow,
    TaskRow,
)
from mfg_notify.demo.statements import (
    Assign,
    DeletePipeline,
    DeleteTask,
    Enter,
    Insert,
    Save,
    Scan,
    Scrub,
    Statement,
    Transaction,
)


@dataclass(frozen=True, slots=True)
class GameOptions:
    """How the game is played.

    `speed` is game seconds per wall second. `rate`, if given, replaces it: about that many row-changing statements a
    second over all players, with game time passing as fast as that needs; 0 or less, or infinity, is as fast as
    possible. `era_hours` is the mean length of a universe in game hours.
    """

    seed: int = 1
    players: int = 3
    speed: float = 30.0
    rate: float | None = None
    era_hours: float = 30.0


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

URGENT: Final = frozenset({*COLLECTING, "SELL", "STORAGE_ACQUIRE_DELIVER", "DELIVER_TO_CONSTRUCTION"})
"""Task types with a higher priority: a construction site does not wait, and finished products should be sold."""
TWO_PHASES: Final = frozenset({"ACQUIRE_DELIVER", "COLLECT_SELL", "STORAGE_ACQUIRE_DELIVER"})
"""Task types whose row notes the end of their first phase."""

COORDINATOR_SECONDS: Final = 5.0
MAINTENANCE_SECONDS: Final = 15.0
MONITOR_SECONDS: Final = 45.0
STALLED_PIPELINE_SECONDS: Final = 3300.0
"""Age at which a pipeline that has not finished is recycled."""
RESUPPLY_SECONDS: Final = 240.0
"""Shortest time between two additional deliveries for one pipeline."""
LIVE_PIPELINES: Final = 6
ROLLBACK_SHARE: Final = 0.008
FAILED_ATTEMPT_SHARE: Final = 0.035

# What goes wrong. Each incident happens once per round; the first round is fast, so a newcomer soon sees all of them.
# A deferred incident waits for the next row that reaches its stage; an immediate one happens at once.
DEFERRED_INCIDENTS: Final = (
    "fail every attempt", "cancel planning", "fail planning", "abandon", "hold ready", "cancel pending",
    "cancel ready", "cancel assigned", "fail assigned", "unassign", "park assigned", "park executing",
)  # fmt: skip
IMMEDIATE_INCIDENTS: Final = ("restart", "recycle", "cancel executing", "delete finished", "delete live", "borrow ship")
SLOWEST_INCIDENTS: Final = ("fail every attempt", "cancel planning", "fail planning", "park executing")
"""These take longest to show, so the first round begins with them and a quarter of an hour shows everything."""


@dataclass(slots=True)
class _Task:
    """A task's row, and what the daemon knows about the task besides."""

    row: TaskRow
    factory: Factory | None = None
    needs: tuple[int, ...] = ()
    attempt: int = 0
    """Grows with every move, so that an action scheduled for an earlier attempt finds out that it is too late."""
    always_fails: bool = False
    dropped: bool = False
    """Cancelled for good: no other task waits for it."""


@dataclass(slots=True)
class _Pipeline:
    """A live pipeline's row, its tasks, and its view of the factories it uses."""

    row: PipelineRow
    tasks: dict[int, _Task]
    views: dict[str, FactoryRow]
    factories: dict[str, Factory]
    resupplied_at: float = 0.0


class World:
    """One player's game. The same options and index always give the same transactions."""

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
        self._pipelines: dict[int, _Pipeline] = {}
        self._adhoc_tasks: dict[int, _Task] = {}
        self._finished: deque[tuple[int, str]] = deque(maxlen=60)
        self._deferred_incidents: deque[str] = deque()
        self._upcoming_incidents: list[str] = []
        self._round = 0
        self._sequence = 0
        self._plans: list[str] = []
        agent = f"{AGENT_NAMES[self._index % len(AGENT_NAMES)]}{self._index // len(AGENT_NAMES) or ''}"
        letters = "".join(self._random.choices("BCDFGHJKMNPQRSTVXZ", k=2))
        self._system = f"X1-{letters}{self._random.randint(10, 99)}"
        products = (*self._random.sample(PRODUCTS, 4), *self._random.sample(SOURCES, 1))
        # CONSTRUCTION needs FAB_MATS, so some factory always makes them.
        products = tuple(dict.fromkeys((*products, next(p for p in PRODUCTS if p.good == "FAB_MATS"))))
        suffixes = self._random.sample(WAYPOINT_SUFFIXES, len(products) + 3)
        self._factories = [
            economy.build_factory(self._random, f"{self._system}-{suffix}", product)
            for product, suffix in zip(products, suffixes, strict=False)
        ]
        self._markets = [f"{self._system}-{suffix}" for suffix in suffixes[len(products) :]]
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
        self._after(25, self._keep_planning)
        self._after(COORDINATOR_SECONDS, self._coordinate)
        self._after(MAINTENANCE_SECONDS, self._maintain)
        self._after(3, self._monitor)
        self._after(24, self._next_incident)
        self._after(60, self._liquidate)
        self._after(40, self._scan_somewhere)
        self._after(self._options.era_hours * 3600 * self._between(0.7, 1.3), self._end_era)

    def _end_era(self) -> None:
        self._commit(Scrub())
        self._begin_era()

    # -- planning

    def _keep_planning(self) -> None:
        if len(self._pipelines) < LIVE_PIPELINES:
            if not self._plans:
                self._plans = ["FABRICATION"] * 5 + ["COLLECTION"] * 4 + ["CONSTRUCTION", "OLDER"]
                self._random.shuffle(self._plans)
            self._plan(self._plans.pop())
        self._after(self._between(20, 45), self._keep_planning)

    def _choose_factory(self, *, source: bool | None) -> Factory:
        return self._random.choice([f for f in self._factories if source is None or source != bool(f.product.inputs)])

    def _plan(self, kind: str) -> None:
        """Insert a pipeline with its tasks in one transaction, then its view of the factories."""
        self._sequence += 1
        if kind == "CONSTRUCTION":
            factory = next(f for f in self._factories if f.product.good == "FAB_MATS")
        else:
            factory = self._choose_factory(source=None if kind == "COLLECTION" else False)
        good = factory.product.good
        row = PipelineRow(
            id=self._next_number(),
            sequence_number=self._sequence,
            pipeline_type="FABRICATION" if kind == "OLDER" else kind,
            product_good=good,
            sell_market=self._random.choice(self._markets),
            expected_price=economy.price(self._random, good, 0.95, 1.1),
            created_at=self._now,
            construction_site=self._site if kind == "CONSTRUCTION" else None,
            materials=((good, 400),) if kind == "CONSTRUCTION" else (),
        )
        pipeline = _Pipeline(row, {}, {}, {}, resupplied_at=self._now)
        self._add_tasks(pipeline, kind, factory)
        tasks = pipeline.tasks.values()
        statements: tuple[Statement, ...] = (
            Insert(row),
            *(Insert(task.row) for task in tasks),
            *(Insert(DependencyRow(task.row.id, need)) for task in tasks for need in task.needs),
        )
        if self._take_deferred("abandon"):
            self._pending.append(Transaction(self._now, statements, rolled_back=True))
            return
        self._pipelines[row.id] = pipeline
        self._commit(*statements)
        for view in pipeline.views.values():
            self._commit(Save(view))
        self._after(self._between(8, 22), partial(self._start, row.id))

    def _add_tasks(self, pipeline: _Pipeline, kind: str, factory: Factory) -> None:
        """Add the tasks that a kind of pipeline needs, and its view of the factories that take part."""
        self._add_view(pipeline, factory)
        match kind:
            case "CONSTRUCTION":
                self._add_construction_tasks(pipeline, factory)
            case "OLDER":
                self._add_older_tasks(pipeline, factory)
            case _:
                inputs = self._add_input_tasks(pipeline, factory) if kind == "FABRICATION" else ()
                good, market = factory.product.good, pipeline.row.sell_market
                for _ in range(self._random.choice((1, 2, 2, 3))):
                    self._add_task(
                        pipeline, "COLLECT_SELL", good, factory, inputs, source=factory.symbol, target=market
                    )

    def _add_construction_tasks(self, pipeline: _Pipeline, factory: Factory) -> None:
        good, material = factory.product.good, factory.product.inputs[0]
        inputs = [
            self._add_delivery(pipeline, factory, "STORAGE_ACQUIRE_DELIVER", material)
            for _ in range(self._random.randint(1, 3))
        ]
        for _ in range(self._random.randint(1, 3)):
            needs = tuple(self._random.sample(inputs, 1))
            self._add_task(pipeline, "DELIVER_TO_CONSTRUCTION", good, factory, needs, target=self._site)

    def _add_older_tasks(self, pipeline: _Pipeline, factory: Factory) -> None:
        """Add tasks of the types that older daemons used: buy, deliver, collect and sell are tasks of their own."""
        good, inputs = factory.product.good, []
        for each in factory.product.inputs:
            source = self._random.choice(self._markets)
            acquisition = self._add_task(pipeline, "ACQUIRE", each, None, (), source=source)
            inputs.append(self._add_task(pipeline, "DELIVER", each, factory, (acquisition,), target=factory.symbol))
        collection = self._add_task(pipeline, "COLLECT", good, factory, tuple(inputs), source=factory.symbol)
        self._add_task(pipeline, "SELL", good, None, (collection,), target=pipeline.row.sell_market)

    def _add_input_tasks(self, pipeline: _Pipeline, factory: Factory) -> tuple[int, ...]:
        """Add deliveries of all inputs, after deliveries to the factories that make those inputs; return their ids."""
        deliveries: list[int] = []
        for good in factory.product.inputs:
            maker = next((f for f in self._factories if f.product.good == good and f.product.inputs), None)
            needs: tuple[int, ...] = ()
            if maker is not None and maker.symbol not in pipeline.factories:
                self._add_view(pipeline, maker)
                needs = tuple(
                    self._add_delivery(pipeline, maker, "ACQUIRE_DELIVER", part) for part in maker.product.inputs
                )
            deliveries += [
                self._add_delivery(pipeline, factory, "ACQUIRE_DELIVER", good, needs)
                for _ in range(self._random.choice((1, 1, 2)))
            ]
        return tuple(deliveries)

    def _add_view(self, pipeline: _Pipeline, factory: Factory) -> None:
        inputs = factory.product.inputs if pipeline.row.pipeline_type != "COLLECTION" else ()
        pipeline.factories[factory.symbol] = factory
        pipeline.views[factory.symbol] = FactoryRow(
            id=self._next_number(),
            factory_symbol=factory.symbol,
            output_good=factory.product.good,
            pipeline_id=pipeline.row.id,
            required_inputs=inputs,
            delivered_inputs=tuple(Delivery(each) for each in inputs),
            created_at=self._now,
            current_supply=self._random.choice((None, None, "")),
        )

    def _add_delivery(
        self, pipeline: _Pipeline, factory: Factory, task_type: str, good: str, needs: tuple[int, ...] = ()
    ) -> int:
        source = self._random.choice(self._markets)
        return self._add_task(pipeline, task_type, good, factory, needs, source=source, target=factory.symbol)

    def _add_task(
        self,
        pipeline: _Pipeline | None,
        task_type: str,
        good: str,
        factory: Factory | None,
        needs: tuple[int, ...],
        *,
        source: str | None = None,
        target: str | None = None,
    ) -> int:
        row = TaskRow(
            id=self._next_number(),
            pipeline_id=pipeline.row.id if pipeline else None,
            task_type=task_type,
            good=good,
            quantity=economy.quantity(self._random, good, task_type),
            created_at=self._now,
            source_market=source,
            target_market=target,
            factory_symbol=factory.symbol if factory else None,
            priority=self._random.choice((0, 0, 5, 10)) + (10 if task_type in URGENT else 0),
        )
        (pipeline.tasks if pipeline else self._adhoc_tasks)[row.id] = _Task(row, factory, needs)
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

    def _update(self, pipeline: _Pipeline, **changes: Any) -> Save:  # noqa: ANN401 - dataclasses.replace takes any column
        before, pipeline.row = pipeline.row, replace(pipeline.row, **changes)
        return Save(pipeline.row, before)

    def _move(self, task: _Task, status: str, **changes: Any) -> list[Statement]:  # noqa: ANN401
        """Move a task to a status, and release its ship in the same transaction if the new status holds none."""
        before, task.row = task.row, replace(task.row, status=status, **changes)
        task.attempt += 1
        statements: list[Statement] = [Save(task.row, before)]
        if before.status in SHIP_HOLDING_STATUSES and status not in SHIP_HOLDING_STATUSES and before.assigned_ship:
            statements.append(self._release(before.assigned_ship))
        return statements

    def _release(self, ship: str) -> Save:
        before, self._ships[ship] = self._ships[ship], ShipRow(ship, role=self._ships[ship].role)
        return Save(self._ships[ship], before)

    def _back_to_ready(self, task: _Task) -> list[Statement]:
        # As in the daemon: an execution that is rolled back leaves the ship on the row, an assignment clears it.
        ship = task.row.assigned_ship if task.row.status == "EXECUTING" else None
        return self._move(
            task, "READY", ready_at=self._now, started_at=None, assigned_ship=ship, phase_completed_at=None
        )

    def _park(self, task: _Task) -> list[Statement]:
        return self._move(task, "PENDING", ready_at=None, started_at=None, assigned_ship="")

    def _cancel(self, task: _Task, reason: str) -> list[Statement]:
        """Cancel a task for good before it ran. It counts no retry and never started."""
        task.dropped = True
        return self._move(task, "FAILED", completed_at=self._now, started_at=None, error_message=reason)

    def _fail(self, task: _Task, reason: str) -> list[Statement]:
        """Fail an attempt. Half of the executions that fail have spent their cost."""
        spent = self._random.random() < 0.5 and task.row.status == "EXECUTING"
        cost = self._cost_and_revenue(task)[0] if spent else task.row.total_cost
        return self._move(
            task, "FAILED", completed_at=self._now, retry_count=task.row.retry_count + 1,
            error_message=reason, total_cost=cost,
        )  # fmt: skip

    def _cost_and_revenue(self, task: _Task) -> tuple[int, int]:
        return economy.cost_and_revenue(self._random, task.row.task_type, task.row.good, task.row.quantity)

    def _take_deferred(self, incident: str) -> bool:
        """Take a deferred incident off the list if it waits there; return whether it does."""
        if incident in self._deferred_incidents:
            self._deferred_incidents.remove(incident)
            return True
        return False

    def _known_tasks(self) -> list[_Task]:
        of_pipelines = (task for pipeline in self._pipelines.values() for task in pipeline.tasks.values())
        return [*of_pipelines, *self._adhoc_tasks.values()]

    def _pipeline_of(self, task: _Task) -> _Pipeline | None:
        return self._pipelines.get(task.row.pipeline_id) if task.row.pipeline_id is not None else None

    # -- tasks

    def _coordinate(self) -> None:
        """Move tasks between PENDING and READY, then assign idle ships to the most urgent ready ones."""
        for task in self._known_tasks():
            if task.row.status == "PENDING" and self._can_start(task):
                if self._redundant(task) and self._take_deferred("cancel pending"):
                    self._commit(*self._cancel(task, "no longer needed"))
                else:
                    self._commit(*self._move(task, "READY", ready_at=self._now))
            elif task.row.status == "READY":
                if not self._can_start(task) or self._take_deferred("hold ready"):
                    self._commit(*self._move(task, "PENDING", ready_at=None, assigned_ship=None))
                elif self._redundant(task) and self._take_deferred("cancel ready"):
                    self._commit(*self._cancel(task, "another task does it"))
        waiting = [task for task in self._known_tasks() if task.row.status == "READY"]
        waiting.sort(key=lambda task: (-task.row.priority, task.row.ready_at or 0.0))
        for task in waiting[: self._random.choice((1, 2, 2, 3))]:
            idle = [ship for ship, row in self._ships.items() if row.assignment_status == "idle"]
            if not idle:
                break
            self._assign(task, self._random.choice(idle))
        self._after(COORDINATOR_SECONDS * self._between(0.8, 1.2), self._coordinate)

    def _can_start(self, task: _Task) -> bool:
        pipeline = self._pipeline_of(task)
        if pipeline is None:
            return task.row.pipeline_id is None
        if pipeline.row.status != "EXECUTING":
            return False
        for need in task.needs:
            needed = pipeline.tasks.get(need)
            if needed is not None and needed.row.status != "COMPLETED" and not needed.dropped:
                return False
        if task.row.task_type in COLLECTING and task.factory is not None:
            return pipeline.views[task.factory.symbol].ready_for_collection
        return True

    def _redundant(self, task: _Task) -> bool:
        """Tell whether another task of the pipeline does the same, so that the pipeline can end without this one."""
        pipeline = self._pipeline_of(task)
        return (
            pipeline is not None
            and not task.always_fails
            and any(
                other.row.task_type == task.row.task_type and other.row.good == task.row.good and not other.dropped
                for other in pipeline.tasks.values()
                if other is not task
            )
        )

    def _assign(self, task: _Task, ship: str) -> None:
        before, task.row = task.row, replace(task.row, status="ASSIGNED", assigned_ship=ship)
        task.attempt += 1
        idle = self._ships[ship]
        self._ships[ship] = replace(idle, assignment_status="active", container_id=f"worker-{task.row.id}")
        self._commit(Assign(task.row, before), Save(self._ships[ship], idle))
        self._after(self._between(2, 9), partial(self._begin, task, task.attempt))

    def _begin(self, task: _Task, attempt: int) -> None:
        if task.attempt != attempt:
            return
        if self._redundant(task) and self._take_deferred("cancel assigned"):
            self._commit(*self._cancel(task, "no longer needed"))
        elif self._take_deferred("fail assigned"):
            self._commit(*self._fail(task, "the ship was lost before it left"))
        elif self._take_deferred("unassign"):
            self._commit(*self._back_to_ready(task))
        elif self._take_deferred("park assigned"):
            self._commit(*self._park(task))
        else:
            self._execute(task)

    def _execute(self, task: _Task) -> None:
        pipeline = self._pipeline_of(task)
        # The first pipelines are spared, so that a newcomer sees some succeed.
        may_fail = pipeline and pipeline.row.sequence_number > 3 and pipeline.row.pipeline_type == "FABRICATION"
        if may_fail and self._take_deferred("fail every attempt"):
            task.always_fails = True
            task.row = replace(task.row, priority=50)
        self._commit(*self._move(task, "EXECUTING", started_at=self._now))
        seconds = economy.execution_seconds(self._random, task.row.task_type)
        end: Callable[[_Task, int], None] = self._complete
        if task.always_fails:
            seconds, end = self._between(SHORTEST_TASK_SECONDS, 20), self._fail_attempt
        elif self._random.random() < FAILED_ATTEMPT_SHARE:
            seconds, end = max(SHORTEST_TASK_SECONDS, seconds * self._between(0.2, 0.9)), self._fail_attempt
        elif self._take_deferred("park executing"):
            seconds, end = self._between(10, 25), self._park_executing
        self._after(seconds, partial(end, task, task.attempt))
        if task.row.task_type in TWO_PHASES:
            self._after(seconds * self._between(0.3, 0.6), partial(self._finish_first_phase, task, task.attempt))

    def _finish_first_phase(self, task: _Task, attempt: int) -> None:
        """Save the end of the first phase, which changes no watched column."""
        if task.attempt != attempt:
            return
        done = "collect_phase_completed" if task.row.task_type == "COLLECT_SELL" else "acquire_phase_completed"
        changes: dict[str, Any] = {done: True, "phase_completed_at": self._now}
        before, task.row = task.row, replace(task.row, **changes)
        self._commit(Save(task.row, before))

    def _park_executing(self, task: _Task, attempt: int) -> None:
        if task.attempt == attempt:
            self._commit(*self._park(task))

    def _fail_attempt(self, task: _Task, attempt: int) -> None:
        if task.attempt == attempt:
            reason = self._random.choice(("market price above the limit", "not enough fuel", "cargo hold is full"))
            self._commit(*self._fail(task, reason))

    def _complete(self, task: _Task, attempt: int) -> None:
        if task.attempt != attempt:
            return
        cost, revenue = self._cost_and_revenue(task)
        ship = task.row.assigned_ship or ""
        done = self._move(
            task, "COMPLETED", completed_at=self._now, actual_quantity=task.row.quantity,
            total_cost=cost, total_revenue=revenue, error_message=None,
        )  # fmt: skip
        pipeline = self._pipeline_of(task)
        if pipeline is not None and task.factory is not None:
            if task.row.task_type in DELIVERING:
                done.append(self._enter_delivery(pipeline, task, ship))
                task.factory.receive_inputs(self._random)
            elif task.row.task_type in COLLECTING:
                task.factory.give_product(self._random)
            elif task.row.task_type == "DELIVER_TO_CONSTRUCTION":
                task.factory.give_material(self._random)
        self._adhoc_tasks.pop(task.row.id, None)
        self._commit(*done)

    def _enter_delivery(self, pipeline: _Pipeline, task: _Task, ship: str) -> Save:
        """Enter a delivery in the pipeline's view of the factory."""
        factory = cast("Factory", task.factory)
        view = pipeline.views[factory.symbol]
        held = {each.good: each for each in view.delivered_inputs}
        old = held.get(task.row.good, Delivery(task.row.good))
        held[task.row.good] = Delivery(old.good, delivered=True, quantity=old.quantity + task.row.quantity, ship=ship)
        if self._random.random() < 0.05:
            # Some ships also deliver what was left in their hold, a good that is not required.
            held["FUEL"] = Delivery("FUEL", delivered=True, quantity=self._random.randint(1, 5), ship=ship)
        complete = view.all_inputs_delivered or all(held[each].delivered for each in view.required_inputs)
        pipeline.views[factory.symbol] = replace(
            view,
            delivered_inputs=tuple(held.values()),
            all_inputs_delivered=complete,
            inputs_completed_at=view.inputs_completed_at or (self._now if complete else None),
        )
        return Save(pipeline.views[factory.symbol], view)

    def _liquidate(self) -> None:
        """Sell leftover cargo with an ad-hoc task, which belongs to no pipeline."""
        good = self._random.choice([factory.product.good for factory in self._factories])
        number = self._add_task(None, "LIQUIDATE", good, None, (), target=self._random.choice(self._markets))
        self._commit(Insert(self._adhoc_tasks[number].row))
        self._after(self._between(90, 260), self._liquidate)

    # -- upkeep

    def _maintain(self) -> None:
        """Retry failed tasks, close pipelines that have finished or failed, and supply those that are stuck."""
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
                self._finish_or_resupply(pipeline)
        self._after(MAINTENANCE_SECONDS * self._between(0.8, 1.2), self._maintain)

    def _retry(self, task: _Task) -> None:
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

    def _finish_or_resupply(self, pipeline: _Pipeline) -> None:
        """Close or recycle a pipeline that is done or stalled; deliver once more if only the supply is missing."""
        tasks = pipeline.tasks.values()
        if all(task.row.status == "COMPLETED" or task.dropped for task in tasks):
            self._close(pipeline, "COMPLETED", None)
            return
        started = pipeline.row.started_at or self._now
        if self._now - started > STALLED_PIPELINE_SECONDS:
            self._recycle(pipeline)
            return
        only_waiting = all(task.row.status in {"COMPLETED", "PENDING"} or task.dropped for task in tasks)
        waits_for_supply = only_waiting and any(
            task.row.task_type in COLLECTING and self._has_its_inputs(pipeline, task) for task in tasks
        )
        if not waits_for_supply or self._now - pipeline.resupplied_at < RESUPPLY_SECONDS:
            return
        pipeline.resupplied_at = self._now
        for factory in pipeline.factories.values():
            if factory.product.inputs and not factory.ready:
                good = self._random.choice(factory.product.inputs)
                number = self._add_delivery(pipeline, factory, "ACQUIRE_DELIVER", good)
                self._commit(Insert(pipeline.tasks[number].row))

    def _has_its_inputs(self, pipeline: _Pipeline, task: _Task) -> bool:
        return task.row.status == "PENDING" and all(
            pipeline.tasks[need].row.status == "COMPLETED" or pipeline.tasks[need].dropped for need in task.needs
        )

    def _close(self, pipeline: _Pipeline, status: str, reason: str | None) -> None:
        self._commit(*self._ending(pipeline, status, reason))

    def _ending(self, pipeline: _Pipeline, status: str, reason: str | None) -> list[Statement]:
        """End a pipeline: fail or cancel its live tasks, and write the sums of all its tasks into its row."""
        statements: list[Statement] = []
        reason_of_tasks = f"the pipeline was {status.lower()}"
        for task in pipeline.tasks.values():
            if task.row.status == "EXECUTING":
                statements += self._fail(task, reason_of_tasks)
            elif task.row.status in LIVE_TASK_STATUSES:
                statements += self._cancel(task, reason_of_tasks)
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

    def _recycle(self, pipeline: _Pipeline) -> None:
        """Cancel a pipeline and delete its waiting tasks, in one transaction."""
        statements: list[Statement] = []
        for task in list(pipeline.tasks.values()):
            if task.row.status in {"PENDING", "READY"}:
                statements.append(DeleteTask(task.row.id))
                del pipeline.tasks[task.row.id]
        self._commit(*statements, *self._ending(pipeline, "CANCELLED", "recycled"))

    def _monitor(self) -> None:
        """Let the factories work, then save what each pipeline sees of them. Most of these Saves change nothing."""
        for factory in self._factories:
            factory.work(self._random)
        for pipeline in list(self._pipelines.values()):
            for symbol, view in list(pipeline.views.items()):
                factory = pipeline.factories[symbol]
                changes: dict[str, Any] = {}
                if view.current_supply != factory.level:
                    changes = {"current_supply": factory.level, "previous_supply": view.current_supply}
                if view.ready_for_collection != factory.ready:
                    changes |= {"ready_for_collection": factory.ready, "ready_at": self._now}
                if not view.required_inputs and not view.all_inputs_delivered:
                    changes |= {"all_inputs_delivered": True, "inputs_completed_at": self._now}
                pipeline.views[symbol] = replace(view, **changes)
                self._commit(Save(pipeline.views[symbol], view))
        self._after(MONITOR_SECONDS * self._between(0.95, 1.05), self._monitor)

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
            self._upcoming_incidents = [*DEFERRED_INCIDENTS, *IMMEDIATE_INCIDENTS]
            self._random.shuffle(self._upcoming_incidents)
            if self._round == 1:
                others = [incident for incident in self._upcoming_incidents if incident not in SLOWEST_INCIDENTS]
                self._upcoming_incidents = [*others, *reversed(SLOWEST_INCIDENTS)]
        incident = self._upcoming_incidents.pop()
        if incident in DEFERRED_INCIDENTS:
            self._deferred_incidents.append(incident)
        elif not self._trigger_incident(incident):
            self._upcoming_incidents.insert(0, incident)
        self._after(self._between(18, 34) if self._round == 1 else self._between(90, 210), self._next_incident)

    def _trigger_incident(self, incident: str) -> bool:
        """Make an incident happen at once; return False if there is nothing that it could happen to."""
        # The first pipelines are spared, and so are those that fail anyway.
        old = [
            pipeline
            for pipeline in self._pipelines.values()
            if pipeline.row.status == "EXECUTING"
            and pipeline.row.sequence_number > 4
            and not any(task.always_fails for task in pipeline.tasks.values())
        ]
        busy = [task for task in self._known_tasks() if task.row.status == "EXECUTING"]
        idle = [ship for ship, row in self._ships.items() if row.assignment_status == "idle"]
        if incident == "restart" and busy:
            # The daemon restarts and finds tasks that no worker executes any more.
            for task in self._random.sample(busy, min(2, len(busy))):
                self._commit(*self._back_to_ready(task))
        elif incident == "recycle" and old:
            self._recycle(self._random.choice(old))
        elif incident == "cancel executing" and old:
            self._close(self._random.choice(old), "CANCELLED", "its market has collapsed")
        elif incident == "delete finished" and self._finished:
            number, status = self._finished.popleft()
            self._commit(DeletePipeline(number, status))
        elif incident == "delete live" and old:
            pipeline = self._random.choice(old)
            tasks = pipeline.tasks.values()
            ships = [task.row.assigned_ship for task in tasks if task.row.status in SHIP_HOLDING_STATUSES]
            for task in tasks:
                task.attempt += 1
            del self._pipelines[pipeline.row.id]
            releases = (self._release(ship) for ship in ships if ship)
            self._commit(DeletePipeline(pipeline.row.id, pipeline.row.status), *releases)
        elif incident == "borrow ship" and len(idle) > 1:
            ship = self._random.choice(idle)
            before = self._ships[ship]
            self._ships[ship] = replace(before, assignment_status="active", container_id=f"scout-{self._next_number()}")
            self._commit(Save(self._ships[ship], before))
            self._after(self._between(120, 400), lambda: self._commit(self._release(ship)))
        else:
            return False
        return True
