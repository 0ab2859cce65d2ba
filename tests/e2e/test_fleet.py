"""A fleet of games, each layer of which dies once: both stores have every count, exactly, when all is over.

The short form has three games, and a layer is away until the others have noticed. The whole one, `make test-fleet`, has
twenty with the shipped interval; a layer is away for a minute. It prints the table of
docs/explanation/scaling.md: what each layer takes.

Needs prometheus and victoria-metrics (Debian: apt-get install prometheus victoria-metrics).
"""

import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import httpx
import pytest
from tests import truth
from tests.conftest import Postgres
from tests.e2e.fleet import (
    LONG,
    Findings,
    Fleet,
    Member,
    Store,
    Usage,
    compare,
    fleet,
    measure,
    start_agent,
    start_store,
    write_configuration,
)
from tests.e2e.prometheus import JOB
from tests.samples import Series
from tests.support import eventually, free_port

needs_programs = pytest.mark.skipif(
    not all(map(shutil.which, ("prometheus", "victoria-metrics"))),
    reason="prometheus or victoria-metrics is not installed",
)

REST_SECONDS, LOAD_SECONDS, AWAY_SECONDS = 30, 60, 60
"""Of the whole form: how long it is measured at rest and under load, and how long a layer is away."""


def away(members: Sequence[Member], noticed: Callable[[], object], seconds: float) -> None:
    """Kill these, wait until the others have noticed and the seconds are over, and start them again."""
    for member in members:
        member.close()
    until = time.monotonic() + seconds
    eventually(lambda: time.monotonic() >= until and noticed(), patience=seconds + LONG)
    for member in members:
        member.start()


def played_on(running: Fleet, changes: int = 1) -> Callable[[], bool]:
    """Return what tells whether every game has made so many changes since now."""
    before = running.changes()
    return lambda: all(count >= before[game] + changes for game, count in running.changes().items())


def kill_each_layer(running: Fleet, exporters: int, seconds: float) -> None:
    """Kill some exporters, each store, the agent and the cluster, for so many seconds each.

    If that is 0, the next one dies while the one before recovers.
    """

    def recovered() -> None:
        if seconds:
            running.wait_scraped(time.time())

    games = list(running.dsns)[:exporters]
    down = f'count(up{{job="{JOB}"}} == 0)'
    away(
        [running.exporters[game] for game in games],
        lambda: all(store.number(down) == exporters for store in running.stores),
        seconds,
    )
    recovered()
    for store, member in zip(running.stores, running.store_members, strict=True):
        before = running.retries(store)
        away([member], lambda store=store, before=before: running.retries(store) > before, seconds)  # type: ignore[misc]
        recovered()
    away([running.agent], played_on(running), seconds)
    recovered()

    def unready() -> bool:
        return all(running.exporter(game).get("/-/ready").status_code != httpx.codes.OK for game in running.dsns)

    running.server.stop("immediate")
    until = time.monotonic() + seconds
    eventually(lambda: time.monotonic() >= until and unready(), patience=seconds + LONG)
    running.server.start()
    eventually(played_on(running), patience=LONG)
    recovered()


CYCLES: Series = (truth.PREFIX + "manufacturing_factory_cycles_total", frozenset({("player_id", "1")}))


@pytest.mark.parametrize(
    ("values", "pure", "found"),
    [
        ([0.0, 2.0, 5.0], 5.0, None),
        # Scraped for the first time after its first step.
        ([2.0, 5.0], 5.0, None),
        ([], 5.0, "has no point"),
        ([0.0, 4.0], 5.0, "ends with 4"),
        ([0.0, 2.0, 1.0, 5.0], 5.0, "has increased by 7, with 1 resets"),
        ([2.0, 5.0], 3.0, "has increased by 3 by increase_pure()"),
    ],
)
def test_a_store_that_differs_is_found(values: list[float], pure: float, found: str | None) -> None:
    points = [(100.0 + index, value) for index, value in enumerate(values)]
    findings = compare("game", {CYCLES: 5.0}, {CYCLES: points}, {CYCLES: pure}, since=99 + len(values))
    if found is None:
        assert not findings.differences
    else:
        assert any(found in difference for difference in findings.differences)


def test_an_old_point_does_not_count() -> None:
    findings = compare("game", {CYCLES: 5.0}, {CYCLES: [(100.0, 5.0)]}, {CYCLES: 5.0}, since=101)
    assert "has no point after" in findings.differences[0]


