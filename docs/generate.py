"""Writes the parts of the documentation that are generated from the code and from the benchmark results.

A generated part is between `<!-- name -->` and `<!-- /name -->`. With --check nothing is written: the script prints
which pages are out of date, and its exit code is 1 if there are any.
"""

import inspect
import json
import math
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageMetadata, PackageNotFoundError, metadata
from pathlib import Path

import click
from packaging.requirements import Requirement

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
from mfg_notify.core.series import SERIES_MAXIMUM
from mfg_notify.core.tuning import Tuning

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks import report  # noqa: E402


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
    """Yield a context for the command and for each visible command below it, in the order of `--help`."""
    context = click.Context(command, parent, info_name=command.name if parent else "mfg-notify")
    yield context
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            if below is not None and not below.hidden:
                yield from every_command(below, context)


CONNECTION = {"dsn", "dsn_file", "game_schema"}
"""The options of every command that connects to the database."""


def command_section(context: click.Context) -> str:
    """Return the section of a command: its usage, its help, and its commands or options."""
    usage = " ".join((context.command_path, *context.command.collect_usage_pieces(context)))
    parts = [f"## {context.command_path}", f"    {usage}", inspect.cleandoc(context.command.help or "")]
    if isinstance(context.command, click.Group):
        names = (f"{context.command_path} {name}" for name in context.command.list_commands(context))
        parts.append("\n".join(f"- [`{name}`](#{name.replace(' ', '-')})" for name in names))
    else:
        options = [one for one in context.command.params if isinstance(one, click.Option)]
        if {one.name for one in options} >= CONNECTION:
            parts.append(
                "It takes the [connection options](#connection-options)"
                + (", and:" if (options := [one for one in options if one.name not in CONNECTION]) else ".")
            )
        if options:
            parts.append(option_table(options, context))
    return "\n\n".join(parts)


def option_table(options: Iterable[click.Option], context: click.Context) -> str:
    """Return the table of these options of a command."""
    rows = (f"| {' | '.join(option_cells(one, context))} |" for one in options)
    return "\n".join(("| option | variable | default | meaning |", "|---|---|---|---|", *rows))


def connection_table() -> str:
    """Return the table of the options that every command has that connects to the database."""
    context = next(one for one in every_command(mfg_notify) if {each.name for each in one.command.params} >= CONNECTION)
    options = (one for one in context.command.params if isinstance(one, click.Option))
    return option_table((one for one in options if one.name in CONNECTION), context)


def option_cells(option: click.Option, context: click.Context) -> tuple[str, str, str, str]:
    """Return an option, its environment variable, its default and its meaning, as cells of a table."""
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
    name, variable, default, meaning = (cell.replace("|", r"\|") for cell in cells)
    return name, variable, default, meaning


def variable_table() -> str:
    """Return the table of all environment variables that options have."""
    rows = {}
    for context in every_command(mfg_notify):
        for option in context.command.params:
            if isinstance(option, click.Option) and option.envvar:
                name, variable, default, meaning = option_cells(option, context)
                rows[variable] = f"| {variable} | {name} | {default} | {meaning} |"
    return "\n".join(
        ("| variable | option | default | meaning |", "|---|---|---|---|", *(rows[name] for name in sorted(rows)))
    )


VALUES = {
    "status": len(TERMINAL),
    "supply_level": len(SUPPLY_LEVELS),
    "cost_type": len(COST_TYPES),
    "from_level": len(SUPPLY_LEVELS),
    "to_level": len(SUPPLY_LEVELS) - 1,
    "agent_symbol": 1,
}
"""Number of values of the labels whose values are fixed."""
FACTORS = {
    (): "",
    ("product_good",): "products",
    ("task_type",): "task types",
    ("factory_symbol", "output_good"): "factories",
    ("good_symbol",): "goods",
    ("construction_site", "good_symbol"): "materials",
}
"""What the number of a player's series grows with, by the remaining labels."""


