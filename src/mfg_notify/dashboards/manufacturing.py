"""Owns the dashboard of the manufacturing pipeline: its panels of the game, their order and their queries.

The first five rows have the places, sizes and types of the specification. The row about the exporter is
`exporter_health`. Not needed at run time.
"""

from collections.abc import Callable, Iterator

from grafana_foundation_sdk.builders import prometheus, timeseries
from grafana_foundation_sdk.models import common as styles
from grafana_foundation_sdk.models.dashboard import Dashboard

from mfg_notify.core import catalogue as game
from mfg_notify.dashboards import panels
from mfg_notify.dashboards.exporter_health import exporter_health_row
from mfg_notify.dashboards.panels import (
    BLUE,
    GREEN,
    GREY,
    NO_GAME,
    NO_MARKETS,
    NO_SITES,
    ORANGE,
    PURPLE,
    RED,
    YELLOW,
    Frame,
    Panel,
    now,
    query,
)
from mfg_notify.dashboards.selectors import RANGE, RATE, Scope
from mfg_notify.dashboards.variables import (
    BUILD_INFO,
    database_variable,
    datasource_variable,
    job_variable,
    narrowing_variable,
    player_variable,
)

UID = "manufacturing-pipeline"

PLAYERS = Scope("job", "database", {"player_id": "player_id"})
IN = Scope(
    "job",
    "database",
    {
        "player_id": "player_id",
        "product_good": "product",
        "output_good": "good",
        "good_symbol": "good",
        "task_type": "task_type",
    },
)
MARKET_IN = Scope("market_job", "database", {"player_id": "player_id", "good_symbol": "good"}, unlabelled=True)

PLAYER = {"unit": panels.TEXT, "custom.width": 110}
"""A column of agents, or of ids. As a number, 1000 would be shown as 1K."""
HIDDEN = {"custom.hidden": True}
UNKNOWN = {"noValue": "-"}
"""A column with empty cells: otherwise each of them would say what the panel says when it is empty."""
DASHED = {"dash": [6, 6], "fill": "dash"}


def manufacturing_dashboard() -> Dashboard:
    """Return the dashboard. `document` adds the ids."""
    made = panels.empty_dashboard(
        "SpaceTraders - Manufacturing Pipeline",
        UID,
        "What the bot's manufacturing does, earns and waits for.",
        ["spacetraders", "manufacturing", "production"],
    )
    made = made.link(
        panels.link(
            "Market Dynamics",
            "/d/market-dynamics?var-manufacturing_job=${job}&var-manufacturing_database=${database}"
            "&${market_job:queryparam}&${player_id:queryparam}&${datasource:queryparam}",
        )
    )
    made = made.annotation(
        panels.annotation(
            "Exporter restarted",
            panels.started(IN.target("process_start_time_seconds")),
            BLUE,
            "{{instance}} restarted; its counters continue from their old values",
        )
    ).annotation(
        panels.annotation(
            "Events lost",
            f"increase({IN.own('lost_changes_total')}{RATE}) > 0",
            RED,
            "The triggers gave up changes of the game; the counters lack these changes",
        )
    )
    made = made.with_variable(datasource_variable())
    for variable in (
        job_variable("job", "Exporter", BUILD_INFO),
        database_variable("database", "job"),
        player_variable("job", "database"),
        narrowing_variable("product", "Product", PLAYERS.of(game.PIPELINE_COMPLETED), "product_good"),
        narrowing_variable("good", "Good", PLAYERS.of(game.SUPPLY_TRANSITIONS), "good_symbol"),
        narrowing_variable("task_type", "Task type", PLAYERS.of(game.TASKS_COMPLETED), "task_type"),
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
        ("Construction", 53, _construction()),
        ("Supply and Activity over Time", 68, _changes()),
        ("Starts and Waiting", 87, _waiting()),
        ("Products", 104, _products()),
    )
    return made.with_row(exporter_health_row(IN, y=117)).build()


