"""A password appears nowhere: not in logs, errors, pages or process titles."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from itertools import cycle
from pathlib import Path
from urllib.parse import quote

import pytest
from psycopg.conninfo import conninfo_to_dict
from tests.conftest import Database
from tests.support import ExporterProcess, Process, clean_environment, eventually, run_command

pytestmark = pytest.mark.slow

SECRET = "Tr0ub4dor&3 'is' @home/secret"  # noqa: S105 - of nobody
FORMS = {SECRET, quote(SECRET, safe=""), SECRET.replace("'", "\\'"), "Tr0ub4dor", "@home", "secret"}
"""None of these may appear."""

Way = tuple[str, dict[str, str]]
"""A DSN, and variables of the environment that complete it."""


def server_of(database: Database) -> dict[str, object]:
    """Return the connection parameters of a database by libpq's names."""
    return {"port": 5432, **conninfo_to_dict(database.dsn)}


def uri(user: str, given: Mapping[str, object], more: str = "") -> str:
    return (
        f"postgresql://{user}@/{given['dbname']}?host={quote(str(given['host']), safe='')}&port={given['port']}{more}"
    )


def keywords(given: Mapping[str, object]) -> str:
    return " ".join(f"{name}={given[name]}" for name in ("host", "port", "user", "dbname"))


def in_file(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    path.chmod(0o600)
    return str(path)


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


WAYS: dict[str, Callable[[Mapping[str, object], Path], Way]] = {
    "URI, user": lambda given, _: (uri(f"{given['user']}:{quote(SECRET, safe='')}", given), {}),
    "URI, parameter": lambda given, _: (uri(str(given["user"]), given, f"&password={quote(SECRET, safe='')}"), {}),
    "keyword": lambda given, _: (f"{keywords(given)} password={_quoted(SECRET)}", {}),
    "PGPASSWORD": lambda given, _: (keywords(given), {"PGPASSWORD": SECRET}),
    "passfile in the DSN": lambda given, folder: (
        f"{keywords(given)} passfile={in_file(folder, 'pass', f'*:*:*:*:{SECRET}')}",
        {},
    ),
    "DSN file": lambda given, folder: (
        "",
        {"MFG_NOTIFY_DSN_FILE": in_file(folder, "dsn", f"{keywords(given)} password={_quoted(SECRET)}\n")},
    ),
    "PGPASSFILE": lambda given, folder: (
        keywords(given),
        {"PGPASSFILE": in_file(folder, "pass", f"*:*:*:*:{SECRET}")},
    ),
    "service": lambda given, folder: (
        "service=game",
        {
            "PGSERVICEFILE": in_file(
                folder, "service", "[game]\n" + keywords(given).replace(" ", "\n") + f"\npassword={SECRET}\n"
            )
        },
    ),
}
WRONG = (
    f"postgresql://game:{SECRET}@db/game",
    f"postgresql://game:{quote(SECRET, safe='')}@db:port/game",
    f"postgresql://game:{quote(SECRET, safe='')}@[db/game",
    f"postgresql://game@db/game?password={quote(SECRET, safe='')}&nonsense=1",
    f"postgresql://game@db/game?port={quote(SECRET, safe='')}",
    f"host=/nowhere password={_quoted(SECRET)} connect_timeout=soon",
    f"host=/nowhere password={_quoted(SECRET)} sslmode=never",
    f"host=/nowhere port={_quoted(SECRET)}",
    f"host=/nowhere sslmode={_quoted(SECRET)}",
    f"host=/nowhere gssencmode={_quoted(SECRET)}",
    f"host=/nowhere target_session_attrs={_quoted(SECRET)}",
    f"password={SECRET}",
    f"password='{SECRET}",
    SECRET,
)
"""DSNs that cannot work, some with the password in the wrong place."""


def assert_hidden(text: str) -> None:
    found = [form for form in FORMS if form in text]
    assert not found, f"{found} in {text[:2000]}"


def title(process: int) -> str:
    return Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace")


@pytest.mark.parametrize(("way", "log_format"), list(zip(WAYS, cycle(["logfmt", "json", "console"]), strict=False)))
def test_a_running_exporter(way: str, log_format: str, installed: Database, tmp_path: Path) -> None:
    dsn, more = WAYS[way](server_of(installed), tmp_path)
    with ExporterProcess(dsn, "--log.level", "debug", "--log.format", log_format, environment=more) as exporter:
        exporter.wait_ready()
        with installed.connect() as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'mfg-notify'"
            )
        eventually(lambda: "waiting for the database" in exporter.read_log())
        exporter.wait_ready()
        assert_hidden(title(exporter.process.pid))
        for page in ("/", "/metrics", "/-/ready", "/-/healthy"):
            assert_hidden(exporter.get(page).text)
        assert exporter.terminate() == 0
        assert_hidden(exporter.read_log())


