"""What an exporter logs: each state once when it begins and once when it ends, in fields, and nothing of the game's."""

import json
import socket
import subprocess
import sys
from typing import Any, LiteralString

import psycopg
import pytest
from tests.conftest import Database, Postgres, create_game_tables
from tests.samples import number
from tests.support import ROOT, ExporterProcess, eventually, free_port

from mfg_notify import __version__
from mfg_notify.postgres import migrations

pytestmark = pytest.mark.slow

ATTEMPTS = 5
"""Tries to connect that one line stands for."""
JSON = ("--log.format", "json", "--reconcile-interval", "200ms")
STARTED = [("info", "serving"), ("info", "became the active exporter"), ("info", "connected")]
WAITING = ("warning", "waiting for the database")
STOPPED = [("info", "stopping"), ("info", "stopped")]
RECONCILED = "mfg_notify_reconcile_duration_seconds_count"


def lines(exporter: ExporterProcess) -> list[dict[str, Any]]:
    """Return the fields of every line."""
    return [json.loads(line) for line in exporter.read_log().splitlines()]


def said(exporter: ExporterProcess) -> list[tuple[str, str]]:
    """Return level and event of every line."""
    return [(line["level"], line["event"]) for line in lines(exporter)]


def reconcile(exporter: ExporterProcess, times: int = 3) -> None:
    """Wait for some reconciliations that begin after now."""
    before = number(exporter.page(), RECONCILED)
    eventually(exporter.page, lambda page: number(page, RECONCILED) > before + times)


@pytest.mark.thorough
def test_the_database_goes_and_comes(postgres: Postgres) -> None:
    port = free_port()
    with postgres.make({"listen_addresses": "127.0.0.1", "port": str(port)}) as server:
        create_game_tables(server.dsn())
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            migrations.up(connection, "public", print)
        dsn = server.dsn(host="127.0.0.1")
        with ExporterProcess(dsn, *JSON) as exporter:
            exporter.wait_ready()
            for _ in range(2):
                server.stop()
                eventually(lambda: exporter.get("/-/ready").status_code == 503)
                # Where the server was, every try is heard and refused.
                with socket.create_server(("127.0.0.1", port)) as nobody:
                    for _ in range(ATTEMPTS):
                        nobody.accept()[0].close()
                server.start()
                exporter.wait_ready()
                reconcile(exporter)
            assert exporter.terminate() == 0
            assert said(exporter) == [*STARTED, WAITING, STARTED[-1], WAITING, STARTED[-1], *STOPPED]
            serving, _, connected, waiting, *_, stopping, _ = lines(exporter)
            assert serving["address"] == exporter.address
            assert serving["version"] == __version__
            assert connected["database"] == f"postgres@127.0.0.1:{port}/postgres"
            assert waiting["reason"] == "unavailable"
            assert waiting["error"]
            assert stopping["signal"] == "SIGTERM"
            assert all(line["timestamp"].endswith("Z") for line in lines(exporter))


def test_triggers_disabled_and_enabled(installed: Database) -> None:
    with installed.connect() as connection, ExporterProcess(installed.dsn, *JSON) as exporter:
        exporter.wait_ready()
        for what, logged in (("DISABLE", "triggers are missing or disabled; run `mfg-notify migrate up`"),
                             ("ENABLE", "all triggers are enabled again")):  # fmt: skip
            statement: LiteralString = f"ALTER TABLE manufacturing_tasks {what} TRIGGER mfg_notify_insert"
            connection.execute(statement)
            eventually(lambda logged=logged: logged in exporter.read_log())  # type: ignore[misc]
            reconcile(exporter)
        assert said(exporter)[3:] == [
            ("error", "triggers are missing or disabled; run `mfg-notify migrate up`"),
            ("info", "all triggers are enabled again"),
        ]
        assert {"table": "manufacturing_tasks", "enabled": 3}.items() <= lines(exporter)[3].items()


