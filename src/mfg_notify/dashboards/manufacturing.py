"""Owns the dashboard of the manufacturing pipeline: which panels, in which order, and what each asks.

The first five rows have the places, sizes and types of the specification. Nothing here is needed at run time.
"""

from collections.abc import Iterator
from itertools import pairwise

from grafana_foundation_sdk.builders import prometheus
from grafana_foundation_sdk.models import common as styles
from grafana_foundation_sdk.models.dashboard import Dashboard

from mfg_notify.core import catalogue as game
from mfg_notify.dashboards import panels
from mfg_notify.dashboards.panels import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, YELLOW, Frame, Panel, ask
from mfg_notify.dashboards.selectors import Scope
from mfg_notify.dashboards.variables import job_variable, narrowing_variable, player_variable

UID = "manufacturing-pipeline"

PLAYERS = Scope("job", {"player_id": "player_id"})
IN = Scope("job", {"player_id": "player_id", "product_good": "product", "output_good": "good", "good_symbol": "good"})
MARKET_IN = Scope("market_job", {"player_id": "player_id", "good_symbol": "good"})

RATE = "[$__rate_interval]"
RANGE = "[$__range]"

PLAYER = {"unit": panels.TEXT, "custom.width": 70}
"""A column of ids: text, or 1000 would be 1K."""
DASHED = {"dash": [6, 6], "fill": "dash"}
NO_GAME = "No pipelines: no exporter is being scraped, or it has seen no game"


def manufacturing_dashboard() -> Dashboard:
    """Return the dashboard, still without ids."""
    made = panels.blank(
        "SpaceTraders - Manufacturing Pipeline",
        UID,
        "What the manufacturing of the bot does, earns and waits for.",
        ["spacetraders", "manufacturing", "production"],
    )
    made = made.link(
        panels.link(
            "Market Dynamics",
            "/d/market-dynamics?var-manufacturing_job=${job}&${market_job:queryparam}&${player_id:queryparam}",
        )
    )
    made = made.annotation(
        panels.mark(
            "Exporter restarted",
            panels.started(IN.process("process_start_time_seconds")),
            BLUE,
            "{{instance}} started anew; its counters go on where they were",
        )
    ).annotation(
        panels.mark(
            "Events lost",
            f"increase({IN.own('lost_changes_total')}{RATE}) > 0",
            RED,
            "Triggers gave up changes of the game: the numbers lack them",
        )
    )
    for variable in (
        job_variable("job", "Exporter", "mfg_notify_build_info"),
        player_variable("job"),
        narrowing_variable("product", "Product", PLAYERS.of(game.PIPELINE_COMPLETED), "product_good"),
        narrowing_variable("good", "Good", PLAYERS.of(game.SUPPLY_TRANSITIONS), "good_symbol"),
        job_variable("market_job", "Market data from", game.MARKET_ACTIVITY.full_name),
    ):
        made = made.with_variable(variable)
    made = panels.with_rows(
        made,
        ("Pipeline Overview", 0, _pipelines()),
        ("Task Execution", 9, _tasks()),
        ("Factory Supply Monitoring", 18, _factories()),
        ("Ship Utilization", 27, _ships()),
        ("Economics", 36, _economics()),
        ("Supply and Activity over Time", 45, _changes()),
        ("Assignments and Waiting", 64, _waiting()),
        ("Products", 81, _products()),
    )
    health = panels.row("Exporter Health", 94)
    for panel in _exporter(95):
        health = health.with_panel(panel)
    return made.with_row(health).build()


