"""Which of the servers that a conninfo names to try first: the one that worked last, and one that was silent last.

Lives as long as the exporter. libpq tries them in the order of the conninfo at each connection, and a server that
accepts sessions but answers no COMMIT would be first each time.
"""

from mfg_notify.postgres.connection import split_servers


class Servers:
    """The servers, each as a conninfo of its own."""

    def __init__(self, conninfo: str) -> None:
        self._order = split_servers(conninfo)

    @property
    def first(self) -> str:
        """The server to try first."""
        return self._order[0]

    def in_order(self) -> list[str]:
        """Return all of them, the one to try first at the beginning."""
        return list(self._order)

    def prefer(self, server: str) -> None:
        """Try this one first: it works."""
        self._order.remove(server)
        self._order.insert(0, server)

    def avoid(self, server: str) -> None:
        """Try this one last: it has not answered in time."""
        self._order.remove(server)
        self._order.append(server)