def _pipelines() -> Iterator[Panel]:
    finished = IN.of(game.PIPELINE_COMPLETED)
    completed = IN.of(game.PIPELINE_COMPLETED, status="COMPLETED")
    over_time = panels.lines(
        Frame(
            "Pipeline Status Over Time",
            "Above the axis: live pipelines by status. Bars below it: pipelines that ended, by final status.",
            NO_GAME,
            at=(12, 1, 12, 8),
        ),
        query(f"sum by (status) ({IN.of(game.PIPELINES)})", "{{status}}"),
        query(f"sum by (status) (increase({finished}{RATE}))", "{{status}}"),
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
            "Pipelines that execute now (status EXECUTING).",
            NO_GAME,
            at=(0, 1, 4, 8),
            steps=((None, GREY), (1, GREEN)),
        ),
        now(f"sum({IN.of(game.PIPELINE_RUNNING)}) or 0 * sum({IN.of(game.PIPELINE_QUEUE_DEPTH)})"),
    )
    yield panels.dial(
        Frame(
            "Pipeline Completion Rate",
            "Share of COMPLETED pipelines among those that ended in the selected time range. "
            "The others FAILED or were CANCELLED.",
            "No pipeline ended in this time range",
            at=(4, 1, 4, 8),
            unit=panels.PERCENT,
            decimals=0,
            steps=((None, RED), (50, ORANGE), (75, YELLOW), (90, GREEN)),
        ),
        now(
            f"100 * sum(increase({completed}{RANGE})) / (sum(increase({finished}{RANGE})) > 0)",
        ),
    )
    yield panels.single(
        Frame(
            "Avg Pipeline Duration",
            "Mean time from start to end of the pipelines that ended in the selected time range.",
            "No pipeline ended in this time range",
            at=(8, 1, 4, 8),
            unit=panels.SECONDS,
            decimals=1,
            steps=((None, GREEN), (1800, YELLOW), (3600, ORANGE)),
        ),
        now(_mean(game.PIPELINE_DURATION)),
    )
    yield over_time


def _tasks() -> Iterator[Panel]:
    waiting = panels.bars(
        Frame(
            "Task Queue Depth",
            "Tasks by type, now: waiting for other tasks (pending), for a ship (ready), or under way (executing).",
            NO_GAME,
            at=(0, 10, 8, 8),
        ),
        *(
            now(f"sum by (task_type) ({IN.of(metric)}) > 0", f"{state} {{{{task_type}}}}")
            for metric, state in (
                (game.TASKS_PENDING, "pending"),
                (game.TASKS_READY, "ready"),
                (game.TASKS_EXECUTING, "executing"),
            )
        ),
    )
    # An empty panel means that nothing is known. So if there is no task, a bar of its own says so.
    some = " or ".join(
        f"sum({IN.of(each)}) > 0" for each in (game.TASKS_PENDING, game.TASKS_READY, game.TASKS_EXECUTING)
    )
    waiting = waiting.with_target(now(f"0 * sum({IN.of(game.PIPELINE_QUEUE_DEPTH)}) unless ({some})", "no task"))
    for state, colour in (("pending", GREY), ("ready", BLUE), ("executing", GREEN)):
        waiting = panels.restyle(waiting, f"/^{state} /", {"color": panels.fixed(colour)})
    rate = panels.lines(
        Frame(
            "Task Completion Rate",
            "Successful tasks per minute, by type. Below the axis: failed tasks.",
            "No tasks yet",
            at=(8, 10, 8, 8),
            unit=panels.PER_MINUTE,
        ),
        query(
            f"60 * sum by (task_type) (rate({IN.of(game.TASKS_COMPLETED, status='success')}{RATE}))", "{{task_type}}"
        ),
        query(f"60 * sum(rate({IN.of(game.TASKS_COMPLETED, status='failure')}{RATE}))", "failed"),
    ).interval("2m")
    failed = {"color": panels.fixed(RED), "custom.transform": "negative-Y"}
    durations = _percentile_lines(
        Frame(
            "Task Duration Percentiles",
            "Time from start to end of a task. Half of the tasks took no longer than the solid line (p50), "
            "95 percent no longer than the dashed line (p95). The histogram ends at ten minutes. Shown are the five "
            "types with the most tasks.",
            "No task ended in this time range",
            at=(16, 10, 8, 8),
            unit=panels.SECONDS,
        ),
        game.TASK_DURATION,
    )
    yield waiting
    yield panels.restyle(rate, "/^failed$/", failed)
    yield durations


