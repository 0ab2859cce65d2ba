"""Owns the dashboard of the markets, which the game's daemon feeds, and its last row, the overview of manufacturing.

`merge` puts that last row into a user's own market dashboard, so the row uses only `player_id` and two variables of its
own. Not needed at run time.
"""

from collections.abc import Iterator

from grafana_foundation_sdk.models import common as styles
from grafana_foundation_sdk.models.dashboard import Dashboard

from mfg_notify.core import catalogue as game
from mfg_notify.dashboards import panels, selectors
from mfg_notify.dashboards.panels import BLUE, GREEN, GREY, NO_GAME, NO_MARKETS, RED, YELLOW, Frame, Panel, now, query
from mfg_notify.dashboards.selectors import RANGE, RATE, Scope
from mfg_notify.dashboards.variables import (
    BUILD_INFO,
    database_variable,
    datasource_variable,
    job_variable,
    narrowing_variable,
    player_variable,
)

UID = "market-dynamics"

MARKETS = Scope(
    "market_job",
    "manufacturing_database",
    {"player_id": "player_id", "system_symbol": "system", "good_symbol": "good"},
    unlabelled=True,
)
PLAYERS = Scope("market_job", "manufacturing_database", {"player_id": "player_id"}, unlabelled=True)
MANUFACTURING = Scope("manufacturing_job", "manufacturing_database", {"player_id": "player_id"})

NO_DAEMON = "No data: the daemon's own metrics are off, or Prometheus does not scrape them"
TO_MANUFACTURING = (
    "/d/manufacturing-pipeline?var-job=${manufacturing_job}&var-database=${manufacturing_database}"
    "&${market_job:queryparam}&${player_id:queryparam}"
)


def market_dashboard() -> Dashboard:
    """Return the dashboard. `document` adds the ids."""
    made = panels.empty_dashboard(
        "SpaceTraders - Market Dynamics",
        UID,
        "What the bot knows about the markets, and how its manufacturing performs.",
        ["spacetraders", "market", "trading"],
    )
    link = panels.link("Manufacturing Pipeline", TO_MANUFACTURING + "&${datasource:queryparam}")
    made = made.link(link).annotation(
        panels.annotation(
            "Daemon restarted",
            panels.started(MARKETS.target("process_start_time_seconds")),
            BLUE,
            "{{instance}} restarted",
        )
    )
    made = made.with_variable(datasource_variable()).with_panel(_sources())
    for variable in (
        job_variable("market_job", "Market data from", game.MARKET_SUPPLY.full_name),
        job_variable("manufacturing_job", "Exporter", BUILD_INFO),
        database_variable("manufacturing_database", "manufacturing_job"),
        player_variable("manufacturing_job", "manufacturing_database"),
        narrowing_variable("system", "System", PLAYERS.of(selectors.MARKET_COVERAGE), "system_symbol"),
        narrowing_variable("good", "Good", PLAYERS.of(game.MARKET_SUPPLY), "good_symbol"),
    ):
        made = made.with_variable(variable)
    return panels.with_rows(
        made,
        ("Market Coverage", 3, _coverage()),
        ("Price Dynamics", 12, _prices()),
        ("Supply and Demand", 21, _supply()),
        ("Scanner Performance", 30, _scanner()),
        ("Trading Opportunities", 39, _opportunities()),
        ("Manufacturing Overview", 48, _overview()),
    ).build()


def _sources() -> Panel:
    """Return the panel at the top that says which of the rows below can have data."""
    daemon = f"2 + 0 * count({PLAYERS.of(selectors.MARKET_COVERAGE)})"
    exporter = f"1 + 0 * count({PLAYERS.of(game.MARKET_SUPPLY)})"
    panel = panels.single(
        Frame(
            "Market Data",
            "Where the market data comes from. Most panels show the daemon's own metrics, which it exports if they are "
            "turned on. The exporter knows supply and activity only, and with --collect-market only.",
            "None: turn on the daemon's own metrics, or run the exporter with --collect-market",
            at=(0, 0, 24, 3),
        ),
        now(f"{daemon} or {exporter}"),
    )
    return panel.mappings(
        panels.value_mappings(
            {
                "2": ("The daemon's own metrics: all rows have data", GREEN),
                "1": ("The exporter: only Supply and Demand, and HIGH Supply Markets, have data", YELLOW),
            }
        )
    )


