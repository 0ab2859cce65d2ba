"""The documentation as a site: it builds without a warning, needs no network, and shows what a forge shows."""

import os
import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from tests.support import ROOT

DOCS = ROOT / "docs"
PAGES = sorted({*DOCS.glob("**/*.md"), *ROOT.glob("*.md")} - {ROOT / "README.md"})
STRUCTURE = {"h1", "h2", "h3", "img", "li", "ol", "pre", "table", "td", "tr", "ul"}


class Elements(HTMLParser):
    """The elements of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.loaded: list[str] = []
        """Addresses of what a browser loads to show the page."""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element."""
        if tag in STRUCTURE:
            self.tags[tag] += 1
        values = {name: value or "" for name, value in attrs}
        if tag == "link" and values.get("rel") in ("canonical", "next", "prev"):
            return
        self.loaded += [values["src"]] if "src" in values else [values["href"]] if tag == "link" else []


def build(folder: Path) -> Path:
    """Build the site in a folder; return the folder."""
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the site."""
    return build(tmp_path_factory.mktemp("site"))


def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    loaded = {place for page in site.rglob("*.html") for place in Elements(page.read_text(encoding="utf-8")).loaded}
    assert len(loaded) > 10
    assert {place for place in loaded if "//" in place} == set()
    for sheet in site.rglob("*.css"):
        assert not re.search(r"@import|url\(['\"]?(?:https?:)?//", sheet.read_text(encoding="utf-8")), sheet


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_site_shows_what_a_forge_shows(site: Path, page: Path) -> None:
    """The two dialects of Markdown differ, for example in what belongs to an item of a list: it needs four spaces."""
    on_a_forge = Elements(MarkdownIt("commonmark").enable("table").render(page.read_text(encoding="utf-8")))
    built = site / page.relative_to(DOCS if page.is_relative_to(DOCS) else ROOT).with_suffix(".html")
    [article] = re.findall(r"<article.*?</article>", built.read_text(encoding="utf-8"), re.DOTALL)
    assert Elements(article).tags == on_a_forge.tags
