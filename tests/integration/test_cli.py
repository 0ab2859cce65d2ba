"""The command as a user sees it: help, clear errors, exit codes, and no secret anywhere."""

import re
import socket
import sys
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner
from tests.conftest import Database
from tests.samples import samples
from tests.support import ExporterProcess, Process, eventually, run_command

from mfg_notify import __version__
from mfg_notify.cli import main
from mfg_notify.core.catalogue import SPECIFIED
from mfg_notify.postgres.connection import complete_conninfo, describe

SECRET = "s3cr3t-w0rd"  # noqa: S105


def test_help_and_version() -> None:
    assert run_command("--version") == (0, f"mfg-notify, version {__version__}\n")
    for command in (
        "run", "migrate up", "migrate down", "migrate status", "migrate sql", "doctor", "tail", "demo", "simulate",
        "dashboards write", "dashboards merge", "backfill", "verify",
    ):  # fmt: skip
        result = CliRunner().invoke(main, [*command.split(), "--help"])
        assert result.exit_code == 0
        assert len(result.output.splitlines()) > 5
    code, text = run_command("run", "--help")
    assert code == 0
    for option in re.findall(r"^  (--[\w.-]+)", text, flags=re.MULTILINE):
        name = option.removeprefix("--").replace(".", "_").replace("-", "_").upper()
        assert option == "--help" or f"MFG_NOTIFY_{name}" in text


@pytest.mark.parametrize(
    "dsn",
    [
        f"host=127.0.0.1 port=1 user=u password={SECRET} dbname=d",
        f"postgresql://u:{SECRET}@127.0.0.1:1/d",
        f"postgresql://127.0.0.1:1/d?user=u&password={SECRET}",
        f"postgres:/u:{SECRET}@127.0.0.1/d",
        f"postgresql://u:{SECRET}@oops@127.0.0.1:1/d",
        f"postgresql://u:x@{SECRET}@127.0.0.1:1/d",
        f"host=127.0.0.1 port=1 password={SECRET} nonsense={SECRET}",
        f"host=127.0.0.1 port=1 password='{SECRET}",
        f"{SECRET}",
        f"postgresql://u:{SECRET}@127.0.0.1:{SECRET}/d",
    ],
)
def test_no_password_in_any_error(dsn: str) -> None:
    code, text = run_command("migrate", "up", "--dsn", dsn)
    assert code in (1, 2)
    assert text.startswith("Error: ")
    assert "Traceback" not in text
    assert SECRET not in text


def test_no_password_in_log_or_pages() -> None:
    with ExporterProcess(f"postgresql://u:{SECRET}@127.0.0.1:1/d") as exporter:
        eventually(lambda: "waiting for the database" in exporter.read_log())
        pages = [exporter.get(path).text for path in ("/", "/-/ready", "/metrics")]
        assert SECRET not in exporter.read_log() + "".join(pages)


def test_described_without_secrets() -> None:
    assert describe(complete_conninfo(f"postgresql://u:{SECRET}@db.example:5433/game")) == "u@db.example:5433/game"


def test_what_the_dsn_says_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "connect_timeout=9" in complete_conninfo("connect_timeout=9")
    assert "application_name='my own'" in complete_conninfo("application_name='my own'")
    monkeypatch.setenv("PGAPPNAME", "from outside")
    assert "application_name" not in complete_conninfo("")


@pytest.mark.slow
@pytest.mark.extended
def test_errors_say_what_to_do(database: Database) -> None:
    code, text = run_command("migrate", "up", "--dsn", database.dsn, "--game-schema", "nowhere")
    assert (code, "nowhere.manufacturing_tasks (the table is missing)" in text) == (1, True)
    code, text = run_command("migrate", "status", "--dsn", database.dsn, "--game-schema", "nowhere")
    assert (code, "see --game-schema" in text) == (1, True)
    with ExporterProcess(database.dsn) as exporter:
        eventually(lambda: "run `mfg-notify migrate up`" in exporter.get("/-/ready").text)
    with ExporterProcess(database.dsn.replace(database.name, "no_such_database")) as exporter:
        eventually(lambda: "does not exist" in exporter.get("/-/ready").text)
    with database.connect() as connection:
        connection.execute(
            "DO $$ BEGIN CREATE ROLE mfg_test_ordinary LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$"
        )
    ordinary = database.dsn + " user=mfg_test_ordinary"
    code, text = run_command("migrate", "up", "--dsn", ordinary)
    assert (code, "permission denied" in text, "use the role that owns the game's tables" in text) == (1, True, True)
    code, text = run_command("migrate", "up", "--dsn", "host=/nowhere dbname=d")
    assert (code, "for another server give --dsn, MFG_NOTIFY_DSN or PGHOST" in text) == (1, True)
    assert run_command("migrate", "up", "--dsn", database.dsn)[0] == 0
    with ExporterProcess(ordinary) as exporter:
        eventually(lambda: "permission denied for schema mfg_notify" in exporter.get("/-/ready").text)


