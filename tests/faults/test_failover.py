"""Failovers of PostgreSQL under Patroni: two exporters, several writers, and a leader that is lost in ten ways.

`make test-all` has a short form, if etcd and Patroni are installed. `make test-failover` has all of them, with
synchronous and asynchronous replication and through haproxy. MFG_NOTIFY_FAILOVER_ROUNDS is the number of failovers in
each of the first two modes (20); MFG_NOTIFY_SOAK_SEED repeats the choices of a run.
"""

import os
import secrets
import signal
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from random import Random
from types import TracebackType
from typing import Self

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from rich.console import Console
from tests import truth
from tests.conftest import install
from tests.faults.cluster import PATIENCE, Cluster, Member, lacking, lasting, send
from tests.faults.rig import Report, Rig
from tests.faults.storage import counters_on, value_after_restore
from tests.faults.watch import series_of
from tests.samples import number
from tests.support import ExporterProcess, eventually, leads, settled_page

SLOTS = ("one", "two")
ACTIVE_WITHIN = 10.0
"""Seconds from the promotion until an exporter must be active, if nothing was lost."""
REWINDS = "mfg_notify_rewinds_total"


class Trial:
    """One failover: a cluster, its leader, and two exporters."""

    def __init__(self, cluster: Cluster, rig: Rig, exporter_dsn: str) -> None:
        self.cluster = cluster
        self.rig = rig
        self.leader: Member = cluster.wait_healthy()
        self._dsn = exporter_dsn
        self._stacks: dict[str, ExitStack] = {}
        self.exporters: dict[str, ExporterProcess] = {}
        for slot in SLOTS:
            self.start(slot)
        for exporter in self.exporters.values():
            exporter.wait_ready()

    def start(self, slot: str) -> None:
        """Start an exporter."""
        self._stacks[slot] = ExitStack()
        self.exporters[slot] = self._stacks[slot].enter_context(self.rig.exporter(slot=slot, dsn=self._dsn))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Each is told of an error, and puts its log into the report.
        for stack in self._stacks.values():
            stack.__exit__(kind, error, trace)

    def active(self) -> ExporterProcess:
        """Return the active exporter, once there is one."""
        found = eventually(
            lambda: [each for each in self.exporters.values() if each.process.poll() is None and leads(each)],
            lambda leading: len(leading) == 1,
            patience=PATIENCE,
        )
        return found[0]

    def kill(self, exporter: ExporterProcess) -> None:
        """Kill an exporter, until `revive`."""
        [slot] = [slot for slot, each in self.exporters.items() if each is exporter]
        exporter.kill()
        self._stacks.pop(slot).close()
        del self.exporters[slot]

    def revive(self) -> None:
        """Start the exporters that were killed."""
        for slot in SLOTS:
            if slot not in self.exporters:
                self.start(slot)
                self.exporters[slot].wait_ready()
        for exporter in self.exporters.values():
            exporter.read_log()  # for hours nobody else does, and it must not wait for that


def switch_over(trial: Trial) -> None:
    trial.cluster.switch_over(trial.leader)


def kill_server(trial: Trial) -> None:
    send(signal.SIGKILL, trial.leader.processes()[:1])


def stop_patroni(trial: Trial) -> Callable[[], None]:
    trial.leader.signal_patroni(signal.SIGSTOP)
    return lambda: trial.leader.signal_patroni(signal.SIGCONT)


def pause_etcd(trial: Trial) -> None:
    """Until the leader has demoted itself."""
    trial.cluster.etcd.send_signal(signal.SIGSTOP)
    try:
        eventually(trial.leader.place, lambda place: place is not None and place.in_recovery, patience=PATIENCE)
    finally:
        trial.cluster.etcd.send_signal(signal.SIGCONT)


def freeze_leader(trial: Trial) -> Callable[[], None]:
    trial.leader.freeze()
    return trial.leader.thaw


def stop_replication_and_kill(trial: Trial, before: Callable[[], None] | None = None) -> None:
    """Let the leader go on for a while without its standbys, and kill it: what it has committed meanwhile is lost."""
    senders = trial.leader.walsenders()
    send(signal.SIGSTOP, senders)
    lasting(1)
    if before is not None:
        before()
        lasting(0.2)
    kill_server(trial)
    send(signal.SIGKILL, senders)


def cut_network(trial: Trial) -> Callable[[], None]:
    """Between the leader and etcd."""
    trial.leader.etcd.stalled.set()
    return trial.leader.etcd.stalled.clear


def kill_server_and_exporter(trial: Trial) -> None:
    active = trial.active()
    kill_server(trial)
    trial.kill(active)


