"""Checks the documentation against the code: names, links, limits and generated parts.

The other tests check the behaviour that it describes. Its commands were tried by hand.
"""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import distribution
from itertools import chain
from pathlib import Path
from typing import Any, get_args

import click
import pytest
from psycopg.conninfo import conninfo_to_dict
from tests.support import ROOT

from mfg_notify.cli import main
from mfg_notify.core.board import CHANGES_MAXIMUM
from mfg_notify.core.capped_totals import SERIES_MAXIMUM
from mfg_notify.core.catalogue import (
    CATALOGUE,
    EXPORTER_METRICS,
    MICROSECONDS_PER_SECOND,
    SELF_PREFIX,
    SPECIFIED,
)
from mfg_notify.core.events import Text
from mfg_notify.core.live_state import SHIP_MEMORY
from mfg_notify.core.row_details import ENDED_MAXIMUM
from mfg_notify.core.tuning import Tuning
from mfg_notify.exporter.market_reader import MARKET_INTERVAL
from mfg_notify.exporter.settings import Settings
from mfg_notify.exposition import EXEMPLAR_MAXIMUM
from mfg_notify.postgres import migrations
from mfg_notify.postgres.connection import complete_conninfo
from mfg_notify.web.application import make_application
from mfg_notify.web.board import INTERVAL, SHARE, VIEWERS_MAXIMUM, Board
from mfg_notify.web.server import GRACE

README = ROOT / "README.md"
DESIGN = ROOT / "docs" / "explanation" / "exactness.md"
RELEASES = ROOT / "CHANGELOG.md"
"""Names what there was."""
PAGES = sorted({*ROOT.glob("*.md"), *(ROOT / "docs").glob("**/*.md")} - {RELEASES})
TEXTS = {page: page.read_text(encoding="utf-8") for page in PAGES}
SOURCES = ROOT / "src" / "mfg_notify"
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)

ELSEWHERE = {
    "MFG_NOTIFY_TEST_DSN", "MFG_NOTIFY_SOAK_MINUTES", "MFG_NOTIFY_FUZZ_MINUTES", "MFG_NOTIFY_FUZZ_SEED",
    "MFG_NOTIFY_FUZZ_TARGETS",
}  # fmt: skip
"""Variables that only the tests read."""
COMPOSE_VARIABLES = {
    name for file in ROOT.glob("compose*.yaml") for name in re.findall(r"\$\{(\w+)", file.read_text(encoding="utf-8"))
}
EXAMPLE = "manufacturing_pipeline_starts_total"
"""The metric that contributing.md adds."""


