"""What `mfg-notify run` was asked to do."""

from dataclasses import dataclass, field

from mfg_notify.core.capped_totals import SERIES_MAXIMUM
from mfg_notify.core.notify_mode import Policy
from mfg_notify.web.access import Access
from mfg_notify.web.limits import Limits


@dataclass(frozen=True, slots=True)
class Settings:
    """The options of `run`; durations in seconds."""

    dsn: str = ""
    schema: str = "public"
    reconcile_interval: float = 30.0
    telemetry_path: str = "/metrics"
    series_maximum: int = SERIES_MAXIMUM
    market_interval: float | None = None
    """None: do not read the markets."""
    notify: Policy = Policy.ADAPTIVE
    """When the triggers notify; never if the migration has found that they must not."""
    board: bool = True
    """Show the live board at /."""
    grafana_url: str | None = None
    """The board links to the dashboard there."""
    access: Access | None = None
    """TLS and users; None: everyone may read, over plain HTTP."""
    limits: Limits = field(default_factory=Limits)
    """What HTTP clients may use."""
