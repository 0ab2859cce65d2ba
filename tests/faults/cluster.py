"""Three PostgreSQL servers that replicate, under Patroni and etcd, and what breaks them.

Needs etcd, Patroni, and the PostgreSQL that Debian packages; root runs the servers as Debian's user `postgres`. A proxy
stands between each Patroni and etcd, so that the network can be cut there.
"""

import json
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, LiteralString, Self

import httpx
import psycopg
from psycopg.conninfo import make_conninfo
from tests.faults.proxy import Proxy
from tests.support import clean_environment, eventually, free_port

PROGRAMS = ("etcd", "patroni")
BINARIES = Path("/usr/lib/postgresql/15/bin")
"""Patroni runs the servers of the distribution that it comes from."""
SERVER_USER = "postgres"
PATIENCE = 120.0
"""For a failover and the return of the old leader, with a time to live of 20 s."""
BACKLOG = 1 << 20
"""Bytes of WAL that a standby may lack and still counts as caught up: the game goes on."""
DYNAMIC = {
    "ttl": 20,
    "loop_wait": 1,
    "retry_timeout": 3,
    "maximum_lag_on_failover": 1 << 30,
    "primary_start_timeout": 0,
    "synchronous_mode": False,
    "postgresql": {
        "use_pg_rewind": True,
        "use_slots": True,
        "parameters": {
            "max_connections": 60,
            "shared_buffers": "32MB",
            "wal_keep_size": "256MB",
            "max_wal_senders": 8,
            "wal_log_hints": "on",
            "track_commit_timestamp": "on",
            "fsync": "off",
        },
    },
}
HBA = [
    *(f"{kind} all all trust" for kind in ("local",)),
    *(f"host {database} all 127.0.0.1/32 trust" for database in ("all", "replication")),
]


