"""Owns the numbers of the simulated game: products, prices, durations, quantities, and the supply of factories.

Every draw comes from the `Random` that the caller passes, so a seed decides all of them. Amounts are credits, times are
seconds of game time. Nothing here knows tasks under way, ships or the order of events: that is `world`.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from random import Random
from types import MappingProxyType
from typing import Final

from mfg_notify.demo.rows import MarketRow

# ------------------------------------------------------------------------------------------------ constants --


@dataclass(frozen=True, slots=True)
class Product:
    """What a factory makes, and from which inputs. A product without inputs comes from a source."""

    good: str
    inputs: tuple[str, ...]


PRODUCTS: Final = (
    Product("LASER_RIFLES", ("DIAMONDS", "PLATINUM", "ADVANCED_CIRCUITRY")),
    Product("ELECTRONICS", ("SILICON_CRYSTALS", "COPPER")),
    Product("ADVANCED_CIRCUITRY", ("ELECTRONICS", "MICROPROCESSORS")),
    Product("CLOTHING", ("FABRICS",)),
    Product("FAB_MATS", ("IRON", "QUARTZ_SAND")),
    Product("MACHINERY", ("IRON",)),
    Product("MEDICINE", ("FABRICS", "POLYNUCLEOTIDES")),
    Product("SHIP_PLATING", ("ALUMINUM", "MACHINERY")),
    Product("JEWELRY", ("GOLD", "SILVER", "PRECIOUS_STONES")),
    Product("FOOD", ("FERTILIZERS",)),
    Product("EQUIPMENT", ("ALUMINUM", "PLASTICS")),
)
SOURCES: Final = tuple(Product(good, ()) for good in ("LIQUID_HYDROGEN", "AMMONIA_ICE", "PRECIOUS_STONES"))
PRICES: Final[Mapping[str, int]] = MappingProxyType({
    "ADVANCED_CIRCUITRY": 3700, "ALUMINUM": 170, "AMMONIA_ICE": 60, "CLOTHING": 4900, "COPPER": 130, "DIAMONDS": 90,
    "ELECTRONICS": 1900, "EQUIPMENT": 2300, "FABRICS": 1100, "FAB_MATS": 1600, "FERTILIZERS": 95, "FOOD": 260,
    "GOLD": 120, "IRON": 110, "JEWELRY": 1500, "LASER_RIFLES": 9800, "LIQUID_HYDROGEN": 45, "MACHINERY": 780,
    "MEDICINE": 3100, "MICROPROCESSORS": 2100, "PLASTICS": 280, "PLATINUM": 140, "POLYNUCLEOTIDES": 170,
    "PRECIOUS_STONES": 85, "QUANTUM_STABILIZERS": 41000, "QUARTZ_SAND": 25, "SHIP_PLATING": 4200,
    "SILICON_CRYSTALS": 75, "SILVER": 110,
})  # fmt: skip
"""Typical price of one unit, in credits."""
EXPENSIVE_FROM: Final = 500
"""Price of one unit from which ships buy few units at a time, in credits."""
BAD_SALE_SHARE: Final = 0.13

SUPPLY_LEVELS: Final = ("SCARCE", "LIMITED", "MODERATE", "HIGH", "ABUNDANT")
ACTIVITIES: Final = ("WEAK", "GROWING", "STRONG", "RESTRICTED", None)
SUPPLY_PER_LEVEL: Final = 20
READY_SUPPLY: Final = 60
"""Supply from which a factory's product can be collected: the beginning of HIGH."""
LOWEST_SUPPLY: Final = 2.0
HIGHEST_SUPPLY: Final = 98.0
LOWEST_SUPPLY_AFTER_COLLECTION: Final = 4.0

COLLECTING: Final = frozenset({"COLLECT_SELL", "COLLECT"})
DELIVERING: Final = frozenset({"ACQUIRE_DELIVER", "STORAGE_ACQUIRE_DELIVER", "DELIVER"})
BUYING: Final = DELIVERING | {"ACQUIRE"}
MEDIAN_TASK_SECONDS: Final[Mapping[str, float]] = MappingProxyType({
    "ACQUIRE_DELIVER": 105, "COLLECT_SELL": 125, "STORAGE_ACQUIRE_DELIVER": 85, "DELIVER_TO_CONSTRUCTION": 140,
    "LIQUIDATE": 55, "ACQUIRE": 50, "DELIVER": 40, "COLLECT": 35, "SELL": 50,
})  # fmt: skip
SHORTEST_TASK_SECONDS: Final = 10.0
LONGEST_TASK_SECONDS: Final = 600.0
GOODS_PER_MARKET: Final = 6

# -------------------------------------------------------------------------------------------------- factories --


