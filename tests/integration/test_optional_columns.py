"""What the game may have or not: columns of construction, agents of players, eras, and ships that carry no cargo.

What is there is exact and shown, what is not there changes nothing, and nothing that is in it does any harm.
"""

from typing import LiteralString

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.types.json import Jsonb
from tests import truth
from tests.conftest import Database, Roles
from tests.game_rows import NOW, add_pipeline, add_player, add_ship, add_task, insert
from tests.samples import value
from tests.support import ExporterProcess, eventually, run_command, wait_exact

from mfg_notify.postgres import installation, migrations

OFTEN = ("--reconcile-interval", "200ms")
SITE = {"construction_site": "X1-I52", "good_symbol": "FAB_MATS", "player_id": "1"}
GOOD = {"good_symbol": "FAB_MATS", "player_id": "1"}
TYPE = {"task_type": "DELIVER_TO_CONSTRUCTION", "player_id": "1"}
DELIVERED = "manufacturing_construction_delivered_units"
TARGET = "manufacturing_construction_target_units"
UNITS = "manufacturing_construction_units_total"
MOVED = "manufacturing_task_units_total"
PLAYER_INFO = "spacetraders_daemon_player_info"


def wait_for(exporter: ExporterProcess, name: str, wanted: float | None, **labels: str) -> str:
    """Wait until a sample has this value; return the page."""
    return eventually(exporter.page, lambda page: value(page, name, **labels) == wanted)


def materials(delivered: int, target: int = 400) -> Jsonb:
    return Jsonb([{"tradeSymbol": "FAB_MATS", "targetQuantity": target, "deliveredQuantity": delivered}])


def add_site(game: psycopg.Connection, key: str = "c", delivered: int = 0) -> None:
    add_pipeline(
        game,
        key,
        status="EXECUTING",
        pipeline_type="CONSTRUCTION",
        product_good="FAB_MATS",
        construction_site="X1-I52",
        materials=materials(delivered),
    )


def deliver(game: psycopg.Connection, key: str, units: int, delivered: int) -> None:
    """Complete a delivery in one UPDATE, as the newest daemon does, and enter it in the pipeline."""
    add_task(game, key, pipeline_id="c", status="READY", task_type=TYPE["task_type"], ready_at=NOW)
    with game.transaction():
        game.execute(
            """UPDATE manufacturing_tasks SET status = 'COMPLETED', assigned_ship = 'S', actual_quantity = %s,
               started_at = now(), completed_at = now() WHERE id = %s""",
            (units, key),
        )
        game.execute("UPDATE manufacturing_pipelines SET materials = %s WHERE id = 'c'", (materials(delivered),))


def test_construction_is_exact(installed: Database) -> None:
    with installed.connect() as game:
        truth.install(game)
        add_player(game)
        with ExporterProcess(installed.dsn, *OFTEN) as exporter:
            exporter.wait_ready()
            add_site(game)
            page = wait_for(exporter, TARGET, 400, **SITE)
            assert (value(page, DELIVERED, **SITE), value(page, UNITS, **GOOD)) == (0, 0)
            deliver(game, "t1", 60, 60)
            deliver(game, "t2", 40, 100)
            page = wait_for(exporter, DELIVERED, 100, **SITE)
            assert value(page, MOVED, **TYPE) == 100
            page = wait_exact(exporter, game)
            assert value(page, "mfg_notify_reconcile_corrections_total") is None
            game.execute("UPDATE manufacturing_pipelines SET status = 'COMPLETED' WHERE id = 'c'")
            page = wait_for(exporter, DELIVERED, None, **SITE)
            assert value(page, UNITS, **GOOD) == 100


HOSTILE: list[tuple[str, int | None, int | None]] = [
    ('{"tradeSymbol": "FAB_MATS", "targetQuantity": 1}', None, None),
    ('"FAB_MATS"', None, None),
    ("null", None, None),
    ('[1, "x", null, [], {}]', None, None),
    ('[{"tradeSymbol": "FAB_MATS"}]', 0, 0),
    ('[{"tradeSymbol": "FAB_MATS", "targetQuantity": "400", "deliveredQuantity": true}]', 0, 0),
    ('[{"tradeSymbol": "FAB_MATS", "targetQuantity": 10.6, "deliveredQuantity": -3}]', 0, 11),
    ('[{"tradeSymbol": "FAB_MATS", "targetQuantity": 1e30, "deliveredQuantity": 1e300}]', 9 * 10**18, 9 * 10**18),
    ('[{"tradeSymbol": "FAB_MATS", "targetQuantity": 1}, {"tradeSymbol": "FAB_MATS", "deliveredQuantity": 7}]', 7, 1),
    (
        "[" + ",".join(f'{{"tradeSymbol": "G{n}"}}' for n in range(99)) + ',{"tradeSymbol": "FAB_MATS"}'
        ',{"tradeSymbol": "FAB_MATS", "targetQuantity": 9}]', 0, 0,
    ),
    ('[{"tradeSymbol": "FAB_MATS", "targetQuantity": 3, "note": "' + "x" * 20_000 + '"}]', 0, 3),
]  # fmt: skip


