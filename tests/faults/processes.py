"""Processes: the exporter dies, is stopped, or runs twice."""

import os
import signal
import time
from contextlib import ExitStack

from tests.faults.dying import STEPS
from tests.faults.network import through
from tests.faults.rig import Rig, fault
from tests.samples import reconnects
from tests.support import eventually, leads, stands_by, stop_backend

SIGTERM_SHARE = 0.2
"""Share of the exporters that get SIGTERM instead of SIGKILL."""
PAUSE = 60
"""Seconds of the long pause in the soak."""
EMPTY = 0.01
"""Usage of the notification queue when no listener lags behind."""
FLOOD = 0.2
"""Usage of the notification queue that the flood aims at. From a quarter on the triggers would not notify."""


@fault("exporter killed")
def exporter_killed(rig: Rig) -> None:
    with rig.game():
        for _ in range(rig.rounds(3, 30)):
            with rig.exporter() as exporter:
                exporter.wait_ready()
                rig.wait_for_events(exporter, rig.random.randrange(1, 300))
                if rig.random.random() < SIGTERM_SHARE:
                    assert exporter.terminate() == 0, exporter.read_log()
                    rig.harm("ends by SIGTERM")
                else:
                    rig.harm("kills")
        with rig.exporter() as exporter:
            exporter.wait_ready()
            rig.wait_for_events(exporter, 50)
    with rig.exporter() as exporter:
        rig.check(exporter)


@fault("exporter killed between two steps of a fold")
def exporter_killed_in_a_fold(rig: Rig) -> None:
    with rig.game():
        for _ in range(rig.rounds(1, 3)):
            for step in rig.random.sample(STEPS, len(STEPS)):
                dying = ("tests.faults.dying", step, str(rig.random.randrange(3)))
                with rig.exporter("--reconcile-interval", "100ms", program=dying) as exporter:
                    exporter.process.wait(60)
                    assert exporter.process.returncode == -signal.SIGKILL, exporter.read_log()
                    rig.harm("kills")
    with rig.exporter() as exporter:
        rig.check(exporter)


@fault("standby takes over after a kill")
def standby_takes_over(rig: Rig) -> None:
    with rig.game(), ExitStack() as stack:
        first = stack.enter_context(rig.exporter(slot="one"))
        first.wait_ready()
        second = stack.enter_context(rig.exporter(slot="two"))
        slots = ["one", "two"]
        for _ in range(rig.rounds(1, 10)):
            eventually(lambda second=second: stands_by(second))  # type: ignore[misc]
            rig.wait_for_events(first, rig.random.randrange(1, 200))
            first.kill()
            rig.harm("kills")
            with rig.timed("takeover after a kill in s"):
                eventually(lambda second=second: leads(second))  # type: ignore[misc]
            second.wait_ready()
            rig.wait_for_events(second, 20)
            slots.reverse()
            first, second = second, stack.enter_context(rig.exporter(slot=slots[1]))
    with rig.exporter(slot="one") as exporter:
        rig.check(exporter)


@fault("two exporters started at once")
def two_at_once(rig: Rig) -> None:
    with rig.game():
        for _ in range(rig.rounds(1, 8)):
            with rig.exporter(slot="one") as one, rig.exporter(slot="two") as two:
                for exporter in (one, two):
                    exporter.wait_ready()
                assert {leads(one), leads(two)} == {True, False}
                rig.wait_for_events(one if leads(one) else two, rig.random.randrange(1, 200))
                rig.harm("double starts")
    with rig.exporter(slot="one") as exporter:
        rig.check(exporter)


