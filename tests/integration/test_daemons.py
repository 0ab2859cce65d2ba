"""Two stories, statement by statement: what the game's classic daemon writes, and what its newest one writes.

Both write through GORM. Each story is told with an exporter that hears of everything, with one that starts when all is
over, and with one that dies and is replaced. The independent recount agrees at the end, and so does pencil and paper.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from datetime import UTC, datetime, timedelta
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb
from tests import truth
from tests.conftest import Database
from tests.samples import number, samples_of, value
from tests.support import ExporterProcess, eventually, wait_exact

from mfg_notify.postgres import migrations

PIPELINES, TASKS, FACTORIES = TABLES = (
    "manufacturing_pipelines",
    "manufacturing_tasks",
    "manufacturing_factory_states",
)
NEW: Mapping[str, Mapping[str, object]] = {
    PIPELINES: {
        "product_good": "", "sell_market": "", "expected_price": 0, "status": "PLANNING", "total_cost": 0,
        "total_revenue": 0, "net_profit": 0, "error_message": None, "pipeline_type": "FABRICATION",
        "construction_site": None, "materials": [], "started_at": None, "completed_at": None,
    },
    TASKS: {
        "pipeline_id": None, "task_type": "", "status": "PENDING", "good": "", "quantity": 0, "actual_quantity": 0,
        "source_market": "", "target_market": "", "factory_symbol": "", "priority": 0, "assigned_ship": "",
        "retry_count": 0, "max_retries": 3, "total_cost": 0, "total_revenue": 0, "error_message": "",
        "ready_at": None, "started_at": None, "completed_at": None,
    },
    FACTORIES: {
        "pipeline_id": None, "factory_symbol": "", "output_good": "", "required_inputs": [], "delivered_inputs": {},
        "all_inputs_delivered": False, "current_supply": "", "previous_supply": "", "ready_for_collection": False,
        "inputs_completed_at": None, "ready_at": None,
    },
}  # fmt: skip
"""The columns of a new row as the daemon's structs have them. A string that was never set is '', not NULL."""

AUTO_MIGRATE: tuple[LiteralString, ...] = (
    "ALTER TABLE manufacturing_pipelines ALTER COLUMN total_cost TYPE bigint USING total_cost::bigint",
    "ALTER TABLE manufacturing_pipelines ALTER COLUMN status TYPE varchar(32) USING status::varchar(32)",
    "ALTER TABLE manufacturing_pipelines ADD COLUMN IF NOT EXISTS supply_chain_depth bigint DEFAULT 0",
    "ALTER TABLE manufacturing_tasks ALTER COLUMN total_revenue TYPE bigint USING total_revenue::bigint",
    "ALTER TABLE manufacturing_tasks ALTER COLUMN retry_count SET DEFAULT 0",
    "ALTER TABLE manufacturing_tasks ADD COLUMN IF NOT EXISTS storage_operation_id varchar(64)",
    "ALTER TABLE manufacturing_tasks ADD COLUMN IF NOT EXISTS actual_quantity bigint DEFAULT 0",
    "ALTER TABLE manufacturing_factory_states ALTER COLUMN required_inputs TYPE jsonb USING required_inputs::jsonb",
    "ALTER TABLE manufacturing_factory_states ALTER COLUMN current_supply TYPE varchar(32)",
    "ALTER TABLE manufacturing_factory_states ADD COLUMN IF NOT EXISTS polled_at timestamptz",
)
"""At each boot, on tables that have triggers. The first boot changes them, the others change nothing."""

OPTIONS = ("--reconcile-interval", "200ms", "--notify", "always")


