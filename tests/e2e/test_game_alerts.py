"""The game's alerts with either daemon: each finds what it is for, and only that.

A real Prometheus evaluates the shipped expressions with shorter durations. The rows are what the daemons write: the
newest takes a task from READY to COMPLETED or FAILED in one UPDATE, the classic one saves ASSIGNED and EXECUTING, too.
Needs prometheus (Debian: apt-get install prometheus).
"""

import itertools
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest
from psycopg.types.json import Jsonb
from tests.conftest import Database
from tests.e2e.prometheus import JOB, Prometheus, shipped_alert, shortened, write_configuration
from tests.game_rows import add_pipeline, add_player, add_ship, add_task, ago
from tests.samples import PREFIX
from tests.support import ExporterProcess, eventually

from mfg_notify.dashboards.shipped import shipped_queries

DELIVER = "DELIVER_TO_CONSTRUCTION"
UNITS = 40
CONSTRUCTION = {
    "Construction Progress",
    "Scarcest Material",
    "Time to Completion",
    "Units Delivered to Construction",
    "Units Moved by Tasks",
}
"""Panels."""
WHOLE_TEST = "1h"
"""A range that begins before the test does: what happens in it does not depend on how fast the machine is."""
LAST_SECONDS = "3s"
"""A range in which a player may do nothing: a few scrapes."""

SILENCE = "8"
"""Seconds after which a bot counts as silent, at the end of the test."""
ACTIVE = {"[15m])) < 900": f"[{WHOLE_TEST}])) < 3600"}
"""Whoever has changed something in the test."""

STARVING = shortened(shipped_alert("ManufacturingTaskTypeStarving"), {"> 1800": "> 2", **ACTIVE})
UNFINISHED = shortened(
    shipped_alert("ManufacturingNoPipelineFinished"),
    {**ACTIVE, "[15m]": f"[{LAST_SECONDS}]", "[1h]))": f"[{WHOLE_TEST}]))"},
)
FAILING = shipped_alert("ManufacturingFailureRatioHigh")
IDLE = shortened(shipped_alert("ManufacturingShipsIdleWhileTasksWait"), {**ACTIVE, "[15m]": f"[{LAST_SECONDS}]"})
SILENT = shortened(shipped_alert("ManufacturingBotSilent"), {"> 1800": f"> {SILENCE}"})
STARVING_OF_ACTIVE = STARVING.replace("< 3600", f"< {SILENCE}")


@dataclass
class Player:
    """A player of a daemon, with a free ship and a construction site that is never complete."""

    game: psycopg.Connection
    prometheus: Prometheus
    name: str
    classic: bool
    """Whether the daemon saves ASSIGNED and EXECUTING, too, as it did in December 2025."""
    id: int = 0
    _numbers: Iterator[int] = field(default_factory=itertools.count)
    _delivered: int = 0

    def __post_init__(self) -> None:
        """Enter the game. One task waits for a ship, so all series of its type begin at 0."""
        self.id = add_player(self.game, self.name)
        add_ship(self.game, f"{self.name}-1", player_id=self.id)
        self.plan("site")
        self.wait_for_task()

    def plan(self, site: str) -> None:
        """Begin a pipeline for a construction site."""
        add_pipeline(
            self.game, self._key(site), player_id=self.id, product_good="FAB_MATS", status="EXECUTING",
            pipeline_type="CONSTRUCTION", construction_site=site, materials=self._materials(),
            started_at=ago("1 minute"),
        )  # fmt: skip

    def wait_for_task(self) -> str:
        """Add a task that is ready; return its id."""
        task = self._key(f"task {next(self._numbers)}")
        add_task(
            self.game, task, player_id=self.id, pipeline_id=self._key("site"), task_type=DELIVER, status="READY",
            ready_at=ago("1 minute"),
        )  # fmt: skip
        return task

    def deliver(self) -> None:
        """Complete a task in one UPDATE, and enter the units in the pipeline."""
        task = self.wait_for_task()
        self._delivered += UNITS
        with self.game.transaction():
            self._end(task, "COMPLETED", retries=0, units=UNITS)
            self.game.execute(
                "UPDATE manufacturing_pipelines SET materials = %s WHERE id = %s",
                (self._materials(), self._key("site")),
            )

    def fail(self) -> None:
        """Fail an attempt in one UPDATE."""
        self._end(self.wait_for_task(), "FAILED", retries=1, units=0)

    def cancel(self) -> None:
        """Cancel a task. It has no start, and counts no retry."""
        self.game.execute(
            "UPDATE manufacturing_tasks SET status = 'FAILED', completed_at = now() WHERE id = %s",
            (self.wait_for_task(),),
        )

    def finish(self, site: str) -> None:
        """Complete a pipeline."""
        self.game.execute(
            "UPDATE manufacturing_pipelines SET status = 'COMPLETED', completed_at = now() WHERE id = %s",
            (self._key(site),),
        )

    def is_in(self, expr: str) -> bool:
        """Tell whether an expression finds something of this player now."""
        return any(dict(labels)["player_id"] == str(self.id) for labels in self.prometheus.at(expr))

    def becomes_quiet(self, expr: str) -> None:
        """Work until an expression finds nothing of this player."""

        def work() -> bool:
            self.deliver()
            self.prometheus.wait_for_scrape(time.time())
            return self.is_in(expr)

        eventually(work, lambda found: not found)

    def wait_until_in(self, expr: str) -> None:
        """Wait until an expression finds something of this player."""
        eventually(lambda: self.is_in(expr))

    def _end(self, task: str, status: str, *, retries: int, units: int) -> None:
        if self.classic:
            self.game.execute(
                "UPDATE manufacturing_tasks SET status = 'ASSIGNED', assigned_ship = %s WHERE id = %s",
                (f"{self.name}-1", task),
            )
            self.game.execute(
                "UPDATE manufacturing_tasks SET status = 'EXECUTING', started_at = now() WHERE id = %s", (task,)
            )
        self.game.execute(
            """UPDATE manufacturing_tasks SET status = %s, assigned_ship = %s, retry_count = %s, actual_quantity = %s,
               started_at = now(), completed_at = now() WHERE id = %s""",
            (status, f"{self.name}-1", retries, units, task),
        )

    def _materials(self) -> Jsonb:
        return Jsonb([{"tradeSymbol": "FAB_MATS", "targetQuantity": 100_000, "deliveredQuantity": self._delivered}])

    def _key(self, word: str) -> str:
        return f"{self.name} {word}"


