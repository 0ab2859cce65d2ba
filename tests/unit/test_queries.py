"""The `.sql` files of `postgres/queries`: every statement has a comment and a user."""

import re

import pytest
from tests.support import ROOT

from mfg_notify.postgres.queries import QUERY

SOURCES = ROOT / "src" / "mfg_notify"
FILES = sorted((SOURCES / "postgres" / "queries").glob("*.sql"))


@pytest.mark.parametrize("name", QUERY)
def test_a_query_has_a_comment_and_a_user(name: str) -> None:
    assert QUERY[name].startswith("-- ")
    users = [file for file in SOURCES.rglob("*.py") if f'"{name}"' in file.read_text(encoding="utf-8")]
    assert users


def test_no_query_is_lost_on_the_way() -> None:
    written = [name for file in FILES for name in re.findall(r"^-- name: (.*)$", file.read_text(), re.MULTILINE)]
    assert sorted(written) == sorted(QUERY)