class Daemon:
    """Writes as the daemon does: it loads a row into a struct, changes the struct, and saves every column."""

    def __init__(self, database: Database) -> None:
        """Connect. Nothing is later than now, and the first minute of the story is well within the last hour."""
        self._database = database
        self._connection = database.connect()
        self._began = datetime.now(UTC) - timedelta(minutes=45)
        self.player = 0

    def minute(self, minutes: float) -> datetime:
        """Return a moment of the story by the daemon's own clock."""
        return self._began + timedelta(minutes=minutes)

    def boot(self) -> None:
        """Start anew, in another session, which begins with GORM's AutoMigrate."""
        self.close()
        self._connection = self._database.connect()
        for statement in AUTO_MIGRATE:
            self._connection.execute(statement)

    def close(self) -> None:
        """Die. A transaction that is open is rolled back."""
        self._connection.close()

    def transaction(self) -> AbstractContextManager[psycopg.Transaction]:
        """Write what follows in one transaction."""
        return self._connection.transaction()

    def execute(self, statement: LiteralString, *values: object) -> list[tuple[Any, ...]]:
        """Execute a statement that is not a Save; return its rows."""
        cursor = self._connection.execute(statement, values)
        return cursor.fetchall() if cursor.description else []

    def create(self, table: str, *rows: Mapping[str, object]) -> list[Any]:
        """INSERT these rows in one statement; return their ids."""
        complete = [self._new(table, row) for row in rows]
        names = list(complete[0])
        statement = sql.SQL("INSERT INTO {} ({}) VALUES {} RETURNING id").format(
            sql.Identifier(table),
            sql.SQL(", ").join(map(sql.Identifier, names)),
            sql.SQL(", ").join(
                [sql.SQL("({})").format(sql.SQL(", ").join(sql.Placeholder() * len(names)))] * len(rows)
            ),
        )
        found = self._connection.execute(statement, [row[name] for row in complete for name in names])
        return [key for (key,) in found]

    def save(self, table: str, key: object, **changes: object) -> None:
        """Save a row that was loaded before: UPDATE every column. If no row matches, INSERT, and UPDATE on conflict."""
        with self._connection.cursor(row_factory=dict_row) as cursor:
            cursor.execute(sql.SQL("SELECT * FROM {} WHERE id = %s").format(sql.Identifier(table)), (key,))
            loaded = cursor.fetchone() or self._new(table, {"id": key})
        row = _adapt(loaded | changes)
        columns = [name for name in row if name != "id"]
        update = sql.SQL("UPDATE {} SET {} WHERE id = %(id)s").format(
            sql.Identifier(table),
            sql.SQL(", ").join(
                sql.SQL("{} = {}").format(sql.Identifier(name), sql.Placeholder(name)) for name in columns
            ),
        )
        if self._connection.execute(update, row).rowcount:
            return
        insert = sql.SQL("INSERT INTO {} ({}) VALUES ({}) ON CONFLICT (id) DO UPDATE SET {}").format(
            sql.Identifier(table),
            sql.SQL(", ").join(map(sql.Identifier, row)),
            sql.SQL(", ").join(map(sql.Placeholder, row)),
            sql.SQL(", ").join(sql.SQL("{0} = excluded.{0}").format(sql.Identifier(name)) for name in columns),
        )
        self._connection.execute(insert, row)

    def assign(self, task: str, ship: str, *, refused: bool = False) -> None:
        """Give a task to a ship: lock the row, and UPDATE only what is to change. Roll back if the ship refuses it."""
        with self.transaction():
            self.execute("SELECT * FROM manufacturing_tasks WHERE id = %s FOR UPDATE", task)
            self.execute(
                "UPDATE manufacturing_tasks SET status = 'ASSIGNED', assigned_ship = %s WHERE id = %s", ship, task
            )
            if refused:
                raise psycopg.Rollback

    def _new(self, table: str, row: Mapping[str, object]) -> dict[str, Any]:
        return _adapt({"player_id": self.player, "created_at": self._began, **NEW[table], **row})


def _adapt(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: Jsonb(value) if isinstance(value, dict | list) else value for name, value in row.items()}


NO_ATTEMPT: Mapping[str, object] = {
    "assigned_ship": None, "ready_at": None, "started_at": None, "completed_at": None, "error_message": "",
}  # fmt: skip
"""What a retry clears."""


# ----------------------------------------------------------------------------------------------- December 2025 --