@dataclass
class Game:
    """Three players, all of whom have a running pipeline, a task that waits, and a free ship."""

    connection: psycopg.Connection
    prometheus: Prometheus
    busy: Player
    """Works all the time."""
    stuck: Player
    """Has worked once, and then no more."""
    new: Player
    """Has not started anything yet."""

    def found(self, expr: str) -> set[str]:
        """Return the names of the players of whom an expression finds something now."""
        return {player.name for player in (self.busy, self.stuck, self.new) if player.is_in(expr)}


@pytest.fixture(params=["classic", "construction"])
def game(installed: Database, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Game]:
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not installed")
    with installed.connect() as connection, ExporterProcess(installed.dsn, "--reconcile-interval", "200ms") as exporter:
        configuration = write_configuration(tmp_path / "configuration", exporter.address.removeprefix("http://"), [])
        with Prometheus(configuration) as prometheus:
            busy, stuck, new = (
                Player(connection, prometheus, name, classic=request.param == "classic")
                for name in ("BUSY", "STUCK", "NEW")
            )
            # increase() sees no step in a series that begins at 1.
            for player in (busy, stuck, new):
                prometheus.wait_for(f'{PREFIX}manufacturing_task_assignments_total{{player_id="{player.id}"}} == 0')
            yield Game(connection, prometheus, busy, stuck, new)


def test_the_alerts_of_the_game_on_either_path(game: Game) -> None:
    busy, stuck = game.busy, game.stuck
    # Tasks have waited for a minute, and nobody has started anything.
    everyone = {"BUSY", "STUCK", "NEW"}
    eventually(lambda: game.found(IDLE), lambda found: found == everyone)
    assert (game.found(STARVING), game.found(FAILING)) == (everyone, set())

    # Both work once. Only the busy player finishes a pipeline.
    busy.plan("relay")
    busy.finish("relay")
    for player in (busy, stuck):
        player.deliver()
        game.prometheus.wait_for(
            f'increase({PREFIX}manufacturing_task_assignments_total{{player_id="{player.id}"}}[1h]) > 0'
        )

    # The stuck one waits, with a free ship. The busy one is found by none, with a free ship and a waiting task as well.
    stuck.wait_until_in(STARVING)
    stuck.wait_until_in(IDLE)
    stuck.wait_until_in(UNFINISHED)
    busy.becomes_quiet(STARVING)
    busy.becomes_quiet(IDLE)
    busy.becomes_quiet(UNFINISHED)
    assert [game.found(expr) - {"BUSY"} for expr in (STARVING, UNFINISHED, IDLE)] == [{"STUCK", "NEW"}] * 3

    # Each alert is over as soon as the stuck one works, or finishes a pipeline.
    stuck.becomes_quiet(STARVING)
    stuck.becomes_quiet(IDLE)
    assert game.found(UNFINISHED) == {"STUCK", "NEW"}
    stuck.plan("relay")
    stuck.finish("relay")
    eventually(lambda: game.found(UNFINISHED), lambda found: found == {"NEW"})

    # More attempts of the stuck one fail than have succeeded. As many tasks of the busy one are cancelled.
    assert game.found(FAILING) == set()
    successes = game.connection.execute(
        "SELECT count(*) FROM manufacturing_tasks WHERE status = 'COMPLETED' AND player_id = %s", (stuck.id,)
    ).fetchall()[0][0]
    for _ in range(successes + 6):
        stuck.fail()
        busy.cancel()
    stuck.wait_until_in(FAILING)
    assert game.found(FAILING) == {"STUCK"}
    cancelled = f'{PREFIX}manufacturing_tasks_completed_total{{player_id="{busy.id}", status="cancelled"}}'
    game.prometheus.wait_for(f"{cancelled} == {successes + 6}")
    for _ in range(2 * successes + 12):
        stuck.deliver()
    eventually(lambda: game.found(FAILING), lambda found: not found)

    # The third player's bot has been silent all the time. That is one alert, and no other finds the player any more.
    assert game.new.is_in(STARVING)
    busy.deliver()
    game.prometheus.wait_for_scrape(time.time())
    assert game.found(SILENT) - {"STUCK"} == {"NEW"}
    assert "NEW" not in game.found(STARVING_OF_ACTIVE)

    # Every panel of the construction row has data.
    values = {"job": JOB, "database": "game", "player_id": str(busy.id), "__range": "1m", "__rate_interval": "10s"}
    values |= {"good": ".*", "task_type": ".*"}
    asked = [query for query in shipped_queries() if query.place in CONSTRUCTION]
    assert {query.place for query in asked} == CONSTRUCTION
    for query in asked:
        expr = re.sub(r"\$(\w+)", lambda match: values[match[1]], query.expr)
        assert game.prometheus.at(expr), expr
