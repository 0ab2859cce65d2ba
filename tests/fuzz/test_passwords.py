"""Passwords against every command: at a server that refuses them, a thousand at once, and in processes of their own."""

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from tests.conftest import Postgres
from tests.fuzz.dsns import FORMS
from tests.fuzz.passwords import LOG_FORMATS, PAGES, TARGET, Given, Surroundings, Way, commands_with_a_dsn, target_at
from tests.fuzz.secret import leaks
from tests.support import ExporterProcess, eventually, free_port

from mfg_notify.cli import main

pytestmark = pytest.mark.thorough
SECRET = "JQVXZZVXQJJQ"  # noqa: S105 - of nobody


@pytest.fixture(scope="module")
def port(postgres: Postgres) -> Iterator[int]:
    """Start a server that asks the role of the DSNs for a password, and has another one."""
    chosen = free_port()
    with postgres.make({"listen_addresses": "127.0.0.1", "port": str(chosen)}) as server:
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute("CREATE ROLE bot LOGIN PASSWORD 'another'")
            [(rules,)] = connection.execute("SELECT current_setting('hba_file')").fetchall()
            file = Path(rules)
            file.write_text(f"host all bot 127.0.0.1/32 scram-sha-256\n{file.read_text()}", encoding="utf-8")
            connection.execute("SELECT pg_reload_conf()")
            dsn = server.dsn(host="127.0.0.1", user="bot")
            eventually(lambda: _is_refused(dsn))
        yield chosen


def _is_refused(dsn: str) -> bool:
    try:
        psycopg.connect(dsn).close()
    except psycopg.OperationalError as error:
        return "no password supplied" in str(error)
    return False


def test_the_commands_that_take_a_dsn() -> None:
    found = {" ".join(path) for path, _ in commands_with_a_dsn(main)}
    assert found >= {"run", "doctor", "tail", "simulate", "migrate up", "migrate down", "migrate status"}


def test_passwords_that_a_server_refuses(port: int) -> None:
    target = target_at("127.0.0.1", port)
    assert target.run(target.short) > 0


@pytest.mark.parametrize("separator", ["/", "@", "?", "#", "@/"])
def test_a_password_that_is_not_escaped(separator: str, tmp_path: Path) -> None:
    ways: tuple[Way, ...] = ("option", "variable")
    for way in ways:
        Surroundings(tmp_path).check(Given(SECRET, separator, "not escaped", way, "logfmt"))


@pytest.mark.fuzz
def test_a_thousand_passwords(port: int) -> None:
    assert TARGET.run(1000) >= 1000
    assert target_at("127.0.0.1", port).run(200) >= 200


@pytest.mark.parametrize("log_format", LOG_FORMATS)
@pytest.mark.parametrize("form", ["escaped", "keyword"])
def test_a_process(form: str, log_format: str) -> None:
    """Its title, too, which everyone on the machine can read."""
    dsn = FORMS[form](f"{SECRET}/[/red] '%{SECRET}")
    with ExporterProcess(dsn, "--log.level", "debug", "--log.format", log_format) as exporter:
        exporter.wait_for("waiting for the database")
        said = "".join(exporter.get(page).text for page in PAGES)
        said += Path(f"/proc/{exporter.process.pid}/cmdline").read_bytes().decode()
        assert exporter.terminate() == 0
        said += exporter.read_log()
    assert not leaks(SECRET, said), said