def classic(daemon: Daemon) -> Iterator[None]:
    """Tell what the daemon of December 2025 writes. Pauses before each act."""
    minute = daemon.minute
    yield
    daemon.boot()
    [(daemon.player,)] = daemon.execute("INSERT INTO players (agent_symbol, token) VALUES ('TORWIND', '') RETURNING id")
    daemon.execute(
        """INSERT INTO ships (ship_symbol, player_id, cargo_capacity)
           VALUES ('T-1', 1, 40), ('T-2', 1, 40), ('T-3', 1, 80), ('T-4', 1, 0)"""
    )

    # The planner saves a pipeline, its tasks, what they depend on, and its factories in one transaction.
    with daemon.transaction():
        daemon.save(PIPELINES, "rifles", product_good="LASER_RIFLES", sell_market="X1-M1", expected_price=2000)
        daemon.create(
            TASKS,
            {"id": "iron", "pipeline_id": "rifles", "task_type": "ACQUIRE_DELIVER", "good": "IRON"},
            {"id": "diamonds", "pipeline_id": "rifles", "task_type": "ACQUIRE_DELIVER", "good": "DIAMONDS"},
            {"id": "sell", "pipeline_id": "rifles", "task_type": "COLLECT_SELL", "good": "LASER_RIFLES"},
        )
        daemon.execute(
            """INSERT INTO manufacturing_task_dependencies (task_id, depends_on_id)
               VALUES ('sell', 'iron'), ('sell', 'diamonds') ON CONFLICT DO NOTHING"""
        )
        # Each required input has its key from the beginning.
        missing = {"delivered": False, "quantity": 0, "ship": ""}
        source, factory = daemon.create(
            FACTORIES,
            {"pipeline_id": "rifles", "factory_symbol": "X1-A1", "output_good": "IRON"},
            {
                "pipeline_id": "rifles", "factory_symbol": "X1-F1", "output_good": "LASER_RIFLES",
                "required_inputs": ["IRON", "DIAMONDS"], "delivered_inputs": {"IRON": missing, "DIAMONDS": missing},
            },
        )  # fmt: skip
    daemon.save(PIPELINES, "rifles", status="EXECUTING", started_at=minute(0))
    yield

    # The ship cannot take the first assignment, so the daemon rolls it back. Then a task as it should be.
    for task in ("iron", "diamonds"):
        daemon.save(TASKS, task, status="READY", ready_at=minute(1))
    daemon.assign("iron", "T-9", refused=True)
    daemon.assign("iron", "T-1")
    daemon.save(TASKS, "iron", status="EXECUTING", started_at=minute(2))
    arrived = {"IRON": {"delivered": True, "quantity": 40, "ship": "T-1"}, "DIAMONDS": missing}
    daemon.save(FACTORIES, factory, delivered_inputs=arrived)
    daemon.save(TASKS, "iron", status="COMPLETED", completed_at=minute(4), total_cost=300, actual_quantity=40)
    # A worker that skips EXECUTING and never sets started_at.
    daemon.assign("diamonds", "T-2")
    yield
    daemon.save(TASKS, "diamonds", status="COMPLETED", completed_at=minute(5), total_cost=200, actual_quantity=40)
    arrived = {good: {"delivered": True, "quantity": 40, "ship": "T-1"} for good in ("IRON", "DIAMONDS", "FUEL")}
    daemon.save(FACTORIES, factory, delivered_inputs=arrived, all_inputs_delivered=True, inputs_completed_at=minute(5))

    # The supply monitor saves each row at every poll. The first look is not a transition, and most looks see nothing.
    looks = ("LIMITED", "LIMITED", "MODERATE", "MODERATE", "HIGH", "MODERATE", "HIGH", "HIGH", "HIGH")
    for before, level in zip(("", *looks), looks, strict=False):
        daemon.save(
            FACTORIES, factory, current_supply=level, previous_supply=before, ready_for_collection=level == "HIGH"
        )
        daemon.save(FACTORIES, source)
    yield

    # The first attempt fails under way, the second before its start, and the third lasts until the daemon restarts.
    daemon.save(TASKS, "sell", status="READY", ready_at=minute(10))
    daemon.assign("sell", "T-1")
    daemon.save(TASKS, "sell", status="EXECUTING", started_at=minute(11))
    daemon.save(
        TASKS, "sell", status="FAILED", completed_at=minute(12), retry_count=1, total_cost=50, error_message="no fuel"
    )
    daemon.save(TASKS, "sell", status="PENDING", total_cost=0, **NO_ATTEMPT)
    daemon.save(TASKS, "sell", status="READY", ready_at=minute(13))
    daemon.assign("sell", "T-2")
    daemon.save(TASKS, "sell", status="FAILED", completed_at=minute(14), retry_count=2, error_message="no cargo")
    daemon.save(TASKS, "sell", **{**NO_ATTEMPT, "status": "READY", "ready_at": minute(15)})  # without PENDING
    daemon.assign("sell", "T-1")
    daemon.save(TASKS, "sell", status="EXECUTING", started_at=minute(16))
    # A task without a pipeline. It is parked, becomes ready too early, and waits for its ship when the daemon restarts.
    daemon.create(
        TASKS, {"id": "copper", "task_type": "LIQUIDATE", "good": "COPPER", "status": "READY", "ready_at": minute(10)}
    )
    daemon.assign("copper", "T-3")
    daemon.save(TASKS, "copper", status="EXECUTING", started_at=minute(11))
    daemon.save(TASKS, "copper", status="PENDING", **NO_ATTEMPT)
    daemon.save(TASKS, "copper", status="READY", ready_at=minute(14))
    daemon.save(TASKS, "copper", status="PENDING", ready_at=None)
    daemon.save(TASKS, "copper", status="READY", ready_at=minute(15))
    daemon.assign("copper", "T-3")
    yield

    # A second pipeline uses the same factory. From now on its row describes the factory, and the older one is stale.
    with daemon.transaction():
        daemon.save(
            PIPELINES,
            "more",
            product_good="LASER_RIFLES",
            sell_market="X1-M1",
            status="EXECUTING",
            started_at=minute(16),
        )
        daemon.create(
            TASKS,
            *(
                {
                    "id": f"more {n}", "pipeline_id": "more", "task_type": "ACQUIRE_DELIVER", "good": "IRON",
                    "status": "READY" if n < 50 else "PENDING", "ready_at": minute(16) if n < 50 else None,
                }
                for n in range(200)
            ),
        )  # fmt: skip
        [newer] = daemon.create(
            FACTORIES, {"pipeline_id": "more", "factory_symbol": "X1-F1", "output_good": "LASER_RIFLES"}
        )
    daemon.save(FACTORIES, factory, current_supply="ABUNDANT", previous_supply="HIGH")
    daemon.save(FACTORIES, factory, current_supply="SCARCE", previous_supply="ABUNDANT", ready_for_collection=False)
    daemon.save(FACTORIES, factory, current_supply="HIGH", previous_supply="SCARCE", ready_for_collection=True)
    daemon.save(FACTORIES, newer, current_supply="HIGH", ready_for_collection=True)
    daemon.save(FACTORIES, newer, current_supply="ABUNDANT", previous_supply="HIGH")
    daemon.assign("more 0", "T-2")
    yield

    # It is recycled in one transaction: what is ready or assigned is cancelled, and the other tasks are deleted.
    with daemon.transaction():
        daemon.save(PIPELINES, "more", status="CANCELLED", completed_at=minute(18), error_message="recycled")
        for n in range(50):
            daemon.save(TASKS, f"more {n}", status="FAILED", completed_at=minute(18), error_message="pipeline recycled")
        daemon.execute("DELETE FROM manufacturing_tasks WHERE pipeline_id = 'more' AND status IN ('PENDING', 'READY')")
    # The older row describes the factory again.
    daemon.save(FACTORIES, factory, current_supply="MODERATE", previous_supply="HIGH", ready_for_collection=False)
    yield

    # The daemon restarts. Tasks go back to READY with their ready_at; one that was under way keeps its ship, too.
    daemon.boot()
    daemon.save(TASKS, "sell", status="READY", started_at=None)
    daemon.save(TASKS, "copper", status="READY", assigned_ship=None)
    daemon.assign("sell", "T-2")
    daemon.assign("copper", "T-3")
    daemon.save(TASKS, "sell", status="EXECUTING", started_at=minute(20))
    yield
    daemon.save(TASKS, "copper", status="COMPLETED", completed_at=minute(21), total_revenue=400)
    daemon.save(TASKS, "sell", status="COMPLETED", completed_at=minute(25), total_revenue=2000)
    # It sums the tasks that it has in memory, and after the restart it has none.
    daemon.save(
        PIPELINES, "rifles", status="COMPLETED", completed_at=minute(26), total_cost=0, total_revenue=0, net_profit=0
    )

    # A pipeline that begins and ends without a restart has its sums.
    with daemon.transaction():
        daemon.save(PIPELINES, "fuel", product_good="FUEL", sell_market="X1-M2")
        daemon.create(
            TASKS,
            {"id": "buy fuel", "pipeline_id": "fuel", "task_type": "STORAGE_ACQUIRE_DELIVER", "good": "FUEL"},
            {"id": "sell fuel", "pipeline_id": "fuel", "task_type": "COLLECT_SELL", "good": "FUEL"},
        )
    daemon.save(PIPELINES, "fuel", status="EXECUTING", started_at=minute(27))
    for task, money in (("buy fuel", {"total_cost": 100}), ("sell fuel", {"total_revenue": 700, "total_cost": 0})):
        daemon.save(TASKS, task, status="READY", ready_at=minute(27))
        daemon.assign(task, "T-1")
        daemon.save(TASKS, task, status="EXECUTING", started_at=minute(28))
        daemon.save(TASKS, task, status="COMPLETED", completed_at=minute(30), **money)
    daemon.save(
        PIPELINES,
        "fuel",
        status="COMPLETED",
        completed_at=minute(30),
        total_cost=100,
        total_revenue=700,
        net_profit=600,
    )
    yield

    # One fails before it starts, and one is deleted while it runs: its tasks and factories go with it.
    daemon.save(
        PIPELINES, "drugs", product_good="DRUGS", status="FAILED", completed_at=minute(31), error_message="no route"
    )
    with daemon.transaction():
        daemon.save(PIPELINES, "ships", product_good="SHIP_PARTS")
        daemon.create(TASKS, {"id": "parts", "pipeline_id": "ships", "task_type": "ACQUIRE_DELIVER", "good": "PARTS"})
        daemon.create(FACTORIES, {"pipeline_id": "ships", "factory_symbol": "X1-F2", "output_good": "SHIP_PARTS"})
    daemon.save(PIPELINES, "ships", status="EXECUTING", started_at=minute(32))
    daemon.save(TASKS, "parts", status="READY", ready_at=minute(32))
    yield
    daemon.execute("DELETE FROM manufacturing_pipelines WHERE id = 'ships'")

    # What still runs when the story ends. Then a new era: the daemon deletes what it knew of the factories.
    with daemon.transaction():
        daemon.save(PIPELINES, "food", product_good="FOOD", status="EXECUTING", started_at=minute(33))
        daemon.create(
            TASKS,
            {
                "id": "wheat",
                "pipeline_id": "food",
                "task_type": "ACQUIRE_DELIVER",
                "status": "READY",
                "ready_at": minute(34),
            },
        )
        daemon.create(FACTORIES, {"pipeline_id": "food", "factory_symbol": "X1-F3", "output_good": "FOOD"})
    daemon.save(FACTORIES, source, current_supply="HIGH")
    daemon.execute("DELETE FROM manufacturing_factory_states WHERE player_id = %s", daemon.player)


