"""All faults in one place. Importing a module of faults registers them."""

from tests.faults import clocks, hostile, network, processes, schema, sessions, statements, storage  # noqa: F401
from tests.faults.rig import FAULTS

__all__ = ["FAULTS"]
