"""Each fault once, in its short form, with the same seed every time."""

import os

import pytest
from tests.conftest import TEST_DSN, Server
from tests.faults.deck import FAULTS
from tests.faults.rig import Fault

SEED = 4
# What has a server of its own has the same one, whichever server the others are given.
PLAYED = [fault for fault in FAULTS.values() if fault.settings is None or TEST_DSN not in os.environ]


@pytest.mark.parametrize("fault", PLAYED, ids=[fault.name for fault in PLAYED])
def test_fault(fault: Fault, server: Server) -> None:
    if lacking := fault.lacks():
        pytest.skip(f"needs {lacking}")
    report = fault.run(server, SEED)
    print(report)  # noqa: T201 - shown where it fails, and by pytest -rP
    assert not report.violations, "\n".join(report.violations)
