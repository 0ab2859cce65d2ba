"""The documentation in a real browser, opened as files without a server or a network."""

import re
from pathlib import Path

from playwright.sync_api import expect
from tests.e2e.browser import Visit, browsing, needs_chromium
from tests.unit.test_site import build

pytestmark = needs_chromium


def test_search_works_in_pages_opened_as_files(tmp_path: Path) -> None:
    with browsing() as browser, Visit(browser, (build(tmp_path) / "index.html").as_uri()) as visit:
        visit.page.get_by_role("textbox", name="Search").fill("transactional outbox")
        visit.page.get_by_text("Journal (outbox)").click()
        expect(visit.page).to_have_url(re.compile("reference/glossary.html"))
        assert visit.complaints == []
        assert [address for address in visit.asked if not address.startswith(("file:", "data:", "blob:"))] == []
