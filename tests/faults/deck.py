"""All faults in one place: importing a module of faults registers them."""

from tests.faults import clocks, network, processes, schema, sessions, statements, storage, strangers  # noqa: F401
from tests.faults.rig import FAULTS

__all__ = ["FAULTS"]
