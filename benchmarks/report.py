"""Makes tables and a chart of the results, for docs/explanation/performance.md."""

import json
import textwrap
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results.json"
INSTRUCTIONS = RESULTS.with_name("instructions.json")
CHART = Path(__file__).parents[1] / "docs" / "pictures" / "performance.svg"
Figures = dict[str, Any]


def parts() -> dict[str, str]:
    """Return the generated parts of docs/explanation/performance.md by name."""
    results: Figures = json.loads(RESULTS.read_text(encoding="utf-8"))
    return {
        "machine": ", ".join(f"{name} {value}" for name, value in results["machine"].items()),
        "writer table": _writers(results["writers"]),
        "factory table": _factories(results["factories"]),
        "instruction table": _instructions(json.loads(INSTRUCTIONS.read_text(encoding="utf-8"))),
        "figure table": _figures(results),
        "history table": _history(results["history"]),
        "delay table": _delay(results["delay"]),
        "debezium run": _debezium_run(results["debezium"]),
        "debezium table": _debezium(results["debezium"]),
    }


def _table(*rows: tuple[str, ...]) -> str:
    head, *rest = ("| " + " | ".join(row) + " |" for row in rows)
    return "\n".join((head, "|" + "---|" * len(rows[0]), *rest))


_INSTALLED = {
    "none": "no triggers",
    "triggers": "triggers, no exporter running",
    "exporter": "triggers and exporter (`--notify adaptive`)",
    "always": "triggers and exporter, `--notify always`",
    "plain": "a plain `pg_notify` in every commit, with a listener",
}


def _throughput(found: Figures, *scripts: str) -> list[tuple[str, ...]]:
    def cell(script: str, name: str, clients: int) -> str:
        figures = found.get(f"{script} {name} {clients}")
        return "" if figures is None else f"{figures['rate']:,.0f}/s ({figures['ratio']:.2f})"

    rows = ((label, *(cell(s, name, n) for s in scripts for n in (1, 8))) for name, label in _INSTALLED.items())
    return [row for row in rows if any(row[1:])]


def _writers(found: Figures) -> str:
    head = ("", "every statement a change, 1 client", "8 clients", "nothing watched changes, 1 client", "8 clients")
    return _table(head, *_throughput(found, "change", "save"))


def _factories(found: Figures) -> str:
    return _table(("", "the supply of a factory changes, 1 client", "8 clients"), *_throughput(found, "supply"))


def _instructions(found: Figures) -> str:
    return _table(
        ("statement", "without triggers", "the triggers add, NOTIFY off", "NOTIFY on"),
        *(
            (name, *(f"{counts[key]:,}" for key in ("bare", "notify off", "notify on")))
            for name, counts in found.items()
        ),
    )


def _figures(results: Figures) -> str:
    latency, large, log = results["latency"], results["large update"], results["wal"]
    rest, backlog, day = results["at rest"], results["backlog"], results["a day"]
    rows = [
        ("what", "figure"),
        (
            "a transaction of the game at 200 changes/s: p50, p99",
            f"{latency['ours p50']:.2f}, {latency['ours p99']:.2f} ms; without triggers {latency['bare p50']:.2f}, "
            f"{latency['bare p99']:.2f} ms",
        ),
        (
            "added to its p99, round by round; and the same between two runs without triggers",
            f"{_listed(latency['added p99'])} ms; {_listed(latency['noise p99'])} ms",
        ),
        (
            "UPDATE of 100,000 rows",
            f"{large['ours s']:.2f} s, without triggers {large['bare s']:.2f} s: {large['ratio']:.2f}",
        ),
        (
            "write-ahead log a change",
            f"{log['ours later']:,.0f} bytes, with the exporter that folds it {log['exporter later']:,.0f}, without "
            f"triggers {log['bare later']:,.0f}; in the seconds after a checkpoint "
            f"{log['ours after a checkpoint']:,.0f}, {log['exporter after a checkpoint']:,.0f} and "
            f"{log['bare after a checkpoint']:,.0f}",
        ),
        (
            "the exporter at 50 changes/s, a scrape every 15 s",
            f"{rest['cpu %']:.1f} % of a core, {rest['MiB']:.0f} MiB, {rest['transactions/s']:.1f} transactions/s",
        ),
        (
            "folding 1,000,000 events",
            f"{backlog['events a second']:,.0f} events/s from start to ready, at most {backlog['peak MiB']:.0f} MiB",
        ),
    ]
    rows += [
        (
            f"`/metrics` with {page['series']:,.0f} series",
            f"p50 {page['alone p50']:.1f}, p99 {page['alone p99']:.1f} ms; eight at once p50 {page['eight p50']:.1f}, "
            f"p99 {page['eight p99']:.1f} ms",
        )
        for page in results["pages"].values()
    ]
    rows += [
        (
            f"what {day['changes'] / 180_000:.0f} hours at 50 changes/s bring ({day['changes']:,} changes), in "
            f"{day['seconds'] / 60:.0f} minutes and eight parts",
            f"exporter {_listed(day['MiB'], 0)} MiB; journal {_listed(day['journal MiB'], 0)}, its index "
            f"{_listed(day['index MiB'], 0)}, `pending_commit` {_listed(day['marks MiB'], 1)}, totals "
            f"{_listed(day['totals MiB'], 1)} MiB",
        ),
    ]
    return _table(*rows)