@pytest.mark.parametrize("column_type", ["jsonb", "json"])
def test_no_materials_do_any_harm(database: Database, column_type: LiteralString) -> None:
    with database.connect() as game:
        game.execute(
            "ALTER TABLE manufacturing_pipelines ALTER materials DROP DEFAULT, ALTER materials TYPE " + column_type
        )
        migrations.up(game, "public", print)
        add_player(game)
        with ExporterProcess(database.dsn, *OFTEN) as exporter:
            exporter.wait_ready()
            for number, (text, delivered, target) in enumerate(HOSTILE):
                key = f"h{number}"
                add_pipeline(game, key, status="PLANNING", pipeline_type="CONSTRUCTION", construction_site=key)
                update = sql.SQL("UPDATE manufacturing_pipelines SET materials = {} WHERE id = {}")
                game.execute(update.format(sql.Literal(text), sql.Literal(key)))
                labels = SITE | {"construction_site": key}
                # Its event is one as good as any, before and after a reconciliation.
                wait_for(exporter, "manufacturing_pipeline_queue_depth", number + 1, player_id="1")
                assert wait_for(exporter, TARGET, target, **labels)
                assert wait_for(exporter, DELIVERED, delivered, **labels)
            page = exporter.page()
            assert value(page, "mfg_notify_lost_changes_total") == 0
            assert value(page, "mfg_notify_unreadable_rows", table="manufacturing_pipelines") == 0
            assert "mfg_notify_reconcile_corrections_total{" not in page
        assert game.execute("SELECT count(*) FROM mfg_notify.dead_letter").fetchone() == (0,)


def test_json_that_jsonb_cannot_hold(database: Database) -> None:
    with database.connect() as game:
        game.execute("ALTER TABLE manufacturing_pipelines ALTER materials DROP DEFAULT, ALTER materials TYPE json")
        migrations.up(game, "public", print)
        add_player(game)
        add_pipeline(game, "p", status="EXECUTING", pipeline_type="CONSTRUCTION")
        with ExporterProcess(database.dsn, *OFTEN) as exporter:
            exporter.wait_ready()
            game.execute(
                r"""UPDATE manufacturing_pipelines SET materials = '[{"tradeSymbol": "\u0000"}]', total_cost = 7"""
            )
            game.execute("UPDATE manufacturing_pipelines SET status = 'COMPLETED'")
            page = wait_for(
                exporter, "manufacturing_pipeline_cost_credits_total", 7, player_id="1", product_good="IRON"
            )
            assert value(page, "mfg_notify_lost_changes_total") == 0


def test_a_type_that_is_an_enum(database: Database) -> None:
    with database.connect() as game:
        game.execute(
            """ALTER TABLE manufacturing_pipelines DROP CONSTRAINT manufacturing_pipelines_type,
                   ALTER pipeline_type DROP DEFAULT;
               CREATE TYPE pipeline_type AS ENUM ('FABRICATION');
               ALTER TABLE manufacturing_pipelines ALTER pipeline_type TYPE pipeline_type
                   USING pipeline_type::text::pipeline_type"""
        )
        migrations.up(game, "public", print)
        add_player(game)
        with ExporterProcess(database.dsn, *OFTEN) as exporter:
            exporter.wait_ready()
            add_pipeline(game, "p", status="EXECUTING", pipeline_type="FABRICATION")
            page = wait_for(exporter, "manufacturing_pipeline_queue_depth", 1, player_id="1")
            # The word that the triggers look for is not among the enum's yet.
            game.execute("ALTER TYPE pipeline_type ADD VALUE 'CONSTRUCTION'")
            add_site(game, delivered=7)
            page = wait_for(exporter, DELIVERED, 7, **SITE)
            assert value(page, "mfg_notify_lost_changes_total") == 0