def _pipelines() -> Iterator[Panel]:
    finished = IN.of(game.PIPELINE_COMPLETED)
    completed = IN.of(game.PIPELINE_COMPLETED, status="COMPLETED")
    over_time = panels.lines(
        Frame(
            "Pipeline Status Over Time",
            "Above the axis: live pipelines by status. Bars below it: pipelines that ended in each step of time.",
            NO_GAME,
            at=(12, 1, 12, 8),
        ),
        ask(f"sum by (status) ({IN.of(game.PIPELINES)})", "{{status}}"),
        ask(f"sum by (status) (increase({finished}{RATE}))", "{{status}}"),
        stack=styles.StackingMode.NORMAL,
    ).interval("1m")
    over_time = panels.paint(over_time, panels.STATUS_COLOURS)
    over_time = panels.restyle(
        over_time,
        "/COMPLETED|FAILED|CANCELLED/",
        {
            "custom.drawStyle": "bars",
            "custom.fillOpacity": 90,
            "custom.stacking": {"mode": "normal", "group": "ended"},
            "custom.transform": "negative-Y",
            "decimals": 0,
        },
    )
    yield panels.single(
        Frame(
            "Active Pipelines",
            "Pipelines that are being carried out now (EXECUTING).",
            NO_GAME,
            at=(0, 1, 4, 8),
            steps=((None, GREY), (1, GREEN)),
        ),
        ask(f"sum({IN.of(game.PIPELINE_RUNNING)}) or 0 * sum({IN.of(game.PIPELINE_QUEUE_DEPTH)})"),
    )
    yield panels.dial(
        Frame(
            "Pipeline Completion Rate",
            "Of the pipelines that ended in the time range shown, the share that was COMPLETED, "
            "not FAILED or CANCELLED.",
            "No pipeline ended in this time range",
            at=(4, 1, 4, 8),
            unit=panels.PERCENT,
            decimals=0,
            steps=((None, RED), (50, ORANGE), (75, YELLOW), (90, GREEN)),
        ),
        ask(
            f"100 * sum(increase({completed}{RANGE})) / (sum(increase({finished}{RANGE})) > 0)",
            instant=True,
        ),
    )
    yield panels.single(
        Frame(
            "Avg Pipeline Duration",
            "Mean time from start to end of the pipelines that ended in the time range shown.",
            "No pipeline ended in this time range",
            at=(8, 1, 4, 8),
            unit=panels.SECONDS,
            decimals=1,
            steps=((None, GREEN), (1800, YELLOW), (3600, ORANGE)),
        ),
        ask(_mean(game.PIPELINE_DURATION), instant=True),
        graph=False,
    )
    yield over_time


def _tasks() -> Iterator[Panel]:
    waiting = panels.bars(
        Frame(
            "Task Queue Depth",
            "Tasks by type that wait for others (pending), wait for a ship (ready) or are under way (executing), now.",
            "No tasks: nothing is waiting or under way",
            at=(0, 10, 8, 8),
        ),
        *(
            ask(f"sum by (task_type) ({IN.of(metric)}) > 0", f"{{{{task_type}}}} {state}", instant=True)
            for metric, state in (
                (game.TASKS_PENDING, "pending"),
                (game.TASKS_READY, "ready"),
                (game.TASKS_EXECUTING, "executing"),
            )
        ),
    )
    for state, colour in (("pending", GREY), ("ready", BLUE), ("executing", GREEN)):
        waiting = panels.restyle(waiting, f"/ {state}$/", {"color": panels.fixed(colour)})
    rate = panels.lines(
        Frame(
            "Task Completion Rate",
            "Tasks carried out per minute, by type; below the axis those that failed.",
            "No tasks yet",
            at=(8, 10, 8, 8),
            unit=panels.PER_MINUTE,
        ),
        ask(f"60 * sum by (task_type) (rate({IN.of(game.TASKS_COMPLETED, status='success')}{RATE}))", "{{task_type}}"),
        ask(f"60 * sum(rate({IN.of(game.TASKS_COMPLETED, status='failure')}{RATE}))", "failed"),
    ).interval("2m")
    failed = {"color": panels.fixed(RED), "custom.transform": "negative-Y"}
    durations = (
        panels.lines(
            Frame(
                "Task Duration Percentiles",
                "How long tasks took from start to end: half of them at most the full line (p50), "
                "19 of 20 at most the dashed one (p95). The histogram ends at ten minutes.",
                "No task has ended in this time range",
                at=(16, 10, 8, 8),
                unit=panels.SECONDS,
            ),
            *_percentiles(game.TASK_DURATION),
        )
        .interval("5m")
        .fill_opacity(0)
    )
    yield waiting
    yield panels.restyle(rate, "/^failed$/", failed)
    yield panels.restyle(durations, "/ p95$/", {"custom.lineStyle": DASHED})


