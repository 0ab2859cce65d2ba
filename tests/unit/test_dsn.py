"""A DSN with a password: it is understood as it is meant, or refused without repeating any of it."""

from pathlib import Path
from urllib.parse import quote

import pytest
from click.testing import CliRunner
from hypothesis import example, given, settings
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict

from mfg_notify.cli.main import main
from mfg_notify.errors import UsageError
from mfg_notify.postgres.connection import complete_conninfo, describe, split_servers, target_of
from mfg_notify.postgres.servers import Servers

PASSWORDS = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=6, max_size=24)
"""What people type and forget to escape."""


def parts(password: str) -> list[str]:
    """Return the parts of a password that no message may repeat: three characters in a row tell enough."""
    return [password[n : n + 4] for n in range(len(password) - 3)]


@given(PASSWORDS)
@settings(max_examples=1000, deadline=None)
@example("Hunter2/2secret")
@example("12/3secret")
@example("2secret@/game")
@example("a?b=c&user=Hunter2")
@example("a#secret")
@example("[::1]:5432/secret")
@example('00"00%')
@example("000%80")
@example("game00")
def test_a_password_that_is_not_escaped(password: str) -> None:
    dsn = f"postgresql://bot:{password}@game.example/db"
    try:
        conninfo = complete_conninfo(dsn)
    except UsageError as error:
        said = str(error)
        # Apart from the words of the message itself.
        assert not [part for part in parts(password) if part in said and part not in ADVICE], said
        return
    found = conninfo_to_dict(conninfo)
    shown = describe(conninfo)
    assert (found["user"], found["host"], found["dbname"]) == ("bot", "game.example", "db")
    known = describe(complete_conninfo("postgresql://bot@game.example/db"))
    assert not [part for part in parts(str(found["password"])) if part in shown and part not in known]


ADVICE = (
    "the DSN is ambiguous: it has more than one '@', or one after its first '/', '?' or '#'; in user and password "
    "write %40 for '@', %2F for '/', %3F for '?' and %23 for '#' the DSN cannot be parsed invalid percent-encoded "
    "token: forbidden value %00 in percent-encoded value; it looks like postgresql://user@host:5432/database or "
    "host=… dbname=… user=… a percent-encoded value in it is not UTF-8"
)


@given(PASSWORDS)
@settings(max_examples=300, deadline=None)
def test_a_password_that_is_escaped(password: str) -> None:
    found = conninfo_to_dict(complete_conninfo(f"postgresql://bot:{quote(password, safe='')}@game.example/db"))
    assert (found["password"], found["host"]) == (password, "game.example")


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://bot:Hunter2secret/game",
        "postgresql://bot:12345678/game",
        "postgresql://bot:0",
        "postgresql://bot:Hunter2secret?sslmode=disable",
        "postgresql://a:5432,bot:Hunter2secret/game",
        "host=db.example port=Hunter2secret",
    ],
)
def test_a_password_in_place_of_the_port(dsn: str) -> None:
    """Without `@host`, libpq takes the password for a port, and an error would name it."""
    with pytest.raises(UsageError, match="a port in the DSN is not a number from 1 to 65535"):
        complete_conninfo(dsn)


def test_a_dsn_that_libpq_would_read_in_part() -> None:
    with pytest.raises(UsageError, match="the DSN contains the character 0"):
        complete_conninfo("host=db.example password='Hunter\0002secret' dbname=game")


def test_ports_that_libpq_takes() -> None:
    for ports in ("5432", "1,65535", "5432,,5433", " 5432 ", ""):
        assert target_of(complete_conninfo(f"host=a,b,c port='{ports}'")).port == ports


@pytest.mark.parametrize(
    ("arguments", "text", "said", "expected"),
    [
        (["--dsn", "host=/nowhere"], "host=/nowhere", "give either --dsn or --dsn-file", 2),
        ([], "", "it is empty", 1),
        ([], None, "No such file or directory", 1),
    ],
)
def test_a_file_with_the_dsn(tmp_path: Path, arguments: list[str], text: str | None, said: str, expected: int) -> None:
    file = tmp_path / "dsn"
    if text is not None:
        file.write_text(text, encoding="utf-8")
    result = CliRunner().invoke(main, ["migrate", "status", *arguments, "--dsn-file", str(file)])
    assert result.exit_code == expected
    assert said in result.output


def test_the_file_decides_where_to_connect(tmp_path: Path) -> None:
    file = tmp_path / "dsn"
    file.write_text("host=/nowhere/at/all dbname=game password=Hunter2secret\n", encoding="utf-8")
    result = CliRunner().invoke(main, ["migrate", "status"], env={"MFG_NOTIFY_DSN_FILE": str(file)})
    assert "/nowhere/at/all" in result.output
    assert "Hunter2secret" not in result.output


@pytest.mark.parametrize(
    ("dsn", "environment", "servers"),
    [
        ("", {}, [{}]),
        ("host=a", {}, [{"host": "a"}]),
        ("host=a,b", {}, [{"host": "a"}, {"host": "b"}]),
        ("host=a,b port=1", {}, [{"host": "a", "port": "1"}, {"host": "b", "port": "1"}]),
        ("postgresql://a:1,b:2/x", {}, [{"host": "a", "port": "1"}, {"host": "b", "port": "2"}]),
        ("host=a,b hostaddr=::1,::2", {}, [{"host": "a", "hostaddr": "::1"}, {"host": "b", "hostaddr": "::2"}]),
        ("hostaddr=::1,::2 port=1,", {}, [{"hostaddr": "::1", "port": "1"}, {"hostaddr": "::2", "port": ""}]),
        ("host=a,b port=1,2,3", {}, [{"host": "a,b", "port": "1,2,3"}]),
        ("", {"PGHOST": "a,b", "PGPORT": "1,2"}, [{"host": "a", "port": "1"}, {"host": "b", "port": "2"}]),
        ("host=c", {"PGHOST": "a,b"}, [{"host": "c"}]),
    ],
)
def test_each_server_of_a_dsn_has_a_conninfo_of_its_own(
    monkeypatch: pytest.MonkeyPatch, dsn: str, environment: dict[str, str], servers: list[dict[str, str]]
) -> None:
    for name in ("PGHOST", "PGHOSTADDR", "PGPORT"):
        monkeypatch.delenv(name, raising=False)
    for name, text in environment.items():
        monkeypatch.setenv(name, text)
    found = [conninfo_to_dict(each) for each in split_servers(complete_conninfo(dsn))]
    places = [{name: each[name] for name in ("host", "hostaddr", "port") if name in each} for each in found]
    assert places == servers
    patience = "2" if len(servers) > 1 or "," in dsn else "5"
    assert {each["connect_timeout"] for each in found} == {patience}


def test_a_server_that_works_comes_first_and_a_silent_one_last() -> None:
    servers = Servers("host=a,b,c")
    a, b, c = servers.in_order()
    servers.prefer(b)
    assert servers.in_order() == [b, a, c]
    servers.avoid(b)
    assert (servers.in_order(), servers.first) == ([a, c, b], a)