WITHOUT: LiteralString = """
    ALTER TABLE manufacturing_pipelines DROP pipeline_type, DROP materials, DROP construction_site;
    ALTER TABLE manufacturing_tasks DROP actual_quantity;
    ALTER TABLE ships DROP cargo_capacity;
    DROP TABLE eras
"""
ODD: LiteralString = """
    ALTER TABLE manufacturing_pipelines ALTER materials DROP DEFAULT, ALTER materials TYPE text,
        ALTER construction_site TYPE bytea USING construction_site::bytea;
    ALTER TABLE manufacturing_tasks ALTER actual_quantity DROP DEFAULT, ALTER actual_quantity TYPE text;
    ALTER TABLE ships ALTER cargo_capacity DROP DEFAULT, ALTER cargo_capacity DROP NOT NULL,
        ALTER cargo_capacity TYPE text;
    ALTER TABLE eras ALTER closed_at TYPE text;
    ALTER TABLE players ALTER agent_symbol TYPE bytea USING agent_symbol::bytea
"""


@pytest.mark.parametrize("change", [WITHOUT, ODD], ids=["absent", "of another type"])
def test_without_the_optional_columns_nothing_changes(database: Database, change: LiteralString) -> None:
    with database.connect() as game:
        game.execute(change)
        migrations.up(game, "public", print)
        add_player(game)
        insert(game, "ships", ship_symbol="S", player_id=1)
        with ExporterProcess(database.dsn, *OFTEN) as exporter:
            exporter.wait_ready()
            add_pipeline(game, "p", status="EXECUTING")
            add_task(game, "t", pipeline_id="p", status="READY", ready_at=NOW)
            game.execute("UPDATE manufacturing_tasks SET status = 'COMPLETED', total_revenue = 9 WHERE id = 't'")
            game.execute("UPDATE manufacturing_pipelines SET status = 'COMPLETED', total_revenue = 9")
            page = wait_for(exporter, "manufacturing_revenue_total", 9, player_id="1")
            for name in (DELIVERED, TARGET, UNITS, MOVED):
                assert f"spacetraders_daemon_{name}{{" not in page
            assert value(page, "mfg_notify_lost_changes_total") == 0
            # A capacity that is not known is none.
            assert value(page, "manufacturing_ships_idle_total", player_id="1") == (1 if change is WITHOUT else 0)
            status = installation.read_status(game, "public")
            assert (status.complete, status.new_columns) == (True, ())


@pytest.mark.slow
def test_columns_that_come_later_are_picked_up(roles: Roles, database: Database) -> None:
    role = roles.name("exporter")
    with database.connect() as game:
        game.execute(WITHOUT)
        assert run_command("migrate", "up", "--dsn", database.dsn, "--create-role", role)[0] == 0
        add_player(game)
        with ExporterProcess(make_conninfo(database.dsn, user=role), *OFTEN) as exporter:
            exporter.wait_ready()
            # The daemon's own migrations.
            game.execute(
                """ALTER TABLE manufacturing_pipelines ADD pipeline_type varchar(20) DEFAULT 'FABRICATION',
                       ADD construction_site varchar(64), ADD materials jsonb;
                   ALTER TABLE manufacturing_tasks ADD actual_quantity integer DEFAULT 0;
                   ALTER TABLE ships ADD cargo_capacity integer"""
            )
            add_site(game, delivered=60)
            page = wait_for(exporter, "manufacturing_pipeline_queue_depth", 1, player_id="1")
            assert value(page, DELIVERED, **SITE) is None
            code, said = run_command("doctor", "--dsn", database.dsn)
            assert "columns that the triggers do not read yet: pipeline.construction_site" in said
            code, said = run_command("migrate", "status", "--dsn", database.dsn)
            assert (code, "not read" in said) == (1, True)
            code, said = run_command("migrate", "up", "--dsn", database.dsn)
            assert code == 0
            assert "reads now pipeline.materials" in said
            wait_for(exporter, DELIVERED, 60, **SITE)
            deliver(game, "t", 40, 100)
            page = wait_for(exporter, DELIVERED, 100, **SITE)
            assert (value(page, UNITS, **GOOD), value(page, MOVED, **TYPE)) == (40, 40)
            assert "nothing to do" in run_command("migrate", "up", "--dsn", database.dsn)[1]
            assert "denied" not in exporter.read_log()


def test_a_right_is_granted_before_the_triggers_need_it(roles: Roles, database: Database) -> None:
    role = roles.name("exporter")
    with database.connect() as game:
        game.execute(WITHOUT)
        migrations.up(game, "public", print)
        migrations.create_role(game, "public", role, print)
        game.execute("ALTER TABLE manufacturing_pipelines ADD materials jsonb")
        game.execute("CREATE TABLE seen (reads boolean, may boolean)")
        # A running exporter may ask after each statement that the migration executes.
        game.execute(
            sql.SQL(
                """CREATE FUNCTION look() RETURNS event_trigger LANGUAGE plpgsql AS $$
                   BEGIN INSERT INTO public.seen
                       VALUES ('pipeline.materials' = ANY (mfg_notify.optional_columns()), has_column_privilege(
                           {role}, 'public.manufacturing_pipelines', 'materials', 'SELECT')); END $$"""
            ).format(role=sql.Literal(role))
        )
        game.execute("CREATE EVENT TRIGGER look ON ddl_command_end EXECUTE FUNCTION look()")
        migrations.up(game, "public", print)
        seen = game.execute("SELECT DISTINCT reads, may FROM seen").fetchall()
        assert (True, True) in seen
        assert (True, False) not in seen


