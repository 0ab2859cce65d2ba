"""The exporter dies, stops, or is there twice."""

import signal
from contextlib import ExitStack

from tests.faults.dying import STEPS
from tests.faults.rig import Rig, fault, number
from tests.support import ExporterProcess, eventually


@fault("exporter killed")
def exporter_killed(rig: Rig) -> None:
    with rig.game():
        for _ in range(rig.rounds(3, 30)):
            with rig.exporter() as exporter:
                exporter.wait_ready()
                rig.some_more(exporter, rig.chance.randrange(1, 300))
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


def leads(exporter: ExporterProcess) -> bool:
    return number(exporter.page(), "mfg_notify_leader") == 1


def stands_by(exporter: ExporterProcess) -> bool:
    return number(exporter.page(), "mfg_notify_standby") == 1


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