def _factories() -> Iterator[Panel]:
    factory = "player_id, factory_symbol, output_good"
    levels = panels.value_mappings({level: (level, colour) for level, colour in panels.LEVEL_COLOURS.items()})
    status = panels.grid(
        Frame(
            "Factory Supply Status",
            "Each factory that a live pipeline uses: the supply of its product, and the share of its inputs that has "
            "been delivered. A ship can collect the product when the supply is HIGH or ABUNDANT.",
            "No factory is known: no live pipeline uses one, or no exporter is active",
            at=(0, 19, 12, 8),
        ),
        now(IN.with_agent(f"max by ({factory}, supply_level) ({IN.of(game.FACTORY_SUPPLY_LEVEL)} > 0)"), rows=True),
        now(IN.with_agent(f"max by ({factory}) ({IN.of(game.FACTORY_INPUTS_DELIVERED)})"), rows=True),
        now(
            IN.with_agent(
                f"(sum by ({factory}) (increase({IN.of(game.FACTORY_CYCLES)}{RANGE})) "
                f"and max by ({factory}) ({IN.of(game.FACTORY_INPUTS_DELIVERED)}))"
            ),
            rows=True,
        ),
    )
    status = panels.columns(
        status,
        {
            "output_good": "Good",
            "factory_symbol": "Factory",
            "agent_symbol": "Player",
            "player_id": "Id",
            "supply_level": "Supply",
            "Value #B": "Inputs",
            "Value #C": "Cycles",
            "Value #A": "Known",
        },
        {
            "Known": HIDDEN,
            "Id": HIDDEN,
            "Player": PLAYER,
            "Good": {"custom.width": 190},
            "Supply": UNKNOWN | {"mappings": levels, "custom.cellOptions": {"type": "color-text"}},
            "Inputs": {
                "unit": "percentunit",
                "min": 0,
                "max": 1,
                "color": {"mode": "continuous-RdYlGr"},
                "custom.cellOptions": {"type": "gauge", "mode": "basic", "valueDisplayMode": "text"},
            },
            "Cycles": UNKNOWN | {"decimals": 0, "custom.width": 80},
        },
        ("Good", False),
    )
    distribution = panels.pie(
        Frame(
            "Supply Level Distribution",
            "Factories by the supply of their product, now.",
            "No factory is known: no live pipeline uses one, or no exporter is active",
            at=(12, 19, 6, 8),
        ),
        now(f"sum by (supply_level) ({IN.of(game.FACTORY_SUPPLY_LEVEL)})", "{{supply_level}}"),
    )
    yield status
    yield panels.paint(distribution, panels.LEVEL_COLOURS)
    yield panels.single(
        Frame(
            "Ready for Collection",
            "Factories whose supply is HIGH or ABUNDANT, so a ship can collect the product.",
            NO_GAME,
            at=(18, 19, 6, 8),
            steps=((None, GREY), (1, GREEN)),
        ),
        now(f"sum({IN.of(game.FACTORY_READY)})"),
    )