def code(text: str) -> Iterator[str]:
    """Yield every line of a code block and every span of code."""
    fenced = re.compile(r"^ *```[^\n]*\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
    for block in fenced.findall(text):
        yield from block.splitlines()
    rest = fenced.sub("", text)
    yield from re.findall(r"^(?: {4,}|\t)(.*)$", rest, re.MULTILINE)
    yield from (" ".join(span.split()) for span in re.findall(r"`([^`]+)`", rest))


def command_lines(text: str) -> Iterator[list[str]]:
    """Yield the arguments of every call of mfg-notify that a page shows; of `mfg-notify` alone, none."""
    before = r"(?:\$ )?(?:sudo (?:-u \S+ )?)?(?:\w+=\S* )*(?:ExecStart=)?(?:\S*/)?"
    for line in code(text):
        for part in (*re.split(r"&&|&$|\||;| # ", line), *re.findall(r"\$\(([^)]*)\)", line)):
            if found := re.fullmatch(before + r"mfg-notify +(.*?)(?: *\d?[<>].*)?", part.strip()):
                yield found[1].split()


def check(arguments: list[str], command: click.Command = main, parent: click.Context | None = None) -> None:
    """Raise what click raises for these arguments. Values are examples, so they are not checked."""
    context = click.Context(command, parent=parent, info_name="mfg-notify")
    # As usage is written: [OPTIONS] COMMAND [ARGS]...
    arguments = [word for word in arguments if not word.startswith("[")]
    _, rest, _ = command.make_parser(context).parse_args(list(arguments))
    if not isinstance(command, click.Group):
        assert not rest, f"{rest} cannot follow {context.command_path}"
    elif rest and rest[0] != "COMMAND":
        _, below, rest = command.resolve_command(context, rest)
        assert below is not None
        check(rest, below, context)


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    without_code = re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", without_code, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(text: str) -> list[str]:
    """Return the targets of a page's links and pictures."""
    return re.findall(r"\]\(([^)\s]+)\)", text)


def test_command_lines_are_found() -> None:
    page = """Say `mfg-notify migrate
        up` or `mfg-notify`; `pip install mfg-notify` is none.

            $ sudo -u x A=b /opt/v/bin/mfg-notify run --dsn x | tee && mfg-notify demo > file # one

        ```
        eval "$(mfg-notify completion bash)"
        ```
    """
    found = [" ".join(arguments) for arguments in command_lines(page)]
    assert sorted(found) == ["completion bash", "demo", "migrate up", "run --dsn x"]


@pytest.mark.parametrize(
    "wrong", ["fly", "run --fly", "migrate fly", "migrate up --down", "--fly", "run --dsn", "run fly"]
)
def test_a_wrong_command_line_is_found(wrong: str) -> None:
    with pytest.raises((click.UsageError, AssertionError)):
        check(wrong.split())


@every_page
def test_every_command_line_can_be_typed(page: Path) -> None:
    for arguments in command_lines(TEXTS[page]):
        check(arguments)


@every_page
def test_every_option_and_variable_exists(page: Path) -> None:
    def every(command: click.Command) -> Iterator[click.Command]:
        yield command
        if isinstance(command, click.Group):
            yield from chain.from_iterable(map(every, command.commands.values()))

    parameters = [one for command in every(main) for one in command.params]
    variables = {one.envvar for one in parameters} | ELSEWHERE | COMPOSE_VARIABLES
    assert set(re.findall(r"\bMFG_NOTIFY_[A-Z_]*[A-Z]\b", TEXTS[page])) <= variables
    options = {option for one in parameters for option in one.opts} | {"--help"}
    spans = (span.split()[0] for span in code(TEXTS[page]) if re.match("--[a-z]", span))
    assert {span.split("=")[0] for span in spans} <= options


@every_page
def test_every_target_has_the_label_of_its_database(page: Path) -> None:
    for entry in re.findall(r'targets"?: *\[.*\n?.*', TEXTS[page]):
        assert re.search(r'database"?: ', entry), entry


@every_page
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in links(TEXTS[page]):
        if "://" in link:
            continue
        place, _, anchor = link.partition("#")
        target = (page.parent / place).resolve() if place else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), link


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached: set[Path] = set()
    ahead = {README}
    while ahead:
        page = ahead.pop()
        reached.add(page)
        places = {(page.parent / link.partition("#")[0]).resolve() for link in links(TEXTS[page])}
        ahead |= places & set(PAGES) - reached
    assert reached == set(PAGES)


@every_page
def test_every_metric_exists(page: Path) -> None:
    known = {SELF_PREFIX + metric.name for metric in EXPORTER_METRICS}
    for metric in CATALOGUE:
        known |= {metric.full_name, metric.name, metric.name.removeprefix("manufacturing_")}
    known |= {f"{name}_{part}" for name in known for part in ("bucket", "count", "sum")}
    sql = "".join(migration.up for migration in migrations.migrations())
    named = re.findall(r"\b(?:mfg_notify|spacetraders_daemon|manufacturing)_[a-z][a-z_]*[a-z]\b", TEXTS[page])
    # Names that are not metrics are tables, roles or triggers, all of which are in the migrations.
    unknown = {name for name in named if name not in known and not re.search(rf"\b{name}\b", sql)}
    assert unknown <= {"mfg_notify_migrations", EXAMPLE, "spacetraders_daemon_" + EXAMPLE}


