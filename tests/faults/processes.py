"""The exporter dies, stops, or is there twice."""

import os
import signal
import time
from contextlib import ExitStack

from tests.faults.dying import STEPS
from tests.faults.network import through
from tests.faults.rig import Rig, fault
from tests.support import eventually, leads, reconnects, stands_by, stop_backend

GENTLE = 0.2
"""Share of the exporters that are asked to end instead of being killed."""
PAUSE = 60
"""Seconds of the long pause in the soak."""
EMPTY = 0.01
"""Share of the notification queue that is in use when nobody lags behind."""
FLOOD = 0.2
"""Share of the notification queue that the flood fills; beyond a quarter the triggers do not notify."""


@fault("exporter killed")
def exporter_killed(rig: Rig) -> None:
    with rig.game():
        for _ in range(rig.rounds(3, 30)):
            with rig.exporter() as exporter:
                exporter.wait_ready()
                rig.some_more(exporter, rig.chance.randrange(1, 300))
                if rig.chance.random() < GENTLE:
                    assert exporter.terminate() == 0, exporter.read_log()
                    rig.harm("ends by SIGTERM")
                else:
                    rig.harm("kills")
        with rig.exporter() as exporter:
            exporter.wait_ready()
            rig.some_more(exporter, 50)
    with rig.exporter() as exporter:
        rig.check(exporter)


@fault("exporter killed between two steps of a fold")
def exporter_killed_in_a_fold(rig: Rig) -> None:
    with rig.game():
        for _ in range(rig.rounds(1, 3)):
            for step in rig.chance.sample(STEPS, len(STEPS)):
                dying = ("tests.faults.dying", step, str(rig.chance.randrange(3)))
                with rig.exporter("--reconcile-interval", "100ms", program=dying) as exporter:
                    exporter.process.wait(60)
                    assert exporter.process.returncode == -signal.SIGKILL, exporter.read_log()
                    rig.harm("kills")
    with rig.exporter() as exporter:
        rig.check(exporter)


@fault("standby takes over after a kill")
def standby_takes_over(rig: Rig) -> None:
    with rig.game(), ExitStack() as stack:
        first = stack.enter_context(rig.exporter(seat="one"))
        first.wait_ready()
        second = stack.enter_context(rig.exporter(seat="two"))
        seats = ["one", "two"]
        for _ in range(rig.rounds(1, 10)):
            eventually(lambda second=second: stands_by(second))  # type: ignore[misc]
            rig.some_more(first, rig.chance.randrange(1, 200))
            first.kill()
            rig.harm("kills")
            with rig.timed("takeover after a kill in s"):
                eventually(lambda second=second: leads(second))  # type: ignore[misc]
            second.wait_ready()
            rig.some_more(second, 20)
            seats.reverse()
            first, second = second, stack.enter_context(rig.exporter(seat=seats[1]))
    with rig.exporter(seat="one") as exporter:
        rig.check(exporter)


@fault("two exporters started at once")
def two_at_once(rig: Rig) -> None:
    with rig.game():
        for _ in range(rig.rounds(1, 8)):
            with rig.exporter(seat="one") as one, rig.exporter(seat="two") as two:
                for exporter in (one, two):
                    exporter.wait_ready()
                assert {leads(one), leads(two)} == {True, False}
                rig.some_more(one if leads(one) else two, rig.chance.randrange(1, 200))
                rig.harm("double starts")
    with rig.exporter(seat="one") as exporter:
        rig.check(exporter)


@fault("split brain: the active exporter stops and comes back")
def split_brain(rig: Rig) -> None:
    with rig.exporter(seat="one") as one:
        one.wait_ready()
        with rig.exporter(seat="two") as two:
            with rig.game():
                active, other = one, two
                for _ in range(rig.rounds(1, 6)):
                    eventually(lambda other=other: stands_by(other))  # type: ignore[misc]
                    rig.some_more(active, rig.chance.randrange(1, 200))
                    active.process.send_signal(signal.SIGSTOP)
                    rig.harm("stops")
                    try:
                        with rig.timed("takeover after a stop in s"):
                            eventually(lambda other=other: leads(other))  # type: ignore[misc]
                        other.wait_ready()
                        rig.some_more(other, 100)
                    finally:
                        active.process.send_signal(signal.SIGCONT)
                    eventually(lambda active=active: stands_by(active))  # type: ignore[misc]
                    rig.some_more(other, 50)
                    active, other = other, active
            assert {leads(one), leads(two)} == {True, False}
            rig.check(active)


@fault("a backend of the exporter hangs")
def backend_hangs(rig: Rig) -> None:
    with rig.exporter() as exporter:
        exporter.wait_ready()
        with rig.game():
            for _ in range(rig.rounds(1, 6)):
                rig.some_more(exporter, rig.chance.randrange(1, 100))
                with rig.connect() as connection:
                    hanging = stop_backend(connection)
                rig.harm("backends frozen")
                try:
                    with rig.timed("another backend in s"):
                        working = "SELECT backend_pid FROM mfg_notify.lease"
                        eventually(lambda hanging=hanging, working=working: rig.ask(working) != [(hanging,)])  # type: ignore[misc]
                    exporter.wait_ready()
                    rig.some_more(exporter, 20)
                finally:
                    os.kill(hanging, signal.SIGCONT)
        rig.check(exporter)


# By TCP, where the server notices by itself that nobody reads any more; a queue of 8 MB, so that its filling is seen.
@fault("long pause under a flood", settings={"listen_addresses": "127.0.0.1", "max_notify_queue_pages": "1024"})
def long_pause(rig: Rig) -> None:
    with rig.exporter(dsn=through(rig.dsn, "127.0.0.1", rig.server.port)) as exporter:
        exporter.wait_ready()
        with rig.game():
            for _ in range(rig.rounds(1, 3)):
                rig.some_more(exporter, rig.chance.randrange(1, 200))
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
                # The server lets go of the last few pages only when others follow.
                eventually(lambda: queue_usage(rig), lambda usage: usage < EMPTY)
        rig.check(exporter)


def flood_until_dropped(rig: Rig) -> None:
    """Notify more than the listener's sockets can hold, until the server has given the listener up.

    A barrier of a stranger is passed over: what is left of the flood changes no number.
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