def test_a_column_that_goes_is_named(installed: Database) -> None:
    with installed.connect() as game:
        add_player(game)
        with ExporterProcess(installed.dsn, *OFTEN) as exporter:
            exporter.wait_ready()
            game.execute("ALTER TABLE manufacturing_tasks DROP actual_quantity")
            log = eventually(exporter.read_log, lambda text: "manufacturing_tasks.actual_quantity" in text)
            assert "migrate up" in log
            assert run_command("migrate", "up", "--dsn", installed.dsn)[0] == 0
            exporter.wait_ready()


def test_agents_have_names(roles: Roles, installed: Database) -> None:
    role = roles.name("exporter")
    with installed.connect() as game:
        migrations.create_role(game, "public", role, print)
        truth.install(game)
        add_player(game, "TORWIND")
        add_player(game, "NOBODY")
        with ExporterProcess(make_conninfo(installed.dsn, user=role), *OFTEN) as exporter:
            exporter.wait_ready()
            add_task(game, status="READY", ready_at=NOW)
            page = wait_for(exporter, PLAYER_INFO, 1, player_id="1", agent_symbol="TORWIND")
            assert value(page, PLAYER_INFO, player_id="2", agent_symbol="NOBODY") is None
            assert truth.compare(page, game) == []
            game.execute("UPDATE players SET agent_symbol = 'RENAMED' WHERE id = 1")
            page = wait_for(exporter, PLAYER_INFO, 1, player_id="1", agent_symbol="RENAMED")
            assert "TORWIND" not in page
            # Without the right, and with a table that cannot be read, everything else goes on.
            game.execute(sql.SQL("REVOKE SELECT (agent_symbol) ON players FROM {}").format(sql.Identifier(role)))
            eventually(exporter.page, lambda page: "RENAMED" not in page)
            assert exporter.get("/-/ready").status_code == 200


def test_a_closed_era_is_hidden_until_the_player_is_heard_of(installed: Database) -> None:
    with installed.connect() as game:
        truth.install(game)
        add_player(game, "OLD")
        add_player(game, "NEW")
        insert(game, "eras", player_id=1)
        add_site(game, delivered=5)
        add_task(game, "t", status="READY", ready_at=NOW)
        add_ship(game, "S")
        with ExporterProcess(installed.dsn, *OFTEN) as exporter:
            exporter.wait_ready()
            game.execute("UPDATE manufacturing_tasks SET status = 'FAILED', retry_count = 1 WHERE id = 't'")
            wait_for(exporter, "manufacturing_task_retry_total", 1, player_id="1", task_type="SELL")
            insert(game, "eras", player_id=2)
            add_task(game, "u", status="READY", player_id=2)
            game.execute("UPDATE eras SET closed_at = clock_timestamp() WHERE player_id = 1")
            eventually(exporter.page, lambda page: 'player_id="1"' not in page and 'player_id="2"' in page)
            wait_exact(exporter, game)
            game.execute("UPDATE manufacturing_tasks SET status = 'PENDING' WHERE id = 't'")
            page = wait_exact(exporter, game)
            assert 'player_id="1"' in page


@pytest.mark.parametrize("closed", ["'infinity'", "'-infinity'", "NULL"])
def test_an_era_that_is_not_closed_at_any_time(installed: Database, closed: LiteralString) -> None:
    with installed.connect() as game:
        add_player(game)
        game.execute(b"INSERT INTO eras (player_id, closed_at) VALUES (1, " + closed.encode() + b")")
        add_task(game, status="READY", ready_at=NOW)
        with ExporterProcess(installed.dsn, *OFTEN) as exporter:
            exporter.wait_ready()
            assert 'player_id="1"' in exporter.page()


def test_ships_without_a_hold_are_not_idle(installed: Database) -> None:
    with installed.connect() as game:
        add_player(game)
        add_ship(game, "S-1")
        add_ship(game, "SATELLITE", cargo_capacity=0)
        with ExporterProcess(installed.dsn, *OFTEN) as exporter:
            exporter.wait_ready()
            page = exporter.page()
            assert value(page, "manufacturing_ships_idle_total", player_id="1") == 1
