"""Writes the parts of the documentation that are made from the code; with --check, says which are out of date.

A generated part stands between `<!-- name -->` and `<!-- /name -->`.
"""

import re
import sys
from collections.abc import Iterable
from pathlib import Path

from mfg_notify.core.catalogue import (
    EXPORTER_METRICS,
    EXTENSIONS,
    MARKET,
    PREFIX,
    SELF_PREFIX,
    SPECIFIED,
    Metric,
)

ROOT = Path(__file__).parents[1]


def metric_table(metrics: Iterable[Metric]) -> str:
    """Return a table of metrics of the game."""
    rows = (
        f"| `{metric.name}` | {metric.kind} | {', '.join(metric.labels)} | {metric.help} | {metric.source} |"
        for metric in metrics
    )
    return "\n".join(("| metric | type | labels | meaning | columns that feed it |", "|---|---|---|---|---|", *rows))


def exporter_table() -> str:
    """Return the table of the exporter's own metrics."""
    rows = (
        f"| `{SELF_PREFIX}{metric.name}` | {metric.kind} | {', '.join(metric.labels)} | {metric.help} |"
        for metric in EXPORTER_METRICS
    )
    return "\n".join(("| metric | type | labels | meaning |", "|---|---|---|---|", *rows))


PARTS = {
    "specified metrics": f"All names begin with `{PREFIX}`.\n\n" + metric_table(SPECIFIED),
    "further metrics": metric_table(EXTENSIONS),
    "market metrics": metric_table(MARKET),
    "exporter metrics": exporter_table(),
}


def fill(text: str) -> str:
    """Return a page with its generated parts as they should be."""

    def part(match: re.Match[str]) -> str:
        name = match[1]
        return f"<!-- {name} -->\n{PARTS[name]}\n<!-- /{name} -->"

    return re.sub(r"<!-- ([a-z ]+) -->\n.*?<!-- /\1 -->", part, text, flags=re.DOTALL)


def main() -> int:
    """Write or check every page."""
    check = "--check" in sys.argv[1:]
    stale = []
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = page.read_text(encoding="utf-8")
        if (filled := fill(text)) != text:
            stale.append(page.relative_to(ROOT))
            if not check:
                page.write_text(filled, encoding="utf-8")
    for page in stale:
        print(f"{page} {'is out of date: run make docs' if check else 'written'}")  # noqa: T201
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