def test_what_is_no_event(installed: Database) -> None:
    with installed.connect() as connection, ExporterProcess(installed.dsn, *JSON) as exporter:
        exporter.wait_ready()
        connection.execute("INSERT INTO mfg_notify.event (body) SELECT '[\"s3cr3t\", 1]' FROM generate_series(1, 50)")
        eventually(lambda: "not events" in exporter.read_log())
        [(channel,)] = connection.execute("SELECT channel FROM mfg_notify.settings").fetchall()
        connection.execute("SELECT pg_notify(%s, 's3cr3t')", (channel,))
        malformed = 'mfg_notify_events_rejected_total{reason="malformed"} 51.0'
        eventually(exporter.page, lambda page: malformed in page)
        reconcile(exporter)
        assert said(exporter)[3:] == [
            ("warning", "journal rows are not events; they count as nothing and are in mfg_notify.dead_letter")
        ]
        assert {"rows": 50, "last_id": 50}.items() <= lines(exporter)[3].items()
        assert "s3cr3t" not in exporter.read_log()


def test_events_of_a_newer_version(installed: Database) -> None:
    with installed.connect() as connection, ExporterProcess(installed.dsn, *JSON) as exporter:
        exporter.wait_ready()
        connection.execute("INSERT INTO mfg_notify.event (version, body) VALUES (9, '[]')")
        eventually(lambda: exporter.get("/-/ready").status_code == 503)
        reconcile(exporter)
        assert said(exporter)[3:] == [("error", "events are of a newer version; upgrade mfg-notify")]


def test_forged_events_without_end(installed: Database) -> None:
    with installed.connect() as connection, ExporterProcess(installed.dsn, "--log.format", "json") as exporter:
        exporter.wait_ready()
        [(channel,)] = connection.execute("SELECT channel FROM mfg_notify.settings").fetchall()
        for made in range(1, 4):
            forged = f'[1,{1000 + made},{1000 + made},"1970-01-01T00:00:00+00:00",["task","T"]]'
            connection.execute("SELECT pg_notify(%s, %s)", (channel, forged))
            counted = f'mfg_notify_events_rejected_total{{reason="unconfirmed"}} {made}.0'
            eventually(lambda counted=counted: counted in exporter.page())  # type: ignore[misc]
        assert said(exporter)[3:] == [
            ("warning", "notifications without an event: forged, or lost in a crash of the server")
        ]


def test_strangers_cannot_fill_it(installed: Database) -> None:
    with ExporterProcess(installed.dsn, *JSON) as exporter:
        exporter.wait_ready()
        host, port = exporter.address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as stranger:
            stranger.sendall(b"what is no HTTP\r\n\r\n")
            assert stranger.recv(1000).startswith(b"HTTP/1.1 400")
        assert exporter.terminate() == 0
        assert said(exporter) == [*STARTED, *STOPPED]


LIBRARY = """
import logging, sys, warnings
from mfg_notify import logs
logs.configure("info", sys.argv[1])
logging.getLogger("somewhere").info("nobody wants to know")
try:
    1 / 0
except ZeroDivisionError:
    logging.getLogger("uvicorn.error").exception("Exception in ASGI application")
warnings.warn("a warning of Python's")
"""


@pytest.mark.parametrize("log_format", ["json", "logfmt", "console"])
def test_what_libraries_log_has_the_same_form(log_format: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIBRARY, log_format], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert "nobody wants" not in done.stderr
    assert "ZeroDivisionError" in done.stderr
    if log_format == "console":
        assert "[error    ] Exception in ASGI application" in done.stderr
        return
    error, warning = done.stderr.splitlines()
    if log_format == "json":
        assert json.loads(error)["level"] == "error"
        assert json.loads(error)["exception"].startswith("Traceback")
        assert "a warning of Python's" in json.loads(warning)["event"]
    else:
        assert 'level=error event="Exception in ASGI application" exception="Traceback' in error
        assert "level=warning" in warning
