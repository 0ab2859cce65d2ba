"""Writes the parts of the documentation that are made from the code; with --check, says which are out of date.

A generated part stands between `<!-- name -->` and `<!-- /name -->`.
"""

import inspect
import math
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from mfg_notify.cli import main as mfg_notify
from mfg_notify.core.catalogue import (
    COST_TYPES,
    EXPORTER_METRICS,
    EXTENSIONS,
    MARKET,
    PIPELINE_LIVE,
    PIPELINES,
    PREFIX,
    SELF_PREFIX,
    SPECIFIED,
    SUPPLY_LEVELS,
    TERMINAL,
    Kind,
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


def every_command(command: click.Command, parent: click.Context | None = None) -> Iterator[click.Context]:
    """Yield a context for the command and each command below it that is not hidden, in the order of `--help`."""
    context = click.Context(command, parent, info_name=command.name if parent else "mfg-notify")
    yield context
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            if below is not None and not below.hidden:
                yield from every_command(below, context)


def command_section(context: click.Context) -> str:
    """Return the section of a command: how it is called, its help, its commands or its options."""
    usage = " ".join((context.command_path, *context.command.collect_usage_pieces(context)))
    parts = [f"## {context.command_path}", f"    {usage}", inspect.cleandoc(context.command.help or "")]
    if isinstance(context.command, click.Group):
        names = (f"{context.command_path} {name}" for name in context.command.list_commands(context))
        parts.append("\n".join(f"- [`{name}`](#{name.replace(' ', '-')})" for name in names))
    elif rows := [option_row(one, context) for one in context.command.params if isinstance(one, click.Option)]:
        parts.append("\n".join(("| option | variable | default | meaning |", "|---|---|---|---|", *rows)))
    return "\n\n".join(parts)


def option_row(option: click.Option, context: click.Context) -> str:
    """Return the row of an option, with the environment variable that does the same."""
    value = "" if option.is_flag else f" {option.make_metavar(context)}"
    given = option.to_info_dict()["default"]
    values = given if isinstance(given, list | tuple) else [] if given in (None, "", False) else [given]
    variables = [option.envvar] if isinstance(option.envvar, str) else option.envvar or []
    cells = (
        f"`{', '.join((*option.opts, *option.secondary_opts))}{value}`",
        " ".join(f"`{variable}`" for variable in variables),
        " ".join(f"`{value}`" for value in values) + (", repeatable" if option.multiple else ""),
        option.help or "",
    )
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


WORDS = {
    "status": len(TERMINAL),
    "supply_level": len(SUPPLY_LEVELS),
    "cost_type": len(COST_TYPES),
    "from_level": len(SUPPLY_LEVELS),
    "to_level": len(SUPPLY_LEVELS) - 1,
}
"""How many values a label has at most whose values are the game's words."""
GROWING = {
    (): "",
    ("product_good",): " * products",
    ("task_type",): " * task types",
    ("factory_symbol", "output_good"): " * factories",
    ("good_symbol",): " * goods",
}
"""What the number of a player's series grows with: the other labels."""


def series_sum() -> str:
    """Return how many series a player has at most, as a sum."""
    numbers = dict.fromkeys(GROWING, 0)
    for metric in SPECIFIED + EXTENSIONS:
        # Besides its buckets a histogram has +Inf, _sum and _count.
        number = len(metric.buckets) + 3 if metric.kind is Kind.HISTOGRAM else 1
        number *= math.prod(WORDS.get(label, 1) for label in metric.labels)
        if metric is PIPELINES:
            number = len(PIPELINE_LIVE)
        numbers[tuple(label for label in metric.labels[1:] if label not in WORDS)] += number
    return "    " + " + ".join(f"{number}{GROWING[labels]}" for labels, number in numbers.items())


PARTS = {
    "specified metrics": f"All names begin with `{PREFIX}`.\n\n" + metric_table(SPECIFIED),
    "further metrics": metric_table(EXTENSIONS),
    "market metrics": metric_table(MARKET),
    "exporter metrics": exporter_table(),
    "series": series_sum(),
    "commands": "\n\n".join(map(command_section, every_command(mfg_notify))),
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
