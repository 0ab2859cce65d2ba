"""DSNs: each is understood or refused in one line, and its password is repeated nowhere."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import quote

import pytest
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict
from tests.fuzz.mutation import mutated
from tests.fuzz.secret import SECRETS, leaks
from tests.fuzz.target import Check, Target

from mfg_notify.diagnosis.doctor import _connection_remedy
from mfg_notify.errors import AccessDenied, DatabaseUnavailable, SchemaNotReady, UsageError
from mfg_notify.postgres.connection import complete_conninfo, describe, target_of

SPECIAL = (
    st.sampled_from(["/", "@", "?", "#"])
    | st.sampled_from(
        [
            *"/@?#:%&=[]+ '\"\\;,|$!*(){}<>~`^é\U0001f680\0\udcff",
            *("%4", "%zz", "%00", "%ff", "[/red]", "://", "@/", "\\'", "@h/"),
        ]
    )
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=3)
)
"""What a password may contain that means something to a URI, to libpq, to a shell or to rich."""


def _escaped(text: str) -> str:
    return quote(text, safe="", errors="surrogateescape")


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


FORMS: dict[str, Callable[[str], str]] = {
    "escaped": lambda password: f"postgresql://bot:{_escaped(password)}@127.0.0.1:1/game",
    "escaped parameter": lambda password: f"postgres://bot@127.0.0.1:1/game?password={_escaped(password)}",
    "not escaped": lambda password: f"postgresql://bot:{password}@127.0.0.1:1/game",
    "not escaped, no user": lambda password: f"postgresql://:{password}@127.0.0.1:1",
    "not escaped, parameter": lambda password: f"postgresql://bot@127.0.0.1:1/game?password={password}&sslmode=disable",
    "without a host": lambda password: f"postgresql://bot:{password}/game",
    "keyword": lambda password: f"host=127.0.0.1 port=1 user=bot password={_quoted(password)} dbname=game",
    "keyword, not quoted": lambda password: f"host=127.0.0.1 port=1 user=bot dbname=game password={password}",
    "keyword, half quoted": lambda password: f"host=127.0.0.1 port=1 user=bot dbname=game password='{password}",
    "alone": lambda password: password,
    "capitals": lambda password: f"POSTGRESQL://bot:{password}@127.0.0.1:1/game",
}
"""DSNs with a password as people write them, right or wrong."""

_PLAIN = st.sampled_from(
    [
        "", "postgresql://", "postgresql:///game", "postgresql://a@h1:1,h2:2/game?target_session_attrs=any",
        "postgresql://[::1]:5432/game", "postgresql://%2Frun%2Fpg/game", "host=a,b port=1,2 dbname=game",
        "service=game", "host='a b' dbname='it\\'s'", "hostaddr=127.0.0.1 connect_timeout=3",
    ]
)  # fmt: skip
_PIECES = SPECIAL | st.sampled_from(["host=", "port=5432", "password=", "user", "postgresql://", "5432", "sslmode"])


def _check_secret(secret: str, separator: str, form: str) -> None:
    """Assert that no message, no description and no advice of doctor has a part of the password."""
    if form == "without a host" and "@" in separator:
        return  # then it has a host: the second half of the password
    dsn = FORMS[form](secret + separator + secret)
    try:
        conninfo = complete_conninfo(dsn)
    except UsageError as error:
        said = str(error)
    else:
        said = describe(conninfo) + "".join(
            _connection_remedy(kind(""), conninfo) for kind in (AccessDenied, SchemaNotReady, DatabaseUnavailable)
        )
    assert not leaks(secret, said), said


def _check_text(dsn: str) -> None:
    """Assert that a text is refused in one line, or means what libpq says and stays the same if completed again."""
    refusal = conninfo = ""
    try:
        conninfo = complete_conninfo(dsn)
    except UsageError as error:
        refusal = str(error)
    if refusal:
        assert "\n" not in refusal
        return
    found = conninfo_to_dict(conninfo)
    assert "\0" not in dsn  # libpq would read no further
    assert found.items() >= {**conninfo_to_dict(dsn), "client_encoding": "utf8"}.items()
    assert conninfo_to_dict(complete_conninfo(conninfo)) == found
    target = target_of(conninfo)
    assert target.port == "" or target.port in str(found["port"])
    assert describe(conninfo)


def _check(given: tuple[str, str, str] | str) -> None:
    if isinstance(given, str):
        _check_text(given)
    else:
        _check_secret(*given)


@contextmanager
def _open() -> Iterator[Check]:
    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ:
            if name.startswith("PG"):
                patch.delenv(name)
        yield _check


_TEXTS = st.text() | mutated(_PLAIN, _PIECES)
TARGET = Target(
    "dsns",
    _TEXTS | st.tuples(SECRETS, SPECIAL, st.sampled_from(sorted(FORMS))),
    _open,
    short=800,
    slice=8000,
)
