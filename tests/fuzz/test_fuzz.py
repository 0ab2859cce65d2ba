"""Runs the targets: a few seconds each with every test run, and all in turn for an hour with `make fuzz`.

MFG_NOTIFY_FUZZ_MINUTES is the duration (60). MFG_NOTIFY_FUZZ_TARGETS names the targets, all by default. A failure
prints a seed; MFG_NOTIFY_FUZZ_SEED repeats it, with the target's name and a duration of 0.
"""

import os
import secrets
import time
from collections import Counter
from itertools import cycle

import pytest
from rich.console import Console
from tests.fuzz.all_targets import TARGETS

# Some inputs are as long as what they try to overflow.
pytestmark = pytest.mark.filterwarnings("ignore:Generating overly large repr")


@pytest.mark.parametrize("name", TARGETS)
def test_short(name: str) -> None:
    assert TARGETS[name].run(TARGETS[name].short) > 0


@pytest.mark.fuzz
@pytest.mark.timeout(0)
def test_fuzz(capsys: pytest.CaptureFixture[str]) -> None:
    seed = int(os.environ.get("MFG_NOTIFY_FUZZ_SEED") or secrets.randbelow(1_000_000))
    names = os.environ.get("MFG_NOTIFY_FUZZ_TARGETS", "").split() or list(TARGETS)
    deadline = time.monotonic() + 60 * float(os.environ.get("MFG_NOTIFY_FUZZ_MINUTES") or 60)
    console = Console(highlight=False, soft_wrap=True)
    checked: Counter[str] = Counter()
    failures: list[Exception] = []
    with capsys.disabled():
        console.print()
        # Every target gets one turn, even without any time left.
        for turn, name in enumerate(cycle(names)):
            if turn >= len(names) and time.monotonic() >= deadline:
                break
            begun, turn_seed = time.monotonic(), seed + turn // len(names)
            try:
                found = TARGETS[name].run(TARGETS[name].slice, turn_seed)
            except Exception as failure:  # noqa: BLE001 - the other targets go on, and all failures are raised below
                failures.append(failure)
                console.print(
                    f"{name}: FAILED with seed {turn_seed}; repeat with MFG_NOTIFY_FUZZ_TARGETS={name} "
                    f"MFG_NOTIFY_FUZZ_SEED={turn_seed} MFG_NOTIFY_FUZZ_MINUTES=0 make fuzz",
                    style="red",
                )
            else:
                checked[name] += found
                console.print(f"{name}: seed {turn_seed}, {found} inputs in {time.monotonic() - begun:.1f} s")
        summary = ", ".join(f"{n:,} {name}" for name, n in checked.items())
        console.print(f"inputs without a failure: {summary or 'none'}; {len(failures)} failures")
    if failures:
        raise ExceptionGroup("the fuzzer has found failures", failures)