def _factories() -> Iterator[Panel]:
    factory = "player_id, factory_symbol, output_good"
    levels = panels.words({level: (level, colour) for level, colour in panels.LEVEL_COLOURS.items()})
    status = panels.grid(
        Frame(
            "Factory Supply Status",
            "Each factory that a live pipeline uses: the supply of what it makes, and how much of its inputs "
            "has been delivered. From HIGH on the product can be collected.",
            "No live pipeline uses a factory, or none has been looked at yet",
            at=(0, 19, 12, 8),
        ),
        ask(f"max by ({factory}, supply_level) ({IN.of(game.FACTORY_SUPPLY_LEVEL)} > 0)", rows=True),
        ask(f"max by ({factory}) ({IN.of(game.FACTORY_INPUTS_DELIVERED)})", rows=True),
        ask(f"sum by ({factory}) (increase({IN.of(game.FACTORY_CYCLES)}{RANGE}))", rows=True),
    )
    status = panels.columns(
        status,
        {
            "output_good": "Good",
            "factory_symbol": "Factory",
            "player_id": "Player",
            "supply_level": "Supply",
            "Value #B": "Inputs",
            "Value #C": "Cycles",
            "Value #A": "Known",
        },
        {
            "Known": {"custom.hidden": True},
            "Player": PLAYER,
            "Good": {"custom.width": 190},
            "Supply": {"mappings": levels, "custom.cellOptions": {"type": "color-text"}},
            "Inputs": {
                "unit": "percentunit",
                "min": 0,
                "max": 1,
                "color": {"mode": "continuous-RdYlGr"},
                "custom.cellOptions": {"type": "gauge", "mode": "basic", "valueDisplayMode": "text"},
            },
            "Cycles": {"decimals": 0, "custom.width": 80},
        },
        ("Good", False),
    )
    distribution = panels.pie(
        Frame(
            "Supply Level Distribution",
            "Factories by the supply of what they make, now.",
            "No live pipeline uses a factory",
            at=(12, 19, 6, 8),
        ),
        ask(f"sum by (supply_level) ({IN.of(game.FACTORY_SUPPLY_LEVEL)})", "{{supply_level}}", instant=True),
    )
    yield status
    yield panels.paint(distribution, panels.LEVEL_COLOURS)
    yield panels.single(
        Frame(
            "Ready for Collection",
            "Factories whose supply is HIGH or ABUNDANT, so that a ship can collect the product.",
            NO_GAME,
            at=(18, 19, 6, 8),
            steps=((None, GREY), (1, GREEN)),
        ),
        ask(f"sum({IN.of(game.FACTORY_READY)})"),
    )


def _ships() -> Iterator[Panel]:
    assigned, idle = f"sum({IN.of(game.SHIPS_ASSIGNED)})", f"sum({IN.of(game.SHIPS_IDLE)})"
    ship_time = f"rate({IN.of(game.SHIP_TASK_DURATION, 'sum')}{RATE})"
    assignment = panels.pie(
        Frame(
            "Ships by Assignment",
            "Ships that hold a task, and ships that could take one now.",
            "No ships are known",
            at=(6, 28, 6, 8),
        ),
        ask(assigned, "Assigned", instant=True),
        ask(idle, "Idle", instant=True),
    )
    yield panels.dial(
        Frame(
            "Ship Utilization",
            "Ships that hold a task, in percent of those that hold one or could take one.",
            "No ship is assigned or idle",
            at=(0, 28, 6, 8),
            unit=panels.PERCENT,
            decimals=0,
            steps=((None, RED), (40, YELLOW), (70, GREEN)),
        ),
        ask(f"100 * {assigned} / ({assigned} + {idle} > 0)"),
    )
    yield panels.paint(assignment, {"Assigned": GREEN, "Idle": GREY})
    yield (
        panels.lines(
            Frame(
                "Task Time Distribution",
                "What the ships spend their time on: the time that tasks of each type took, as a share of the "
                "time that all took. A task counts when it ends.",
                "No ship has finished a task in this time range",
                at=(12, 28, 12, 8),
                unit=panels.PERCENT,
                decimals=0,
            ),
            ask(
                f"100 * sum by (task_type) ({ship_time}) / ignoring (task_type) group_left () (sum({ship_time}) > 0)",
                "{{task_type}}",
            ),
            stack=styles.StackingMode.NORMAL,
        )
        .max(100)
        .interval("5m")
    )


