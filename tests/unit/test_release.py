"""What `make release` checks and writes, without making anything: versions, notes, links.

tests/e2e/test_release.py makes a release.
"""

import re
import tomllib

import pytest
from release.make import STATED, ReleaseError, agree, complete_links, cut, read_versions
from tests.support import ROOT

from mfg_notify import __version__

CHANGELOG = """# Changelog

## [Unreleased]

## [0.2.0] - 2027-01-02

### Added
- Two.

## [0.1.0] - 2026-11-27

One.
"""


def test_every_place_states_this_version() -> None:
    assert read_versions(ROOT) == dict.fromkeys(["pyproject.toml", "mfg_notify.__version__", *STATED], __version__)


def test_versions_that_differ_are_named() -> None:
    assert agree({"pyproject.toml": "0.2.0", "Dockerfile": "0.2.0"}) == "0.2.0"
    with pytest.raises(ReleaseError, match=re.escape("pyproject.toml 0.2.0, Dockerfile 0.1.0")):
        agree({"pyproject.toml": "0.2.0", "Dockerfile": "0.1.0"})


@pytest.mark.parametrize(
    ("heading", "text"), [("0.2.0", "### Added\n- Two."), ("0.1.0", "One."), ("Unreleased", ""), ("0.1", "")]
)
def test_notes_are_what_stands_under_the_version(heading: str, text: str) -> None:
    assert cut(CHANGELOG, heading) == text


def test_the_newest_version_of_the_changelog_counts() -> None:
    found = re.search(STATED["CHANGELOG.md"], CHANGELOG, re.MULTILINE)
    assert found is not None
    assert found[1] == "0.2.0"


def test_links_of_the_notes_lead_to_the_repository() -> None:
    text = "[a](docs/a.md#b), [c](https://c.example/), [d](#e)"
    assert complete_links(text, "https://forge.example/x", "0.2.0") == (
        "[a](https://forge.example/x/blob/v0.2.0/docs/a.md#b), [c](https://c.example/), [d](#e)"
    )


def test_every_address_is_below_that_of_the_repository() -> None:
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]
    assert [url for url in urls.values() if not url.startswith(urls["Repository"])] == []