@pytest.mark.thorough
@pytest.mark.parametrize("way", WAYS)
def test_migrate_simulate_and_doctor(way: str, database: Database, tmp_path: Path) -> None:
    dsn, more = WAYS[way](server_of(database), tmp_path)
    codes = []
    for command in (
        ["doctor"], ["migrate", "up"], ["doctor", "--json"], ["migrate", "status"], ["simulate"],
        ["migrate", "down"], ["tail"],
    ):  # fmt: skip
        code, text = run_command(*command, "--dsn", dsn, environment=more)
        codes.append(code)
        assert_hidden(text)
    # The refusals: not installed yet, not a simulated game, no longer installed.
    assert codes == [1, 0, 0, 0, 1, 0, 1]


@pytest.mark.parametrize("dsn", WRONG)
@pytest.mark.parametrize("by", ["option", "variable"])
def test_a_dsn_that_cannot_work(dsn: str, by: str) -> None:
    options, more = (["--dsn", dsn], {}) if by == "option" else ([], {"MFG_NOTIFY_DSN": dsn})
    code, text = run_command("migrate", "status", *options, environment=more)
    # Some of it libpq finds out only when it connects.
    assert code in (1, 2)
    assert "Error: " in text
    assert_hidden(text)


def test_a_dsn_as_an_unexpected_argument() -> None:
    dsn = f"postgresql://game:{quote(SECRET, safe='')}@db/game"
    code, text = run_command("migrate", "status", dsn)
    assert code == 2
    assert "--dsn" in text
    assert_hidden(text)


def test_the_title_of_a_waiting_exporter() -> None:
    with ExporterProcess(f"host=/nowhere dbname=game password={_quoted(SECRET)}") as exporter:
        eventually(lambda: "waiting for the database" in exporter.read_log())
        assert "mfg_notify" in title(exporter.process.pid)
        assert_hidden(title(exporter.process.pid))
        assert_hidden(exporter.get("/-/ready").text)
        assert_hidden(exporter.read_log())


@pytest.mark.parametrize("separate", [True, False], ids=["--dsn DSN", "--dsn=DSN"])
def test_other_arguments_and_the_environment_stay(separate: bool) -> None:
    dsn = f"host=/nowhere dbname=game password={_quoted(SECRET)}"
    command = [sys.executable, "-m", "mfg_notify", "run", *(["--dsn", dsn] if separate else [f"--dsn={dsn}"])]
    command += ["--web.listen-address", "127.0.0.1:0"]
    with Process(command) as exporter:
        exporter.wait_for("waiting for the database")
        shown = title(exporter.process.pid).rstrip("\0").split("\0")
        assert shown == [argument.replace(dsn, "*") for argument in command]
        variables = Path(f"/proc/{exporter.process.pid}/environ").read_bytes().removesuffix(b"\0").split(b"\0")
        assert set(variables) == {os.fsencode(f"{name}={text}") for name, text in clean_environment().items()}


def test_arguments_that_cannot_be_changed_are_reported() -> None:
    without_proc = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /proc && exec "$@"', "sh"]
    if shutil.which("unshare") is None or subprocess.run([*without_proc, "true"], check=False).returncode:
        pytest.skip("needs the right to mount")
    command = [*without_proc, sys.executable, "-m", "mfg_notify", "migrate", "status", "--dsn", f"password={SECRET}"]
    with Process(command) as migrate:
        assert_hidden(migrate.find("Error: .*\n").string)
        assert "use --dsn-file" in migrate.read_log()