def _economics() -> Iterator[Panel]:
    money = panels.lines(
        Frame(
            "Revenue vs Costs",
            "Credits an hour at the speed of each moment: what tasks earned, what they spent in all, "
            "and what on (dashed).",
            "No task has earned or spent anything yet",
            at=(6, 37, 10, 8),
            unit=panels.CREDITS_PER_HOUR,
        ),
        ask(f"3600 * sum(rate({IN.of(game.REVENUE)}{RATE}))", "Revenue"),
        ask(f"3600 * sum(rate({IN.of(game.COST)}{RATE}))", "Costs"),
        ask(
            f"3600 * sum by (cost_type) (rate({IN.of(game.COST)}{RATE})) "
            f"and sum by (cost_type) ({IN.of(game.COST)}) > 0",
            "{{cost_type}}",
        ),
    ).interval("2m")
    money = panels.paint(money, {"Revenue": GREEN, "Costs": RED})
    money = panels.restyle(money, "/^[a-z]/", {"custom.lineStyle": DASHED, "custom.fillOpacity": 0})
    margin = panels.grid(
        Frame(
            "Profit Margin by Product",
            "Profit in percent of revenue over all pipelines of the product that were ever completed.",
            "No pipeline with revenue has been completed yet",
            at=(16, 37, 8, 8),
            unit=panels.PERCENT,
            steps=((None, RED), (0, YELLOW), (20, GREEN)),
        ),
        ask(f"max by (product_good, player_id) ({IN.of(game.MARGIN)})", rows=True),
    )
    yield panels.single(
        Frame(
            "Profit Rate",
            "Revenue less cost of the pipelines completed in the last hour.",
            NO_GAME,
            at=(0, 37, 6, 8),
            unit=panels.CREDITS_PER_HOUR,
            steps=((None, RED), (0, GREEN)),
        ),
        ask(f"sum({IN.of(game.PROFIT_RATE)})"),
    )
    yield money
    yield panels.columns(
        margin,
        {"product_good": "Product", "player_id": "Player", "Value": "Margin"},
        {
            "Player": PLAYER,
            "Margin": {"decimals": 1, "custom.cellOptions": {"type": "color-text"}},
        },
        ("Margin", True),
    )


def _changes() -> Iterator[Panel]:
    levels = {
        str(number): (level, panels.LEVEL_COLOURS[level]) for number, level in enumerate(game.SUPPLY_LEVELS, start=1)
    }
    yield panels.states(
        Frame(
            "Factory Supply over Time",
            "The supply of what each factory makes, while a live pipeline uses it.",
            "No live pipeline has used a factory in this time range",
            at=(0, 46, 24, 10),
        ),
        ask(
            f"max by (player_id, factory_symbol, output_good) ({IN.of(game.FACTORY_SUPPLY_ORDINAL)})",
            "{{output_good}} {{factory_symbol}} ({{player_id}})",
        ),
    ).mappings(panels.words(levels))
    yield panels.events(
        Frame(
            "Supply Changes by Good",
            "How often the supply of a good moved from one level to another at a factory.",
            "No factory is known yet",
            at=(0, 56, 12, 8),
        ),
        ask(f"sum by (good_symbol) (increase({IN.of(game.SUPPLY_TRANSITIONS)}{RATE})) > 0", "{{good_symbol}}"),
    )
    yield panels.events(
        Frame(
            "Activity Changes by Good",
            "How often the number of markets at an activity level changed. A market that moves from one level "
            "to another changes two numbers.",
            "No market data: it comes from the daemon's own metrics, or from the exporter with --collect-market",
            at=(12, 56, 12, 8),
        ),
        ask(
            f"sum by (good_symbol) (changes({MARKET_IN.of(game.MARKET_ACTIVITY)}{RATE})) > 0",
            "{{good_symbol}}",
        ),
    )


