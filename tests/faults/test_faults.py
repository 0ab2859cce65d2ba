"""Runs each fault once, in its short form, always with the same seed."""

import os

import pytest
from tests.conftest import TEST_DSN, Postgres, Server
from tests.faults.all_faults import FAULTS
from tests.faults.rig import Fault

SEED = 4
# A fault with its own server does nothing to a server that the environment names.
SELECTED = [fault for fault in FAULTS.values() if fault.settings is None or TEST_DSN not in os.environ]


LONG = {
    "COMMIT of unknown outcome",
    "a backend of the exporter hangs",
    "clocks jump and are wrong",
    "exporter killed between two steps of a fold",
    "half-open: the network goes down",
    "hostile HTTP clients, all kinds at once",
    "hostile labels",
    "long pause under a flood",
    "lost commits: an older copy of the data under a live exporter",
    "notification queue full",
    "split brain: the active exporter stops and comes back",
    "stall: nothing is relayed, the connection stays open",
}
"""Take longest even in their short form, and nothing in them depends on the version of PostgreSQL."""
USUAL = {
    "DDL by the game",
    "backends terminated",
    "database crash",
    "exporter killed",
    "hostile NOTIFY",
    "triggers disabled, replica role, data-only restore",
}
"""Those that `make test` runs, too."""
assert not (LONG | USUAL) - FAULTS.keys()


def marks(name: str) -> list[pytest.MarkDecorator]:
    """Return the marks of a fault."""
    return [pytest.mark.thorough] if name in LONG else [] if name in USUAL else [pytest.mark.extended]


EACH = [pytest.param(fault, id=fault.name, marks=marks(fault.name)) for fault in SELECTED]


@pytest.mark.parametrize("fault", EACH)
def test_fault(fault: Fault, server: Server, postgres: Postgres) -> None:
    if lacking := fault.lacks(postgres):
        pytest.skip(f"needs {lacking}")
    report = fault.run(server, postgres, SEED)
    print(report)  # noqa: T201 - shown if the test fails, and by pytest -rP
    assert not report.violations, "\n".join(report.violations)
