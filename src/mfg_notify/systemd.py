"""What systemd is told while the exporter runs: ready, how it is, alive, stopping (sd_notify(3)).

Ready means serving: the exporter starts while the database is down, and says so in its status. The sign of life comes
from the event loop, so that it ends when that hangs. Where no systemd asks for it, nothing of this happens.
"""

import os
import socket
from collections.abc import Mapping

import anyio
import structlog

from mfg_notify.core.catalogue import MICROSECONDS_PER_SECOND
from mfg_notify.exporter import Exporter, State

SIGNS_OF_LIFE = 3
"""How many fit into the time after which systemd calls the exporter dead."""

log = structlog.get_logger(__name__)


class Manager:
    """The service manager at the other end of $NOTIFY_SOCKET."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Read the environment, as systemd has set it."""
        address = environment.get("NOTIFY_SOCKET", "")
        # '@' stands for the 0 that begins a name in the abstract namespace.
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)
        self._deaf = False
        for_us = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self.watchdog = int(environment.get("WATCHDOG_USEC", "0")) / MICROSECONDS_PER_SECOND if for_us else 0.0
        """Seconds of silence after which systemd ends the exporter; 0 where it does not watch."""

    @property
    def listens(self) -> bool:
        """Tell whether there is a service manager that wants to know."""
        return bool(self._address)

    def tell(self, *assignments: str) -> None:
        """Send assignments such as READY=1 in one message; a status is one line."""
        message = "\n".join(" ".join(assignment.splitlines()) for assignment in assignments)
        try:
            self._socket.sendto(message.encode(), self._address)
        except OSError as error:
            # The exporter works without; whether systemd then ends it is systemd's to decide.
            if not self._deaf:
                log.warning("systemd does not listen", error=str(error))
            self._deaf = True
        else:
            self._deaf = False


async def accompany(exporter: Exporter, manager: Manager) -> None:
    """Keep the manager informed of the exporter until cancelled."""
    if not manager.listens:
        return
    async with anyio.create_task_group() as tasks:
        if manager.watchdog:
            tasks.start_soon(_show_life, manager)
        state = await exporter.wait_until(lambda state: state.serving)
        manager.tell("READY=1", f"STATUS={state.status_text}")
        while True:
            told = state

            def news(state: State, told: State = told) -> bool:
                return (state.status_text, state.stopping) != (told.status_text, told.stopping)

            state = await exporter.wait_until(news)
            manager.tell(
                *(["STOPPING=1"] if state.stopping and not told.stopping else []), f"STATUS={state.status_text}"
            )


async def _show_life(manager: Manager) -> None:
    while True:
        manager.tell("WATCHDOG=1")
        await anyio.sleep(manager.watchdog / SIGNS_OF_LIFE)