def _coverage() -> Iterator[Panel]:
    known = f"sum({MARKETS.of(selectors.MARKET_COVERAGE)})"
    fresh = MARKETS.of(selectors.MARKET_COVERAGE_FRESH, age_threshold="600s")
    ages = MARKETS.of(selectors.MARKET_DATA_AGE, "bucket")
    yield panels.single(
        Frame(
            "Markets Known",
            "Markets that the bot has data about.",
            NO_DAEMON,
            at=(0, 4, 4, 8),
            steps=((None, RED), (1, GREEN)),
        ),
        now(known),
    )
    yield panels.dial(
        Frame(
            "Fresh Markets",
            "Markets scanned in the last ten minutes, in percent of the known markets.",
            NO_DAEMON,
            at=(4, 4, 4, 8),
            unit=panels.PERCENT,
            decimals=0,
            steps=((None, RED), (50, YELLOW), (80, GREEN)),
        ),
        now(f"100 * sum({fresh}) / ({known} > 0)"),
    )
    yield panels.single(
        Frame(
            "Age of Market Data",
            "Median age: half of the markets were scanned more recently. The histogram ends at two hours.",
            NO_DAEMON,
            at=(8, 4, 4, 8),
            unit=panels.SECONDS,
            decimals=1,
            steps=((None, GREEN), (600, YELLOW), (3600, RED)),
        ),
        now(f"histogram_quantile(0.5, sum by (le) (rate({ages}{RATE})))"),
    ).interval("2m")
    yield panels.lines(
        Frame(
            "Market Coverage",
            "Markets that the bot has data about, and those that it scanned recently.",
            NO_DAEMON,
            at=(12, 4, 12, 8),
        ),
        query(known, "Known"),
        *(
            query(f"sum({MARKETS.of(selectors.MARKET_COVERAGE_FRESH, age_threshold=threshold)})", name)
            for threshold, name in (
                ("3600s", "Seen within an hour"),
                ("600s", "Seen within 10 minutes"),
                ("300s", "Seen within 5 minutes"),
            )
        ),
    )


def _prices() -> Iterator[Panel]:
    best = f"max by (good_symbol) ({MARKETS.of(selectors.MARKET_BEST_SPREAD)})"
    spreads = MARKETS.of(selectors.MARKET_PRICE_SPREAD, "bucket")
    efficiency = MARKETS.of(selectors.MARKET_EFFICIENCY, "bucket")
    leaders = panels.bars(
        Frame(
            "Widest Spreads",
            "The ten goods with the widest spread between the purchase and the sell price of one market, now.",
            NO_DAEMON,
            at=(0, 13, 8, 8),
            unit=panels.CREDITS,
        ),
        now(f"sort_desc(topk(10, {best}))", "{{good_symbol}}"),
    )
    yield leaders
    yield panels.lines(
        Frame(
            "Price Spread",
            "Difference between the purchase and the sell price of a good in a market: the median (p50), and the "
            "value that 90 percent do not exceed (p90).",
            NO_DAEMON,
            at=(8, 13, 8, 8),
            unit=panels.CREDITS,
        ),
        query(f"histogram_quantile(0.5, sum by (le) (rate({spreads}{RATE})))", "p50"),
        query(f"histogram_quantile(0.9, sum by (le) (rate({spreads}{RATE})))", "p90"),
    ).interval("2m")
    yield panels.lines(
        Frame(
            "Market Efficiency",
            "Spread in percent of the price; a lower value means a more efficient market. The median (p50), and the "
            "value that 90 percent do not exceed (p90).",
            NO_DAEMON,
            at=(16, 13, 8, 8),
            unit=panels.PERCENT,
        ),
        query(f"histogram_quantile(0.5, sum by (le) (rate({efficiency}{RATE})))", "p50"),
        query(f"histogram_quantile(0.9, sum by (le) (rate({efficiency}{RATE})))", "p90"),
    ).interval("2m")


