"""What the dashboards say of now is true, or nothing, when an exporter has died or was cut off from its database.

Needs prometheus (Debian: apt-get install prometheus).
"""

import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.conftest import Database, Server
from tests.e2e.prometheus import JOB, Prometheus, write_configuration
from tests.faults.network import socket_of, through
from tests.faults.proxy import Proxy
from tests.samples import Labels
from tests.support import ExporterProcess, eventually, simulated_game

from mfg_notify.core.catalogue import PREFIX
from mfg_notify.dashboards.shipped import Query, shipped_queries

TEN_MINUTES = 600.0
NOW = [
    query
    for query in shipped_queries()
    if query.instant and query.label is None and f"{PREFIX}market" not in query.expr and "market_job" not in query.expr
]
"""Queries that say how things are, but for the markets, which the daemon knows."""
OF_NOW = [query for query in NOW if "$__range]" not in query.expr]
"""A query over the whole time range tells what happened in it; that stays true."""
MEAN = "avg_over_time("
"""A mean over the time range, shown only while there is an exporter; both exporters have contributed to it."""
OF_THE_GAME = [query for query in OF_NOW if PREFIX in query.expr]


@dataclass
class Pair:
    """Two exporters of one database, and the Prometheus that scrapes both."""

    prometheus: Prometheus
    leader: ExporterProcess
    standby: ExporterProcess
    proxy: Proxy
    database: Database

    def ask(self, query: Query, at: float | None = None, only: str = "") -> Mapping[Labels, float]:
        """Evaluate a query as of a moment, with all players; `only` selects an instance."""
        given = {"job": JOB, "manufacturing_job": JOB, "database": "game", "manufacturing_database": "game"}
        expr = re.sub(
            r"\$(\w+)",
            lambda match: {"__range": "1h", "__interval": "1s", "__rate_interval": "5s", **given}.get(match[1], ".+"),
            query.expr,
        )
        if only:
            expr = re.sub(r"\bjob=~", f'instance="{only}", job=~', expr)
        return self.prometheus.at(expr, at)

    def wait_until_leading(self, exporter: ExporterProcess) -> None:
        """Wait until Prometheus has seen that it is the one leader and shows the game."""
        instance = instance_of(exporter)
        eventually(
            lambda: self.prometheus.at(
                f'sum(mfg_notify_leader) == 1 and on () count({PREFIX}manufacturing_pipelines{{instance="{instance}"}})'
            )
        )


def instance_of(exporter: ExporterProcess) -> str:
    return exporter.address.removeprefix("http://")


@contextmanager
def pair(server: Server, folder: Path) -> Iterator[Pair]:
    """Run two exporters; the leader reaches the database through a proxy."""
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not installed")
    with ExitStack() as stack:
        database = stack.enter_context(contextmanager(server.clone)(server.installed))
        proxy = stack.enter_context(Proxy(socket_of(database.dsn)))
        leader = stack.enter_context(ExporterProcess(through(database.dsn, "127.0.0.1", proxy.port)))
        leader.wait_ready()
        standby = stack.enter_context(ExporterProcess(database.dsn))
        standby.wait_ready()
        configuration = write_configuration(folder / "prometheus", instance_of(leader), [], instance_of(standby))
        prometheus = stack.enter_context(Prometheus(configuration))
        yield Pair(prometheus, leader, standby, proxy, database)


def same(shown: Mapping[Labels, float], truth: Mapping[Labels, float]) -> bool:
    """Compare what was evaluated at one moment; a quotient may differ in the last digits."""
    return shown.keys() == truth.keys() and all(shown[labels] == pytest.approx(truth[labels]) for labels in truth)


def test_a_cut_off_leader_and_a_dead_exporter_say_nothing(server: Server, tmp_path: Path) -> None:
    with pair(server, tmp_path) as two:
        with simulated_game(two.database.dsn, "--players", "2", "--rate", "250"):
            two.wait_until_leading(two.leader)
            applied = "sum(mfg_notify_events_applied_total)"
            eventually(lambda: two.prometheus.number(applied) or 0.0, lambda n: n > 1500)
            # It still serves, and knows what was true before.
            two.proxy.stalled.set()
            two.wait_until_leading(two.standby)
            eventually(lambda: two.prometheus.number(applied) or 0.0, lambda n: n > 3000)
        two.prometheus.wait_for_scrape(time.time())
        moment = time.time()

        with_data = 0
        for query in OF_THE_GAME:
            shown, truth = two.ask(query, moment), two.ask(query, moment, only=instance_of(two.standby))
            assert same(shown, truth) or query.expr.startswith(MEAN), f"{query.dashboard}: {query.place}"
            with_data += bool(shown)
        assert with_data > len(OF_THE_GAME) / 2, "this game has no construction sites, and may have no ready task"
        assert two.ask(panel("Active Exporters"), moment) == {frozenset(): 1}

        for exporter in (two.leader, two.standby):
            exporter.kill()
        two.prometheus.wait_for("sum(up) == 0")
        died = time.time()
        # At once, because Prometheus marks the series of a target that does not answer, and ten minutes later.
        for at in (died, died + TEN_MINUTES):
            for query in OF_THE_GAME:
                assert not two.ask(query, at), f"{query.dashboard}: {query.place}"
        for query in OF_NOW:
            if query not in OF_THE_GAME and query not in (panel("Active Exporters"), panel("Database")):
                assert not two.ask(query, died + TEN_MINUTES), query.place
        assert (two.ask(panel("Active Exporters")), two.ask(panel("Database"))) == ({frozenset(): 0}, {frozenset(): -1})
        two.proxy.stalled.clear()


def panel(title: str) -> Query:
    [query] = [query for query in NOW if query.place == title]
    return query
