"""Each fault once, in its short form, with the same seed every time."""

import pytest
from tests.conftest import Server
from tests.faults import processes, schema  # noqa: F401 - they register their faults
from tests.faults.rig import FAULTS, Fault

SEED = 4


@pytest.mark.parametrize("fault", FAULTS.values(), ids=list(FAULTS))
def test_fault(fault: Fault, server: Server) -> None:
    if lacking := fault.lacks():
        pytest.skip(f"needs {lacking}")
    report = fault.run(server, SEED)
    print(report)  # noqa: T201 - shown where it fails, and by pytest -rP
    assert not report.violations, "\n".join(report.violations)