def _ships() -> Iterator[Panel]:
    assigned, idle = f"sum({IN.of(game.SHIPS_ASSIGNED)})", f"sum({IN.of(game.SHIPS_IDLE)})"
    assignment = panels.pie(
        Frame(
            "Ships by Assignment",
            "Ships that have a task, and ships that could take one now.",
            "No ship is known: the bot has none, or no exporter is active",
            at=(6, 28, 6, 8),
        ),
        now(assigned, "Assigned"),
        now(idle, "Idle"),
    )
    yield panels.dial(
        Frame(
            "Ship Utilization",
            "Ships that have a task, in percent of the ships that have one or could take one. It is 0 if the bot does "
            "not save which ships have one, as the newest does not.",
            "No ship is assigned or idle, or no exporter is active",
            at=(0, 28, 6, 8),
            unit=panels.PERCENT,
            decimals=0,
            steps=((None, RED), (40, YELLOW), (70, GREEN)),
        ),
        now(f"100 * {assigned} / ({assigned} + {idle} > 0)"),
    )
    yield panels.paint(assignment, {"Assigned": GREEN, "Idle": GREY})
    distribution = panels.events(
        Frame(
            "Task Time Distribution",
            "The histogram of the time that ships need for a task, over time: how many tasks took how long. A task "
            "counts when it ends. The variable Task type narrows it to some types.",
            "No ship has finished a task in this time range",
            at=(12, 28, 12, 8),
            decimals=0,
        ),
        *(query(expr, _seconds(low, high)) for low, high, expr in _buckets(game.SHIP_TASK_DURATION, RATE)),
    ).interval("5m")
    names = [_seconds(low, high) for low, high, _ in _buckets(game.SHIP_TASK_DURATION, RATE)]
    yield panels.paint(distribution, dict(zip(names, panels.COLD_TO_HOT, strict=True)))


def _economics() -> Iterator[Panel]:
    money = panels.lines(
        Frame(
            "Revenue vs Costs",
            "Credits an hour that tasks earned and spent. Dashed: costs by type.",
            "No task has earned or spent anything yet",
            at=(6, 37, 10, 8),
            unit=panels.CREDITS_PER_HOUR,
        ),
        query(f"3600 * sum(rate({IN.of(game.REVENUE)}{RATE}))", "Revenue"),
        query(f"3600 * sum(rate({IN.of(game.COST)}{RATE}))", "Costs"),
        query(
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
            "Profit in percent of revenue over all completed pipelines of the product.",
            "No margin is known: no pipeline with revenue has been completed yet, or no exporter is active",
            at=(16, 37, 8, 8),
            unit=panels.PERCENT,
            steps=((None, RED), (0, YELLOW), (20, GREEN)),
        ),
        now(IN.with_agent(f"max by (product_good, player_id) ({IN.of(game.MARGIN)})"), rows=True),
    )
    profit = f"3600 * (sum(rate({IN.of(game.REVENUE)}{RATE})) - sum(rate({IN.of(game.COST)}{RATE})))"
    pipelines = (
        f"3600 * (sum(rate({IN.of(game.PIPELINE_REVENUE)}{RATE})) - sum(rate({IN.of(game.PIPELINE_COST)}{RATE})))"
    )
    # rate() over the whole range would count the time before the first sample as hours without profit.
    mean = f"avg_over_time(({profit})[$__range:$__interval])"
    yield panels.single(
        Frame(
            "Profit Rate",
            "Revenue minus costs of the tasks, in credits an hour: the mean of the selected time range, or of the part "
            "of it that the exporter has seen.",
            "Unknown: no exporter is active, or no task has earned or spent anything yet",
            at=(0, 37, 6, 8),
            unit=panels.CREDITS_PER_HOUR,
            steps=((None, RED), (0, GREEN)),
        ),
        # Without the second half, a dead exporter would still show the mean of what it has seen.
        now(f"{mean} and on () group({IN.of(game.PIPELINE_QUEUE_DEPTH)})"),
    ).interval("2m")  # as the panel beside it, so that the means agree
    yield money
    yield panels.columns(
        margin,
        {"product_good": "Product", "agent_symbol": "Player", "player_id": "Id", "Value": "Margin"},
        {
            "Id": HIDDEN,
            "Player": PLAYER,
            "Margin": {"decimals": 1, "custom.cellOptions": {"type": "color-text"}},
        },
        ("Margin", True),
    )
    compared = panels.lines(
        Frame(
            "Profit of Tasks and of Pipelines",
            "What tasks earned and spent is exact. The bot enters a pipeline's sums when the pipeline ends, and often "
            "enters 0 after a restart, so the profit of pipelines comes later and may be too low. Dashed: that of the "
            "pipelines completed in the last hour.",
            NO_GAME,
            at=(0, 45, 24, 8),
            unit=panels.CREDITS_PER_HOUR,
        ),
        query(profit, "Tasks"),
        query(pipelines, "Pipelines"),
        query(f"sum({IN.of(game.PROFIT_RATE)})", "Pipelines, last hour"),
    ).interval("2m")
    compared = panels.paint(compared, {"Tasks": GREEN, "Pipelines": BLUE, "Pipelines, last hour": BLUE})
    yield panels.restyle(compared, "/last hour$/", {"custom.lineStyle": DASHED, "custom.fillOpacity": 0})


