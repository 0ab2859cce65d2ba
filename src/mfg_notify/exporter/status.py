"""The exporter's state: what readiness, the board and systemd report, and what tests wait for."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import anyio
import structlog

from mfg_notify.errors import DatabaseError
from mfg_notify.exposition import Telemetry

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class State:
    """The state at one moment. `folds` and `reconciles` count successes, `market_reads` counts attempts."""

    serving: bool = False
    stopping: bool = False
    connected: bool = False
    leader: bool = False
    standby: bool = False
    stood_by: bool = False
    """It has stood by at least once, and knows that another exporter was alive."""
    drained: bool = False
    """The journal has been drained at least once since this exporter became the leader."""
    reconciled: bool = False
    problem: str | None = None
    folds: int = 0
    reconciles: int = 0
    market_reads: int = 0

    @property
    def ready(self) -> bool:
        """Connected, and either a standby or with exact numbers to show."""
        return self.connected and self.problem is None and (self.standby or (self.drained and self.reconciled))

    @property
    def status_text(self) -> str:
        """The state in a few words."""
        if self.stopping:
            return "stopping"
        if self.problem is not None:
            return self.problem
        if not self.connected:
            return "connecting to the database"
        if self.standby:
            return "standby: another exporter is active"
        if not self.drained:
            return "folding the events that came while no exporter ran"
        return "ready" if self.reconciled else "reading the live rows"


class Status:
    """Holds the state, exports it as metrics, and wakes up everyone who waits for a change."""

    def __init__(self, telemetry: Telemetry) -> None:
        self.state = State()
        self._telemetry = telemetry
        self._changed = anyio.Condition()
        self._reported_reason: str | None = None

    @property
    def has_reported_error(self) -> bool:
        """Tell whether an error was reported that no success has followed yet."""
        return self._reported_reason is not None

    async def update(self, **changes: object) -> None:
        """Change fields of the state."""
        self.state = state = replace(self.state, **changes)  # type: ignore[arg-type]
        if state.problem is None:
            self._reported_reason = None
        self._telemetry.connected.set(state.connected)
        self._telemetry.leader.set(state.leader)
        self._telemetry.standby.set(state.standby)
        self._telemetry.ready.set(state.ready)
        async with self._changed:
            self._changed.notify_all()

    async def report_error(self, error: DatabaseError) -> None:
        """Show what is wrong with the database. Logs one line per change of reason, not one per attempt."""
        if self._reported_reason != error.reason:
            log.warning("waiting for the database", reason=error.reason, error=str(error))
        self._reported_reason = error.reason
        await self.update(problem=str(error))

    async def wait_until(self, condition: Callable[[State], bool]) -> State:
        """Wait until the state meets the condition, and return it."""
        async with self._changed:
            while not condition(self.state):
                await self._changed.wait()
            return self.state
