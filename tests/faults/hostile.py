"""Hostile input: payloads of untrusted clients on the channel, and strange names in the game's rows."""

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random

import psycopg
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from psycopg import sql
from tests import truth
from tests.faults.rig import Rig, fault
from tests.game_rows import add_player
from tests.samples import gains_only, number, reconnects, samples, samples_of
from tests.support import Process, check_with_promtool, eventually, peak_memory, settled_page

from mfg_notify.core import catalogue

HUGE = 2**62
CLIENTS_MINUTES = float(os.environ.get("MFG_NOTIFY_SOAK_CLIENTS_MINUTES") or 1)
"""For which hostile HTTP clients play in the soak."""
MEMORY_MAXIMUM = 200
"""MiB that the exporter may use under all of them."""
ROUND = 400
"""Notifications of the untrusted client per round."""


@contextmanager
def untrusted_client(rig: Rig) -> Iterator[psycopg.Connection]:
    """Connect as a role without any rights."""
    name = sql.Identifier(f"untrusted_{rig.random.randrange(1 << 30)}")
    with rig.connect() as connection:
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(name))
        try:
            with rig.connect(user=name.as_string(connection).strip('"')) as client:
                yield client
        finally:
            connection.execute(sql.SQL("DROP ROLE {}").format(name))


def junk(random: Random) -> str:
    """Return a payload that is no event."""
    return random.choice(
        (
            "", "fold", "null", "{}", "[]", "[1]", "junk", "\\", '"', "\u202e\u2603", "[" * 7000, "[1," * 2000,
            "x" * 7999, f"[1,{10**300},1,1,[]]", "[1,1e999,1,1,[]]", "[1,-1,-1,-1,null]", f"[{HUGE},1,1,1,[]]",
            "barrier 999999999", "barrier x", "ping 1", "ping", '[1,1,1,1,["planet","I","p",null,null]]',
            '[1,1,1,1,["task","U","t",null,null]]',
            '[1,2,3,"2026-01-01T00:00:00Z",["factory","I",[null,"F","G",null,null],["x",1],[null,false],null,null,[0,0]]]',
        )
    )  # fmt: skip


def forgery(random: Random, tasks: list[str]) -> str:
    """Return a forged event. Its id may belong to a past, a future or no real event, and its row may not exist."""
    event_id = random.choice((1, random.randrange(1, 5000), HUGE + random.randrange(1000)))
    table = random.choice(("task", "task", "pipeline", "factory"))
    operation = random.choice("IUUDT")
    key = (
        random.choice((*tasks, "no task", random.randbytes(20).hex()))
        if table != "factory"
        else str(random.randrange(999))
    )
    bodies = {
        "task": [[None, None, key, "COLLECT_SELL", "COMPLETED", "FORGED-1"], [0, 0, 0, 1, 7, 10**9, 10**9],
                 ["2026-01-01T00:00:00+00:00"] * 3],
        "pipeline": [["EXECUTING", key, "FORGED", "COMPLETED"], [0, 0, 0, 1, 1, HUGE, HUGE],
                     ["2026-01-01T00:00:00+00:00", "9999-12-31T23:59:59+00:00"]],
        "factory": [["LOW", "X1-FORGED", "FORGED", None, "HIGH"], [int(key) if table == "factory" else 0, 1],
                    [False, True], True, None, [0, 0]],
    }  # fmt: skip
    body = [table, operation, *([] if operation == "T" else bodies[table])]
    return json.dumps([1, event_id, 1, "2026-01-01T00:00:00+00:00", body], separators=(",", ":"))


@fault("hostile NOTIFY")
def hostile_notify(rig: Rig) -> None:
    [(channel,)] = rig.ask("SELECT channel FROM mfg_notify.settings")
    with rig.exporter() as exporter, untrusted_client(rig) as client:
        exporter.wait_ready()
        with rig.game():
            for _ in range(rig.rounds(5, 60)):
                tasks = [key for (key,) in rig.ask("SELECT id FROM manufacturing_tasks LIMIT 20")]
                before = number(exporter.page(), "mfg_notify_notifications_received_total")
                for _ in range(ROUND):
                    payload = junk(rig.random) if rig.random.random() < 0.5 else forgery(rig.random, tasks)
                    client.execute("SELECT pg_notify(%s, %s)", (channel, payload))
                    rig.harm("hostile notifications")
                eventually(
                    lambda before=before: number(exporter.page(), "mfg_notify_notifications_received_total") > before  # type: ignore[misc]
                )
                rig.wait_for_events(exporter, 20)
        for reason in ("malformed", "unconfirmed"):
            rejected = eventually(
                lambda reason=reason: number(exporter.page(), "mfg_notify_events_rejected_total", reason=reason)  # type: ignore[misc]
            )
            rig.report.counts[f"{reason} events rejected"] += int(rejected)
        rig.report.figure(
            "memory of the exporter in MiB", number(exporter.page(), "process_resident_memory_bytes") / 2**20
        )
        # Counters keep showing forged events, as documented. Gauges recover, and the totals never counted them.
        page = settled_page(exporter)
        with rig.connect() as connection:
            for difference in truth.compare_gauges(page, connection):
                rig.violation(f"I1: {difference}")
        rig.check(exporter, page=False, ahead=False)