def _construction() -> Iterator[Panel]:
    material = "player_id, construction_site, good_symbol"
    delivered, target = (
        f"max by ({material}) ({IN.of(metric)})" for metric in (game.CONSTRUCTION_DELIVERED, game.CONSTRUCTION_TARGET)
    )
    # It falls when another pipeline begins at the same site.
    an_hour = f"clamp_min(3600 * max by ({material}) (deriv({IN.of(game.CONSTRUCTION_DELIVERED)}{RANGE})), 0)"
    # Infinite if a material that is missing has not come in the time range.
    seconds_left = f"3600 * ({target} - {delivered} > 0) / {an_hour}"
    progress = panels.grid(
        Frame(
            "Construction Progress",
            "Materials of each construction site of a live pipeline: units delivered and needed, units delivered an "
            "hour in the selected time range, and the time left at that rate.",
            NO_SITES,
            at=(0, 54, 16, 14),
        ),
        now(IN.with_agent(f"100 * {delivered} / {target}"), rows=True),
        now(IN.with_agent(delivered), rows=True),
        now(IN.with_agent(target), rows=True),
        now(IN.with_agent(f"({an_hour} and {delivered})"), rows=True),
        now(IN.with_agent(f"({seconds_left} < +Inf)"), rows=True),
    )
    yield panels.columns(
        progress,
        {
            "construction_site": "Site",
            "good_symbol": "Material",
            "agent_symbol": "Player",
            "player_id": "Id",
            "Value #A": "Progress",
            "Value #B": "Delivered",
            "Value #C": "Needed",
            "Value #D": "An hour",
            "Value #E": "Time left",
        },
        {
            "Id": HIDDEN,
            "Player": PLAYER,
            "Progress": {
                "unit": panels.PERCENT,
                "min": 0,
                "max": 100,
                "decimals": 0,
                "color": {"mode": "continuous-RdYlGr"},
                "custom.cellOptions": {"type": "gauge", "mode": "basic", "valueDisplayMode": "text"},
            },
            "Material": {"custom.width": 200},
            "Delivered": {"custom.width": 90},
            "Needed": {"custom.width": 90},
            "An hour": UNKNOWN | {"decimals": 0, "custom.width": 90},
            "Time left": UNKNOWN | {"unit": panels.SECONDS, "decimals": 1, "custom.width": 100},
        },
        ("Progress", False),
    )
    yield panels.single(
        Frame(
            "Scarcest Material",
            "The material with the lowest share of its units delivered, over all construction sites.",
            NO_SITES,
            at=(16, 54, 4, 4),
            unit=panels.PERCENT,
            decimals=0,
            steps=((None, RED), (25, ORANGE), (50, YELLOW), (75, GREEN)),
        ),
        now(
            f"bottomk(1, 100 * sum by (good_symbol) ({delivered}) / sum by (good_symbol) ({target}))",
            "{{good_symbol}}",
        ),
        named=True,
    )
    yield panels.single(
        Frame(
            "Time to Completion",
            "Until a construction site has all its materials, at the rate of the selected time range: the longest time "
            "of its materials.",
            "No estimate: no site, or one of its materials has not come",
            at=(20, 54, 4, 4),
            unit=panels.SECONDS,
            decimals=1,
            steps=((None, BLUE), (7 * 86_400, ORANGE)),
        ),
        now(f"max by (construction_site) ({seconds_left}) < +Inf", "{{construction_site}}"),
        named=True,
    )
    yield panels.lines(
        Frame(
            "Units Delivered to Construction",
            "Units of materials delivered to construction sites an hour, by material.",
            "Nothing was delivered to a construction site yet",
            at=(16, 58, 8, 5),
            unit=panels.PER_HOUR,
        ),
        query(f"3600 * sum by (good_symbol) (rate({IN.of(game.CONSTRUCTION_UNITS)}{RATE}))", "{{good_symbol}}"),
        legend=(),
    ).interval("5m")
    yield panels.lines(
        Frame(
            "Units Moved by Tasks",
            "Units that tasks moved an hour, by type.",
            "The bot's database does not count the units that tasks move, or none has moved yet",
            at=(16, 63, 8, 5),
            unit=panels.PER_HOUR,
        ),
        query(f"3600 * sum by (task_type) (rate({IN.of(game.TASK_UNITS)}{RATE}))", "{{task_type}}"),
        legend=(),
    ).interval("5m")


