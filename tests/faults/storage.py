"""The server crashes, forgets what it had promised, or is set back."""

import shutil
import subprocess

from tests import truth
from tests.faults.rig import Rig, fault
from tests.faults.watch import names_that_rise
from tests.support import ExporterProcess, eventually, number, samples, settled_page


def crash(rig: Rig, exporter: ExporterProcess) -> None:
    """Restart the server as after a crash, at some moment of the game."""
    rig.some_more(exporter, rig.chance.randrange(50, 300))
    rig.server.stop("immediate")
    rig.harm("crashes of the server")
    eventually(lambda: exporter.get("/-/ready").status_code == 503)
    # It answers while the database is down, with the numbers of before: what falls, the watch sees.
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
            rig.some_more(exporter, 50)
        rig.check(exporter)


# The WAL of a transaction is written so late that a crash loses what the game believes committed.
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
        # What had been shown of lost transactions stays shown.
        rig.check(exporter, page=False, ahead=False)
        ghosts = number(exporter.page(), "mfg_notify_events_rejected_total", reason="unconfirmed")
        rig.report.counts["ghosts"] += int(ghosts)
        lost = "notifications without an event" in exporter.read_log()
        if lost != (ghosts > 0):
            rig.violation(f"{ghosts} ghosts, and the log {'names' if lost else 'does not name'} them")


def counters_on(page: str) -> dict[truth.Series, float]:
    """Return every sample that must not fall and is known exactly."""
    rising = names_that_rise(page.splitlines())
    return {
        (name, labels): value
        for (name, labels), value in samples(page).items()
        if name in rising and not name.startswith(truth.PREFIX + truth.WAIT)
    }


def stands_at(series: truth.Series, shown: dict[truth.Series, float], committed: dict[truth.Series, float]) -> float:
    """Return where a counter stands after a restore: at the higher of both. A sum goes with the greater count."""
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
                rig.some_more(exporter, rig.chance.randrange(100, 400))
            rig.server.stop()
            subprocess.run(["cp", "-a", data, copy], check=True)
            rig.server.start()
            with rig.game():
                rig.some_more(exporter, rig.chance.randrange(100, 400))
            shown = counters_on(settled_page(exporter))
            rewinds = number(exporter.page(), "mfg_notify_rewinds_total")
            rig.server.stop("immediate")
            shutil.rmtree(data)
            copy.rename(data)
            rig.server.start()
            rig.harm("restores")
            with rig.game():
                rig.some_more(exporter, rig.chance.randrange(100, 400))
            page = settled_page(exporter)
            if number(page, "mfg_notify_rewinds_total") != rewinds + 1 or "was set back" not in exporter.read_log():
                rig.violation("the restore was not reported")
            # Each counter stands where it stood until the truth has overtaken it: it neither falls nor jumps.
            with rig.connect() as connection:
                committed = truth.expected_samples(connection)
            for series, now in counters_on(page).items():
                must = stands_at(series, shown, committed)
                if now != must:
                    rig.violation(f"{series} is {now} after the restore and must be {must}")
        rig.check(exporter, page=False, ahead=False)
