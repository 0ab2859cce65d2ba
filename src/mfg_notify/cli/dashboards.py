"""`mfg-notify dashboards`: writes the Grafana dashboards, or adds a row to one of yours."""

from pathlib import Path

import click
from rich.markup import escape

from mfg_notify.cli.console import print_line
from mfg_notify.dashboards import files
from mfg_notify.dashboards.merge import Outcome
from mfg_notify.dashboards.shipped import Form

DATASOURCE_OPTION = click.option(
    "--datasource-uid",
    metavar="UID",
    help="The data source in Grafana: the default of the dashboards' variable, or what a merged row queries.",
)


@click.group()
def dashboards() -> None:
    """Write the Grafana dashboards, or add to one that you have."""


@dashboards.command("write")
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@click.option("--force", is_flag=True, help="Also replace files of these names that mfg-notify did not write.")
@click.option(
    "--own-uids",
    is_flag=True,
    help="Write mfg-notify into their uids and titles, for a Grafana that keeps other dashboards of the usual uids.",
)
@DATASOURCE_OPTION
@click.option(
    "--inputs",
    is_flag=True,
    help="Let Grafana ask for the data source when it imports the file, as grafana.com does. Not for provisioning.",
)
def dashboards_write(folder: Path, *, force: bool, own_uids: bool, datasource_uid: str | None, inputs: bool) -> None:
    """Write manufacturing.json and market-dynamics.json into a folder, for provisioning or import.

    Refuses to replace a file that mfg-notify did not write: see dashboards merge.
    """
    if inputs and datasource_uid is not None:
        raise click.UsageError("--inputs asks for the data source, so it excludes --datasource-uid.")
    written = files.write_dashboards(folder, Form(own_uids, datasource_uid, inputs), force=force)
    for file in written:
        print_line(f"[green]wrote[/] {escape(str(file))}")
    if not written:
        print_line(f"nothing to do: {escape(str(folder))} has them already")


_MERGED = {
    Outcome.APPENDED: "[green]appended[/] the row Manufacturing Overview to",
    Outcome.REFRESHED: "[green]refreshed[/] the row Manufacturing Overview in",
    Outcome.UNCHANGED: "nothing to do:",
}


@dashboards.command("merge")
@click.argument("file", type=click.Path(path_type=Path), metavar="FILE")
@click.option("--own-uids", is_flag=True, help="Link to the dashboard that dashboards write --own-uids writes.")
@DATASOURCE_OPTION
def dashboards_merge(file: Path, *, own_uids: bool, datasource_uid: str | None) -> None:
    """Append the row Manufacturing Overview to your market-dynamics.json, or refresh it, in place.

    Everything else in the file stays as it is. Safe to repeat.
    """
    outcome = files.merge_file(file, Form(own_uids, datasource_uid))
    already = " has it already" if outcome is Outcome.UNCHANGED else ""
    print_line(f"{_MERGED[outcome]} {escape(str(file))}{already}")
