"""The page of permissions names every right that role.sql grants, and no other."""

import re

from tests.support import ROOT

ROLE = (ROOT / "src" / "mfg_notify" / "postgres" / "role.sql").read_text(encoding="utf-8")
PAGE = (ROOT / "docs" / "reference" / "permissions.md").read_text(encoding="utf-8")


def test_the_page_names_the_rights_on_our_objects() -> None:
    granted = {
        name: set(re.findall(r"\w+", rights))
        for rights, names in re.findall(r"^GRANT ([A-Z, ]+) ON ([^{]+) TO \{role\};", ROLE, re.MULTILINE)
        for name in re.findall(r"mfg_notify\.(\w+)", names)
    }
    named = {
        name: set(re.findall(r"`([A-Z]+)`", rights))
        for rights, names in re.findall(r"^\| ((?:`[A-Z]+`(?:, )?)+) \| ([^|]+) \|", PAGE, re.MULTILINE)
        for name in re.findall(r"`mfg_notify\.(\w+)`", names)
    }
    assert len(granted) > 20
    assert named == granted


def test_the_page_names_the_columns_of_the_game() -> None:
    [lists] = re.findall(r"FROM \(VALUES(.*?)\) AS read \(tab, cols\)", ROLE, re.DOTALL)
    granted = {
        table: set(" ".join(re.findall(r"'([^']+)'", columns)).split())
        for table, columns in re.findall(r"\('(\w+)',\s*((?:'[^']+'\s*)+)\)", lists)
    }
    named = {
        table: set(re.findall(r"\w+", columns.replace("*", "")))
        for table, columns in re.findall(r"^\| `([a-z_]+)` \| ([\w*, ]+) \|", PAGE, re.MULTILINE)
    }
    assert len(granted) == 8
    assert named == granted
