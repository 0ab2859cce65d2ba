"""The documentation against the code: what it names exists, what it links to is there, what is generated is current.

That what it says is true is for the other tests; that its commands work was tried by hand.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import click
import pytest
from tests.support import ROOT

from mfg_notify.cli import main
from mfg_notify.core.catalogue import CATALOGUE, EXPORTER_METRICS, SELF_PREFIX
from mfg_notify.postgres import migrations

README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {page: page.read_text(encoding="utf-8") for page in PAGES}
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)

ELSEWHERE = {"MFG_NOTIFY_TEST_DSN", "MFG_NOTIFY_SOAK_MINUTES"}
"""Variables that the tests read and no command."""
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
        for part in (*re.split(r"&&|\||;| # ", line), *re.findall(r"\$\(([^)]*)\)", line)):
            if found := re.fullmatch(before + r"mfg-notify +(.*?)(?: *\d?[<>].*)?", part.strip()):
                yield found[1].split()


def check(arguments: list[str], command: click.Command = main, parent: click.Context | None = None) -> None:
    """Raise what click raises for these arguments; values are not looked at, for they are examples."""
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
    """Return the anchors of a page's headings, as they are made where the repository is shown."""
    without_code = re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", without_code, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(text: str) -> list[str]:
    """Return where a page's links and pictures lead."""
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
    variables = {one.envvar for one in parameters} | ELSEWHERE
    assert set(re.findall(r"\bMFG_NOTIFY_[A-Z_]*[A-Z]\b", TEXTS[page])) <= variables
    options = {option for one in parameters for option in one.opts} | {"--help"}
    spans = (span.split()[0] for span in re.findall(r"`([^`]+)`", TEXTS[page]) if span.startswith("--"))
    assert {span.split("=")[0] for span in spans} <= options


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
    # What is no metric is a table, a role or a trigger; all of these are in the migrations.
    unknown = {name for name in named if name not in known and not re.search(rf"\b{name}\b", sql)}
    assert unknown <= {"mfg_notify_migrations", EXAMPLE, "spacetraders_daemon_" + EXAMPLE}


def test_what_is_generated_is_current() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "generate.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