def _listed(values: list[float], digits: int = 2) -> str:
    return " ".join(f"{value:.{digits}f}" for value in values)


def _history(found: Figures) -> str:
    first = next(iter(found.values()))
    rows = [("finished tasks", "reconcile", "start to ready", "one scrape of the peer")]
    for rows_there, figures in found.items():
        peer = figures["peer ms"]
        rows.append(
            (
                f"{int(rows_there):,}",
                f"{figures['reconcile ms']:.0f} ms ({figures['reconcile ms'] / first['reconcile ms']:.2f})",
                f"{figures['start s']:.2f} s",
                "" if peer is None else f"{peer:.0f} ms ({peer / first['peer ms']:.1f})",
            )
        )
    return _table(*rows)


def _delay(found: Figures) -> str:
    return _table(
        ("changes a second", "p50", "p99", "most"),
        *(
            (f"{int(rate):,}", f"{of['p50']:.1f} ms", f"{of['p99']:.1f} ms", f"{of['most']:.0f} ms")
            for rate, of in found.items()
        ),
    )


def _debezium_run(found: Figures) -> str:
    machine = found["machine"]
    return textwrap.fill(
        f"{found['changes']:,} changes in {found['seconds'] / 60:.0f} minutes, of which {found['truth']:,} finish a "
        f"task or a pipeline; {found['kills']} kills; {found['log MiB/minute']:.0f} MiB of log a minute; "
        f"{machine['processor']}, with other work, so that the load average was {found['load average']:.0f}; "
        f"PostgreSQL {machine['PostgreSQL']}, revision {machine['revision']}, {machine['date']}.",
        120,
    )


def _debezium(found: Figures) -> str:
    consumers = list(found["consumers"].values())

    def compared(label: str, name: str, digits: int, unit: str) -> tuple[str, ...]:
        first, *others = (one[name] for one in consumers)
        return (
            label,
            f"{first:,.{digits}f} {unit}",
            *(f"{value:,.{digits}f} {unit} ({value / first:.1f})" for value in others),
        )

    log = found["log"]
    return _table(
        ("", "mfg-notify", "Debezium, default settings", "Debezium, tuned"),
        *(
            (label, *(f"{one[name]:,} ({one[name] / found['truth']:.1%})" for one in consumers))
            for label, name in (("counted too often", "over"), ("not counted", "lost"))
        ),
        compared("delay from the change until it is counted, p50", "p50 ms", 0, "ms"),
        compared("the same, p95", "p95 ms", 0, "ms"),
        compared("from its start until it counts what happens, median", "back s", 1, "s"),
        compared("peak memory", "MiB", 0, "MiB"),
        compared(f"processor time, with {found['kills'] + 1} starts", "cpu s", 0, "s"),
        compared("most that the database kept for it: journal; or log", "kept MiB", 1, "MiB"),
        (
            f"log a change: {log['nothing']:,.0f} bytes with neither",
            f"{log['mfg-notify']:,.0f} bytes ({log['mfg-notify'] / log['nothing']:.2f})",
            *[f"{log['full']:,.0f} bytes ({log['full'] / log['nothing']:.2f})"] * 2,
        ),
    )


def plot(results: Figures) -> None:
    """Plot throughput by configuration, and cost by size of the history."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "mfg-notify"
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    writers = results["writers"]
    names = {"none": "no triggers", "triggers": "triggers", "exporter": "and exporter", "always": "always notify",
             "plain": "plain pg_notify"}  # fmt: skip
    for clients, offset in ((1, -0.2), (8, 0.2)):
        bars = left.bar(
            [place + offset for place in range(len(names))],
            [writers[f"change {name} {clients}"]["rate"] for name in names],
            0.38,
            label=f"{clients} client{'s' if clients > 1 else ''}",
        )
        left.bar_label(bars, [f"{writers[f'change {name} {clients}']['ratio']:.2f}" for name in names], fontsize=8)
    left.set_xticks(range(len(names)), list(names.values()), fontsize=8)
    left.set_title("Status changes a second (and ratio to no triggers)")
    left.legend()
    sizes = [int(rows) for rows in results["history"]]
    right.plot(sizes, [of["reconcile ms"] for of in results["history"].values()], "o-", label="mfg-notify: reconcile")
    peers = [of["peer ms"] for of in results["history"].values()]
    if None not in peers:
        right.plot(sizes, peers, "s-", label="postgres_exporter: scrape")
    right.set_xscale("log")
    right.set_yscale("log")
    right.set_xlabel("finished tasks in the tables")
    right.set_ylabel("ms")
    right.set_title("Cost of reading the database")
    right.legend()
    figure.savefig(CHART, metadata={"Date": None})
    plt.close(figure)
