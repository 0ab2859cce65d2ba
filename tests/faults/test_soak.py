"""All faults in their long form, in random order, for half an hour and more: `make soak`.

MFG_NOTIFY_SOAK_MINUTES says how long (30), MFG_NOTIFY_SOAK_RATE how many statements a second each writer sends (150),
MFG_NOTIFY_SOAK_SEED repeats a run: the order of the faults and every choice of theirs, though not the moments at which
the machine does what.
"""

import os
import secrets
import time
from collections import Counter
from random import Random

import pytest
from rich.console import Console
from rich.table import Table
from tests.conftest import Server
from tests.faults.deck import FAULTS
from tests.faults.rig import Report


@pytest.mark.soak
def test_soak(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    seed = int(os.environ.get("MFG_NOTIFY_SOAK_SEED") or secrets.randbelow(1_000_000))
    deadline = time.monotonic() + 60 * float(os.environ.get("MFG_NOTIFY_SOAK_MINUTES") or 30)
    console = Console(highlight=False, soft_wrap=True)
    chance = Random(seed)
    reports: list[Report] = []
    with capsys.disabled():
        console.print(f"\nseed {seed}: repeat with MFG_NOTIFY_SOAK_SEED={seed}")
        while time.monotonic() < deadline:
            for name in chance.sample(sorted(FAULTS), len(FAULTS)):
                # Drawn for every fault, so that those that this machine cannot do leave the others as they are.
                seed_of_fault = chance.randrange(1 << 30)
                if time.monotonic() >= deadline:
                    break
                if lacking := FAULTS[name].lacks():
                    console.print(f"{name}: left out, needs {lacking}", markup=False)
                    continue
                report = FAULTS[name].run(server, seed_of_fault, long=True)
                reports.append(report)
                console.print(str(report), markup=False)
                for violation in report.violations:
                    console.print(f"  {violation}", markup=False, style="red")
        console.print(_table(reports))
        console.print(f"seed {seed}: {_summary(reports)}", markup=False)
    assert not any(report.violations for report in reports)


def _table(reports: list[Report]) -> Table:
    table = Table("fault", "runs", "changes", "scrapes", "harm done", "violations")
    for name in sorted({report.fault for report in reports}):
        of_fault = [report for report in reports if report.fault == name]
        counts = sum((report.counts for report in of_fault), Counter[str]())
        known = {"changes", "scrapes", "checks", "transactions", "statements"}
        harm = ", ".join(f"{n} {what}" for what, n in sorted(counts.items()) if what not in known and n)
        violations = sum(len(report.violations) for report in of_fault)
        table.add_row(name, str(len(of_fault)), str(counts["changes"]), str(counts["scrapes"]), harm, str(violations))
    return table


def _summary(reports: list[Report]) -> str:
    counts = sum((report.counts for report in reports), Counter[str]())
    counts["violations"] = sum(len(report.violations) for report in reports)
    return ", ".join(f"{n} {what}" for what, n in sorted(counts.items()))
