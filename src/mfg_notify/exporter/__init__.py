"""What happens over time while `mfg-notify run` runs: sessions, leadership, intake, folds, reconciliations, serving.

`exporter` keeps a `session` alive. A session opens two connections, hands each piece what it needs, and runs one step
at a time, in the order that `core.schedule` decides. Each piece owns its own state, and none imports `session`.
What the numbers mean is decided in `core`; all SQL is in `postgres`.
"""

from mfg_notify.exporter.exporter import Exporter
from mfg_notify.exporter.settings import Settings
from mfg_notify.exporter.status import State

__all__ = ["Exporter", "Settings", "State"]