def check_classic(page: str, *, cascades: bool = True) -> None:
    """Compare the page with what pencil and paper give."""

    def shown(name: str, **labels: str) -> float | None:
        return value(page, f"manufacturing_{name}", player_id="1", **labels)

    def by_type(name: str, **labels: str) -> list[float | None]:
        types = ("ACQUIRE_DELIVER", "COLLECT_SELL", "LIQUIDATE", "STORAGE_ACQUIRE_DELIVER")
        return [shown(name, task_type=task_type, **labels) for task_type in types]

    # Iron, diamonds, and one that was cancelled; the sale four times, and that of fuel. The rollback is no start.
    assert by_type("task_assignments_total") == [3, 4 + 1, 3, 1]
    assert by_type("task_wait_seconds_count") == [3, 4 + 1, 3, 1]
    assert by_type("tasks_completed_total", status="success") == [2, 2, 1, 1]
    assert by_type("tasks_completed_total", status="failure") == [0, 2, 0, 0]
    assert by_type("tasks_completed_total", status="cancelled") == [50, 0, 0, 0]
    assert by_type("task_retry_total") == [0, 2, 0, 0]
    assert shown("task_units_total", task_type="ACQUIRE_DELIVER") == 40 + 40
    # Minutes from the start to the end: 2 for iron; 1, 5 and 2 for the sales; 2 for buying fuel.
    assert by_type("task_duration_seconds_sum") == [120, 60 + 300 + 120, 0, 120]
    assert by_type("task_duration_seconds_count") == [1, 3, 0, 1]
    costs = {kind: shown("cost_total", cost_type=kind) for kind in ("acquire", "collect", "deliver", "liquidate")}
    assert costs == {"acquire": 300 + 200 + 100, "collect": 50, "deliver": 0, "liquidate": 0}
    assert shown("revenue_total") == 400 + 2000 + 700

    ended = {
        (labels["product_good"], labels["status"]): n for labels, n in _labelled(page, "pipeline_completed_total") if n
    }
    assert ended == {
        ("LASER_RIFLES", "COMPLETED"): 1,
        ("LASER_RIFLES", "CANCELLED"): 1,
        ("FUEL", "COMPLETED"): 1,
        ("DRUGS", "FAILED"): 1,
    }
    assert shown("pipeline_duration_seconds_sum", product_good="LASER_RIFLES") == (26 + 2) * 60
    assert shown("pipeline_revenue_credits_total", product_good="LASER_RIFLES") == 0
    assert shown("pipeline_revenue_credits_total", product_good="FUEL") == 700
    assert shown("margin_percent", product_good="FUEL") == pytest.approx(100 * 600 / 700)
    assert shown("margin_percent", product_good="LASER_RIFLES") is None
    assert shown("profit_rate") == 600

    # The older row twice, the newer one once.
    assert shown("factory_cycles_total", factory_symbol="X1-F1", output_good="LASER_RIFLES") == 2 + 1
    moved = {
        (labels["from_level"], labels["to_level"]): n for labels, n in _labelled(page, "supply_transitions_total") if n
    }
    assert moved == {
        ("LIMITED", "MODERATE"): 1,
        ("MODERATE", "HIGH"): 2,
        ("HIGH", "MODERATE"): 1 + 1,
        ("HIGH", "ABUNDANT"): 1,
    }

    # Where no foreign key cascades, the task of the deleted pipeline stays.
    assert shown("tasks_ready_total", task_type="ACQUIRE_DELIVER") == (1 if cascades else 2)
    assert shown("pipeline_queue_depth") == 1
    assert shown("factory_ready_total") == 0
    assert samples_of(page, "spacetraders_daemon_manufacturing_factory_supply_level") == {}
    assert (shown("ships_assigned_total"), shown("ships_idle_total")) == (0, 3)