def _changes() -> Iterator[Panel]:
    levels = {
        str(number): (level, panels.LEVEL_COLOURS[level]) for number, level in enumerate(game.SUPPLY_LEVELS, start=1)
    }
    yield panels.states(
        Frame(
            "Factory Supply over Time",
            "The supply of each factory's product, while a live pipeline uses the factory.",
            "No live pipeline used a factory in this time range",
            at=(0, 69, 24, 10),
        ),
        query(
            IN.with_agent(f"max by (player_id, factory_symbol, output_good) ({IN.of(game.FACTORY_SUPPLY_ORDINAL)})"),
            "{{output_good}} {{factory_symbol}} ({{agent_symbol}})",
        ),
    ).mappings(panels.value_mappings(levels))
    yield panels.events(
        Frame(
            "Supply Changes by Good",
            "How often the supply of a good changed from one level to another at a factory: the ten goods that changed "
            "most.",
            "The exporter knows no factory yet",
            at=(0, 79, 12, 8),
        ),
        query(
            panels.of_most(
                f"sum by (good_symbol) (increase({IN.of(game.SUPPLY_TRANSITIONS)}{RATE})) > 0",
                "good_symbol",
                f"sum by (good_symbol) (increase({IN.of(game.SUPPLY_TRANSITIONS)}{RANGE} @ end()))",
            ),
            "{{good_symbol}}",
        ),
    )
    yield panels.events(
        Frame(
            "Activity Changes by Good",
            "How often the number of markets at an activity level changed: the ten goods that changed most. A market "
            "that moves from one level to another changes two numbers.",
            NO_MARKETS,
            at=(12, 79, 12, 8),
        ),
        query(
            panels.of_most(
                f"sum by (good_symbol) (changes({MARKET_IN.of(game.MARKET_ACTIVITY)}{RATE})) > 0",
                "good_symbol",
                f"sum by (good_symbol) (changes({MARKET_IN.of(game.MARKET_ACTIVITY)}{RANGE} @ end()))",
            ),
            "{{good_symbol}}",
        ),
    )