STRANGE = (
    "new\nline", 'quo"te', "back\\slash", "\\n", "tab\tbell\a escape\x1b[31m", "\u202eright-to-left\u202c", "שלום",
    "🚀" * 40, "e\u0301" * 100, "{}", 'a="b",c', "#", " ", "\r\n", "\u2028", "\ufeff", "x" * (1 << 20),
)  # fmt: skip
"""Product names that no game should have."""
PRODUCTS = """INSERT INTO manufacturing_pipelines (id, player_id, product_good, sell_market, expected_price, status,
                                                   started_at, completed_at, total_revenue, total_cost, net_profit)
              SELECT %(key)s || i, %(player)s, %(good)s || CASE WHEN %(goods)s > 1 THEN i::text ELSE '' END, 'M', 1,
                     CASE WHEN i %% 2 = 0 THEN 'COMPLETED' ELSE 'EXECUTING' END, now() - interval '90 s', now(), 9, 4, 5
              FROM generate_series(1, %(goods)s) i"""
REVENUE = "spacetraders_daemon_manufacturing_pipeline_revenue_credits_total"
CAP = 5000


@fault("hostile HTTP clients, all kinds at once")
def hostile_clients(rig: Rig) -> None:
    with rig.exporter() as exporter:
        exporter.wait_ready()
        port = exporter.address.rpartition(":")[2]
        with rig.game(), Process([sys.executable, "-m", "benchmarks.overload", "--port", port]) as clients:
            rig.wait_until(time.monotonic() + rig.rounds(3, round(60 * CLIENTS_MINUTES)))
            assert clients.process.poll() is None, clients.read_log()
            clients.terminate()
        page = settled_page(exporter)
        for status, responses in samples_of(page, "mfg_notify_http_responses_total").items():
            rig.report.counts[f"responses {dict(status)['code']}"] += round(responses)
        for reason, dropped in samples_of(page, "mfg_notify_http_connections_dropped_total").items():
            rig.report.counts[f"connections dropped: {dict(reason)['reason']}"] += round(dropped)
        if given_up := reconnects(page):
            rig.violation(f"{given_up:.0f} connections to the database were given up")
        memory = peak_memory(exporter)
        rig.report.figure("memory of the exporter in MiB", memory)
        if memory >= MEMORY_MAXIMUM:
            rig.violation(f"the exporter used {memory} MiB")
        rig.check(exporter)


@fault("hostile labels")
def hostile_labels(rig: Rig) -> None:
    with (
        rig.exporter(slot="all") as exporter,
        rig.connect() as game,
    ):
        exporter.wait_ready()
        for table, column in (
            ("pipelines", "product_good"), ("tasks", "task_type"), ("factory_states", "factory_symbol"),
        ):  # fmt: skip
            game.execute(f"ALTER TABLE manufacturing_{table} ALTER COLUMN {column} TYPE text".encode())
        # An index entry cannot hold a megabyte.
        game.execute("DROP INDEX manufacturing_pipelines_by_product")
        player = add_player(game, "ODD")
        for number_of_it, word in enumerate(STRANGE):
            insert(game, player, f"odd {number_of_it} ", word, 1)
            insert(game, player, f"odder {number_of_it} ", word + "2", 2)
            rig.harm("strange names")
        products = rig.rounds(1_000, 10_000)
        insert(game, player, "many ", "GOOD_", products)
        rig.report.counts["products"] += products
        with rig.game(rate=50):
            rig.wait_for_events(exporter, 50)
        page = settled_page(exporter)
        # Labels are cut to 128 characters, so several long names share one series. The recount cuts them too.
        with rig.connect() as connection:
            for difference in truth.compare(page, connection)[:20] if products < 10_000 else []:
                rig.violation(f"I1: {difference}")
        openmetrics = exporter.get("/metrics", accept="application/openmetrics-text; version=1.0.0").text
        families = list(parse_openmetrics(gains_only(openmetrics)))  # type: ignore[no-untyped-call]
        if {sample.name for family in families for sample in family.samples} != {name for name, _ in samples(page)}:
            rig.violation("the page in OpenMetrics has other samples")
        check_promtool(rig, page)
        rig.check(exporter, page=False)
    with rig.exporter("--max-series", str(CAP), slot="capped") as capped:
        page = settled_page(capped)
        shown = number(page, "mfg_notify_series")
        # Series beyond the limit are summed under `other`, in one series per player and metric.
        summed_series = sum(
            "other" in dict(labels.difference({("cost_type", "other")})).values() for _, labels in samples(page)
        )
        if not 0 < summed_series < 1000 or shown - summed_series > CAP:
            rig.violation(f"{shown} series are shown, {summed_series} of them as `other`, with a limit of {CAP}")
        rig.report.figure("series shown under the limit", shown)
        [(settled,)] = rig.ask(
            "SELECT sum(n) FROM mfg_notify.total WHERE metric = 'manufacturing_pipeline_revenue_credits_total'"
        )
        summed = sum(value for (name, _), value in samples(page).items() if name == REVENUE)
        if summed != settled:
            rig.violation(f"the revenue adds up to {summed} under the limit and must be {settled}")
        check_promtool(rig, page)


def check_promtool(rig: Rig, page: str) -> None:
    """Check that promtool, if installed, accepts the page. It may object to the names that the specification gives."""
    named_by_the_specification = {metric.full_name for metric in catalogue.GAUGES}
    for objection in check_with_promtool(page):
        if objection.split()[0] not in named_by_the_specification:
            rig.violation(f"promtool: {objection[:300]}")


def insert(game: psycopg.Connection, player: int, key: str, good: str, goods: int) -> None:
    game.execute(PRODUCTS, {"key": key, "player": player, "good": good, "goods": goods})
