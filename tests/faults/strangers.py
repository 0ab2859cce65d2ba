"""Strangers on the channel, and strange words in the rows."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random

import psycopg
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from psycopg import sql
from tests import truth
from tests.faults.rig import Rig, fault
from tests.support import check_with_promtool, eventually, number, samples, settled_page

from mfg_notify.core import catalogue

HUGE = 2**62
ROUND = 400
"""Notifications of a stranger in one go."""


@contextmanager
def stranger(rig: Rig) -> Iterator[psycopg.Connection]:
    """Connect as a role that may do nothing."""
    name = sql.Identifier(f"stranger_{rig.chance.randrange(1 << 30)}")
    with rig.connect() as connection:
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(name))
        try:
            with rig.connect(user=name.as_string(connection).strip('"')) as theirs:
                yield theirs
        finally:
            connection.execute(sql.SQL("DROP ROLE {}").format(name))


def junk(chance: Random) -> str:
    """Return something that is no event."""
    return chance.choice(
        (
            "", "fold", "null", "{}", "[]", "[1]", "junk", "\\", '"', "\u202e\u2603", "[" * 7000, "[1," * 2000,
            "x" * 7999, f"[1,{10**300},1,1,[]]", "[1,1e999,1,1,[]]", "[1,-1,-1,-1,null]", f"[{HUGE},1,1,1,[]]",
            "barrier 999999999", "barrier x", "ping 1", "ping", '[1,1,1,1,["planet","I","p",null,null]]',
            '[1,1,1,1,["task","U","t",null,null]]',
            '[1,2,3,"2026-01-01T00:00:00Z",["factory","I",[null,"F","G",null,null],["x",1],[null,false],null,null,[0,0]]]',
        )
    )  # fmt: skip


def forgery(chance: Random, tasks: list[str]) -> str:
    """Return an event that never was, of a row that is there or not, with an id that is taken, to come, or neither."""
    number_of_it = chance.choice((1, chance.randrange(1, 5000), HUGE + chance.randrange(1000)))
    table = chance.choice(("task", "task", "pipeline", "factory"))
    operation = chance.choice("IUUDT")
    key = (
        chance.choice((*tasks, "nobody", chance.randbytes(20).hex()))
        if table != "factory"
        else str(chance.randrange(999))
    )
    bodies = {
        "task": [[None, None, key, "COLLECT_SELL", "COMPLETED", "GHOST-1"], [0, 0, 0, 1, 7, 10**9, 10**9],
                 ["2026-01-01T00:00:00+00:00"] * 3],
        "pipeline": [["EXECUTING", key, "GHOSTS", "COMPLETED"], [0, 0, 0, 1, 1, HUGE, HUGE],
                     ["2026-01-01T00:00:00+00:00", "9999-12-31T23:59:59+00:00"]],
        "factory": [["LOW", "X1-GHOST", "GHOSTS", None, "HIGH"], [int(key) if table == "factory" else 0, 1],
                    [False, True], True, None, [0, 0]],
    }  # fmt: skip
    body = [table, operation, *([] if operation == "T" else bodies[table])]
    return json.dumps([1, number_of_it, 1, "2026-01-01T00:00:00+00:00", body], separators=(",", ":"))


@fault("hostile NOTIFY")
def hostile_notify(rig: Rig) -> None:
    [(channel,)] = rig.ask("SELECT channel FROM mfg_notify.settings")
    with rig.exporter() as exporter, stranger(rig) as theirs:
        exporter.wait_ready()
        with rig.game():
            for _ in range(rig.rounds(5, 60)):
                tasks = [key for (key,) in rig.ask("SELECT id FROM manufacturing_tasks LIMIT 20")]
                before = number(exporter.page(), "mfg_notify_notifications_received_total")
                for _ in range(ROUND):
                    payload = junk(rig.chance) if rig.chance.random() < 0.5 else forgery(rig.chance, tasks)
                    theirs.execute("SELECT pg_notify(%s, %s)", (channel, payload))
                    rig.harm("notifications of a stranger")
                eventually(
                    lambda before=before: number(exporter.page(), "mfg_notify_notifications_received_total") > before  # type: ignore[misc]
                )
                rig.some_more(exporter, 20)
        for reason in ("malformed", "ghost"):
            rejected = eventually(
                lambda reason=reason: number(exporter.page(), "mfg_notify_events_rejected_total", reason=reason)  # type: ignore[misc]
            )
            rig.report.counts[f"{reason} events rejected"] += int(rejected)
        rig.report.figure(
            "memory of the exporter in MiB", number(exporter.page(), "process_resident_memory_bytes") / 2**20
        )
        # What was shown of ghosts stays shown in counters, as documented; gauges recover, and the totals never knew.
        page = settled_page(exporter)
        with rig.connect() as connection:
            for difference in truth.compare_gauges(page, connection):
                rig.violation(f"I1: {difference}")
        rig.check(exporter, page=False, ahead=False)


STRANGE = (
    "new\nline", 'quo"te', "back\\slash", "\\n", "tab\tbell\a escape\x1b[31m", "\u202eright-to-left\u202c", "שלום",
    "🚀" * 40, "e\u0301" * 100, "{}", 'a="b",c', "#", " ", "\r\n", "\u2028", "\ufeff", "x" * (1 << 20),
)  # fmt: skip
"""Product names that nobody should have."""
PRODUCTS = """INSERT INTO manufacturing_pipelines (id, player_id, product_good, sell_market, expected_price, status,
                                                   started_at, completed_at, total_revenue, total_cost, net_profit)
              SELECT %(key)s || i, %(player)s, %(good)s || CASE WHEN %(goods)s > 1 THEN i::text ELSE '' END, 'M', 1,
                     CASE WHEN i %% 2 = 0 THEN 'COMPLETED' ELSE 'EXECUTING' END, now() - interval '90 s', now(), 9, 4, 5
              FROM generate_series(1, %(goods)s) i"""
REVENUE = "spacetraders_daemon_manufacturing_pipeline_revenue_credits_total"
CAP = 5000


@fault("hostile labels")
def hostile_labels(rig: Rig) -> None:
    with (
        rig.exporter(seat="all") as exporter,
        rig.connect() as game,
    ):
        exporter.wait_ready()
        for table, column in (
            ("pipelines", "product_good"), ("tasks", "task_type"), ("factory_states", "factory_symbol"),
        ):  # fmt: skip
            game.execute(f"ALTER TABLE manufacturing_{table} ALTER COLUMN {column} TYPE text".encode())
        # No index takes a megabyte.
        game.execute("DROP INDEX manufacturing_pipelines_by_product")
        [(player,)] = game.execute(
            "INSERT INTO players (agent_symbol, token) VALUES ('ODD', 'x') RETURNING id"
        ).fetchall()
        for number_of_it, word in enumerate(STRANGE):
            insert(game, player, f"odd {number_of_it} ", word, 1)
            insert(game, player, f"odder {number_of_it} ", word + "2", 2)
            rig.harm("strange names")
        products = rig.rounds(1_000, 10_000)
        insert(game, player, "many ", "GOOD_", products)
        rig.report.counts["products"] += products
        with rig.game(rate=50):
            rig.some_more(exporter, 50)
        page = settled_page(exporter)
        # Cut to 128 characters, several of the long ones are one series: the recount cuts them too.
        with rig.connect() as connection:
            for difference in truth.compare(page, connection)[:20] if products < 10_000 else []:
                rig.violation(f"I1: {difference}")
        openmetrics = exporter.get("/metrics", accept="application/openmetrics-text; version=1.0.0").text
        families = list(parse_openmetrics(openmetrics))  # type: ignore[no-untyped-call]
        if {sample.name for family in families for sample in family.samples} != {name for name, _ in samples(page)}:
            rig.violation("the page in OpenMetrics has not the same samples")
        read_by_promtool(rig, page)
        rig.check(exporter, page=False)
    with rig.exporter("--max-series", str(CAP), seat="capped") as capped:
        page = settled_page(capped)
        shown = number(page, "mfg_notify_series")
        # What is past the cap is summed in a series for each player and metric beyond it.
        beyond = sum(
            "other" in dict(labels.difference({("cost_type", "other")})).values() for _, labels in samples(page)
        )
        if not 0 < beyond < 1000 or shown - beyond > CAP:
            rig.violation(f"{shown} series are shown, {beyond} of them beyond the {CAP} that may be")
        rig.report.figure("series shown under the cap", shown)
        [(settled,)] = rig.ask(
            "SELECT sum(n) FROM mfg_notify.total WHERE metric = 'manufacturing_pipeline_revenue_credits_total'"
        )
        summed = sum(value for (name, _), value in samples(page).items() if name == REVENUE)
        if summed != settled:
            rig.violation(f"the revenue adds up to {summed} under the cap and must be {settled}")
        read_by_promtool(rig, page)


def read_by_promtool(rig: Rig, page: str) -> None:
    """Check that promtool, where there is one, reads the page and has nothing new to say of it."""
    named_by_the_specification = {metric.full_name for metric in catalogue.GAUGES}
    for objection in check_with_promtool(page):
        if objection.split()[0] not in named_by_the_specification:
            rig.violation(f"promtool: {objection[:300]}")


def insert(game: psycopg.Connection, player: int, key: str, good: str, goods: int) -> None:
    game.execute(PRODUCTS, {"key": key, "player": player, "good": good, "goods": goods})