# ------------------------------------------------------------------------------------------------- August 2026 --

DELIVER: LiteralString = "DELIVER_TO_CONSTRUCTION"
SITE = "X1-I52"


def materials(**goods: tuple[int, int]) -> list[dict[str, object]]:
    """Return the materials of a site: units that have been delivered and that are needed, by good."""
    return [
        {"tradeSymbol": good, "targetQuantity": target, "deliveredQuantity": delivered}
        for good, (delivered, target) in goods.items()
    ]


def newest(daemon: Daemon) -> Iterator[None]:
    """Tell what the daemon of August 2026 writes. Pauses before each act."""
    minute = daemon.minute
    yield
    daemon.boot()
    [(daemon.player,)] = daemon.execute("INSERT INTO players (agent_symbol, token) VALUES ('TORWIND', '') RETURNING id")
    daemon.execute("INSERT INTO eras (player_id, opened_at) VALUES (%s, %s)", daemon.player, minute(0))
    daemon.execute("INSERT INTO ships (ship_symbol, player_id, cargo_capacity) VALUES ('T-1', 1, 80), ('T-2', 1, 0)")

    # A pipeline for a construction site: no factories, and no money.
    construction = {"pipeline_type": "CONSTRUCTION", "construction_site": SITE}
    with daemon.transaction():
        daemon.save(
            PIPELINES, "gate", product_good="FAB_MATS", materials=materials(FAB_MATS=(0, 400), CIRCUITRY=(0, 30)),
            **construction,
        )  # fmt: skip
        daemon.create(
            TASKS,
            *(
                {"id": f"gate {n}", "pipeline_id": "gate", "task_type": DELIVER, "good": "FAB_MATS", "quantity": 60}
                for n in range(1, 7)
            ),
            {"id": "circuits", "pipeline_id": "gate", "task_type": "ACQUIRE_DELIVER", "good": "CIRCUITRY"},
        )
    daemon.save(PIPELINES, "gate", status="EXECUTING", started_at=minute(0))
    yield

    def delivered(task: str, units: int, started: float, completed: float) -> None:
        daemon.save(
            TASKS, task, status="COMPLETED", assigned_ship="T-1", actual_quantity=units,
            started_at=minute(started), completed_at=minute(completed),
        )  # fmt: skip

    # Which ship has a task is only in memory until the task has ended, and then one UPDATE says everything.
    for n in range(1, 7):
        daemon.save(TASKS, f"gate {n}", status="READY", ready_at=minute(1))
    with daemon.transaction():
        delivered("gate 1", 60, started=2, completed=4)
        daemon.save(PIPELINES, "gate", materials=materials(FAB_MATS=(60, 400), CIRCUITRY=(0, 30)))
    # Units may arrive in the pipeline's row later than in the task's.
    delivered("gate 2", 40, started=3, completed=5)
    yield
    daemon.save(PIPELINES, "gate", materials=materials(FAB_MATS=(100, 400), CIRCUITRY=(0, 30)))

    # An attempt that fails when a part has been delivered, is retried, and succeeds.
    daemon.save(
        TASKS, "gate 3", status="FAILED", assigned_ship="T-1", retry_count=1, actual_quantity=15,
        started_at=minute(3), completed_at=minute(5), error_message="ship lost its cargo",
    )  # fmt: skip
    daemon.save(PIPELINES, "gate", materials=materials(FAB_MATS=(115, 400), CIRCUITRY=(0, 30)))
    daemon.save(TASKS, "gate 3", status="PENDING", actual_quantity=0, **NO_ATTEMPT)
    daemon.save(TASKS, "gate 3", status="READY", ready_at=minute(6))
    yield
    with daemon.transaction():
        delivered("gate 3", 25, started=7, completed=9)
        daemon.save(PIPELINES, "gate", materials=materials(FAB_MATS=(140, 400), CIRCUITRY=(0, 30)))
    # One is cancelled: no retry is counted. Another one fails before it starts, is retried at once, and fails again.
    daemon.save(TASKS, "gate 4", status="FAILED", completed_at=minute(9), error_message="cancelled")
    daemon.save(TASKS, "gate 5", status="FAILED", completed_at=minute(9), retry_count=1, error_message="no ship")
    daemon.save(TASKS, "gate 5", **{**NO_ATTEMPT, "status": "READY", "ready_at": minute(9)})
    daemon.save(
        TASKS, "gate 5", status="FAILED", assigned_ship="T-1", retry_count=2, started_at=minute(10),
        completed_at=minute(11),
    )  # fmt: skip
    yield

    # The daemon restarts. What was under way is READY in the database, as if nothing had happened.
    daemon.boot()
    daemon.save(TASKS, "circuits", status="READY", ready_at=minute(12))
    with daemon.transaction():
        delivered("circuits", 30, started=13, completed=14)
        daemon.save(PIPELINES, "gate", materials=materials(FAB_MATS=(140, 400), CIRCUITRY=(30, 30)))

    # A small site is supplied completely; another pipeline never starts.
    with daemon.transaction():
        daemon.save(
            PIPELINES, "relay", product_good="ALUMINUM", pipeline_type="CONSTRUCTION", construction_site="X1-R7",
            materials=materials(ALUMINUM=(0, 20)),
        )  # fmt: skip
        daemon.create(
            TASKS,
            {"id": "relay", "pipeline_id": "relay", "task_type": DELIVER, "status": "READY", "ready_at": minute(15)},
        )
    daemon.save(PIPELINES, "relay", status="EXECUTING", started_at=minute(15))
    with daemon.transaction():
        delivered("relay", 20, started=15.5, completed=16)
        daemon.save(
            PIPELINES, "relay", status="COMPLETED", completed_at=minute(16), materials=materials(ALUMINUM=(20, 20))
        )
    daemon.save(PIPELINES, "never", product_good="FAB_MATS", status="FAILED", completed_at=minute(17), **construction)