def lacking() -> str:
    """Name what the machine lacks for a cluster; '' if nothing."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if not (BINARIES / "postgres").exists():
        missing.append(str(BINARIES))
    if os.geteuid() == 0 and SERVER_USER not in {entry.pw_name for entry in pwd.getpwall()}:
        missing.append(f"the user {SERVER_USER}")
    return ", ".join(missing)


@dataclass(frozen=True)
class Place:
    """Where a member is on its timeline, as it says itself; None if it does not answer."""

    timeline: int
    in_recovery: bool
    standbys: int
    """Standbys that have all but a little of its WAL."""


class Member:
    """One server and its Patroni."""

    def __init__(self, name: str, folder: Path, etcd: Proxy, user: str | None) -> None:
        self.name = name
        self.port, self.rest = free_port(), free_port()
        self.etcd = etcd
        """Stall it to cut the network."""
        self._user = user
        self.data = folder / name / "data"
        self._configuration = folder / name / "patroni.json"
        self._configuration.parent.mkdir()
        address = f"127.0.0.1:{self.port}"
        self._configuration.write_text(
            json.dumps({
                "scope": "mfg", "name": name,
                "restapi": {"listen": f"127.0.0.1:{self.rest}", "connect_address": f"127.0.0.1:{self.rest}"},
                "etcd": {"hosts": [f"127.0.0.1:{etcd.port}"], "use_proxies": True},
                "bootstrap": {"dcs": DYNAMIC, "initdb": [{"encoding": "UTF8"}, {"locale": "C"}, "no-sync"]},
                "postgresql": {
                    "listen": address, "connect_address": address,
                    "data_dir": str(self.data), "bin_dir": str(BINARIES), "pgpass": str(folder / name / "pgpass"),
                    "parameters": {"unix_socket_directories": str(folder / name)},
                    "pg_hba": HBA,
                    "authentication": {"superuser": {"username": "postgres"}, "replication": {"username": "postgres"}},
                    "basebackup": [{"checkpoint": "fast"}, "no-sync"],
                    "remove_data_directory_on_rewind_failure": True,
                    "remove_data_directory_on_diverged_timelines": True,
                },
            })
        )  # fmt: skip
        if user is not None:
            shutil.chown(self._configuration.parent, user)
        self.log = self._configuration.with_name("log")
        self.patroni: subprocess.Popen[bytes] | None = None
        self.frozen = False

    def __str__(self) -> str:
        return self.name

    def start(self) -> None:
        """Start Patroni, which starts the server."""
        self.patroni = run(["patroni", str(self._configuration)], self.log, self._user)

    def ask(self, query: LiteralString, database: str = "postgres") -> list[tuple[Any, ...]] | None:
        """Execute a statement on this very server; None if it does not answer."""
        dsn = make_conninfo("", host="127.0.0.1", port=self.port, user="postgres", dbname=database, connect_timeout=2)
        with suppress(psycopg.Error), psycopg.connect(dsn, autocommit=True) as connection:
            return connection.execute(query).fetchall()
        return None

    def place(self) -> Place | None:
        """Return where it is."""
        if self.frozen:
            return None
        found = self.ask(
            """SELECT CASE WHEN pg_is_in_recovery() THEN 0
                           ELSE ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::integer END,
                      pg_is_in_recovery(),
                      (SELECT count(*) FROM pg_stat_replication
                       WHERE state = 'streaming' AND NOT pg_is_in_recovery()
                         AND pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn) < 1048576)"""
        )
        return Place(*found[0]) if found else None

    def postmaster(self) -> int | None:
        """Return the process id of the server, if it runs."""
        with suppress(OSError, ValueError, IndexError):
            pid = int((self.data / "postmaster.pid").read_text().splitlines()[0])
            if os.fsencode(self.data) in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
        return None

    def processes(self) -> list[int]:
        """Return the process ids of the server and its children."""
        postmaster = self.postmaster()
        if postmaster is None:
            return []
        return [postmaster, *_children(postmaster)]

    def holds_lock(self) -> bool:
        """Tell whether it is the leader by what etcd says."""
        with suppress(httpx.HTTPError):
            return httpx.get(f"http://127.0.0.1:{self.rest}/leader").is_success
        return False

    def walsenders(self) -> list[int]:
        """Return the process ids of what sends WAL to the standbys."""
        return [pid for (pid,) in self.ask("SELECT pid FROM pg_stat_replication") or []]

    def freeze(self) -> None:
        """Stop the server and Patroni, as a hypervisor does with a machine."""
        self.frozen = True
        self.signal_patroni(signal.SIGSTOP)
        send(signal.SIGSTOP, self.processes())

    def thaw(self) -> None:
        """Let them go on."""
        send(signal.SIGCONT, self.processes())
        self.signal_patroni(signal.SIGCONT)
        self.frozen = False

    def signal_patroni(self, number: signal.Signals) -> None:
        """Send a signal to Patroni."""
        assert self.patroni is not None
        self.patroni.send_signal(number)

    def close(self) -> None:
        """Kill everything."""
        if self.patroni is not None:
            _end(self.patroni)
        send(signal.SIGKILL, self.processes())


def run(command: Sequence[str], log: Path, user: str | None = None) -> subprocess.Popen[bytes]:
    """Start a program whose output goes to a file: for hours, with nobody who reads a pipe."""
    with log.open("ab") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, cwd=log.parent, env=clean_environment(), user=user)


def send(number: signal.Signals, processes: Sequence[int]) -> None:
    """Send a signal to processes, some of which may have ended."""
    for pid in processes:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _children(parent: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            # The name of the program, in parentheses, may contain spaces.
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[1]) == parent:
                found.append(int(entry.name))
    return found


class Cluster:
    """The servers and etcd."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        """Start everything; the first member is the leader."""
        self._synchronous = False
        user = SERVER_USER if os.geteuid() == 0 else None
        client, peer = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
        self._folder = folder
        command = [
            *("etcd", "--name", "etcd", "--data-dir", str(folder / "etcd"), "--unsafe-no-fsync"),
            *("--listen-client-urls", client, "--advertise-client-urls", client),
            *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
            # The watch of the newer API, which Debian's Patroni keeps a cache with, does not survive a pause.
            *("--initial-cluster", f"etcd={peer}", "--enable-v2"),
        ]
        self.etcd = run(command, folder / "etcd.log")
        stack.callback(_end, self.etcd)
        port = int(client.rpartition(":")[2])
        eventually(lambda: _answers(f"{client}/health"))
        self.members = []
        for name in ("one", "two", "three"):
            member = Member(name, folder, stack.enter_context(Proxy(port)), user)
            stack.callback(member.close)
            self.members.append(member)
            member.start()
            if name == "one":
                eventually(lambda: self.primary() is not None, patience=PATIENCE)
        self.wait_healthy()

    @classmethod
    @contextmanager
    def running(cls) -> Iterator[Self]:
        """Run a cluster in a temporary folder."""
        with ExitStack() as stack:
            # Short, for the sockets; open, because the servers run as another user.
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mfg-failover-", dir="/tmp")))
            folder.chmod(0o755)
            yield cls(folder, stack)

    @property
    def dsn(self) -> str:
        """The conninfo that names all servers and lets libpq find the primary; without a database."""
        return make_conninfo(
            "",
            host=",".join("127.0.0.1" for _ in self.members),
            port=",".join(str(member.port) for member in self.members),
            user="postgres",
            target_session_attrs="read-write",
            connect_timeout=2,
        )

    def places(self) -> dict[Member, Place]:
        """Return where each member is that answers."""
        found = {member: member.place() for member in self.members}
        return {member: place for member, place in found.items() if place is not None}

    def primary(self) -> Member | None:
        """Return the member that accepts writes on the newest timeline."""
        places = {member: place for member, place in self.places().items() if not place.in_recovery}
        return max(places, key=lambda member: places[member].timeline) if places else None

    def timeline(self) -> int:
        """Return the newest timeline on which a member accepts writes."""
        return max((place.timeline for place in self.places().values()), default=0)

    def wait_promoted(self, after: int) -> Member:
        """Wait until a member accepts writes on a timeline after this one; return it."""
        eventually(self.timeline, lambda timeline: timeline > after, patience=PATIENCE)
        return self._leader()

    def wait_healthy(self) -> Member:
        """Wait until one member is the primary and all others have caught up, one of them as the synchronous standby.

        Return the primary.
        """

        def look() -> bool:
            places = self.places().values()
            caught_up = [place.standbys for place in places if not place.in_recovery] == [len(self.members) - 1]
            return caught_up and ("sync_standby" in self._roles()) is self._synchronous

        eventually(look, patience=PATIENCE)
        return self._leader()

    def _roles(self) -> list[str]:
        """Return the roles of all members, as the cluster's leader knows them."""
        with suppress(httpx.HTTPError):
            answer = httpx.get(f"http://127.0.0.1:{self._leader().rest}/cluster")
            return [member["role"] for member in answer.json()["members"]]
        return []

    def _leader(self) -> Member:
        leader = eventually(self.primary, lambda found: found is not None)
        assert leader is not None
        return leader

    def configure(self, *, synchronous: bool) -> None:
        """Switch synchronous replication on or off."""
        self._synchronous = synchronous
        httpx.patch(
            f"http://127.0.0.1:{self._leader().rest}/config", json={"synchronous_mode": synchronous}
        ).raise_for_status()
        self.wait_healthy()

    def switch_over(self, leader: Member) -> None:
        """Ask for another leader, as an administrator does before a maintenance."""
        answer = httpx.post(
            f"http://127.0.0.1:{leader.rest}/switchover", json={"leader": leader.name}, timeout=PATIENCE
        )
        assert answer.is_success, answer.text

    @contextmanager
    def proxied(self) -> Iterator[str]:
        """Run haproxy, which leads to the primary; yield a conninfo, without a database."""
        port = free_port()
        servers = [f"server {each} 127.0.0.1:{each.port} maxconn 100 check port {each.rest}" for each in self.members]
        lines = [
            *("global", "maxconn 200", "defaults", "mode tcp", "timeout connect 2s"),
            *("timeout client 1h", "timeout server 1h", "timeout check 2s"),
            *(
                "listen primary",
                f"bind 127.0.0.1:{port}",
                "option httpchk GET /primary",
                "http-check expect status 200",
            ),
            "default-server inter 1s fall 2 rise 1 on-marked-down shutdown-sessions",
            *servers,
        ]
        file = self._folder / "haproxy.cfg"
        file.write_text("".join(f"{line}\n" for line in lines))
        program = shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin")
        assert program is not None
        balancer = run([program, "-db", "-f", str(file)], file.with_suffix(".log"))
        try:
            yield make_conninfo("", host="127.0.0.1", port=port, user="postgres", connect_timeout=2)
        finally:
            _end(balancer)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def _answers(address: str) -> bool:
    with suppress(httpx.HTTPError):
        return httpx.get(address).status_code == httpx.codes.OK
    return False


def lasting(seconds: float) -> None:
    """Let a harm last."""
    moment = time.monotonic() + seconds
    eventually(lambda: time.monotonic() >= moment, patience=seconds + PATIENCE)