@needs_programs
@pytest.mark.thorough
def test_each_layer_dies_and_no_count_is_lost(postgres: Postgres, tmp_path: Path) -> None:
    with fleet(postgres, 3, tmp_path, 0.5) as running:
        with running.load(100):
            # A game begins with rows that nothing counts.
            eventually(played_on(running, 300), patience=LONG)
            kill_each_layer(running, 1, 0)
        findings = running.examine()
    assert not findings.differences, "\n".join(findings.differences[:20])
    assert findings.increases > 0


@pytest.mark.thorough
@needs_programs
def test_two_agents_share_the_games(tmp_path: Path) -> None:
    games = {f"game{number:02}" for number in range(20)}
    with ExitStack() as stack:
        stores = [stack.enter_context(closing(Store(free_port()))) for _ in range(2)]
        for number, store in enumerate(stores):
            stack.enter_context(start_store(tmp_path / f"store-{number}", store.port))
        agents = []
        for number in range(2):
            # What is scraped does not matter here: a store has a page of metrics, too.
            targets = dict.fromkeys(games, f"127.0.0.1:{stores[0].port}")
            folder = tmp_path / f"agent-{number}"
            write_configuration(folder, targets, [store.port for store in stores], 0.5, modulus=2, number=number)
            port = free_port()
            stack.enter_context(start_agent(folder, port))
            agents.append(stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1")))
        shares = [eventually(lambda agent=agent: active(agent)) for agent in agents]  # type: ignore[misc]
        for store in stores:
            eventually(lambda store=store: store.number("count(up == 1)"), lambda found: found == len(games))  # type: ignore[misc]
    assert not shares[0] & shares[1]
    assert shares[0] | shares[1] == games


def active(agent: httpx.Client) -> set[str]:
    """Return the databases that an agent scrapes."""
    targets = agent.get("targets").raise_for_status().json()["data"]["activeTargets"]
    return {target["labels"]["database"] for target in targets}


@needs_programs
@pytest.mark.soak
@pytest.mark.timeout(0)
def test_twenty_games(postgres: Postgres, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with fleet(postgres, 20, tmp_path, 15) as running:
        layers = {
            "PostgreSQL": [running.server.process_id or 0],
            "20 exporters": [member.process.process.pid for member in running.exporters.values()],
            "agent": [running.agent.process.process.pid],
            "a store": [running.store_members[0].process.process.pid],
        }
        running.wait_scraped(time.time())
        rest = measure(layers, REST_SECONDS)
        with running.load(5):
            eventually(played_on(running), patience=LONG)
            running.wait_scraped(time.time())
            before = running.changes()
            load = measure(layers, LOAD_SECONDS)
            rate = (sum(running.changes().values()) - sum(before.values())) / LOAD_SECONDS
            with capsys.disabled():
                print("", *table(rest, load), f"{rate:.0f} changes/s in all", *scrapes(running), sep="\n")  # noqa: T201
            kill_each_layer(running, 5, AWAY_SECONDS)
        findings = running.examine()
        changes = sum(running.changes().values())
    with capsys.disabled():
        print(f"{changes} changes; {summary(findings)}")  # noqa: T201
    assert not findings.differences, "\n".join(findings.differences[:20])


def scrapes(running: Fleet) -> list[str]:
    """Say what the exporters hold, and what a scrape takes."""
    found = {
        expr: running.stores[0].number(f'{expr}{{job="{JOB}"}})')
        for expr in ("avg(scrape_samples_scraped", "avg(scrape_duration_seconds", "max(scrape_duration_seconds")
    }
    return [
        f"{running.connections()} connections of exporters",
        *(f"{expr}): {value:.4g}" for expr, value in found.items()),
    ]


def table(rest: dict[str, Usage], load: dict[str, Usage]) -> list[str]:
    """Return the table of docs/explanation/scaling.md."""
    return [
        "| layer | memory at rest | under load | processor at rest | under load |",
        "|---|---|---|---|---|",
        *(
            f"| {layer} | {used.memory:.0f} MiB | {load[layer].memory:.0f} MiB "
            f"| {100 * used.cpu:.1f} % | {100 * load[layer].cpu:.1f} % |"
            for layer, used in rest.items()
        ),
    ]


def summary(findings: Findings) -> str:
    """Say in one line what was compared."""
    return (
        f"two stores with {findings.series} series and {findings.points} points together, increases of "
        f"{findings.increases}, of which {findings.first_points} in first points; "
        f"{len(findings.differences)} differences"
    )