def check_first_era(page: str) -> None:
    """Compare the page with what pencil and paper give for the first player."""

    def shown(name: str, **labels: str) -> float | None:
        return value(page, f"manufacturing_{name}", player_id="1", **labels)

    def by_type(name: str, **labels: str) -> list[float | None]:
        return [shown(name, task_type=task_type, **labels) for task_type in (DELIVER, "ACQUIRE_DELIVER")]

    # The first two, the third and the fifth twice, and the relay's; the fourth was cancelled and the sixth waits.
    assert by_type("task_assignments_total") == [1 + 1 + 2 + 2 + 1, 1]
    # The first attempt at the fifth never started, so it has no wait.
    assert by_type("task_wait_seconds_count") == [6, 1]
    # In minutes: 1, 2, 2 and 1, 1, and half a one.
    assert by_type("task_wait_seconds_sum") == [7.5 * 60, 60]
    assert by_type("tasks_completed_total", status="success") == [4, 1]
    assert by_type("tasks_completed_total", status="failure") == [3, 0]
    assert by_type("tasks_completed_total", status="cancelled") == [1, 0]
    assert by_type("task_retry_total") == [3, 0]
    assert by_type("task_units_total") == [60 + 40 + 15 + 25 + 20, 30]
    assert by_type("task_duration_seconds_sum") == [(2 + 2 + 2 + 2 + 1 + 0.5) * 60, 60]
    assert by_type("ship_task_duration_seconds_count") == [6, 1]
    assert by_type("tasks_ready_total") == [1, None]

    units = {labels["good_symbol"]: n for labels, n in _labelled(page, "construction_units_total")}
    assert units == {"FAB_MATS": 140, "CIRCUITRY": 30, "ALUMINUM": 20}
    gate = {"construction_site": SITE, "good_symbol": "FAB_MATS"}
    assert shown("construction_delivered_units", **gate) == 140
    assert shown("construction_target_units", **gate) == 400
    # The relay is complete and no longer shown.
    sites = {labels["construction_site"] for labels, _ in _labelled(page, "construction_target_units")}
    assert sites == {SITE}
    assert shown("pipeline_completed_total", product_good="ALUMINUM", status="COMPLETED") == 1
    assert shown("pipeline_completed_total", product_good="FAB_MATS", status="FAILED") == 1
    assert shown("revenue_total") == 0
    assert shown("profit_rate") == 0
    assert samples_of(page, "spacetraders_daemon_manufacturing_factory_ready_total") != {}
    assert samples_of(page, "spacetraders_daemon_manufacturing_factory_inputs_delivered") == {}
    assert (shown("ships_assigned_total"), shown("ships_idle_total")) == (0, 1)
    assert value(page, "spacetraders_daemon_player_info", player_id="1", agent_symbol="TORWIND") == 1