def lose_and_take_over(trial: Trial) -> None:
    """Lose commits, and with them the exporter that has shown them."""
    active = trial.active()
    # First the exporter: its standby cannot know payloads that the server had no time to send to it.
    stop_replication_and_kill(trial, before=lambda: trial.kill(active))


def promote_while_notify_is_disabled(trial: Trial) -> None:
    trial.rig.ask("SELECT setval('mfg_notify.notify_disabled', 1)")
    kill_server(trial)


Strike = Callable[[Trial], Callable[[], None] | None]
STRIKES: dict[str, Strike] = {
    "switchover": switch_over,
    "kill -9 of the server": kill_server,
    "stopped walsenders, then kill -9": stop_replication_and_kill,
    "SIGSTOP of Patroni": stop_patroni,
    "etcd pauses": pause_etcd,
    "the whole leader freezes": freeze_leader,
    "network cut between leader and etcd": cut_network,
    "kill -9 of the server and of the active exporter": kill_server_and_exporter,
    "stopped walsenders, then kill -9 of both": lose_and_take_over,
    "NOTIFY disabled at the promotion": promote_while_notify_is_disabled,
}


def strike(trial: Trial, name: str, *, synchronous: bool) -> None:
    """Let the leader be lost, and wait until the cluster is whole again and an exporter active."""
    rig, cluster = trial.rig, trial.cluster
    timeline = cluster.timeline()
    heal = STRIKES[name](trial)
    leader = cluster.wait_promoted(timeline)
    promoted = time.monotonic()
    rig.harm("failovers")
    eventually(leader.holds_lock, patience=PATIENCE)
    if heal is not None and not synchronous:
        # Who is connected to a server that nobody has stopped cannot know that another was promoted.
        heal()
    eventually(lambda: has_active(leader, rig.dsn), patience=PATIENCE)
    if synchronous:
        took = time.monotonic() - promoted
        rig.report.figure("active after the promotion in s", took)
        if took > ACTIVE_WITHIN and rig.rounds(0, 1):
            rig.violation(f"{name}: no exporter was active within {took:.1f} s of the promotion")
        if heal is not None:
            heal()
    cluster.wait_healthy()
    # Only now: an exporter that has just been started would take the lease, and it knows nothing of what was lost.
    trial.revive()


def has_active(leader: Member, dsn: str) -> bool:
    """Tell whether an exporter has just renewed its lease on this very server."""
    database = str(psycopg.conninfo.conninfo_to_dict(dsn)["dbname"])
    renewed = "SELECT holder IS NOT NULL AND clock_timestamp() - renewed_at < interval '1.5 s' FROM mfg_notify.lease"
    alive = "SELECT EXISTS (SELECT FROM pg_stat_activity JOIN mfg_notify.lease ON pid = backend_pid)"
    return leader.ask(renewed, database) == [(True,)] and leader.ask(alive, database) == [(True,)]


def fail_over_without_loss(cluster: Cluster, rig: Rig, exporter_dsn: str, names: Sequence[str]) -> None:
    """Fail over again and again under the same exporters; everything must be exact, and no counter may fall."""
    with Trial(cluster, rig, exporter_dsn) as trial:
        for name in names:
            trial.leader = cluster.wait_healthy()
            with rig.game():
                rig.wait_for_events(trial.active(), 50)
                strike(trial, name, synchronous=True)
                rig.wait_for_events(trial.active(), 20)
            rig.harm(name)
        rig.check(trial.active())
        for exporter in trial.exporters.values():
            if number(exporter.page(), REWINDS):
                rig.violation(f"a rewind that never was: {exporter.read_log()[-2000:]}")


def fail_over_with_loss(cluster: Cluster, rig: Rig, name: str) -> None:
    """Fail over once; what was lost must be noticed, and what was shown must stand still."""
    with Trial(cluster, rig, rig.dsn) as trial:
        with rig.game(once=True):
            rig.wait_for_events(trial.active(), 50)
            strike(trial, name, synchronous=False)
        active = trial.active()
        page, shown = counters_on(settled_page(active)), highest(rig)
        surviving = compare_totals(rig)
        lost = {series for series, n in shown.items() if n > surviving.get(series, 0.0)}
        rig.harm(f"{name}, {'lossy' if lost else 'clean'}")
        rig.report.figure("counters that the new primary lacked", len(lost))
        if lost and not (number(active.page(), REWINDS) and "was set back" in active.read_log()):
            rig.violation(f"{name}: {len(lost)} counters lack what was shown, and the active exporter does not say so")
        compare(rig, name, page, shown, surviving, lost)
        with rig.game(once=True):
            rig.wait_for_events(active, 100)
        compare(rig, name, counters_on(settled_page(active)), page, compare_totals(rig))
        rig.check_watches(ahead=False)
        rig.check_books()


