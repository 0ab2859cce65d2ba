"""Lets the pages at the top of the repository be pages of the site, with links that work on a forge as well.

Owns the list of those pages, and how a link from one page to another becomes one of the site.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

DOCS = "docs/"
AT_THE_TOP = ("CHANGELOG.md", "CODE_OF_CONDUCT.md", "CONTRIBUTING.md", "LICENSE", "SECURITY.md")
"""Files that become a part of the site."""
ELSEWHERE = {"README.md": "index.md"}
"""Files that the site has another page for."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files at the top."""
    top = Path(config.docs_dir).parent
    for name in AT_THE_TOP:
        if (top / name).exists():
            files.append(File.generated(config, name, abs_src_path=str(top / name)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Return the page with its relative links pointing to where the files are on the site."""
    at_the_top = page.file.src_uri in AT_THE_TOP
    here = posixpath.dirname(page.file.src_uri if at_the_top else DOCS + page.file.src_uri)

    def relink(match: re.Match[str]) -> str:
        place = posixpath.normpath(posixpath.join(here, match[1]))
        place = ELSEWHERE.get(place, place).removeprefix(DOCS)
        return f"]({posixpath.relpath(place, posixpath.dirname(page.file.src_uri) or '.')}"

    return re.sub(r"\]\((?![a-z]+:|#|/)([^)#\s]+)", relink, markdown)