@fault("split brain: the active exporter stops and comes back")
def split_brain(rig: Rig) -> None:
    with rig.exporter(slot="one") as one:
        one.wait_ready()
        with rig.exporter(slot="two") as two:
            with rig.game():
                active, other = one, two
                for _ in range(rig.rounds(1, 6)):
                    eventually(lambda other=other: stands_by(other))  # type: ignore[misc]
                    rig.wait_for_events(active, rig.random.randrange(1, 200))
                    active.process.send_signal(signal.SIGSTOP)
                    rig.harm("stops")
                    try:
                        with rig.timed("takeover after a stop in s"):
                            eventually(lambda other=other: leads(other))  # type: ignore[misc]
                        other.wait_ready()
                        rig.wait_for_events(other, 100)
                    finally:
                        active.process.send_signal(signal.SIGCONT)
                    eventually(lambda active=active: stands_by(active))  # type: ignore[misc]
                    rig.wait_for_events(other, 50)
                    active, other = other, active
            assert {leads(one), leads(two)} == {True, False}
            rig.check(active)


@fault("a backend of the exporter hangs")
def backend_hangs(rig: Rig) -> None:
    with rig.exporter() as exporter:
        exporter.wait_ready()
        with rig.game():
            for _ in range(rig.rounds(1, 6)):
                rig.wait_for_events(exporter, rig.random.randrange(1, 100))
                with rig.connect() as connection:
                    hanging = stop_backend(connection)
                rig.harm("backends frozen")
                try:
                    with rig.timed("another backend in s"):
                        working = "SELECT backend_pid FROM mfg_notify.lease"
                        eventually(lambda hanging=hanging, working=working: rig.ask(working) != [(hanging,)])  # type: ignore[misc]
                    exporter.wait_ready()
                    rig.wait_for_events(exporter, 20)
                finally:
                    os.kill(hanging, signal.SIGCONT)
        rig.check(exporter)


# By TCP, where the server itself notices a client that no longer reads. The queue has 8 MB, so it fills visibly.
@fault(
    "long pause under a flood",
    settings={"listen_addresses": "127.0.0.1", "max_notify_queue_pages": "1024"},
    version=17,
)
def long_pause(rig: Rig) -> None:
    with rig.exporter(dsn=through(rig.dsn, "127.0.0.1", rig.server.port)) as exporter:
        exporter.wait_ready()
        with rig.game():
            for _ in range(rig.rounds(1, 3)):
                rig.wait_for_events(exporter, rig.random.randrange(1, 200))
                before = reconnects(exporter.page())
                exporter.process.send_signal(signal.SIGSTOP)
                rig.harm("pauses")
                try:
                    flood_until_dropped(rig)
                    rig.wait_until(time.monotonic() + rig.rounds(0, PAUSE))
                finally:
                    exporter.process.send_signal(signal.SIGCONT)
                eventually(lambda before=before: reconnects(exporter.page()) > before)  # type: ignore[misc]
                exporter.wait_ready()
                # The server releases the last few pages of the queue only when more notifications follow.
                eventually(lambda: queue_usage(rig), lambda usage: usage < EMPTY)
        rig.check(exporter)


def flood_until_dropped(rig: Rig) -> None:
    """Notify more than the listener's sockets can hold, until the server drops the listener.

    The payloads are barriers of another backend, which the exporter ignores, so the flood changes no number.
    """
    [(channel,)] = rig.ask("SELECT channel FROM mfg_notify.settings")
    with rig.connect() as connection, rig.timed("listener dropped in s"):

        def flood_and_look() -> bool:
            if queue_usage(rig) < FLOOD:
                connection.execute(
                    "SELECT count(pg_notify(%s, 'barrier ' || i || repeat(' ', 1900))) FROM generate_series(1, 200) i",
                    (channel,),
                )
            rig.report.figure("notification queue in %", 100 * queue_usage(rig))
            listening = rig.ask("SELECT pid FROM pg_stat_activity WHERE query LIKE 'LISTEN%'")
            return not listening

        eventually(flood_and_look, patience=120)


def queue_usage(rig: Rig) -> float:
    return float(rig.ask("SELECT pg_notification_queue_usage()")[0][0])
