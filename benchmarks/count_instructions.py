"""Count the processor instructions that the triggers add to a statement of the game: a cost that no load changes.

    python -m benchmarks.count_instructions [--bindir DIR] [--check | --write]

Makes a server of its own, fills one database without triggers and one with them, stops the server, and runs each
statement in PostgreSQL's single-user mode under valgrind. Two runs differ by 60 statements, each a transaction of its
own, so that the start of the server cancels out. Repeatable to about one percent. As root it works as user postgres.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import psycopg
from psycopg import sql

from mfg_notify.postgres import migrations

HERE = Path(__file__).parent
BASELINE = HERE / "instructions.json"
DEBIAN_15 = Path("/usr/lib/postgresql/15/bin")
TOLERANCE = 0.05
"""A count may rise by this share before `--check` fails."""
WARM, MEASURED = 30, 60
"""Statements that fill the caches, and those that are counted."""
ROWS = 25
"""Rows that are changed in turn."""

SAVE = """UPDATE manufacturing_tasks SET pipeline_id = 'p%d', player_id = 1, task_type = 'COLLECT_SELL', {},
good = 'GOOD_1', quantity = 10, actual_quantity = 0, source_market = 'X1-AB12-C3', target_market = 'X1-AB12-D4',
factory_symbol = 'X1-AB12-E5', priority = priority + 1, retry_count = 0, max_retries = 3, total_cost = 0,
total_revenue = 0, error_message = '', collect_phase_completed = false, acquire_phase_completed = false,
created_at = '2026-01-01 00:00:00+00' WHERE id = 't%d'"""
SUPPLY = """UPDATE manufacturing_factory_states
SET current_supply = CASE current_supply WHEN 'HIGH' THEN 'LIMITED' ELSE 'HIGH' END WHERE id = {}"""
SUPPLY = """UPDATE manufacturing_factory_states
SET current_supply = CASE current_supply WHEN 'HIGH' THEN 'LIMITED' ELSE 'HIGH' END WHERE id = {}"""
STATEMENTS = {
    "task changes": SAVE.format(
        "status = CASE status WHEN 'READY' THEN 'ASSIGNED' ELSE 'READY' END, assigned_ship = 'SHIP-1', "
        "ready_at = now(), started_at = now(), completed_at = now()"
    ),
    "Save changes nothing watched": SAVE.format("status = status, assigned_ship = assigned_ship, ready_at = ready_at"),
    "pipeline changes": """UPDATE manufacturing_pipelines SET total_cost = total_cost + 1,
        started_at = now(), completed_at = now() WHERE id = 'p%d'""",
    "supply changes": SUPPLY.format("15025 + %d"),
    "supply of an old row changes": SUPPLY.format("%d"),
}
"""What the game does to row %d, by name."""
DATABASES = {
    "bare": None,
    "notify off": "SELECT setval('mfg_notify.notify_disabled', 1)",
    "notify on": "SELECT setval('mfg_notify.notify_disabled', 0)",
}
"""With triggers or without, and what the triggers are told."""

Counts = dict[str, dict[str, int]]
"""Instructions of one statement: bare, and what the triggers add with NOTIFY off and on."""


@dataclass
class Cluster:
    """A server that lives in a folder of its own and is only ever started to be filled."""

    bindir: Path
    folder: Path
    _prefix: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        self._prefix = ("runuser", "-u", "postgres", "--") if os.getuid() == 0 else ()

    @cached_property
    def data(self) -> Path:
        """Where its data is."""
        return self.folder / "data"

    def run(self, *command: str | Path, script: str | None = None) -> str:
        """Run a program with `script` as its input; return what it says on standard error."""
        done = subprocess.run(
            [*self._prefix, *map(str, command)],
            input=script,
            capture_output=True,
            text=True,
            cwd=self.folder,
            check=False,
            start_new_session=True,
        )
        if done.returncode or "ERROR:" in done.stderr:
            sys.exit(f"{' '.join(map(str, command))}: {done.stdout[-500:]}{done.stderr[-1500:]}")
        return done.stderr

    def fill(self) -> None:
        """Make the cluster and its databases."""
        if os.getuid() == 0:
            shutil.chown(self.folder, "postgres")
        self.run(self.bindir / "initdb", "-A", "trust", "-U", "postgres", "-E", "UTF8", "--no-locale", "-D", self.data)
        with (self.data / "postgresql.conf").open("a") as conf:
            conf.write(f"unix_socket_directories='{self.folder}'\nlisten_addresses=''\nfsync=off\nautovacuum=off\n")
        self.run(self.bindir / "pg_ctl", "-D", self.data, "-w", "-l", self.folder / "log", "start")
        try:
            for name, told in DATABASES.items():
                self._make_game(name, told)
        finally:
            self.run(self.bindir / "pg_ctl", "-D", self.data, "-w", "-m", "fast", "stop")

    def _make_game(self, name: str, told: str | None) -> None:
        server = f"host={self.folder} user=postgres"
        with psycopg.connect(f"{server} dbname=postgres", autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        with psycopg.connect(f"{server} dbname='{name}'", autocommit=True) as connection:
            for script in (HERE.parent / "src/mfg_notify/demo/game_schema.sql", HERE / "instructions.sql"):
                connection.execute(script.read_bytes())
            if told is not None:
                migrations.up(connection, "public", print)
                connection.execute(told.encode())
            connection.execute("VACUUM (ANALYZE)")

    def count(self, database: str, script: str) -> int:
        """Return how many instructions the server executes for a script, its start and end included."""
        command = ("valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null")
        # On a copy, so that no run finds the dead rows of another.
        with tempfile.TemporaryDirectory(dir=self.folder) as place:
            copy = Path(place) / "data"
            subprocess.run(["cp", "-a", self.data, copy], check=True)
            if os.getuid() == 0:
                shutil.chown(place, "postgres")
            said = self.run(*command, self.bindir / "postgres", "--single", "-D", copy, database, script=script)
        found = re.search(r"Collected : (\d+)", said)
        if found is None:
            sys.exit(f"valgrind did not count: {said[-1500:]}")
        return int(found[1])


def lines(statement: str, first: int, count: int) -> str:
    """Return a statement for so many rows in turn, a line each."""
    one_line = " ".join(statement.split())
    return "".join(one_line.replace("%d", str(1 + number % ROWS)) + ";\n" for number in range(first, first + count))


def measure(bindir: Path) -> Counts:
    """Return the counts by statement."""
    found: Counts = {}
    with tempfile.TemporaryDirectory(prefix="instructions-") as folder:
        cluster = Cluster(bindir, Path(folder))
        cluster.fill()
        warm = "".join(lines(statement, 0, WARM) for statement in STATEMENTS.values())
        for database in DATABASES:
            start = cluster.count(database, warm)
            for name, statement in STATEMENTS.items():
                each = (cluster.count(database, warm + lines(statement, WARM, MEASURED)) - start) // MEASURED
                counts = found.setdefault(name, {})
                counts[database] = each - counts.get("bare", 0)
                print(f"{counts[database]:12,}  {name}, {database}", flush=True)
    return found


def main() -> int:
    """Measure; compare with the baseline, or become it."""
    parser = argparse.ArgumentParser(prog="count_instructions", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--bindir", type=Path, default=DEBIAN_15, help="folder with initdb, pg_ctl and postgres")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help=f"fail if a count is {TOLERANCE:.0%} above {BASELINE.name}")
    what.add_argument("--write", action="store_true", help=f"write {BASELINE.name}")
    options = parser.parse_args()
    found = measure(options.bindir)
    if options.write:
        BASELINE.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if options.check:
        baseline: Counts = json.loads(BASELINE.read_text(encoding="utf-8"))
        dearer = [
            f"{name}, {database}: {found[name][database]:,} instructions, {allowed:,} before"
            for name, counts in baseline.items()
            for database, allowed in counts.items()
            if database != "bare" and found[name][database] > allowed * (1 + TOLERANCE)
        ]
        print("\n".join(dearer) or "no statement costs the game more than before")
        return 1 if dearer else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