def _waiting() -> Iterator[Panel]:
    waiting = _percentile_lines(
        Frame(
            "Waiting Time of Tasks",
            "Time from ready to the start of the attempt. Half of them waited no longer than the solid line (p50), "
            "95 percent no longer than the dashed line (p95). Shown are the five types with the most tasks.",
            "No task started in this time range",
            at=(8, 88, 8, 8),
            unit=panels.SECONDS,
        ),
        game.TASK_WAIT,
    )
    yield panels.lines(
        Frame(
            "Task Starts",
            "Attempts at tasks that started per minute, by type.",
            "No tasks yet",
            at=(0, 88, 8, 8),
            unit=panels.PER_MINUTE,
        ),
        query(f"60 * sum by (task_type) (rate({IN.of(game.TASK_ASSIGNMENTS)}{RATE}))", "{{task_type}}"),
    ).interval("2m")
    yield waiting
    yield panels.lines(
        Frame(
            "Starvation by Task Type",
            "Time since a task of the type last started, while tasks of the type are ready and wait.",
            "No task is live",
            at=(16, 88, 8, 8),
            unit=panels.SECONDS,
            steps=((None, GREEN), (900, YELLOW), (1800, RED)),
        ),
        query(f"max by (task_type) ({IN.of(game.TASK_STARVATION)})", "{{task_type}}"),
        legend=("lastNotNull", "max"),
    )
    yield panels.events(
        Frame(
            "Task Retries",
            "Retries of failed tasks, by type.",
            "No task was retried in this time range",
            at=(0, 96, 7, 8),
        ),
        query(f"sum by (task_type) (increase({IN.of(game.TASK_RETRY)}{RATE})) > 0", "{{task_type}}"),
    )
    ship_time = f"rate({IN.of(game.SHIP_TASK_DURATION, 'sum')}{RATE})"
    yield (
        panels.lines(
            Frame(
                "Ship Time by Task Type",
                "What the ships spend their time on: the duration of tasks by type, in percent of the duration of all "
                "tasks. A task counts when it ends.",
                "No ship has finished a task in this time range",
                at=(7, 96, 7, 8),
                unit=panels.PERCENT,
                decimals=0,
            ),
            query(
                f"100 * sum by (task_type) ({ship_time}) / ignoring (task_type) group_left () (sum({ship_time}) > 0)",
                "{{task_type}}",
            ),
            stack=styles.StackingMode.NORMAL,
            legend=(),
        )
        .max(100)
        .interval("5m")
    )
    yield panels.paint(
        panels.lines(
            Frame(
                "Ships over Time",
                "Ships that have a task, and ships that could take one.",
                "The exporter knows no ships",
                at=(14, 96, 6, 8),
            ),
            query(f"sum({IN.of(game.SHIPS_ASSIGNED)})", "Assigned"),
            query(f"sum({IN.of(game.SHIPS_IDLE)})", "Idle"),
            stack=styles.StackingMode.NORMAL,
        ),
        {"Assigned": GREEN, "Idle": GREY},
    )
    yield panels.single(
        Frame(
            "Last Change",
            "Time since the bot last changed a pipeline, a task or a factory.",
            "Unknown: no exporter is active, or it has seen no change yet",
            at=(20, 96, 4, 8),
            unit=panels.SECONDS,
            decimals=0,
            steps=((None, GREEN), (900, YELLOW), (1800, RED)),
        ),
        now(f"time() - max({IN.of(game.PLAYER_LAST_EVENT)})"),
    )


