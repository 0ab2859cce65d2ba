"""Runs all faults in their long form, in random order, for half an hour or longer: `make soak`.

MFG_NOTIFY_SOAK_MINUTES is the duration (30), MFG_NOTIFY_SOAK_RATE the statements a second of each writer (150).
MFG_NOTIFY_SOAK_FAULTS limits it to faults whose names contain this text; a held snapshot lasts for
MFG_NOTIFY_SOAK_SNAPSHOT_MINUTES (1).
MFG_NOTIFY_SOAK_SEED repeats a run: the order of the faults and all their random choices, but not the machine's timing.
"""

import os
import secrets
import time
from collections import Counter
from random import Random

import pytest
from rich.console import Console
from rich.table import Table
from tests.conftest import Postgres, Server
from tests.faults.all_faults import FAULTS
from tests.faults.rig import Report


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_soak(server: Server, postgres: Postgres, capsys: pytest.CaptureFixture[str]) -> None:
    seed = int(os.environ.get("MFG_NOTIFY_SOAK_SEED") or secrets.randbelow(1_000_000))
    deadline = time.monotonic() + 60 * float(os.environ.get("MFG_NOTIFY_SOAK_MINUTES") or 30)
    console = Console(highlight=False, soft_wrap=True)
    random = Random(seed)
    faults = [name for name in sorted(FAULTS) if (os.environ.get("MFG_NOTIFY_SOAK_FAULTS") or "") in name]
    assert faults
    reports: list[Report] = []
    with capsys.disabled():
        console.print(f"\nseed {seed}: repeat with MFG_NOTIFY_SOAK_SEED={seed}")
        while time.monotonic() < deadline:
            for name in random.sample(faults, len(faults)):
                # Every fault gets a seed, so that faults that this machine cannot run do not change the others' seeds.
                seed_of_fault = random.randrange(1 << 30)
                if time.monotonic() >= deadline:
                    break
                if lacking := FAULTS[name].lacks(postgres):
                    console.print(f"{name}: left out, needs {lacking}", markup=False)
                    continue
                report = FAULTS[name].run(server, postgres, seed_of_fault, long=True)
                reports.append(report)
                console.print(str(report), markup=False)
                for violation in report.violations:
                    console.print(f"  {violation}", markup=False, style="red")
        console.print(_table(reports))
        console.print(f"seed {seed}: {_summary(reports)}", markup=False)
    assert not any(report.violations for report in reports)


def _table(reports: list[Report]) -> Table:
    table = Table("fault", "runs", "changes", "scrapes", "harm", "violations")
    for name in sorted({report.fault for report in reports}):
        of_fault = [report for report in reports if report.fault == name]
        counts = sum((report.counts for report in of_fault), Counter[str]())
        not_harm = {"changes", "scrapes", "checks", "transactions", "statements"}
        harm = ", ".join(f"{n} {what}" for what, n in sorted(counts.items()) if what not in not_harm and n)
        violations = sum(len(report.violations) for report in of_fault)
        table.add_row(name, str(len(of_fault)), str(counts["changes"]), str(counts["scrapes"]), harm, str(violations))
    return table


def _summary(reports: list[Report]) -> str:
    counts = sum((report.counts for report in reports), Counter[str]())
    counts["violations"] = sum(len(report.violations) for report in reports)
    return ", ".join(f"{n} {what}" for what, n in sorted(counts.items()))