def after_a_reset(daemon: Daemon) -> Iterator[None]:
    """Tell what a reset of the universe adds: the rows of the player stay, live ones too."""
    yield from newest(daemon)
    yield
    daemon.execute("UPDATE eras SET closed_at = %s WHERE player_id = %s", datetime.now(UTC), daemon.player)
    yield
    daemon.boot()
    minute = daemon.minute
    with daemon.transaction():
        [(daemon.player,)] = daemon.execute(
            "INSERT INTO players (agent_symbol, token) VALUES ('TORWIND', '') RETURNING id"
        )
        daemon.execute("INSERT INTO eras (player_id, opened_at) VALUES (%s, %s)", daemon.player, minute(20))
    with daemon.transaction():
        daemon.save(
            PIPELINES, "next gate", product_good="FAB_MATS", pipeline_type="CONSTRUCTION", construction_site="X2-I1",
            materials=materials(FAB_MATS=(0, 1600)),
        )  # fmt: skip
        daemon.create(
            TASKS,
            {"id": "next", "pipeline_id": "next gate", "task_type": DELIVER, "status": "READY", "ready_at": minute(21)},
        )
    daemon.save(PIPELINES, "next gate", status="EXECUTING", started_at=minute(21))
    daemon.save(
        TASKS, "next", status="COMPLETED", assigned_ship="T-1", actual_quantity=80, started_at=minute(22),
        completed_at=minute(24),
    )  # fmt: skip
    daemon.save(PIPELINES, "next gate", materials=materials(FAB_MATS=(80, 1600)))


