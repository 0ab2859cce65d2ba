"""Clocks: the server's clock jumps, and the exporters' clocks are wrong by hours."""

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.faults.rig import Rig, fault
from tests.support import eventually, leads

NEEDS = ("root", "faketime")
MINUTES = 20
"""Largest jump of the server's clock. A jump of an hour or more would change the profit of the last hour."""


def faked(**more: str) -> dict[str, str]:
    """Return an environment for a process with a faked wall clock and the real monotonic clock."""
    [library, *_] = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    return {"LD_PRELOAD": str(library), "DONT_FAKE_MONOTONIC": "1", "FAKETIME_NO_CACHE": "1", **more}


@contextmanager
def inherited(environment: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for the processes that the block starts."""
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
    """Wait until the game has made this many more changes. Asks no exporter: a jump may move the lease."""
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
        rig.exporter(slot="behind", environment=faked(FAKETIME="-5h")) as active,
        rig.exporter(slot="ahead", environment=faked(FAKETIME="+3h")) as other,
    ):
        for exporter in (active, other):
            exporter.wait_ready()
        with rig.game():
            for _ in range(rig.rounds(2, 20)):
                jump(rig.random.randrange(-MINUTES, MINUTES))
                play_on(rig, rig.random.randrange(50, 200))
            # A heartbeat of the stopped exporter that lies in the future must not delay the takeover.
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
                rig.wait_for_events(other, 100)
            finally:
                active.process.send_signal(signal.SIGCONT)
            # After a jump every heartbeat looks old, so either exporter may lead now.
            jump(0)
            eventually(lambda: {leads(active), leads(other)} == {True, False})
        # I3 compares commit times, which mean nothing while the clock jumps.
        rig.check(active if leads(active) else other, ahead=False)
