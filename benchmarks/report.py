"""Makes tables and a chart of the results, for the pages about performance in docs/explanation.

A ratio is that of the two figures as they are printed, so that a reader who divides them gets the same.
"""

import json
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results.json"
INSTRUCTIONS = RESULTS.with_name("instructions.json")
CHART = Path(__file__).parents[1] / "docs" / "pictures" / "performance.svg"
Figures = dict[str, Any]


def parts() -> dict[str, str]:
    """Return the generated parts of the pages by name."""
    results: Figures = json.loads(RESULTS.read_text(encoding="utf-8"))
    return {
        "question table": _questions(results),
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


def compared(value: float, base: float, digits: int = 0, unit: str = "", ratio_digits: int = 2) -> str:
    """Return a figure with its unit and, in brackets, its ratio to another figure; both as they are printed."""
    ratio = round(value, digits) / round(base, digits)
    return f"{value:,.{digits}f}{unit} ({ratio:.{ratio_digits}f})"


def _questions(results: Figures) -> str:
    """Return what users ask, with the figures of peers beside ours; ratios are to the column `without it`."""
    writers, large, log = results["writers"] | results["factories"], results["large update"], results["wal"]
    latency, rest, backlog, day = results["latency"], results["at rest"], results["backlog"], results["a day"]
    pages, histories, delays = results["pages"].values(), results["history"], results["delay"]
    run = results["debezium"]
    ours, default, tuned = run["consumers"].values()

    def listed(values: Iterable[float], digits: int, unit: str = "") -> str:
        return "; ".join(f"{value:,.{digits}f}" for value in values) + unit

    def rates(script: str, installed: str) -> str:
        return "; ".join(
            compared(writers[f"{script} {installed} {n}"]["rate"], writers[f"{script} none {n}"]["rate"])
            for n in (1, 8)
        )

    def bare_rates(script: str) -> str:
        return listed((writers[f"{script} none {n}"]["rate"] for n in (1, 8)), 0)

    def beside_debezium(name: str, digits: int, unit: str) -> tuple[str, ...]:
        first, second, third = (f"{one[name]:,.{digits}f}{unit}" for one in (ours, default, tuned))
        return "", first, f"Debezium {second}, tuned {third}"

    rows: list[tuple[str, ...]] = [
        ("", "without it", "mfg-notify", "peers"),
        ("**What does it cost my game?**",),
        (
            "status changes a second, 1 client; 8 clients",
            bare_rates("change"),
            rates("change", "exporter"),
            f"a plain `pg_notify` in every commit: {rates('change', 'plain')}",
        ),
        ("saves a second that change nothing watched", bare_rates("save"), rates("save", "exporter")),
        ("changes of a factory's supply a second", bare_rates("supply"), rates("supply", "exporter")),
        (
            "a transaction at 200 changes a second, p50; p99",
            listed((latency["bare p50"], latency["bare p99"]), 2, " ms"),
            "; ".join(compared(latency[f"ours {p}"], latency[f"bare {p}"], 2, " ms") for p in ("p50", "p99")),
        ),
        ("an UPDATE of 100,000 rows", f"{large['bare s']:.2f} s", compared(large["ours s"], large["bare s"], 2, " s")),
        (
            "write-ahead log a change",
            f"{log['bare later']:,.0f} bytes",
            compared(log["exporter later"], log["bare later"], 0, " bytes"),
        ),
        (
            "the same, in the game with kills ¹",
            f"{run['log']['nothing']:,.0f} bytes",
            compared(run["log"]["mfg-notify"], run["log"]["nothing"], 0, " bytes"),
            f"Debezium {compared(run['log']['full'], run['log']['nothing'], 0, ' bytes')}",
        ),
        ("**How fast is a change visible?**",),
        (
            f"at {listed((of['reached'] for of in delays.values()), 0)} changes a second, p50",
            "",
            listed((of["p50"] for of in delays.values()), 1, " ms"),
            "a polling exporter: with its next scrape",
        ),
        ("the same, p99", "", listed((_p99(of) for of in delays.values()), 1, " ms")),
        ("at 100 changes a second, p50 ¹", *beside_debezium("p50 ms", 1, " ms")),
        ("the same, p95 ¹", *beside_debezium("p95 ms", 1, " ms")),
        ("**What if the exporter is killed, or away?**",),
        (
            f"counted too often; not counted; of {run['truth']:,}, with {run['kills']} kills ¹",
            "",
            f"{ours['over']:,}; {ours['lost']:,}",
            f"Debezium {default['over']:,}; {default['lost']:,}, tuned {tuned['over']:,}; {tuned['lost']:,}",
        ),
        ("from its start until it counts what happens ¹", *beside_debezium("back s", 1, " s")),
        ("what the database kept for it, at most ¹", *beside_debezium("kept MiB", 1, " MiB")),
        (
            "hours away",
            "",
            "the journal gets a row of 200 to 300 bytes a change, up to five million rows",
            "Debezium: its slot keeps the log of the whole server, without limit by default",
        ),
        (
            "a million events that have waited",
            "",
            f"folds {backlog['events a second']:,.0f} a second, with at most {backlog['peak MiB']:.0f} MiB",
        ),
        ("**What happens as it grows?**",),
        (
            f"history: {'; '.join(f'{int(rows):,}' for rows in histories)} finished tasks",
            "",
            f"a reconciliation takes {listed((of['reconcile ms'] for of in histories.values()), 0, ' ms')}",
            f"a polling exporter's scrape takes {listed((of['peer ms'] for of in histories.values()), 0, ' ms')}"
            if all(of["peer ms"] for of in histories.values())
            else "",
        ),
        ("live rows", "", "reconciliation and memory, in proportion; the line above is for 24,000 live rows"),
        (
            f"series: {listed((page['series'] for page in pages), 0)}",
            "",
            f"a scrape takes {listed((page['alone p50'] for page in pages), 1, ' ms')} and reads memory only",
        ),
        (
            f"memory at 50 changes a second; after the changes of {day['changes'] / 180_000:.0f} hours",
            "",
            f"{rest['MiB']:.0f}; {day['MiB'][-1]:.0f} MiB",
        ),
        ("**What does the exporter itself take?**",),
        ("processor time at 50 changes a second", "", f"{rest['cpu %']:.1f} % of a core"),
        (
            f"processor time in {run['seconds'] / 60:.0f} minutes with {run['kills'] + 1} starts ¹",
            *beside_debezium("cpu s", 1, " s"),
        ),
        ("peak memory ¹", *beside_debezium("MiB", 0, " MiB")),
    ]
    return _table(*(row + ("",) * (len(rows[0]) - len(row)) for row in rows))


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
        return "" if figures is None else compared(figures["rate"], found[f"{script} none {clients}"]["rate"], 0, "/s")

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
            f"{compared(large['ours s'], large['bare s'], 2, ' s')}, without triggers {large['bare s']:.2f} s",
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
            f"processor time of a fold of {int(events):,} events, client and server",
            f"{compared(books['with us'], books['without us'], 0, ' µs', 3)}, without the books "
            f"{books['without us']:,.0f} µs",
        )
        for events, books in results["books"].items()
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
            f"{day['seconds'] / 60:.0f} minutes and {len(day['MiB'])} parts",
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
                compared(figures["reconcile ms"], first["reconcile ms"], 0, " ms"),
                f"{figures['start s']:.2f} s",
                "" if peer is None else compared(peer, first["peer ms"], 0, " ms", 1),
            )
        )
    return _table(*rows)