def _supply() -> Iterator[Panel]:
    supply = f"sum by (supply_level) ({MARKETS.of(game.MARKET_SUPPLY)})"
    activity = f"sum by (activity_level) ({MARKETS.of(game.MARKET_ACTIVITY)})"
    yield panels.paint(
        panels.pie(
            Frame(
                "Supply Distribution",
                "Goods of all markets by supply, now. A good in three markets counts three times.",
                NO_MARKETS,
                at=(0, 22, 6, 8),
            ),
            now(supply, "{{supply_level}}"),
        ),
        panels.LEVEL_COLOURS,
    )
    yield panels.paint(
        panels.pie(
            Frame(
                "Activity Distribution",
                "Goods of all markets by activity, now. Goods that a market only exchanges have none.",
                NO_MARKETS,
                at=(6, 22, 6, 8),
            ),
            now(activity, "{{activity_level}}"),
        ),
        panels.ACTIVITY_COLOURS,
    )
    yield panels.paint(
        panels.lines(
            Frame(
                "Supply over Time",
                "Goods of all markets by supply.",
                NO_MARKETS,
                at=(12, 22, 6, 8),
            ),
            query(supply, "{{supply_level}}"),
            stack=styles.StackingMode.NORMAL,
            legend=("lastNotNull",),
        ),
        panels.LEVEL_COLOURS,
    )
    yield panels.paint(
        panels.lines(
            Frame(
                "Activity over Time",
                "Goods of all markets by activity.",
                NO_MARKETS,
                at=(18, 22, 6, 8),
            ),
            query(activity, "{{activity_level}}"),
            stack=styles.StackingMode.NORMAL,
            legend=("lastNotNull",),
        ),
        panels.ACTIVITY_COLOURS,
    )


def _scanner() -> Iterator[Panel]:
    scans = MARKETS.of(selectors.MARKET_SCANS)
    durations = MARKETS.of(selectors.MARKET_SCAN_DURATION, "bucket")
    rate = panels.lines(
        Frame(
            "Market Scans",
            "Scans per minute by outcome.",
            NO_DAEMON,
            at=(6, 31, 9, 8),
            unit=panels.PER_MINUTE,
        ),
        query(f"60 * sum by (status) (rate({scans}{RATE}))", "{{status}}"),
        stack=styles.StackingMode.NORMAL,
    )
    yield panels.dial(
        Frame(
            "Scan Success Rate",
            "Scans that succeeded in the selected time range, in percent of all scans.",
            "No market was scanned in this time range, or the daemon's own metrics are off",
            at=(0, 31, 6, 8),
            unit=panels.PERCENT,
            decimals=1,
            steps=((None, RED), (90, YELLOW), (95, GREEN)),
        ),
        now(
            f"100 * sum(increase({MARKETS.of(selectors.MARKET_SCANS, status='success')}{RANGE})) "
            f"/ (sum(increase({scans}{RANGE})) > 0)",
        ),
    )
    yield panels.paint(rate, {"success": GREEN, "failure": RED})
    yield panels.lines(
        Frame(
            "Scan Duration",
            "Duration of a scan: the median (p50), and the values that 95 and 99 percent do not exceed (p95, p99).",
            NO_DAEMON,
            at=(15, 31, 9, 8),
            unit=panels.SECONDS,
        ),
        *(
            query(f"histogram_quantile({quantile}, sum by (le) (rate({durations}{RATE})))", name)
            for quantile, name in ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))
        ),
    ).interval("2m")