def compare_totals(rig: Rig) -> dict[truth.Series, float]:
    """Compare the totals with the audit that has survived; return its samples."""
    with rig.connect() as connection:
        rig.report.violations += truth.compare_totals(connection)[:5]
        return truth.expected_samples(connection)


def compare(
    rig: Rig,
    name: str,
    page: Mapping[truth.Series, float],
    shown: dict[truth.Series, float],
    committed: dict[truth.Series, float],
    lost: Collection[truth.Series] = (),
) -> None:
    """Report each counter that neither is the truth nor stands still where it was shown before.

    Those that were `lost` may be higher, by events that no scrape has seen.
    """
    wrong = []
    for series, n in page.items():
        expected = value_after_restore(series, shown, committed)
        if n != expected and not (series in lost and n > expected):
            wrong.append(f"{name}: {series} is {n} and must be {expected}")
    rig.report.violations += wrong[:5]


def highest(rig: Rig) -> dict[truth.Series, float]:
    """Return the most that either exporter has shown of each counter."""
    found: dict[truth.Series, float] = {}
    for slot in SLOTS:
        for written, n in rig.watch(slot).counters.highest.items():
            series = series_of(written)
            if not series[0].startswith(truth.PREFIX + truth.WAIT):
                found[series] = max(n, found.get(series, 0.0))
    return found


def make_database(cluster: Cluster, name: str) -> str:
    """Make a database with the game and the triggers on the primary; return a conninfo that names all servers."""
    with psycopg.connect(make_conninfo(cluster.dsn, dbname="postgres"), autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    dsn = make_conninfo(cluster.dsn, dbname=name)
    install(dsn)
    return dsn


@dataclass(frozen=True)
class Plan:
    """Which failovers to run in each mode."""

    synchronous: Sequence[str]
    asynchronous: Sequence[str]
    proxied: Sequence[str] = ()

    def run(self, cluster: Cluster, seed: int, *, long: bool) -> Iterator[Report]:
        """Run them; yield a report of each mode."""

        @contextmanager
        def measured(mode: str) -> Iterator[Report]:
            report, started = Report(mode, seed), time.monotonic()
            yield report
            report.seconds = time.monotonic() - started

        cluster.configure(synchronous=True)
        dsn = make_database(cluster, "synchronous")
        with measured("synchronous") as report, closing(Rig(dsn, None, report, long=long)) as rig:
            fail_over_without_loss(cluster, rig, dsn, self.synchronous)
        yield report
        if self.proxied:
            dsn = make_database(cluster, "proxied")
            with (
                cluster.proxied() as proxy,
                measured("synchronous, through haproxy") as report,
                closing(Rig(dsn, None, report, long=long)) as rig,
            ):
                fail_over_without_loss(cluster, rig, make_conninfo(proxy, dbname="proxied"), self.proxied)
            yield report
        cluster.configure(synchronous=False)
        dsn = make_database(cluster, "asynchronous")
        with measured("asynchronous") as report:
            for name in self.asynchronous:
                with closing(Rig(dsn, None, report, long=long)) as rig:
                    fail_over_with_loss(cluster, rig, name)
        yield report


needs_a_cluster = pytest.mark.skipif(bool(lacking()), reason=f"needs {lacking()}")


@needs_a_cluster
@pytest.mark.thorough
def test_failovers() -> None:
    plan = Plan(["switchover", "kill -9 of the server"], ["stopped walsenders, then kill -9 of both"])
    with Cluster.running() as cluster:
        reports = list(plan.run(cluster, 4, long=False))
    for report in reports:
        print(report)  # noqa: T201 - shown if the test fails, and by pytest -rP
    assert not [text for report in reports for text in report.violations]


@needs_a_cluster
@pytest.mark.soak
@pytest.mark.timeout(0)
def test_many_failovers(capsys: pytest.CaptureFixture[str]) -> None:
    seed = int(os.environ.get("MFG_NOTIFY_SOAK_SEED") or secrets.randbelow(1_000_000))
    rounds = int(os.environ.get("MFG_NOTIFY_FAILOVER_ROUNDS") or 20)
    random = Random(seed)

    def choose(number: int) -> list[str]:
        names = [*STRIKES] * (number // len(STRIKES) + 1)
        return random.sample(names[:number], number)

    plan = Plan(choose(rounds), choose(rounds), choose(max(1, rounds // 4)))
    console = Console(highlight=False, soft_wrap=True)
    violations: list[str] = []
    with capsys.disabled(), Cluster.running() as cluster:
        console.print(f"\nseed {seed}: repeat with MFG_NOTIFY_SOAK_SEED={seed}")
        for report in plan.run(cluster, seed, long=True):
            console.print(str(report), markup=False)
            for violation in report.violations:
                console.print(f"  {violation}", markup=False, style="red")
            violations += report.violations
    assert not violations