def _waiting() -> Iterator[Panel]:
    waiting = (
        panels.lines(
            Frame(
                "Waiting Time of Tasks",
                "How long tasks that were ready waited for a ship: half of them at most the full line (p50), "
                "19 of 20 at most the dashed one (p95).",
                "No task was assigned in this time range",
                at=(8, 65, 8, 8),
                unit=panels.SECONDS,
            ),
            *_percentiles(game.TASK_WAIT),
        )
        .interval("5m")
        .fill_opacity(0)
    )
    yield panels.lines(
        Frame(
            "Task Assignments",
            "Tasks given to a ship per minute, by type.",
            "No tasks yet",
            at=(0, 65, 8, 8),
            unit=panels.PER_MINUTE,
        ),
        ask(f"60 * sum by (task_type) (rate({IN.of(game.TASK_ASSIGNMENTS)}{RATE}))", "{{task_type}}"),
    ).interval("2m")
    yield panels.restyle(waiting, "/ p95$/", {"custom.lineStyle": DASHED})
    yield panels.lines(
        Frame(
            "Starvation by Task Type",
            "While tasks of a type are ready and wait: the time since one of the type last started.",
            "No live tasks",
            at=(16, 65, 8, 8),
            unit=panels.SECONDS,
            steps=((None, GREEN), (900, YELLOW), (1800, RED)),
        ),
        ask(f"max by (task_type) ({IN.of(game.TASK_STARVATION)})", "{{task_type}}"),
        legend=("lastNotNull", "max"),
    )
    yield panels.events(
        Frame(
            "Task Retries",
            "How often tasks that failed were tried again, by type.",
            "No task was tried again in this time range",
            at=(0, 73, 12, 8),
        ),
        ask(f"sum by (task_type) (increase({IN.of(game.TASK_RETRY)}{RATE})) > 0", "{{task_type}}"),
    )
    yield panels.paint(
        panels.lines(
            Frame(
                "Ships over Time",
                "Ships that hold a task, and ships that could take one.",
                "No ships are known",
                at=(12, 73, 12, 8),
            ),
            ask(f"sum({IN.of(game.SHIPS_ASSIGNED)})", "Assigned"),
            ask(f"sum({IN.of(game.SHIPS_IDLE)})", "Idle"),
            stack=styles.StackingMode.NORMAL,
        ),
        {"Assigned": GREEN, "Idle": GREY},
    )


def _products() -> Iterator[Panel]:
    product = "product_good"
    finished = game.PIPELINE_COMPLETED
    revenue = f"sum by ({product}) (increase({IN.of(game.PIPELINE_REVENUE)}{RANGE}))"
    cost = f"sum by ({product}) (increase({IN.of(game.PIPELINE_COST)}{RANGE}))"
    results = panels.grid(
        Frame(
            "Results by Product",
            "What the pipelines that ended in the time range shown brought. Revenue, costs and margin are those of "
            "completed pipelines.",
            "No pipeline is known",
            at=(0, 82, 16, 12),
        ),
        *(
            ask(f"round(sum by ({product}) (increase({IN.of(finished, status=status)}{RANGE})))", rows=True)
            for status in game.TERMINAL
        ),
        ask(_mean(game.PIPELINE_DURATION, product), rows=True),
        ask(revenue, rows=True),
        ask(cost, rows=True),
        ask(f"{revenue} - {cost}", rows=True),
        ask(f"100 * ({revenue} - {cost}) / ({revenue} > 0)", rows=True),
    )
    buckets = game.PIPELINE_PROFIT.buckets
    names = [
        f"up to {_thousands(buckets[0])}",
        *(f"{_thousands(low)} to {_thousands(high)}" for low, high in pairwise(buckets)),
    ]
    profit = panels.bars(
        Frame(
            "Profit of a Pipeline",
            "How many of the pipelines that ended in the time range shown made how much profit, in credits. Losses, "
            "and those that failed before they sold anything, are in the first bar.",
            "No pipeline ended in this time range",
            at=(16, 82, 8, 12),
            decimals=0,
        ),
        *(
            ask(_between(low, high), name, instant=True)
            for low, high, name in zip(
                (None, *buckets), (*buckets, None), (*names, f"over {_thousands(buckets[-1])}"), strict=True
            )
        ),
    )
    yield panels.columns(
        results,
        {
            "product_good": "Product",
            "Value #A": "Completed",
            "Value #B": "Failed",
            "Value #C": "Cancelled",
            "Value #D": "Duration",
            "Value #E": "Revenue",
            "Value #F": "Costs",
            "Value #G": "Profit",
            "Value #H": "Margin",
        },
        {
            "Product": {"custom.width": 190},
            "Duration": {"unit": panels.SECONDS, "decimals": 1},
            "Revenue": {"unit": panels.CREDITS},
            "Costs": {"unit": panels.CREDITS},
            "Profit": {
                "unit": panels.CREDITS,
                "custom.cellOptions": {"type": "color-text"},
                "thresholds": panels.thresholds(((None, RED), (0, GREEN))),
            },
            "Margin": {
                "unit": panels.PERCENT,
                "decimals": 1,
                "custom.cellOptions": {"type": "color-text"},
                "thresholds": panels.thresholds(((None, RED), (0, YELLOW), (20, GREEN))),
            },
        },
        ("Profit", True),
    )
    yield panels.restyle(profit, "/.*/", {"color": panels.fixed(PURPLE)})