def series_by_factor() -> dict[str, int]:
    """Return the maximum number of series of a player for each product, task type and so on."""
    numbers = dict.fromkeys(FACTORS, 0)
    for metric in SPECIFIED + EXTENSIONS:
        # Besides its buckets a histogram has +Inf, _sum and _count.
        number = len(metric.buckets) + 3 if metric.kind is Kind.HISTOGRAM else 1
        number *= math.prod(VALUES.get(label, 1) for label in metric.labels)
        if metric is PIPELINES:
            number = len(PIPELINE_LIVE)
        numbers[tuple(label for label in metric.labels[1:] if label not in VALUES)] += number
    return {FACTORS[labels]: number for labels, number in numbers.items()}


def series_sum() -> str:
    """Return the maximum number of series of a player, as a sum."""
    terms = (f"{number} * {factor}" if factor else str(number) for factor, number in series_by_factor().items())
    return "    " + " + ".join(terms)


HUNDREDFOLD = 100
HEAVY_PLAYERS, HEAVY_LIVE_TASKS, HEAVY_FACTORIES, HEAVY_RATE, HEAVY_WRITERS = 20, 20_000, 2_000, 5_000, 8
"""The heavy load; its rate is in changes per second."""
HEAVY_LIVE_ROWS = 24_000
"""Live rows of the heavy load: tasks, pipelines and factories."""
HEAVY_PLAYER = {
    "": 1,
    "products": 5,
    "task types": 9,
    "factories": HEAVY_FACTORIES // HEAVY_PLAYERS,
    "goods": 5,
    "materials": 3,
}
"""What one player has under the heavy load."""
SCRAPE_INTERVAL = 15
"""Seconds."""
SERIES_KIB = 3.5
"""Memory of one series in Prometheus, by rule of thumb."""


def scale() -> str:
    """Return what limits a hundred times the heavy load, computed from the benchmark results."""
    results = json.loads(report.RESULTS.read_text(encoding="utf-8"))
    rate = HUNDREDFOLD * HEAVY_RATE
    bare = results["writers"]["change none 8"]["rate"]
    log = results["wal"]["bare later"]
    folded = results["backlog"]["events a second"]
    reconciling = [figures["reconcile ms"] for figures in results["history"].values()]
    player_series = sum(number * HEAVY_PLAYER[factor] for factor, number in series_by_factor().items())
    series = player_series * HEAVY_PLAYERS
    all_series = HUNDREDFOLD * series
    tuning = Tuning()
    if series > SERIES_MAXIMUM or tuning.high_water_rate > HEAVY_RATE:
        raise ValueError("the text below does not hold any more")
    items = (
        f"**The game's own database.** Without triggers this machine takes {bare:,.0f} changes a second with "
        f"{HEAVY_WRITERS} clients. {rate:,} a second need about {rate / bare:.0f} such machines and write "
        f"{rate * log / 1e6:,.0f} MB of log a second even without triggers. No single PostgreSQL takes that, so it is "
        f"many databases: for example {HUNDREDFOLD}, each with the heavy load. The following points are about one of "
        "them.",
        f"**Folding.** An exporter that does nothing else folds {folded:,.0f} events a second on one core. "
        f"{HEAVY_RATE:,} a second take {HEAVY_RATE / folded:.0%} of that. A single exporter for all databases would "
        f"need {rate / folded:.1f} cores, and Python uses one. So: **one exporter for each database**, near it.",
        f"**Reconciliation.** It takes {min(reconciling):.0f} to {max(reconciling):.0f} ms for {HEAVY_LIVE_ROWS:,} "
        f"live rows, every 30 s. A database with {HUNDREDFOLD} times as many rows would need {HUNDREDFOLD} times as "
        "long, and as much more memory: use a longer interval, or divide the snapshot by player.",
        f"**Series.** A player with {_listed(HEAVY_PLAYER)} has at most {player_series:,} series (the sum is in "
        f"[Cardinality](../how-to/size.md#cardinality)), so an exporter has {series:,}, below the limit of "
        f"{SERIES_MAXIMUM:,}. All exporters together have {all_series / 1e6:.1f} million, or "
        f"{all_series / SCRAPE_INTERVAL:,.0f} samples a second at a scrape every {SCRAPE_INTERVAL} s. By rule of thumb "
        f"one Prometheus needs {SERIES_KIB * all_series / 2**20:.0f} GiB of memory for that. Easier to run: "
        "**Prometheus in agent mode** beside each group of exporters, with `remote_write` to **Mimir** or **Thanos "
        "Receive**, which are also one place to query; drop histogram buckets that nobody needs.",
        f"**NOTIFY.** {HEAVY_RATE:,} changes a second are above the high-water rate of {tuning.high_water_rate:,.0f}, "
        "so NOTIFY is disabled and costs nothing. All databases of a server share the notification queue; the triggers "
        "stop notifying when it is a quarter full.",
    )
    head = (
        f"The heavy load is {HEAVY_PLAYERS} players, {HEAVY_LIVE_TASKS:,} live tasks, {HEAVY_FACTORIES:,} factories "
        f"and {HEAVY_RATE:,} changes a second by {HEAVY_WRITERS} writers, in one database. A hundred times that is "
        f"{HUNDREDFOLD * HEAVY_PLAYERS:,} players, {HUNDREDFOLD * HEAVY_LIVE_TASKS / 1e6:.0f} million live tasks and "
        f"{rate:,} changes a second. The limits, in the order in which they are reached:"
    )
    numbered = (
        textwrap.fill(f"{number}. {item}", 120, subsequent_indent="   ", break_on_hyphens=False)
        for number, item in enumerate(items, 1)
    )
    return "\n".join((textwrap.fill(head, 120), "", *numbered))


