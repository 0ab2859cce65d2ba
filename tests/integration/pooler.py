"""PgBouncer in front of a server."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from tests.support import Process, free_port


@contextmanager
def pgbouncer(dsn: str, mode: str, folder: Path, *settings: str) -> Iterator[str]:
    """Run PgBouncer in front of a server, and yield the conninfo that leads through it.

    `settings` are more lines for its configuration. Skip the test if there is no PgBouncer.
    """
    program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if program is None:
        pytest.skip("there is no pgbouncer")
    given = conninfo_to_dict(dsn)
    port = free_port()
    file = folder / "pgbouncer.ini"
    # auth_type any accepts everyone, as the user that the database's line names.
    file.write_text(
        f"[databases]\n* = host={given['host']} port={given.get('port', 5432)} user={given['user']}\n[pgbouncer]\n"
        f"listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\npool_mode = {mode}\n"
        + "".join(f"{setting}\n" for setting in settings)
    )
    user = None
    if os.geteuid() == 0:
        # It refuses to run as root; the owner of the server's socket can reach the socket.
        user = Path(str(given["host"])).owner()
        shutil.chown(file, user)
        for parent in (folder, *folder.parents[:-2]):
            parent.chmod(parent.stat().st_mode | 0o011)
    with Process([program, str(file)], user=user) as bouncer:
        bouncer.wait_for("process up")
        yield make_conninfo(dsn, host="127.0.0.1", port=port)