def _exporter(y: int) -> Iterator[Panel]:
    delay = IN.own("event_delay_seconds", "bucket")
    upper, middle, lower = y, y + 5, y + 13
    backlog = panels.lines(
        Frame(
            "Journal Backlog",
            "Events that wait in the journal, and the age of the oldest. The exporter empties it every two seconds.",
            "No exporter is being scraped",
            at=(8, middle, 8, 8),
        ),
        ask(f"max({IN.own('journal_rows')})", "Events"),
        ask(f"max({IN.own('journal_oldest_age_seconds')})", "Oldest"),
    )
    yield panels.single(
        Frame(
            "Database",
            "Whether both connections to the database work.",
            "No exporter is being scraped",
            at=(0, upper, 4, 5),
        ),
        ask(f"min({IN.own('connected')})"),
        graph=False,
    ).mappings(panels.words({"0": ("Not connected", RED), "1": ("Connected", GREEN)}))
    yield panels.single(
        Frame(
            "Active Exporters",
            "Exporters that hold the lease and count. There should be one; others stand by.",
            "No exporter is being scraped",
            at=(4, upper, 4, 5),
            steps=((None, RED), (1, GREEN), (2, ORANGE)),
        ),
        ask(f"sum({IN.own('leader')})"),
    )
    yield panels.single(
        Frame(
            "Triggers",
            "Enabled triggers on the three tables of the game: twelve are needed.",
            "No exporter is being scraped",
            at=(8, upper, 4, 5),
            steps=((None, RED), (12, GREEN)),
        ),
        ask(f"sum(max by (table) ({IN.own('triggers_installed')}))"),
        graph=False,
    )
    yield panels.single(
        Frame(
            "Gauges Last Read",
            "Time since the live rows were last read. Half a minute is normal.",
            "No exporter is being scraped",
            at=(12, upper, 4, 5),
            unit=panels.SECONDS,
            decimals=0,
            steps=((None, GREEN), (90, YELLOW), (300, RED)),
        ),
        ask(f"time() - max({IN.own('reconcile_last_success_timestamp_seconds')})"),
        graph=False,
    )
    yield panels.single(
        Frame(
            "Lost Statements",
            "Changes of rows that the triggers gave up in the time range shown, so that the statements of the game "
            "need not wait: the numbers lack them.",
            "No exporter is being scraped, or it has not asked the database yet",
            at=(16, upper, 4, 5),
            steps=((None, GREEN), (1, RED)),
            decimals=0,
        ),
        ask(f"max(increase({IN.own('lost_changes_total')}{RANGE}))", instant=True),
        graph=False,
    )
    yield panels.single(
        Frame(
            "Notification Queue",
            "How full the server's notification queue is. The triggers stop notifying before it overflows.",
            "No exporter is being scraped",
            at=(20, upper, 4, 5),
            unit="percentunit",
            steps=((None, GREEN), (0.1, YELLOW), (0.4, RED)),
        ),
        ask(f"max({IN.own('notification_queue_usage_ratio')})"),
    )
    yield panels.lines(
        Frame(
            "Event Delay",
            "From written in the database to counted by the exporter.",
            "No event in this time range",
            at=(0, middle, 8, 8),
            unit=panels.SECONDS,
        ),
        *(
            ask(f"histogram_quantile({quantile}, sum by (le) (rate({delay}{RATE})))", name)
            for quantile, name in ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))
        ),
    )
    yield panels.restyle(backlog, "/Oldest/", {"unit": "s", "custom.axisPlacement": "right"})
    yield panels.lines(
        Frame(
            "Events Counted",
            "Changes of the game's rows per second, by table and operation.",
            "No event yet",
            at=(16, middle, 8, 8),
            unit="count:/s",
        ),
        ask(f"sum by (table, op) (rate({IN.own('events_applied_total')}{RATE}))", "{{table}} {{op}}"),
        stack=styles.StackingMode.NORMAL,
    )
    yield panels.lines(
        Frame(
            "Time of the Exporter's Work",
            "95 of 100 times at most: reading the live rows, folding the journal, and the exporter's own "
            "ping through NOTIFY.",
            "No exporter is being scraped",
            at=(0, lower, 8, 8),
            unit=panels.SECONDS,
        ),
        *(
            ask(f"histogram_quantile(0.95, sum by (le) (rate({IN.own(name, 'bucket')}{RATE})))", work)
            for name, work in (
                ("reconcile_duration_seconds", "Reading"),
                ("fold_duration_seconds", "Folding"),
                ("listener_roundtrip_seconds", "Ping"),
            )
        ),
    )
    yield panels.events(
        Frame(
            "Corrections and Trouble",
            "What should not happen: gauges that a reading had to correct, events that were none, connections "
            "given up.",
            "No trouble in this time range",
            at=(8, lower, 8, 8),
        ),
        ask(
            f"sum by (metric) (increase({IN.own('reconcile_corrections_total')}{RATE})) > 0",
            "corrected {{metric}}",
        ),
        ask(f"sum by (reason) (increase({IN.own('events_rejected_total')}{RATE})) > 0", "rejected: {{reason}}"),
        ask(f"sum by (reason) (increase({IN.own('reconnects_total')}{RATE})) > 0", "reconnected: {{reason}}"),
    )
    yield panels.lines(
        Frame(
            "Series",
            "Series of the game that are exposed, and those that the cap on series (--max-series) left out.",
            "No exporter is being scraped",
            at=(16, lower, 8, 8),
        ),
        ask(f"max({IN.own('series')})", "Exposed"),
        ask(f"max({IN.own('series_dropped')})", "Left out"),
    )