def _delay(found: Figures) -> str:
    return _table(
        ("changes a second: wanted, reached", "p50", "p99", "most"),
        *(
            (
                f"{int(rate):,}, {of['reached']:,.0f}",
                f"{of['p50']:.1f} ms",
                f"{_p99(of):.1f} ms",
                f"{of['most']:.1f} ms",
            )
            for rate, of in found.items()
        ),
    )


def _p99(delays: Figures) -> float:
    """Return the 99th percentile; of fewer than a hundred delays it is extrapolated, and their maximum counts."""
    return float(min(delays["p99"], delays["most"]))


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

    def row(label: str, name: str, unit: str) -> tuple[str, ...]:
        first, *others = (one[name] for one in consumers)
        return label, f"{first:,.1f}{unit}", *(compared(value, first, 1, unit, 1) for value in others)

    log = found["log"]
    return _table(
        ("", "mfg-notify", "Debezium, default settings", "Debezium, tuned"),
        *(
            (label, *(f"{one[name]:,} ({one[name] / found['truth']:.1%})" for one in consumers))
            for label, name in (("counted too often", "over"), ("not counted", "lost"))
        ),
        row("delay from the change until it is counted, p50", "p50 ms", " ms"),
        row("the same, p95", "p95 ms", " ms"),
        row("from its start until it counts what happens, median", "back s", " s"),
        row("peak memory", "MiB", " MiB"),
        row(f"processor time, with {found['kills'] + 1} starts", "cpu s", " s"),
        row("most that the database kept for it: journal; or log", "kept MiB", " MiB"),
        (
            f"log a change: {log['nothing']:,.0f} bytes with neither",
            compared(log["mfg-notify"], log["nothing"], 0, " bytes"),
            *[compared(log["full"], log["nothing"], 0, " bytes")] * 2,
        ),
    )


def plot(results: Figures) -> None:
    """Plot the game's throughput by what is installed."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "mfg-notify"
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 4), layout="constrained")
    names = {"none": "no triggers", "triggers": "triggers,\nno exporter", "exporter": "triggers\nand exporter",
             "always": "the same,\n--notify always", "plain": "a plain pg_notify\nin every commit"}  # fmt: skip
    for clients, offset in ((1, -0.2), (8, 0.2)):
        rates = [results["writers"][f"change {name} {clients}"]["rate"] for name in names]
        bars = axes.bar(
            [place + offset for place in range(len(names))],
            rates,
            0.38,
            label=f"{clients} client{'s' if clients > 1 else ''}",
        )
        axes.bar_label(bars, [compared(rate, rates[0]).replace(" ", "\n") for rate in rates], fontsize=8)
        axes.margins(y=0.1)
    axes.set_xticks(range(len(names)), list(names.values()), fontsize=9)
    axes.set_title("Status changes a second (ratio to no triggers)")
    axes.legend()
    figure.savefig(CHART, metadata={"Date": None})
    plt.close(figure)
