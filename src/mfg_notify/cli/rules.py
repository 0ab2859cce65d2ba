"""`mfg-notify rules`: writes the alerting rules."""

from pathlib import Path

import click
from rich.markup import escape

from mfg_notify import alerts
from mfg_notify.cli.console import print_line


@click.group()
def rules() -> None:
    """Write the alerting rules for Prometheus."""


@rules.command("write")
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@click.option(
    "--job", default=alerts.JOB, show_default=True, metavar="NAME", help="The job that scrapes the exporters."
)
@click.option(
    "--runbook-url",
    default=alerts.RUNBOOK,
    show_default=True,
    metavar="URL",
    help="Where you publish docs/how-to/answer-an-alert.md: the alerts link to its sections.",
)
@click.option("--force", is_flag=True, help="Also replace files of these names that mfg-notify did not write.")
def rules_write(folder: Path, job: str, runbook_url: str, *, force: bool) -> None:
    """Write exporter.yml and game.yml into a folder that rule_files of Prometheus names."""
    written = alerts.write_rules(folder, job, runbook_url, force=force)
    for file in written:
        print_line(f"[green]wrote[/] {escape(str(file))}")
    if not written:
        print_line(f"nothing to do: {escape(str(folder))} has them already")
    if runbook_url == alerts.RUNBOOK:
        print_line(
            f"[yellow]note[/]: the alerts link to {alerts.RUNBOOK}#… until --runbook-url names where you publish it"
        )