def _mean(histogram: game.Metric, by: str = "") -> str:
    """Return the mean observation over the time range."""
    grouped = f"sum by ({by}) " if by else "sum"
    total, number = (f"{grouped}(increase({IN.of(histogram, part)}{RANGE}))" for part in ("sum", "count"))
    return f"{total} / ({number} > 0)"


def _percentiles(histogram: game.Metric) -> tuple[prometheus.Dataquery, ...]:
    """Return queries of the median and the 95th percentile by type of task."""
    rates = f"sum by (le, task_type) (rate({IN.of(histogram, 'bucket')}{RATE}))"
    return tuple(
        ask(f"histogram_quantile({quantile}, {rates})", f"{{{{task_type}}}} {name}")
        for quantile, name in ((0.5, "p50"), (0.95, "p95"))
    )


def _between(low: int | None, high: int | None) -> str:
    """Return how many pipelines of the time range made more than `low` and at most `high` credits."""
    up_to_high = _up_to(high)
    return f"round({up_to_high})" if low is None else f"round({up_to_high} - {_up_to(low)})"


def _up_to(bound: int | None) -> str:
    # A bound is written 1000 or 1000.0, as the versions of Prometheus and of its formats please.
    le = "+Inf" if bound is None else f"~{bound}|{bound}[.]0"
    return f"sum(increase({IN.of(game.PIPELINE_PROFIT, 'bucket', le=le)}{RANGE}))"


def _thousands(credit: int) -> str:
    return f"{credit // 1000}K"