def _listed(numbers: dict[str, int]) -> str:
    *items, last = (f"{number} {factor}" for factor, number in numbers.items() if factor)
    return f"{', '.join(items)} and {last}"


def shipped() -> Iterator[tuple[str, str]]:
    """Yield name and version of what is locked for the image: Linux, and the Python that the Dockerfile names."""
    [python] = re.findall(
        r"^ARG PYTHON=python:([\d.]+)", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE
    )
    image = {"python_full_version": python, "sys_platform": "linux", "implementation_name": "cpython"}
    for line in (ROOT / "requirements" / "run.txt").read_text(encoding="utf-8").splitlines():
        if "==" in line:
            requirement = Requirement(line.rstrip(" \\"))
            if requirement.marker is None or requirement.marker.evaluate(image):
                yield requirement.name, str(requirement.specifier).removeprefix("==")


def licence(of: PackageMetadata) -> str:
    """Return the licence that a distribution names, in the newest of the three ways of doing so that it uses."""
    fields = [*(of.get_all("License-Expression") or ()), *(of.get_all("License") or ())]
    classifiers = (one.rpartition(" :: ") for one in of.get_all("Classifier") or ())
    named = [name for kind, _, name in classifiers if kind.startswith("License")]
    return next((field for field in fields if "\n" not in field), " OR ".join(named))


def licence_table() -> str:
    """Return the table of what is shipped, from the metadata of what is installed here."""
    rows = []
    for name, version in shipped():
        try:
            found = metadata(name)
        except PackageNotFoundError:
            raise SystemExit(f"{name} is locked and not installed: remove .venv and try again with make") from None
        if found["Version"] != version:
            raise SystemExit(
                f"{name} {version} is locked and {found['Version']} is installed: remove .venv and try again with make"
            )
        rows.append(f"| {found['Name']} | {version} | {licence(found)} |")
    return "\n".join(("| distribution | version | licence |", "|---|---|---|", *rows))


PARTS = {
    "specified metrics": f"All names begin with `{PREFIX}`.\n\n" + metric_table(SPECIFIED),
    "further metrics": metric_table(EXTENSIONS),
    "market metrics": metric_table(MARKET),
    "exporter metrics": exporter_table(),
    "series": series_sum(),
    "scale": scale(),
    "licences": licence_table(),
    "variables": variable_table(),
    "connection options": connection_table(),
    "commands": "\n\n".join(map(command_section, every_command(mfg_notify))),
    **report.parts(),
}


def fill(text: str) -> str:
    """Return a page with its generated parts up to date."""

    def part(match: re.Match[str]) -> str:
        name = match[1]
        return f"<!-- {name} -->\n{PARTS[name]}\n<!-- /{name} -->"

    return re.sub(r"<!-- ([a-z ]+) -->\n.*?<!-- /\1 -->", part, text, flags=re.DOTALL)


def main() -> int:
    """Write or check every page."""
    check = "--check" in sys.argv[1:]
    stale = []
    for page in sorted((ROOT / "docs").glob("**/*.md")):
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