@dataclass(slots=True)
class Factory:
    """The true state of a factory, which the rows only show after a look of the supply monitor.

    `supply` is 0 to 100 and drifts towards `usual_supply`; `unprocessed` is the supply that delivered inputs will
    still produce.
    """

    symbol: str
    product: Product
    supply: float
    usual_supply: float
    unprocessed: float = 0.0

    @property
    def level(self) -> str:
        """The supply as the game names it."""
        return SUPPLY_LEVELS[min(len(SUPPLY_LEVELS) - 1, int(self.supply // SUPPLY_PER_LEVEL))]

    @property
    def ready(self) -> bool:
        """Whether the product can be collected."""
        return self.supply >= READY_SUPPLY

    def receive_inputs(self, random: Random) -> None:
        """Take in one delivery."""
        self.unprocessed += random.uniform(13, 21)

    def give_product(self, random: Random) -> None:
        """Hand out what one ship collects."""
        self.supply = max(LOWEST_SUPPLY_AFTER_COLLECTION, self.supply - random.uniform(11, 19))

    def give_material(self, random: Random) -> None:
        """Hand out what one ship takes to a construction site."""
        self.supply = max(LOWEST_SUPPLY_AFTER_COLLECTION, self.supply - random.uniform(2, 6))

    def work(self, random: Random) -> None:
        """Advance by one interval of the supply monitor: process inputs, drift to the usual supply, and fluctuate."""
        step = min(self.unprocessed, random.uniform(5, 9))
        self.unprocessed -= step
        drift = 0.03 if self.product.inputs else 0.08
        self.supply += step + drift * (self.usual_supply - self.supply) + random.gauss(0, 0.8)
        self.supply = min(max(self.supply, LOWEST_SUPPLY), HIGHEST_SUPPLY)


def build_factory(random: Random, symbol: str, product: Product) -> Factory:
    """Return a factory in an ordinary state. Sources have more supply than factories that need inputs."""
    return Factory(
        symbol,
        product,
        supply=random.uniform(35, 58) if product.inputs else random.uniform(55, 85),
        usual_supply=random.uniform(30, 48) if product.inputs else random.uniform(66, 82),
    )


# --------------------------------------------------------------------------------------------- tasks and markets --


def price(random: Random, good: str, lowest: float, highest: float) -> int:
    """Return a price of one unit between two multiples of the typical one."""
    return round(PRICES[good] * random.uniform(lowest, highest))


def quantity(random: Random, good: str, task_type: str) -> int:
    """Return how many units a task moves."""
    bought = task_type in BUYING
    return random.randint(4, 9) if bought and PRICES[good] > EXPENSIVE_FROM else random.randint(20, 40)


def execution_seconds(random: Random, task_type: str) -> float:
    """Return how long an execution takes: log-normal around the median of its type, within bounds."""
    seconds = MEDIAN_TASK_SECONDS[task_type] * math.exp(random.gauss(0, 0.45))
    return min(max(seconds, SHORTEST_TASK_SECONDS), LONGEST_TASK_SECONDS)


def cost_and_revenue(random: Random, task_type: str, good: str, units: int) -> tuple[int, int]:
    """Return what one attempt at a task costs and earns. About one sale in eight is at a bad price."""
    fuel = random.randint(60, 420)
    sold = random.uniform(0.35, 0.7) if random.random() < BAD_SALE_SHARE else random.uniform(0.85, 1.15)
    match task_type:
        case "COLLECT_SELL":
            paid = units * price(random, good, 0.5, 0.72)
            return paid + fuel, round(units * PRICES[good] * sold)
        case "ACQUIRE_DELIVER" | "ACQUIRE":
            return units * price(random, good, 0.9, 1.15) + fuel, 0
        case "STORAGE_ACQUIRE_DELIVER":
            return units * price(random, good, 0.15, 0.3) + fuel, 0
        case "COLLECT":
            return units * price(random, good, 0.5, 0.72), 0
        case "SELL":
            return fuel, round(units * PRICES[good] * sold)
        case "LIQUIDATE":
            return fuel, round(units * PRICES[good] * random.uniform(0.3, 0.6))
        case _:
            return fuel, 0


def market_rows(random: Random, waypoint: str, factories: Iterable[Factory], now: float) -> tuple[MarketRow, ...]:
    """Return what a scan of a waypoint finds: six goods at random supply, and the products of its factories.

    The six goods follow from the waypoint's name alone, so every scan finds the same ones.
    """
    goods = Random(waypoint).sample(sorted(PRICES), GOODS_PER_MARKET)
    rows = [_market_row(random, waypoint, good, random.choice(SUPPLY_LEVELS), now) for good in goods]
    for factory in factories:
        rows = [row for row in rows if row.good_symbol != factory.product.good]
        rows.append(_market_row(random, waypoint, factory.product.good, factory.level, now))
    return tuple(rows)


def _market_row(random: Random, waypoint: str, good: str, supply: str, now: float) -> MarketRow:
    buying = price(random, good, 0.85, 1.2)
    return MarketRow(
        waypoint, good, supply, random.choice(ACTIVITIES),
        purchase_price=buying, sell_price=round(buying * 0.94), trade_volume=random.choice((20, 40, 60, 100)),
        last_updated=now,
    )  # fmt: skip
