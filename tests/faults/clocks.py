"""The server's clock jumps, and the exporter's is wrong by hours."""

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.faults.rig import Rig, fault
from tests.support import eventually, leads

NEEDS = ("root", "faketime")
MINUTES = 20
"""How far the server's clock jumps at most; beyond an hour the profit of the last hour would be another one."""


def faked(**more: str) -> dict[str, str]:
    """Return the environment of a process whose wall clock is another's, and whose monotonic clock is its own."""
    [library, *_] = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    return {"LD_PRELOAD": str(library), "DONT_FAKE_MONOTONIC": "1", "FAKETIME_NO_CACHE": "1", **more}


@contextmanager
def inherited(environment: Mapping[str, str]) -> Iterator[None]:
    """Let processes that are started in the block inherit these."""
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def play_on(rig: Rig, changes: int) -> None:
    """Wait until the game has made so many more changes; a jump may hand the lease from one exporter to the other."""
    [(before,)] = rig.ask("SELECT last_value FROM audit.change_id_seq")
    eventually(lambda: rig.ask("SELECT last_value FROM audit.change_id_seq") >= [(before + changes,)])


@fault("clocks jump and are wrong", settings={}, needs=NEEDS)
def clocks(rig: Rig) -> None:
    clock = rig.server.folder / "clock"

    def jump(minutes: int) -> None:
        clock.write_text(f"{minutes:+d}m\n", encoding="utf-8")
        rig.harm("jumps of the server's clock")

    jump(0)
    clock.chmod(0o644)
    with inherited(faked(FAKETIME_TIMESTAMP_FILE=str(clock))):
        rig.server.restart()
    with (
        rig.exporter(seat="early", environment=faked(FAKETIME="-5h")) as active,
        rig.exporter(seat="late", environment=faked(FAKETIME="+3h")) as other,
    ):
        for exporter in (active, other):
            exporter.wait_ready()
        with rig.game():
            for _ in range(rig.rounds(2, 20)):
                jump(rig.chance.randrange(-MINUTES, MINUTES))
                play_on(rig, rig.chance.randrange(50, 200))
            # A beat of the stopped exporter that lies in the future must not keep the other one waiting.
            jump(MINUTES)
            play_on(rig, 200)
            eventually(lambda: {leads(active), leads(other)} == {True, False})
            active, other = (active, other) if leads(active) else (other, active)
            active.process.send_signal(signal.SIGSTOP)
            try:
                jump(-MINUTES)
                with rig.timed("takeover after a stop and a jump back in s"):
                    eventually(lambda: leads(other))
                other.wait_ready()
                rig.some_more(other, 100)
            finally:
                active.process.send_signal(signal.SIGCONT)
            # After a jump each beat looks old: either of them may lead now.
            jump(0)
            eventually(lambda: {leads(active), leads(other)} == {True, False})
        # Commits have no times that could be compared.
        rig.check(active if leads(active) else other, ahead=False)
