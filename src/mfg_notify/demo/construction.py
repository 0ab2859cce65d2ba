"""Owns what the game's newest daemon does in a world: it supplies construction sites, and saves only a task's outcome.

Which ship works on a task it keeps in memory. It writes no factory rows and no money, and leaves a player whose
universe was reset as it is. What both daemons do is in `world`.
"""

from functools import partial
from typing import Final

from mfg_notify.demo import economy
from mfg_notify.demo.economy import SHORTEST_TASK_SECONDS
from mfg_notify.demo.rows import LIVE_TASK_STATUSES, Material, PipelineRow
from mfg_notify.demo.statements import Statement
from mfg_notify.demo.world import (
    FAILED_ATTEMPT_SHARE,
    MONITOR_SECONDS,
    SPARED_PIPELINES,
    Pipeline,
    Task,
    World,
)

OPEN_DELIVERIES: Final = 2
"""Deliveries to one site that are planned or under way at the same time: about as many tasks as a player has ships."""
SUPPLY_SHARE: Final = 0.6
"""Share of the deliveries that wait for a supply of the factory."""


class ConstructionWorld(World):
    """One player's game, played by the daemon of August 2026."""

    deferred_incidents = (
        "fail every attempt", "cancel planning", "fail planning", "abandon", "hold ready", "cancel pending",
        "cancel ready",
    )  # fmt: skip
    slowest_incidents = ("fail every attempt", "cancel planning", "fail planning")
    # A site takes hours, and half of the incidents end one.
    incident_seconds = (900, 2100)
    always_made = ("FAB_MATS", "ADVANCED_CIRCUITRY")

    def _start_daemon(self) -> None:
        for number in range(SPARED_PIPELINES):
            self._after(2 + 4 * number, self._plan_next)
        self._after(MONITOR_SECONDS, self._work)

    def _work(self) -> None:
        """Let the factories work. Only the markets show it."""
        for factory in self._factories:
            factory.work(self._random)
        self._after(MONITOR_SECONDS, self._work)

    # -- planning

    def _plan_next(self) -> None:
        """Insert a pipeline for a site that has none."""
        self._sequence += 1
        materials = (
            Material("FAB_MATS", 100 * self._random.randint(16, 40)),
            Material("ADVANCED_CIRCUITRY", 50 * self._random.randint(8, 24)),
            Material("QUANTUM_STABILIZERS", 1),
        )
        pipeline = Pipeline(
            PipelineRow(
                id=self._next_number(),
                sequence_number=self._sequence,
                pipeline_type="CONSTRUCTION",
                product_good=materials[0].trade_symbol,
                sell_market=self._random.choice(self._markets),
                expected_price=0,
                created_at=self._now,
                construction_site=self._choose_site(),
                materials=materials,
            )
        )
        self._add_deliveries(pipeline)
        self._insert_plan(pipeline)

    def _add_deliveries(self, pipeline: Pipeline) -> list[Task]:
        """Add deliveries until enough are open or no unit is missing; return the new tasks."""
        known = set(pipeline.tasks)
        deliveries = [
            task.row
            for task in pipeline.tasks.values()
            if task.row.task_type == "DELIVER_TO_CONSTRUCTION" and not task.dropped and task.row.status != "COMPLETED"
        ]
        missing = {
            each.trade_symbol: each.target_quantity
            - each.delivered_quantity
            - sum(row.quantity for row in deliveries if row.good == each.trade_symbol)
            for each in pipeline.row.materials
        }
        for _ in range(OPEN_DELIVERIES - len(deliveries)):
            if not any(missing.values()):
                break
            [good] = self._random.choices(list(missing), weights=list(missing.values()))
            units = min(missing[good], self._random.randint(25, 80))
            missing[good] -= units
            self._add_construction_delivery(pipeline, good, units)
        return [task for number, task in pipeline.tasks.items() if number not in known]

    def _add_construction_delivery(self, pipeline: Pipeline, good: str, units: int) -> None:
        """Add a delivery to the site, some after a supply of the factory that makes the good."""
        factory = next((each for each in self._factories if each.product.good == good), None)
        needs: tuple[int, ...] = ()
        if factory is not None and self._random.random() < SUPPLY_SHARE:
            task_type = self._random.choice(("ACQUIRE_DELIVER", "STORAGE_ACQUIRE_DELIVER"))
            needs = (self._add_delivery(pipeline, factory, task_type, self._random.choice(factory.product.inputs)),)
        self._add_task(
            pipeline,
            "DELIVER_TO_CONSTRUCTION",
            good,
            factory,
            needs,
            source=factory.symbol if factory else self._random.choice(self._markets),
            target=pipeline.row.construction_site,
            quantity=units,
        )

    # -- tasks

    def _may_cancel(self, task: Task) -> bool:
        """Tell whether a task belongs to a pipeline, which plans again what a cancelled delivery was to bring."""
        return task.row.pipeline_id is not None and not task.always_fails

    def _assign(self, task: Task, ship: str) -> None:
        """Assign the ship in memory; only its own row shows it."""
        self._commit(self._hold(task, ship))
        self._after(self._between(2, 9), partial(self._execute, task, task.attempt))

    def _execute(self, task: Task, attempt: int) -> None:
        if task.attempt != attempt:
            return
        pipeline = self._pipeline_of(task)
        spared = pipeline is None or pipeline.row.sequence_number <= SPARED_PIPELINES
        if not spared and self._take_deferred("fail every attempt"):
            task.always_fails = True
        seconds, end = economy.execution_seconds(self._random, task.row.task_type), self._complete
        if task.always_fails:
            seconds, end = self._between(SHORTEST_TASK_SECONDS, 20), self._fail
        elif self._random.random() < FAILED_ATTEMPT_SHARE:
            seconds, end = max(SHORTEST_TASK_SECONDS, seconds * self._between(0.2, 0.9)), self._fail
        self._after(seconds, partial(end, task, attempt, self._now))

    def _fail(self, task: Task, attempt: int, started_at: float) -> None:
        if task.attempt == attempt:
            reason = self._random.choice(("market price above the limit", "not enough fuel", "cargo hold is full"))
            self._commit(
                *self._move(
                    task, "FAILED", assigned_ship=task.ship, started_at=started_at, completed_at=self._now,
                    retry_count=task.row.retry_count + 1, error_message=reason,
                )
            )  # fmt: skip

    def _complete(self, task: Task, attempt: int, started_at: float) -> None:
        if task.attempt != attempt or task.ship is None:
            return
        # A delivery may be planned for a larger ship; the pipeline then plans the rest again.
        units = min(task.row.quantity, self._ships[task.ship].cargo_capacity)
        done = self._move(
            task, "COMPLETED", assigned_ship=task.ship, started_at=started_at, completed_at=self._now,
            actual_quantity=units, error_message=None,
        )  # fmt: skip
        pipeline = self._pipeline_of(task)
        if pipeline is not None and task.row.task_type == "DELIVER_TO_CONSTRUCTION":
            done.append(self._enter_material(pipeline, task.row.good, units))
            if task.factory is not None:
                task.factory.give_material(self._random)
        elif task.factory is not None:
            task.factory.receive_inputs(self._random)
        self._adhoc_tasks.pop(task.row.id, None)
        self._commit(*done)

    def _restart(self) -> bool:
        """Forget which ships work on tasks. The rows stay as they are, and the tasks start once more."""
        busy = [task for task in self._known_tasks() if task.ship is not None]
        released: list[Statement] = []
        for task in self._random.sample(busy, min(2, len(busy))):
            released.append(self._release(task.ship or ""))
            task.ship = None
            task.attempt += 1
        self._commit(*released)
        return bool(busy)

    # -- upkeep

    def _advance(self, pipeline: Pipeline) -> None:
        """Complete a pipeline whose site has everything; else plan what is missing, and forget what is done."""
        if all(each.delivered_quantity == each.target_quantity for each in pipeline.row.materials):
            self._close(pipeline, "COMPLETED", None)
            return
        pipeline.tasks = {
            number: task
            for number, task in pipeline.tasks.items()
            if task.row.status in LIVE_TASK_STATUSES or (task.row.status == "FAILED" and not task.dropped)
        }
        self._commit(*self._inserts(self._add_deliveries(pipeline)))
