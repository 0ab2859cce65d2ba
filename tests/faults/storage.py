"""Storage: the server crashes, loses commits in a crash, or is restored from an older copy."""

import shutil
import subprocess

from tests import truth
from tests.faults.rig import Rig, fault
from tests.faults.watch import names_that_rise
from tests.samples import number, samples
from tests.support import ExporterProcess, eventually, settled_page


def crash(rig: Rig, exporter: ExporterProcess) -> None:
    """Crash the server at some moment of the game, and start it again."""
    rig.wait_for_events(exporter, rig.random.randrange(50, 300))
    rig.server.stop("immediate")
    rig.harm("crashes of the server")
    eventually(lambda: exporter.get("/-/ready").status_code == 503)
    # The exporter answers with its last values while the database is down. The watch checks that none falls.
    if "spacetraders_daemon_manufacturing_tasks_completed_total{" not in exporter.page():
        rig.violation("the page is empty while the database is down")
    rig.server.start()


@fault("database crash", settings={})
def database_crash(rig: Rig) -> None:
    with rig.exporter() as exporter:
        exporter.wait_ready()
        with rig.game():
            for _ in range(rig.rounds(2, 15)):
                crash(rig, exporter)
                exporter.wait_ready()
            rig.wait_for_events(exporter, 50)
        rig.check(exporter)


# WAL is written so late that a crash loses transactions that the game believes committed.
@fault(
    "database crash that loses the game's last commits",
    settings={"synchronous_commit": "off", "wal_writer_delay": "10s", "wal_writer_flush_after": "0"},
)
def database_crash_losing_commits(rig: Rig) -> None:
    with rig.exporter() as exporter:
        exporter.wait_ready()
        for _ in range(rig.rounds(2, 15)):
            with rig.game(once=True):
                crash(rig, exporter)
            exporter.wait_ready()
        # Counters that showed events of lost transactions keep showing them.
        rig.check(exporter, page=False, ahead=False)
        unconfirmed = number(exporter.page(), "mfg_notify_events_rejected_total", reason="unconfirmed")
        rig.report.counts["unconfirmed events"] += int(unconfirmed)
        logged = "notifications without an event" in exporter.read_log()
        if logged != (unconfirmed > 0):
            rig.violation(
                f"{unconfirmed} events were unconfirmed, and the log {'has' if logged else 'lacks'} a warning"
            )


def counters_on(page: str) -> dict[truth.Series, float]:
    """Return every sample that must not fall and whose value is known exactly."""
    rising = names_that_rise(page.splitlines())
    return {
        (name, labels): value
        for (name, labels), value in samples(page).items()
        if name in rising and not name.startswith(truth.PREFIX + truth.WAIT)
    }


def value_after_restore(
    series: truth.Series, shown: dict[truth.Series, float], committed: dict[truth.Series, float]
) -> float:
    """Return the value of a counter after a restore: the higher of the two. A sum follows the larger count."""
    name, labels = series
    if name.endswith("_sum"):
        counts = [page.get((name.removesuffix("_sum") + "_count", labels), 0.0) for page in (shown, committed)]
        if counts[0] > counts[1]:
            return shown.get(series, 0.0)
    return max(shown.get(series, 0.0), committed.get(series, 0.0))


@fault("lost commits: an older copy of the data under a live exporter", settings={})
def older_copy_restored(rig: Rig) -> None:
    data, copy = rig.server.folder / "data", rig.server.folder / "copy"
    with rig.exporter() as exporter:
        exporter.wait_ready()
        for _ in range(rig.rounds(1, 6)):
            with rig.game():
                rig.wait_for_events(exporter, rig.random.randrange(100, 400))
            rig.server.stop()
            subprocess.run(["cp", "-a", data, copy], check=True)
            rig.server.start()
            with rig.game():
                rig.wait_for_events(exporter, rig.random.randrange(100, 400))
            shown = counters_on(settled_page(exporter))
            rewinds = number(exporter.page(), "mfg_notify_rewinds_total")
            rig.server.stop("immediate")
            shutil.rmtree(data)
            copy.rename(data)
            rig.server.start()
            rig.harm("restores")
            with rig.game():
                rig.wait_for_events(exporter, rig.random.randrange(100, 400))
            page = settled_page(exporter)
            if number(page, "mfg_notify_rewinds_total") != rewinds + 1 or "was set back" not in exporter.read_log():
                rig.violation("the restore was not reported")
            # A counter keeps its value until the truth has caught up with it: it neither falls nor jumps.
            with rig.connect() as connection:
                committed = truth.expected_samples(connection)
            for series, now in counters_on(page).items():
                expected = value_after_restore(series, shown, committed)
                if now != expected:
                    rig.violation(f"{series} is {now} after the restore and must be {expected}")
        rig.check(exporter, page=False, ahead=False)