def test_the_endpoints_are_those_that_are_served() -> None:
    unused: Any = None
    served = make_application(unused, unused, "/metrics", Board(unused, unused)).routes
    rows = re.findall(r"^\| (`/.*?) \|", TEXTS[ROOT / "docs" / "reference" / "endpoints.md"], re.MULTILINE)
    assert sorted(re.findall(r"`(.*?)`", "".join(rows))) == sorted(getattr(each, "path", "") for each in served)


def test_what_is_generated_is_current() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "generate.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_licences_name_every_bundled_library() -> None:
    bundled = {file.name for file in distribution("psycopg-binary").files or () if ".libs" in file.parts[0]}
    assert bundled, "psycopg's wheel has its libraries elsewhere"
    named = set(re.findall(r"`(lib\w+)`", TEXTS[ROOT / "docs" / "reference" / "licences.md"]))
    assert {re.sub(r"[-.].*", "", name) for name in bundled} == named


def definitions(module: Path) -> Iterator[str]:
    """Yield `name`, and `Class.name` for what a class defines, of every function and class of a module."""
    for node in ast.parse(module.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        if isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
                    yield f"{node.name}.{inner.name}"


def test_the_design_names_existing_code() -> None:
    modules = {".".join(path.relative_to(SOURCES).with_suffix("").parts): path for path in SOURCES.rglob("*.py")}
    known = {name for path in modules.values() for name in definitions(path)}
    qualified = {f"{module}.{name}" for module, path in modules.items() for name in definitions(path)}
    packages = {path.name for path in SOURCES.iterdir() if path.is_dir()}
    spans = {span for span in code(TEXTS[DESIGN]) if re.fullmatch(r"\w+(\.\w+)+", span)}
    named = {span for span in spans if re.search(r"(^|\.)[A-Z]", span) or span.partition(".")[0] in packages}
    assert len(named) > 30
    assert named <= known | qualified | {module for module in modules if "." in module}


def test_the_design_names_existing_files() -> None:
    for span in code(TEXTS[DESIGN]):
        if re.fullmatch(r"[\w/]+\.(?:py|sql)|(?:db|tests)/[\w/]+", span):
            assert (ROOT / span).exists() or (SOURCES / span).exists(), span


# ------------------------------------------------------------------------------------------------------- figures --

TUNING = Tuning()
SQL = "".join(migration.up for migration in migrations.migrations())
RESULTS = json.loads((ROOT / "benchmarks" / "results.json").read_text(encoding="utf-8"))
WORDS = {1: "one", 2: "two", 4: "four", 8: "eight", 12: "twelve", 5_000_000: "five million"} | {
    0.8: "four fifths",
    0.25: "a quarter",
    0.05: "a twentieth",
}
JOURNAL_ROW_BYTES = 300
"""Size of a row of the journal with its index entry, at most: measured on PostgreSQL 18, 200 to 300 bytes."""


def limit(pattern: str, sql: str = SQL) -> float:
    """Return the number that a pattern finds in SQL; it must be the same wherever it is found."""
    [found] = set(re.findall(pattern, sql))
    return float(found)


LOCK_MILLISECONDS = limit(r"SET lock_timeout = '(\d+)ms'")
INSTALLING_LOCK_MILLISECONDS = limit(r"SET LOCAL lock_timeout = '(\d+)ms'")
JOURNAL_MAXIMUM = limit(r"backlog\(\) [<>]=? (\d+)")
PAYLOADS_MAXIMUM = limit(r"sum_total <= (\d+)")
PAYLOAD_BYTES = limit(r"octet_length\(body\) < (\d+)")
BUFFER_BYTES = limit(r"octet_length\(buffered\) < (\d+)")
QUEUE_SHARE = WORDS[limit(r"pg_notification_queue_usage\(\) < ([\d.]+)")]
TRIGGERS = WORDS[len(re.findall(r"CREATE OR REPLACE TRIGGER", SQL))]
FILLED = WORDS[JOURNAL_MAXIMUM]
CONNECT_TIMEOUT, PATIENCE_WITH_ONE_OF_SEVERAL = (
    conninfo_to_dict(complete_conninfo(f"host={hosts}"))["connect_timeout"] for hosts in ("a", "a,b")
)
RECONCILE_INTERVAL = f"{Settings().reconcile_interval:g} s"
LOG, WRITERS = RESULTS["wal"], RESULTS["writers"]
HISTORY = [round(row["reconcile ms"]) for row in RESULTS["history"].values()]


def ratio(name: str) -> str:
    """Return a rate of writers as a share of that without triggers, both as they are printed."""
    script, _, clients = name.split()
    return f"{round(WRITERS[name]['rate']) / round(WRITERS[f'{script} none {clients}']['rate']):.2f}"


CLAIMS = {
    "README.md": (f"longer than {LOCK_MILLISECONDS:.0f} ms for a lock",),
    "CHANGELOG.md": (
        f"All {len(SPECIFIED)} metrics of the specification",
        f"reached {ratio('change always 8')} of the game's throughput with eight clients",
        f"at most {PAYLOADS_MAXIMUM:.0f} payloads",
        f"wait {LOCK_MILLISECONDS:.0f} ms for a lock",
    ),
    "docs/explanation/exactness.md": (
        f"due within {TUNING.confirming_fold_delay:g} s, or immediately once {TUNING.announced_maximum} payloads wait",
        f"at most {TUNING.fold_chunk:,} events",
        f"come back within {TUNING.answer_timeout:g} s",
        f"backoff of at most {TUNING.retry_maximum:g} s",
        f"renewed for {TUNING.lease_duration:.0f} s",
        f"due within {1000 * TUNING.deferred_fold_delay:.0f} ms",
        f"Every {RECONCILE_INTERVAL} a snapshot",
    ),
    "docs/explanation/game.md": (
        f"folds every {1000 * TUNING.poll_interval_minimum:.0f} to {1000 * TUNING.poll_interval_under_load:.0f} ms",
        f"high-water rate is {TUNING.high_water_rate:,.0f} events a second",
        f"take {WORDS[TUNING.busy_ratio]} of the time",
        f"begins at {TUNING.busy_ratio / 0.001:.0f} changes a second",
        f"last {WORDS[TUNING.commit_samples]}",
        f"After {WORDS[round(TUNING.quiet_exit_windows * TUNING.rate_window)]} seconds below "
        f"{TUNING.low_water_ratio} of that rate",
        f"for every {BUFFER_BYTES:,.0f} bytes of events",
        f"waits {LOCK_MILLISECONDS:.0f} ms",
        f"one wait of {LOCK_MILLISECONDS:.0f} ms",
        f"at most {INSTALLING_LOCK_MILLISECONDS:.0f} ms",
        f"once the queue is {QUEUE_SHARE} full; at most {PAYLOADS_MAXIMUM:.0f} payloads",
        f"({PAYLOAD_BYTES:,.0f} bytes or more",
        f"more than {JOURNAL_MAXIMUM / 1e6:.0f} million events",
        f"reads the live rows every {RECONCILE_INTERVAL}",
        f"at most {TUNING.factory_count_share:.0%} of the time".replace("%", " %"),
    ),
    "docs/reference/glossary.md": (
        f"every {RECONCILE_INTERVAL}",
        f"renewed for {TUNING.lease_duration:.0f} s",
        f"come back within {TUNING.answer_timeout:g} s",
    ),
    "docs/how-to/install.md": (
        f"creates {TRIGGERS} triggers",
        f"at most {INSTALLING_LOCK_MILLISECONDS:.0f} ms",
        f"by {LOCK_MILLISECONDS:.0f} ms once a transaction",
        f"to about {JOURNAL_MAXIMUM * JOURNAL_ROW_BYTES / 1e9:.1f} GB at most",
        f"reads the live rows, every {RECONCILE_INTERVAL}",
    ),
    "docs/reference/metrics.md": (
        f"gives up after {TUNING.market_timeout:.0f} seconds",
        f"in the last {SHIP_MEMORY / MICROSECONDS_PER_SECOND / 3600:.0f} hours",
        f"about every {TUNING.confirming_fold_delay:g} s",
        f"more than {EXEMPLAR_MAXIMUM - len('pipeline_id')} characters (`pipeline_id`) or "
        f"{EXEMPLAR_MAXIMUM - len('task_id')} (`task_id`), because OpenMetrics allows {EXEMPLAR_MAXIMUM}",
    ),
    "docs/how-to/size.md": (
        f"200 to {JOURNAL_ROW_BYTES} bytes with its index entry",
        f"{FILLED} rows, about {JOURNAL_MAXIMUM * JOURNAL_ROW_BYTES / 1e9:.1f} GB",
        f"about {round(LOG['exporter later'] - LOG['bare later'], -2):.0f} bytes together",
        f"`--max-series` ({SERIES_MAXIMUM:,})",
    ),
    "docs/how-to/failover.md": (
        f"{TUNING.lease_duration:.0f} s after the last heartbeat",
        f"A server that does not answer costs {PATIENCE_WITH_ONE_OF_SEVERAL} s",
    ),
    "docs/how-to/backup-and-restore.md": (f"{TRIGGERS} errors for the triggers",),
    "docs/reference/compatibility.md": (f"wait longer than {LOCK_MILLISECONDS:.0f} ms give up",),
    "docs/reference/configuration.md": (
        f"`connect_timeout` is {CONNECT_TIMEOUT} s, or {PATIENCE_WITH_ONE_OF_SEVERAL} s for each of several servers",
    ),
    "docs/reference/endpoints.md": (
        f"remembers the last {ENDED_MAXIMUM:,} pipelines and {ENDED_MAXIMUM:,} tasks",
        f"503 with {VIEWERS_MAXIMUM} viewers",
    ),
    "docs/explanation/performance.md": (
        f"waits for at most {1000 * TUNING.poll_interval_under_load:.0f} ms",
        f"200 to {JOURNAL_ROW_BYTES} bytes a change, up to {FILLED} rows",
    ),
    "docs/explanation/performance-details.md": (
        f"| 0.70; 0.82 | {ratio('change exporter 8')}; {ratio('change triggers 8')}.",
        f"| 1.2 | {max(HISTORY) / min(HISTORY):.2f}; ",
    ),
    "docs/how-to/answer-an-alert.md": (
        f"up to {FILLED} events wait",
        f"within {LOCK_MILLISECONDS:.0f} ms",
        f"it is {QUEUE_SHARE} full",
        f"within {WORDS[round(TUNING.retry_maximum)]} seconds",
    ),
    "docs/explanation/security.md": (
        f"at most {TUNING.confirming_fold_delay:g} s later",
        f"at most {WORDS[round(1 / TUNING.empty_fold_pause)]} folds and {WORDS[round(1 / TUNING.snapshot_pause)]} "
        "snapshot a second",
        f"{TUNING.waiting_maximum:,} notifications wait to be read",
        f"{TUNING.pending_maximum:,} events wait for a fold",
        f"cut to {get_args(Text)[1].max_length} characters",
        f"last {CHANGES_MAXIMUM} changes",
        f"At most {VIEWERS_MAXIMUM} viewers",
        f"in at most {WORDS[SHARE]} of the time",
    ),
}
"""What the pages say of the limits in the code and of the benchmark results, in their own words."""


@pytest.mark.parametrize("page", CLAIMS)
def test_figures_are_those_of_the_code(page: str) -> None:
    text = " ".join((ROOT / page).read_text(encoding="utf-8").split())
    assert [claim for claim in CLAIMS[page] if claim not in text] == []


def test_figures_in_words() -> None:
    """The figures that the pages express in words only, such as "once a minute" or "every second"."""
    assert MARKET_INTERVAL == 60
    assert INTERVAL == 0.5, "security.md: at most twice a second"
    assert TUNING.heartbeat_interval == 1
    assert TUNING.final_fold_timeout + GRACE + 0.5 < 5, "systemd.md: in less than five seconds"
    assert TUNING.poll_interval_maximum == 1, "game.md: at least once a second"
