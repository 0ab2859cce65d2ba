"""Informs systemd about the exporter: readiness, status, the watchdog's keep-alive, stopping (sd_notify(3)).

Ready means that the exporter serves HTTP: it starts even if the database is down, and its status says so. The
keep-alive comes from the event loop, so it stops if the loop hangs. Without systemd nothing is sent.
"""

import os
import socket
from collections.abc import Mapping

import anyio
import structlog

from mfg_notify.core.catalogue import MICROSECONDS_PER_SECOND
from mfg_notify.exporter import Exporter, State

KEEP_ALIVES_PER_TIMEOUT = 3
"""How many keep-alives are sent within the time after which systemd restarts the exporter."""

log = structlog.get_logger(__name__)


class ServiceManager:
    """The service manager at the other end of $NOTIFY_SOCKET."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Read the environment that systemd has set."""
        address = environment.get("NOTIFY_SOCKET", "")
        # '@' stands for the 0 byte at the start of an abstract socket's name.
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._failed = False
        for_us = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self.watchdog = int(environment.get("WATCHDOG_USEC", "0")) / MICROSECONDS_PER_SECOND if for_us else 0.0
        """Seconds without a keep-alive after which systemd restarts the exporter; 0 if it does not watch."""

    @property
    def present(self) -> bool:
        """Whether there is a service manager."""
        return bool(self._address)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def send(self, *assignments: str) -> None:
        """Send assignments such as READY=1 in one message; line breaks within one become spaces."""
        message = "\n".join(" ".join(assignment.splitlines()) for assignment in assignments)
        try:
            self._socket.sendto(message.encode(), self._address)
        except OSError as error:
            # The exporter works without it; whether systemd ends it then is systemd's decision.
            if not self._failed:
                log.warning("cannot notify systemd", error=str(error))
            self._failed = True
        else:
            self._failed = False


async def report(exporter: Exporter, manager: ServiceManager) -> None:
    """Keep the service manager informed about the exporter until cancelled."""
    if not manager.present:
        return
    async with anyio.create_task_group() as tasks:
        if manager.watchdog:
            tasks.start_soon(_keep_alive, manager)
        state = await exporter.wait_until(lambda state: state.serving)
        manager.send("READY=1", f"STATUS={state.status_text}")
        while True:
            reported = state

            def changed(state: State, reported: State = reported) -> bool:
                return (state.status_text, state.stopping) != (reported.status_text, reported.stopping)

            state = await exporter.wait_until(changed)
            stopping = ["STOPPING=1"] if state.stopping and not reported.stopping else []
            manager.send(*stopping, f"STATUS={state.status_text}")


async def _keep_alive(manager: ServiceManager) -> None:
    while True:
        manager.send("WATCHDOG=1")
        await anyio.sleep(manager.watchdog / KEEP_ALIVES_PER_TIMEOUT)