def _products() -> Iterator[Panel]:
    product = "product_good"
    finished = game.PIPELINE_COMPLETED
    revenue = f"sum by ({product}) (increase({IN.of(game.PIPELINE_REVENUE)}{RANGE}))"
    cost = f"sum by ({product}) (increase({IN.of(game.PIPELINE_COST)}{RANGE}))"
    results = panels.grid(
        Frame(
            "Results by Product",
            "Results of the pipelines that ended in the selected time range. Revenue, costs and margin cover completed "
            "pipelines only.",
            "The exporter knows no pipeline",
            at=(0, 105, 16, 12),
        ),
        *(
            now(f"round(sum by ({product}) (increase({IN.of(finished, status=status)}{RANGE})))", rows=True)
            for status in game.TERMINAL
        ),
        now(_mean(game.PIPELINE_DURATION, product), rows=True),
        now(revenue, rows=True),
        now(cost, rows=True),
        now(f"{revenue} - {cost}", rows=True),
        now(f"100 * ({revenue} - {cost}) / ({revenue} > 0)", rows=True),
    )
    profit = panels.bars(
        Frame(
            "Profit of a Pipeline",
            "Number of pipelines that ended in the selected time range, by profit in credits. The first bar includes "
            "losses and pipelines that failed before they sold anything.",
            "No pipeline ended in this time range",
            at=(16, 105, 8, 12),
            decimals=0,
        ),
        *(now(expr, _thousands(low, high)) for low, high, expr in _buckets(game.PIPELINE_PROFIT, RANGE)),
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


def _mean(histogram: game.Metric, by: str = "") -> str:
    """Return an expression for the mean observation over the time range."""
    grouped = f"sum by ({by}) " if by else "sum"
    total, number = (f"{grouped}(increase({IN.of(histogram, part)}{RANGE}))" for part in ("sum", "count"))
    return f"{total} / ({number} > 0)"


def _percentiles(histogram: game.Metric) -> tuple[prometheus.Dataquery, ...]:
    """Return queries for the median and the 95th percentile of the five task types with the most observations.

    One of the two asks for exemplars, because both would show the same ones.
    """
    rates = f"sum by (le, task_type) (rate({IN.of(histogram, 'bucket')}{RATE}))"
    number = f"sum by (task_type) (increase({IN.of(histogram, 'count')}{RANGE} @ end()))"
    return tuple(
        query(
            panels.of_most(f"histogram_quantile({quantile}, {rates})", "task_type", number, 5),
            f"{{{{task_type}}}} {name}",
        ).exemplar(name == "p95")
        for quantile, name in ((0.5, "p50"), (0.95, "p95"))
    )


def _percentile_lines(frame: Frame, histogram: game.Metric) -> timeseries.Panel:
    """Return a panel of percentiles: a solid line for the median and a dashed one for p95, in the type's colour."""
    panel = panels.lines(frame, *_percentiles(histogram), legend=()).interval("5m").fill_opacity(0)
    for task_type, colour in panels.TASK_COLOURS.items():
        panel = panels.restyle(panel, f"/^{task_type} p/", {"color": panels.fixed(colour)})
    # The solid lines need no name of their own in the legend.
    panel = panels.restyle(panel, "/ p50$/", {"custom.hideFrom": {"legend": True, "tooltip": False, "viz": False}})
    return panels.restyle(panel, "/ p95$/", {"custom.lineStyle": DASHED})


def _buckets(histogram: game.Metric, window: str) -> Iterator[tuple[float | None, float | None, str]]:
    """Yield each bucket of a histogram: its lower and upper bound, and the increase in a window of what is between."""
    bounds = histogram.buckets
    for low, high in zip((None, *bounds), (*bounds, None), strict=True):
        upper = _up_to(histogram, high, window)
        yield low, high, f"round({upper})" if low is None else f"round({upper} - {_up_to(histogram, low, window)})"


def _up_to(histogram: game.Metric, bound: float | None, window: str) -> str:
    # Prometheus writes a bound as 1000 or as 1000.0, depending on its version and on the format of the scrape.
    le = "+Inf" if bound is None else f"~{bound:.0f}|{bound:.0f}[.]0"
    return f"sum(increase({IN.of(histogram, 'bucket', le=le)}{window}))"


def _thousands(low: float | None, high: float | None) -> str:
    return _span(low, high, lambda credit: f"{credit / 1000:.0f}K")


def _seconds(low: float | None, high: float | None) -> str:
    return _span(low, high, lambda bound: f"{bound:.0f} s" if bound < 60 else f"{bound / 60:.0f} min")


def _span(low: float | None, high: float | None, write: Callable[[float], str]) -> str:
    if high is None:
        return f"over {write(low or 0)}"
    return f"up to {write(high)}" if low is None else f"{write(low)} to {write(high)}"
