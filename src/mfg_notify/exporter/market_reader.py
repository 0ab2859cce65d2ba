"""Reads the markets now and then, on a connection of its own, while this exporter is the active one."""

import anyio
import structlog

from mfg_notify.core.series import Market
from mfg_notify.errors import DatabaseError
from mfg_notify.exporter.deadline import in_time
from mfg_notify.exporter.status import Status
from mfg_notify.postgres import market
from mfg_notify.postgres.servers import Servers

MARKET_INTERVAL = 60.0
"""Seconds between two readings, if the user asks for them."""

log = structlog.get_logger(__name__)


class MarketReader:
    """The last reading of the markets; `market` is None if they cannot be read, or before the first reading."""

    def __init__(self, servers: Servers, schema: str, status: Status, timeout: float) -> None:
        self._servers = servers
        self._schema = schema
        self._status = status
        self._timeout = timeout
        self._reported_reason: str | None = None
        self.market: Market | None = None

    async def run(self, interval: float) -> None:
        """Read the markets every so many seconds until cancelled. However slow that is, nothing else waits for it."""
        while True:
            await self._status.wait_until(lambda state: state.leader)
            try:
                self.market = await in_time(self._timeout, market.read_market(self._servers.first, self._schema))
                if self._reported_reason is not None:
                    log.info("metrics of the markets again")
                self._reported_reason = None
            except DatabaseError as error:
                # Show nothing rather than old numbers that look current.
                self.market = None
                if self._reported_reason != error.reason:
                    log.warning("no metrics of the markets", reason=error.reason, error=str(error))
                self._reported_reason = error.reason
            await self._status.update(market_reads=self._status.state.market_reads + 1)
            await anyio.sleep(interval)
