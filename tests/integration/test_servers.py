"""A DSN that names several servers: which is tried first, how long each may take, and that both connections meet."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import anyio
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from tests.conftest import Database, Postgres, install
from tests.faults.network import socket_of
from tests.faults.proxy import Proxy
from tests.samples import number, value
from tests.support import PATIENCE, exporting, page_of

from mfg_notify.core.tuning import Tuning
from mfg_notify.demo.embedded import EmbeddedPostgres
from mfg_notify.exporter import Exporter
from mfg_notify.exporter.settings import Settings

pytestmark = [pytest.mark.anyio, pytest.mark.slow]
QUICK = Tuning(answer_timeout=1.0, retry_maximum=0.1)


class SilentServer:
    """A host that accepts connections and never says a word, like one whose processes are stopped."""

    def __init__(self, stack: ExitStack) -> None:
        self._listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self._listening.setblocking(False)
        self._stack = stack
        self._attempts = 0
        self.port = int(self._listening.getsockname()[1])

    def attempts(self) -> int:
        """Return how many connections there have been so far."""
        try:
            while True:
                self._stack.enter_context(self._listening.accept()[0])
                self._attempts += 1
        except BlockingIOError:
            return self._attempts


def several(dsn: str, *ports: int) -> str:
    """Return a conninfo with hosts on these ports before the server of `dsn`."""
    given = conninfo_to_dict(dsn)
    hosts = ["127.0.0.1" for _ in ports] + [str(given["host"])]
    return make_conninfo(dsn, host=",".join(hosts), port=",".join(map(str, [*ports, given.get("port", 5432)])))


async def test_servers_that_do_not_answer_cost_their_patience_once(installed: Database) -> None:
    with ExitStack() as stack:
        silent = [SilentServer(stack) for _ in range(2)]
        async with exporting(several(installed.dsn, *(each.port for each in silent)), tuning=QUICK) as exporter:
            # The second connection went straight to the server of the first.
            assert [each.attempts() for each in silent] == [1, 1]
            with installed.connect() as connection:
                connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'mfg-notify'"
                    " AND datname = current_database()"
                )
            with anyio.fail_after(PATIENCE):
                await exporter.wait_until(lambda state: not state.connected)
                await exporter.wait_until(lambda state: state.ready)
            assert [each.attempts() for each in silent] == [1, 1]


@pytest.fixture
def two_servers(postgres: Postgres) -> Iterator[tuple[EmbeddedPostgres, EmbeddedPostgres]]:
    """Start two servers with the game and the triggers."""
    with postgres.make() as one, postgres.make() as two:
        install(one.dsn())
        install(two.dsn())
        yield one, two


async def test_a_primary_that_accepts_no_commit_is_left_for_another(
    two_servers: tuple[EmbeddedPostgres, EmbeddedPostgres],
) -> None:
    cut_off, working = two_servers
    with psycopg.connect(cut_off.dsn(), autocommit=True) as connection:
        # Like an old primary whose synchronous standby was promoted: sessions are welcome, no COMMIT is answered.
        connection.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        connection.execute("SELECT pg_reload_conf()")
    dsn = working.dsn(host=f"{cut_off.folder},{working.folder}", port=f"{cut_off.port},{working.port}")
    async with exporting(dsn, tuning=QUICK) as exporter:
        assert value(page_of(exporter), "mfg_notify_reconnects_total", reason="unavailable") == 1
        with psycopg.connect(working.dsn()) as connection:
            assert connection.execute("SELECT holder IS NOT NULL FROM mfg_notify.lease").fetchone() == (True,)


class Balancer(Proxy):
    """A proxy that leads each connection to another server, in turn."""

    def __init__(self, *upstreams: str) -> None:
        super().__init__(upstreams[0])
        self._upstreams = list(upstreams)

    def _next_upstream(self) -> str:
        self._upstreams.append(self._upstreams.pop(0))
        return self._upstreams[-1]


async def test_connections_that_lead_to_two_servers_are_refused(
    two_servers: tuple[EmbeddedPostgres, EmbeddedPostgres],
) -> None:
    one, two = two_servers
    with Balancer(socket_of(one.dsn()), socket_of(two.dsn())) as proxy:
        exporter = Exporter(Settings(one.dsn(host="127.0.0.1", port=proxy.port)), tuning=QUICK)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(exporter.run)
            with anyio.fail_after(PATIENCE):
                await exporter.wait_until(lambda state: state.problem is not None)
            assert "two servers" in str(exporter.state.problem)
            assert number(page_of(exporter), "mfg_notify_leader") == 0
            exporter.stop()