@pytest.mark.parametrize(
    ("option", "wrong", "said", "expected"),
    [
        ("--web.listen-address", "9810", "is not host:port", 2),
        ("--web.listen-address", "127.0.0.1:99999", "is not host:port", 2),
        ("--web.listen-address", "256.0.0.1:0", "cannot listen on", 1),
        ("--web.telemetry-path", "metrics", "must begin with /", 2),
        ("--web.grafana-url", "grafana", "must look like https://", 2),
        ("--reconcile-interval", "soon", "is not a duration", 2),
        ("--reconcile-interval", "0s", "is not a duration", 2),
        ("--log.level", "loud", "Invalid value", 2),
    ],
)
def test_wrong_options(option: str, wrong: str, said: str, expected: int) -> None:
    code, text = run_command("run", option, wrong)
    assert code == expected
    assert said in text
    assert "Traceback" not in text


@pytest.mark.parametrize("word", ["always", "adaptive", "never"])
def test_the_notify_policy_is_lower_case(word: str) -> None:
    assert main.commands["run"].make_context("run", ["--notify", word]).params["notify"] == word


def test_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, text = run_command("run", "--web.listen-address", f"127.0.0.1:{taken.getsockname()[1]}")
    assert code == 1
    assert "Address already in use; choose another with --web.listen-address or MFG_NOTIFY_WEB_LISTEN_ADDRESS" in text


def test_missing_column_is_named_by_the_exporter(installed: Database) -> None:
    with installed.connect() as connection, ExporterProcess(installed.dsn, "--reconcile-interval", "200ms") as exporter:
        exporter.wait_ready()
        connection.execute("ALTER TABLE manufacturing_tasks DROP COLUMN ready_at")
        eventually(lambda: "lack what is needed: public.manufacturing_tasks.ready_at" in exporter.get("/-/ready").text)
        assert exporter.page()
        connection.execute("ALTER TABLE manufacturing_tasks ADD COLUMN ready_at timestamptz")
        exporter.wait_ready()


@pytest.mark.slow
def test_a_dropped_table_is_named_and_restored(installed: Database) -> None:
    with installed.connect() as connection:
        connection.execute("DROP TABLE mfg_notify.recent")
    with ExporterProcess(installed.dsn) as exporter:
        said = eventually(lambda: exporter.get("/-/ready").text, lambda text: "mfg_notify.recent" in text)
        assert "run `mfg-notify migrate up`" in said
        assert run_command("migrate", "up", "--dsn", installed.dsn)[0] == 0
        exporter.wait_ready()


def test_http(installed: Database) -> None:
    with ExporterProcess(installed.dsn, "--web.telemetry-path", "/m", "--web.listen-address", "[::1]:0") as exporter:
        exporter.wait_ready()
        plain = exporter.get("/m")
        assert plain.headers["content-type"].startswith("text/plain; version=")
        assert plain.headers["content-encoding"] == "gzip"
        uncompressed = httpx.get(exporter.address + "/m", headers={"accept-encoding": "identity"})
        assert "content-encoding" not in uncompressed.headers
        openmetrics = httpx.get(
            exporter.address + "/m", headers={"accept": "application/openmetrics-text;version=1.0.0"}
        )
        assert openmetrics.headers["content-type"].startswith("application/openmetrics-text")
        assert openmetrics.text.endswith("# EOF\n")
        assert exporter.get("/-/healthy").status_code == 200
        assert exporter.get("/metrics").status_code == 404
        assert exporter.get("/m/").status_code == 404
        assert '<a href="./m">' in exporter.get("/").text
        assert httpx.post(exporter.address + "/m").status_code == 405
        assert exporter.read_log().count("msg=serving") + exporter.read_log().count("event=serving") == 2


@pytest.mark.slow
def test_simulate_refuses_a_game_that_it_did_not_create(installed: Database, database: Database) -> None:
    code, text = run_command("simulate", "--dsn", installed.dsn, "--duration", "1s")
    assert code == 1
    assert "holds a game that is not simulated" in text
    with database.connect() as connection:
        connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    for daemon in ("classic", "construction"):
        code, text = run_command(
            "simulate", "--dsn", database.dsn, "--duration", "500ms", "--rate", "100", "--players", "1",
            "--daemon", daemon, "--era", "24",
        )  # fmt: skip
        assert code == 0, text
        assert re.search(r"played [1-9]\d* changes", text)
    with database.connect() as connection:
        open_eras = connection.execute("SELECT count(DISTINCT player_id) FROM eras WHERE closed_at IS NULL").fetchone()
    assert open_eras == (2,)


@pytest.mark.slow
@pytest.mark.extended
def test_demo_shows_every_specified_metric_and_cleans_up() -> None:
    options = ("--web.listen-address", "127.0.0.1:0", "--speed", "60", "--players", "1")
    command = [sys.executable, "-m", "mfg_notify", "demo", *options]
    with Process(command) as demo:
        try:
            printed = demo.wait_for("Ctrl-C ends it")
            url = re.search(r"http://\S+", printed)
            folder = re.search(r"host=(\S+)", printed)
            assert url is not None
            assert folder is not None
            # Every metric must move; not all are above 0 at the same moment.
            still = {metric.full_name + ("_count" if metric.buckets else "") for metric in SPECIFIED}

            def look() -> set[str]:
                still.difference_update(name for (name, _), n in samples(httpx.get(url[0]).text).items() if n)
                return still

            eventually(look, lambda missing: not missing)
            assert demo.terminate() == 0
            assert not Path(folder[1]).exists()
        finally:
            # Do not kill it: its server would stay behind.
            demo.terminate()
