"""Owns what the game's classic daemon does in a world: it makes and sells products, and saves every step of a task.

Its pipelines see the factories through rows of their own, and at the end of an era it deletes what is still live. What
both daemons do is in `world`.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Final, cast

from mfg_notify.demo import economy
from mfg_notify.demo.economy import COLLECTING, DELIVERING, SHORTEST_TASK_SECONDS, Factory
from mfg_notify.demo.rows import Delivery, FactoryRow, Material, PipelineRow
from mfg_notify.demo.statements import Assign, CloseEra, Insert, Save, Scrub, Statement
from mfg_notify.demo.world import FAILED_ATTEMPT_SHARE, MONITOR_SECONDS, Pipeline, Task, World

TWO_PHASES: Final = frozenset({"ACQUIRE_DELIVER", "COLLECT_SELL", "STORAGE_ACQUIRE_DELIVER"})
"""Task types whose row notes the end of their first phase."""
STALLED_PIPELINE_SECONDS: Final = 3300.0
"""Age at which a pipeline that has not finished is recycled."""
RESUPPLY_SECONDS: Final = 240.0
"""Shortest time between two additional deliveries for one pipeline."""


class ClassicWorld(World):
    """One player's game, played by the daemon of late 2025."""

    deferred_incidents = (
        "fail every attempt", "cancel planning", "fail planning", "abandon", "hold ready", "cancel pending",
        "cancel ready", "cancel assigned", "fail assigned", "unassign", "park assigned", "park executing",
    )  # fmt: skip
    slowest_incidents = ("fail every attempt", "cancel planning", "fail planning", "park executing")
    incident_seconds = (90, 210)
    always_made = ("FAB_MATS",)

    def _start_daemon(self) -> None:
        self._plans: list[str] = []
        for number, kind in enumerate(("COLLECTION", "OLDER", "CONSTRUCTION", "FABRICATION", "FABRICATION")):
            self._after(2 + 4 * number, partial(self._plan, kind))
        self._after(3, self._monitor)

    def _end_player(self) -> tuple[Statement, ...]:
        return Scrub(), CloseEra()

    # -- planning

    def _plan_next(self) -> None:
        if not self._plans:
            self._plans = ["FABRICATION"] * 5 + ["COLLECTION"] * 4 + ["CONSTRUCTION", "OLDER"]
            self._random.shuffle(self._plans)
        self._plan(self._plans.pop())

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
            construction_site=self._choose_site() if kind == "CONSTRUCTION" else None,
        )
        pipeline = Pipeline(row, resupplied_at=self._now)
        self._add_tasks(pipeline, kind, factory)
        if self._insert_plan(pipeline):
            for view in pipeline.views.values():
                self._commit(Save(view))

    def _choose_factory(self, *, source: bool | None) -> Factory:
        return self._random.choice([f for f in self._factories if source is None or source != bool(f.product.inputs)])

    def _add_tasks(self, pipeline: Pipeline, kind: str, factory: Factory) -> None:
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

    def _add_construction_tasks(self, pipeline: Pipeline, factory: Factory) -> None:
        good, material = factory.product.good, factory.product.inputs[0]
        inputs = [
            self._add_delivery(pipeline, factory, "STORAGE_ACQUIRE_DELIVER", material)
            for _ in range(self._random.randint(1, 3))
        ]
        deliveries = [
            self._add_task(
                pipeline,
                "DELIVER_TO_CONSTRUCTION",
                good,
                factory,
                tuple(self._random.sample(inputs, 1)),
                target=pipeline.row.construction_site,
            )
            for _ in range(self._random.randint(1, 3))
        ]
        needed = sum(pipeline.tasks[number].row.quantity for number in deliveries)
        pipeline.row = replace(pipeline.row, materials=(Material(good, needed),))

    def _add_older_tasks(self, pipeline: Pipeline, factory: Factory) -> None:
        """Add tasks of the types that older daemons used: buy, deliver, collect and sell are tasks of their own."""
        good, inputs = factory.product.good, []
        for each in factory.product.inputs:
            source = self._random.choice(self._markets)
            acquisition = self._add_task(pipeline, "ACQUIRE", each, None, (), source=source)
            inputs.append(self._add_task(pipeline, "DELIVER", each, factory, (acquisition,), target=factory.symbol))
        collection = self._add_task(pipeline, "COLLECT", good, factory, tuple(inputs), source=factory.symbol)
        self._add_task(pipeline, "SELL", good, None, (collection,), target=pipeline.row.sell_market)

    def _add_input_tasks(self, pipeline: Pipeline, factory: Factory) -> tuple[int, ...]:
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

    def _add_view(self, pipeline: Pipeline, factory: Factory) -> None:
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

    # -- changes of rows

    def _back_to_ready(self, task: Task) -> list[Statement]:
        # As in the daemon: an execution that is rolled back leaves the ship on the row, an assignment clears it.
        ship = task.row.assigned_ship if task.row.status == "EXECUTING" else None
        return self._move(
            task, "READY", ready_at=self._now, started_at=None, assigned_ship=ship, phase_completed_at=None
        )

    def _park(self, task: Task) -> list[Statement]:
        return self._move(task, "PENDING", ready_at=None, started_at=None, assigned_ship="")

    def _fail(self, task: Task, reason: str) -> list[Statement]:
        """Fail an attempt. Half of the executions that fail have spent their cost."""
        spent = self._random.random() < 0.5 and task.row.status == "EXECUTING"
        cost = self._cost_and_revenue(task)[0] if spent else task.row.total_cost
        return self._move(
            task, "FAILED", completed_at=self._now, retry_count=task.row.retry_count + 1,
            error_message=reason, total_cost=cost,
        )  # fmt: skip

    def _cost_and_revenue(self, task: Task) -> tuple[int, int]:
        return economy.cost_and_revenue(self._random, task.row.task_type, task.row.good, task.row.quantity)

    def _give_up(self, task: Task, reason: str) -> list[Statement]:
        return self._fail(task, reason) if task.row.status == "EXECUTING" else self._cancel(task, reason)

    # -- tasks

    def _can_start(self, task: Task) -> bool:
        """Tell whether a task can start; one that collects also waits for the factory's product."""
        ready = super()._can_start(task)
        pipeline = self._pipeline_of(task)
        if ready and pipeline is not None and task.row.task_type in COLLECTING and task.factory is not None:
            return pipeline.views[task.factory.symbol].ready_for_collection
        return ready

    def _may_cancel(self, task: Task) -> bool:
        """Tell whether another task of the pipeline does the same. A construction site needs every delivery."""
        pipeline = self._pipeline_of(task)
        return (
            pipeline is not None
            and not task.always_fails
            and task.row.task_type != "DELIVER_TO_CONSTRUCTION"
            and any(
                other.row.task_type == task.row.task_type and other.row.good == task.row.good and not other.dropped
                for other in pipeline.tasks.values()
                if other is not task
            )
        )

    def _assign(self, task: Task, ship: str) -> None:
        before, task.row = task.row, replace(task.row, status="ASSIGNED", assigned_ship=ship)
        self._commit(Assign(task.row, before), self._hold(task, ship))
        self._after(self._between(2, 9), partial(self._begin, task, task.attempt))

    def _begin(self, task: Task, attempt: int) -> None:
        if task.attempt != attempt:
            return
        if self._may_cancel(task) and self._take_deferred("cancel assigned"):
            self._commit(*self._cancel(task, "no longer needed"))
        elif self._take_deferred("fail assigned"):
            self._commit(*self._fail(task, "the ship was lost before it left"))
        elif self._take_deferred("unassign"):
            self._commit(*self._back_to_ready(task))
        elif self._take_deferred("park assigned"):
            self._commit(*self._park(task))
        else:
            self._execute(task)

    def _execute(self, task: Task) -> None:
        pipeline = self._pipeline_of(task)
        # The first pipelines are spared, so that a newcomer sees some succeed.
        may_fail = pipeline and pipeline.row.sequence_number > 3 and pipeline.row.pipeline_type == "FABRICATION"
        if may_fail and self._take_deferred("fail every attempt"):
            task.always_fails = True
            task.row = replace(task.row, priority=50)
        self._commit(*self._move(task, "EXECUTING", started_at=self._now))
        seconds = economy.execution_seconds(self._random, task.row.task_type)
        end: Callable[[Task, int], None] = self._complete
        if task.always_fails:
            seconds, end = self._between(SHORTEST_TASK_SECONDS, 20), self._fail_attempt
        elif self._random.random() < FAILED_ATTEMPT_SHARE:
            seconds, end = max(SHORTEST_TASK_SECONDS, seconds * self._between(0.2, 0.9)), self._fail_attempt
        elif self._take_deferred("park executing"):
            seconds, end = self._between(10, 25), self._park_executing
        self._after(seconds, partial(end, task, task.attempt))
        if task.row.task_type in TWO_PHASES:
            self._after(seconds * self._between(0.3, 0.6), partial(self._finish_first_phase, task, task.attempt))

    def _finish_first_phase(self, task: Task, attempt: int) -> None:
        """Save the end of the first phase, which changes no watched column."""
        if task.attempt != attempt:
            return
        done = "collect_phase_completed" if task.row.task_type == "COLLECT_SELL" else "acquire_phase_completed"
        changes: dict[str, Any] = {done: True, "phase_completed_at": self._now}
        before, task.row = task.row, replace(task.row, **changes)
        self._commit(Save(task.row, before))

    def _park_executing(self, task: Task, attempt: int) -> None:
        if task.attempt == attempt:
            self._commit(*self._park(task))

    def _fail_attempt(self, task: Task, attempt: int) -> None:
        if task.attempt == attempt:
            reason = self._random.choice(("market price above the limit", "not enough fuel", "cargo hold is full"))
            self._commit(*self._fail(task, reason))

    def _complete(self, task: Task, attempt: int) -> None:
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
                done.append(self._enter_material(pipeline, task.row.good, task.row.actual_quantity))
        self._adhoc_tasks.pop(task.row.id, None)
        self._commit(*done)

    def _enter_delivery(self, pipeline: Pipeline, task: Task, ship: str) -> Save:
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

    # -- upkeep

    def _advance(self, pipeline: Pipeline) -> None:
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

    def _has_its_inputs(self, pipeline: Pipeline, task: Task) -> bool:
        return task.row.status == "PENDING" and all(
            pipeline.tasks[need].row.status == "COMPLETED" or pipeline.tasks[need].dropped for need in task.needs
        )

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

    def _restart(self) -> bool:
        busy = [task for task in self._known_tasks() if task.row.status == "EXECUTING"]
        for task in self._random.sample(busy, min(2, len(busy))):
            self._commit(*self._back_to_ready(task))
        return bool(busy)
