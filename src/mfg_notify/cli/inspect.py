"""`mfg-notify doctor`, `verify` and `tail`: commands that look at a game database."""

import dataclasses
import json
import sys
import time

import anyio
import click
from rich.console import Console
from rich.markup import escape

from mfg_notify.cli.console import print_line
from mfg_notify.cli.options import connection_options
from mfg_notify.diagnosis.doctor import examine
from mfg_notify.diagnosis.tail import follower
from mfg_notify.diagnosis.tail.gaps import Item
from mfg_notify.diagnosis.tail.output import Output, format_json, format_line, printable
from mfg_notify.diagnosis.verify import describe, to_json, verify
from mfg_notify.postgres.connection import complete_conninfo

_SIGNS = {"ok": "[green]✓[/]", "warning": "[yellow]![/]", "failed": "[red]✗[/]"}


@click.command()
@connection_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead, for programs.")
def doctor(dsn: str, game_schema: str, *, as_json: bool) -> None:
    """Find what is wrong, and print how to fix it.

    It checks everything between the game's database and the exporter. Run it as you run the exporter: same user, same
    machine, same --dsn. It prints a line for each check: ✓ is fine, ! works but needs attention, ✗ does not work; the
    line after → says how to fix it. Checks that depend on a failed one are skipped. Exit code 1 if there is a ✗.

    It only reads, changes nothing, and disturbs neither the game nor a running exporter.

    With --json: {"ok": true, "findings": [{"check": …, "verdict": "ok", "warning" or "failed", "message": …, "remedy":
    … or null}, …]}.
    """
    conninfo = complete_conninfo(dsn, "mfg-notify doctor")
    findings = []
    for finding in examine(conninfo, game_schema, time.time):
        findings.append(finding)
        if not as_json:
            print_line(f"{_SIGNS[finding.verdict]} {finding.check:<12} {escape(printable(finding.message))}")
            if finding.remedy is not None:
                print_line(f"  → {escape(printable(finding.remedy))}")
    ok = all(finding.verdict != "failed" for finding in findings)
    if as_json:
        report = {"ok": ok, "findings": [dataclasses.asdict(finding) for finding in findings]}
        click.echo(json.dumps(report, ensure_ascii=False))
    if not ok:
        sys.exit(1)


@click.command("verify")
@connection_options
@click.option("--accept", is_flag=True, help="Enter the differences, so that the next check balances.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead, for programs.")
def verify_command(dsn: str, game_schema: str, *, accept: bool, as_json: bool) -> None:
    """Prove that the numbers are what happened.

    It checks the books in one snapshot of the database: the balance of live rows that the recorded events give must be
    the live rows in the game's tables, by table, player and status, and the totals must be what has been added to
    them. It prints what was proved, or each difference, what it means and what to do. Exit code 1 if there is one.

    It only reads, and works with a running exporter, a stopped one or none. With --accept it writes the differences
    into the books, as a running exporter does with those of rows; that needs the exporter's role or the owner.

    With --json: {"balanced": …, "snapshot": …, "at": …, "seconds": …, "journal_events": …, "tables": {table: {"rows":
    …, "players": …, "statuses": …}}, "metrics": …, "changed_rows": {table: …}, "differences": [{"table": …,
    "player_id": …, "status": …, "recorded": …, "counted": …}], "changed_totals": [{"metric": …, "added": …, "stored":
    …, "at_limit": …}], "unrecorded": {table: …}, "accepted_totals": {metric: …}, "lost": …, "accepted": …}.
    """
    conninfo = complete_conninfo(dsn, "mfg-notify verify")
    with Console(stderr=True).status("reading the books") as status:
        report = verify(
            conninfo,
            game_schema,
            accept=accept,
            on_progress=lambda n: status.update(f"reading the journal: {n:,} events"),
        )
    if as_json:
        click.echo(json.dumps(to_json(report), ensure_ascii=False))
    else:
        for line in describe(report):
            print_line(line)
    if not report.balanced:
        sys.exit(1)


@click.command()
@connection_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line instead, for programs.")
def tail(dsn: str, game_schema: str, *, as_json: bool) -> None:
    """Print the game's changes as they happen.

    It prints a line for each change of a row of the three manufacturing tables: time, player, table, key, and what
    changed: status, supply, inputs, ship, credits. Colours on a terminal, plain text in a pipe. Messages about the
    connection go to standard error.

    It only reads and disturbs no exporter; a role created by migrate up --create-role may run it. Most events arrive by
    NOTIFY. If the triggers notify no content (many rows in one transaction, text that is not ASCII, high load, NOTIFY
    switched off), tail reads the journal. An exporter may have folded such events already: a line that begins with …
    then says how many are not shown, and why.

    It ends with Ctrl-C, or when the reader of its output is gone; exit code 0. If the connection breaks, it reports
    that, connects again, and goes on; exit code 1 if the first connection fails.

    With --json: {"id": …, "xid": …, "at": …, "table": "pipeline", "task" or "factory", "operation": "insert", "update",
    "delete" or "truncate", "key": …, "player_id": …, "old": the columns before the change without times, or null,
    "new": those after it, or null}; for events that are not shown {"not_shown": {"events": …, "first_id": …, "last_id":
    …, "reason": …}}.
    """
    conninfo = complete_conninfo(dsn, "mfg-notify tail")
    console = Console(highlight=False, soft_wrap=True)

    def line(item: Item) -> str:
        with console.capture() as captured:
            console.print(format_line(item), end="")
        return captured.get()

    output = Output(sys.stdout.fileno(), format_json if as_json else line)
    anyio.run(follower.run, conninfo, game_schema, output.show, _print_report)


def _print_report(message: str) -> None:
    click.echo(f"mfg-notify: {message}", err=True)