def check_second_era(page: str) -> None:
    """Compare the page with what pencil and paper give for the second player; the first one is not shown."""
    assert 'player_id="1"' not in page
    second = {"player_id": "2"}
    assert value(page, "spacetraders_daemon_player_info", agent_symbol="TORWIND", **second) == 1
    assert value(page, "manufacturing_task_assignments_total", task_type=DELIVER, **second) == 1
    assert value(page, "manufacturing_task_units_total", task_type=DELIVER, **second) == 80
    assert value(page, "manufacturing_construction_units_total", good_symbol="FAB_MATS", **second) == 80
    site = {"construction_site": "X2-I1", "good_symbol": "FAB_MATS", **second}
    assert value(page, "manufacturing_construction_delivered_units", **site) == 80
    assert value(page, "manufacturing_pipeline_queue_depth", **second) == 1


# ------------------------------------------------------------------------------------------------------ telling --

Story = Callable[[Daemon], Iterator[None]]


def _labelled(page: str, name: str) -> list[tuple[dict[str, str], float]]:
    found = samples_of(page, f"spacetraders_daemon_manufacturing_{name}")
    return [(dict(labels), n) for labels, n in found.items()]


AWAY: Mapping[str, Callable[[int], bool]] = {
    "throughout": lambda _: False,
    "afterwards": lambda _: True,
    "interrupted": lambda act: act in (2, 3, 6),
}
"""Whether there is no exporter during an act of a story, by the act's number. It ends as in a crash."""
each_way = pytest.mark.parametrize(
    "listens", ["throughout", "afterwards", pytest.param("interrupted", marks=pytest.mark.slow)]
)


def tell(story: Story, database: Database, dsn: str, listens: str) -> str:
    """Tell a story to exporters; return the last page when the recount agrees with it and nothing was lost."""
    with ExitStack() as stack, database.connect() as game:
        daemon = Daemon(database)
        stack.callback(daemon.close)

        def start() -> ExporterProcess:
            started = stack.enter_context(ExporterProcess(dsn, *OPTIONS))
            started.wait_ready()
            return started

        exporter: ExporterProcess | None = None
        for act, _ in enumerate(story(daemon)):
            if exporter is not None:
                wait_exact(exporter, game)
            if not AWAY[listens](act):
                exporter = exporter or start()
            elif exporter is not None:
                exporter.kill()
                exporter = None
        exporter = exporter or start()
        eventually(lambda: truth.compare_totals(game), lambda differences: not differences)
        page = wait_exact(exporter, game)
    if listens != "interrupted":
        assert (number(page, "mfg_notify_notifications_received_total") > 0) == (listens == "throughout")
    assert samples_of(page, "mfg_notify_reconcile_corrections_total") == {}
    assert value(page, "mfg_notify_lost_changes_total") == 0
    for table in TABLES:
        assert number(page, "mfg_notify_imbalance_rows", table=table) == 0
        assert number(page, "mfg_notify_unrecorded_changes_total", table=table) == 0
    return page


@each_way
def test_the_classic_daemon(exporter_dsn: str, installed: Database, listens: str) -> None:
    check_classic(tell(classic, installed, exporter_dsn, listens))


@pytest.mark.slow
def test_the_classic_daemon_on_tables_that_it_made_itself(database: Database) -> None:
    """AutoMigrate makes tables with bigint numbers and without foreign keys that cascade."""
    with database.connect() as game:
        for table in TABLES:
            name = sql.Identifier(table)
            keys = "SELECT conname FROM pg_constraint WHERE contype = 'f' AND conrelid = %s::regclass"
            for (key,) in game.execute(keys, (table,)).fetchall():
                game.execute(sql.SQL("ALTER TABLE {} DROP CONSTRAINT {}").format(name, sql.Identifier(key)))
            game.execute(sql.SQL("ALTER TABLE {} ALTER player_id TYPE bigint").format(name))
        game.execute("ALTER TABLE manufacturing_factory_states ALTER id TYPE bigint")
        truth.install(game)
        migrations.up(game, "public", print)
    check_classic(tell(classic, database, database.dsn, "interrupted"), cascades=False)


@each_way
def test_the_newest_daemon(exporter_dsn: str, installed: Database, listens: str) -> None:
    check_first_era(tell(newest, installed, exporter_dsn, listens))


@each_way
def test_the_newest_daemon_after_a_reset(exporter_dsn: str, installed: Database, listens: str) -> None:
    check_second_era(tell(after_a_reset, installed, exporter_dsn, listens))