def _opportunities() -> Iterator[Panel]:
    buy = f"min by (good_symbol) ({MARKETS.of(selectors.MARKET_BEST_PRICE, type='buy')})"
    sell = f"max by (good_symbol) ({MARKETS.of(selectors.MARKET_BEST_PRICE, type='sell')})"
    volume = f"max by (good_symbol) ({MARKETS.of(selectors.MARKET_LIQUIDITY)})"
    prices = panels.grid(
        Frame(
            "Best Prices",
            "For each good: the lowest price to buy it, the highest price to sell it, the profit per unit between the "
            "two, and the largest volume that a market trades at once.",
            NO_DAEMON,
            at=(0, 40, 12, 8),
            unit=panels.CREDITS,
        ),
        now(buy, rows=True),
        now(sell, rows=True),
        now(f"{sell} - {buy}", rows=True),
        now(volume, rows=True),
    )
    yield panels.columns(
        prices,
        {
            "good_symbol": "Good",
            "Value #A": "Buy",
            "Value #B": "Sell",
            "Value #C": "Profit",
            "Value #D": "Volume",
        },
        {
            "Good": {"custom.width": 190},
            "Volume": {"unit": panels.COUNT},
            "Profit": {
                "custom.cellOptions": {"type": "color-text"},
                "thresholds": panels.thresholds(((None, RED), (0, GREEN))),
            },
        },
        ("Profit", True),
    )
    yield panels.single(
        Frame(
            "Profitable Routes",
            "Goods that the bot can buy at one market and sell at another for at least 100 credits of profit per unit.",
            NO_DAEMON,
            at=(12, 40, 4, 8),
            steps=((None, RED), (1, YELLOW), (5, GREEN)),
        ),
        now(f"sum({MARKETS.of(selectors.TRADE_OPPORTUNITIES, min_margin='100')})"),
    )
    yield panels.lines(
        Frame(
            "Routes by Profit",
            "Goods that the bot can buy at one market and sell at another, by minimum profit per unit.",
            NO_DAEMON,
            at=(16, 40, 8, 8),
        ),
        *(
            query(f"sum({MARKETS.of(selectors.TRADE_OPPORTUNITIES, min_margin=margin)})", f"at least {margin} cr")
            for margin in ("10", "25", "50", "100")
        ),
    )


def _overview() -> Iterator[Panel]:
    high = PLAYERS.of(game.MARKET_SUPPLY, supply_level="HIGH")
    any_level = PLAYERS.of(game.MARKET_SUPPLY)
    more = panels.link("Manufacturing Pipeline", TO_MANUFACTURING)
    yield panels.single(
        Frame(
            "Active Manufacturing",
            "Manufacturing pipelines that execute now.",
            NO_GAME,
            at=(0, 49, 4, 8),
            steps=((None, GREY), (1, GREEN)),
        ),
        now(
            f"sum({MANUFACTURING.of(game.PIPELINE_RUNNING)}) or 0 * sum({MANUFACTURING.of(game.PIPELINE_QUEUE_DEPTH)})"
        ),
    ).links([more])
    yield panels.events(
        Frame(
            "Supply Level Transitions",
            "How often the supply of a good changed from one level to another at a factory.",
            "No supply changed at a factory in this time range",
            at=(4, 49, 10, 8),
        ),
        query(
            panels.of_most(
                f"sum by (good_symbol) (increase({MANUFACTURING.of(game.SUPPLY_TRANSITIONS)}{RATE})) > 0",
                "good_symbol",
                f"sum by (good_symbol) (increase({MANUFACTURING.of(game.SUPPLY_TRANSITIONS)}{RANGE} @ end()))",
            ),
            "{{good_symbol}}",
        ),
    ).links([more])
    yield panels.single(
        Frame(
            "Manufacturing Profit Rate",
            "Revenue minus cost of the manufacturing pipelines completed in the last hour.",
            NO_GAME,
            at=(14, 49, 4, 8),
            unit=panels.CREDITS_PER_HOUR,
            steps=((None, RED), (0, GREEN)),
        ),
        now(f"sum({MANUFACTURING.of(game.PROFIT_RATE)})"),
    ).links([more])
    yield panels.paint(
        panels.lines(
            Frame(
                "HIGH Supply Markets",
                "Goods of all markets whose supply is HIGH, which are good places to buy.",
                NO_MARKETS,
                at=(18, 49, 6, 8),
            ),
            query(f"sum({high}) or 0 * sum({any_level})", "HIGH supply"),
        ),
        {"HIGH supply": panels.LEVEL_COLOURS["HIGH"]},
    )
