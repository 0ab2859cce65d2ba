"""`mfg-notify migrate`: installs, removes, reports and prints the triggers, and creates the exporter's role."""

import sys
from collections import Counter

import click
from rich.markup import escape

from mfg_notify.cli.console import print_line, print_notice, print_waiting
from mfg_notify.cli.options import connection_options, schema_option
from mfg_notify.postgres import installation, migrations
from mfg_notify.postgres.connection import complete_conninfo, describe, quote_identifier

APPLICATION = "mfg-notify migrate"

_role_option = click.option(
    "--create-role",
    envvar="MFG_NOTIFY_CREATE_ROLE",
    show_envvar=True,
    metavar="NAME",
    help="Also create this role for the exporter, or grant an existing one the rights that it needs and no others.",
)


@click.group()
def migrate() -> None:
    """Install, remove, inspect or print the triggers in the game database."""


@migrate.command("up")
@connection_options
@_role_option
def migrate_up(dsn: str, game_schema: str, create_role: str | None) -> None:
    """Install or upgrade. Safe to repeat, also while the game and the exporter run."""
    conninfo = complete_conninfo(dsn, APPLICATION)
    with migrations.connect(conninfo, print_notice) as connection:
        migrations.check_owner(connection, game_schema, unless_complete=create_role is None)
        if create_role is not None:
            migrations.check_role(connection, game_schema, create_role)
        before = installation.read_status(connection, game_schema)
        applied = migrations.up(connection, game_schema, print_waiting)
        status = installation.read_status(connection, game_schema)
    upgraded = before.version != status.version
    for migration in applied if upgraded else ():
        print_line(f"[green]applied[/] {migration.number:04d}_{migration.name}")
    for name in (*before.missing, *before.changed):
        print_line(f"[green]repaired[/] {escape(name)}")
    for column in before.new_columns:
        print_line(f"[green]reads now[/] {escape(column)}")
    if disabled := _tables_with_disabled_triggers(before):
        print_line(f"[green]enabled[/] the triggers of {', '.join(disabled)}")
    if applied and not upgraded and not any(name.startswith(("table ", "sequence ")) for name in before.missing):
        print_line("the totals continue")
    if not applied:
        print_line(f"nothing to do: {escape(describe(conninfo))} has version {status.version}")
    if status.installation is not None and not status.installation.notify:
        print_line(
            "[yellow]note[/]: max_prepared_transactions is not 0 here, so the triggers write the journal and do not "
            "notify; the exporter polls once a second"
        )
    if create_role is not None:
        _create_role(conninfo, game_schema, create_role)


def _tables_with_disabled_triggers(before: installation.Status) -> list[str]:
    """Return the game's tables that have more triggers than enabled ones; none before the installation."""
    if before.version is None:
        return []
    missing = Counter(name.rpartition(" on ")[2] for name in before.missing if name.startswith("trigger "))
    return [
        table
        for table, enabled in sorted(before.triggers.items())
        if enabled + missing[table] < installation.TRIGGERS_PER_TABLE
    ]


def _create_role(conninfo: str, game_schema: str, role: str) -> None:
    with migrations.connect(conninfo, print_notice) as connection:
        created = migrations.create_role(connection, game_schema, role, print_waiting)
    name = escape(quote_identifier(role))
    if created:
        print_line(f"[green]created[/] role {name}; it has no password yet: run \\password {name} in psql,")
        print_line(f"or ALTER ROLE {name} PASSWORD '…'")
    else:
        print_line(f"[green]granted[/] to role {name} what an exporter needs")


@migrate.command("down")
@connection_options
def migrate_down(dsn: str, game_schema: str) -> None:
    """Remove everything that was installed, including the totals."""
    conninfo = complete_conninfo(dsn, APPLICATION)
    with migrations.connect(conninfo, print_notice) as connection:
        migrations.check_owner(connection, game_schema)
        removed = migrations.down(connection, game_schema, print_waiting)
    print_line("[green]removed[/]" if removed else f"nothing to remove in {escape(describe(conninfo))}")


@migrate.command("status")
@connection_options
def migrate_status(dsn: str, game_schema: str) -> None:
    """Report what is installed. Exit code 1 if that is not the newest version with all its triggers."""
    with migrations.connect(complete_conninfo(dsn, APPLICATION)) as connection:
        status = installation.read_status(connection, game_schema)
    version = "not installed" if status.version is None else status.version
    print_line(f"version   {version} (newest: {installation.SCHEMA_VERSION})")
    for table, count in sorted(status.triggers.items()):
        print_line(f"triggers  {table}: {count} of {installation.TRIGGERS_PER_TABLE} enabled")
    if not status.triggers:
        print_line(f"triggers  the game's tables are not in schema {escape(game_schema)}; see --game-schema")
    if status.installation is not None:
        print_line(f"notify    {'on' if status.installation.notify else 'off'}")
    if status.missing:
        print_line(f"missing   {', '.join(status.missing)}")
    if status.changed:
        print_line(f"changed   {', '.join(status.changed)}")
    if status.missing_columns:
        print_line(f"not found {escape(', '.join(status.missing_columns))}")
    if status.new_columns:
        print_line(f"not read  {escape(', '.join(status.new_columns))}")
    if status.installation is not None and not status.installation.released:
        print_line(f"[yellow]unreleased[/]: run {installation.REINSTALL}")
        sys.exit(1)
    if not status.complete:
        print_line("[yellow]not complete[/]: run mfg-notify migrate up")
        sys.exit(1)


@migrate.command("sql")
@schema_option
@click.option("--down", is_flag=True, help="Print what removes it, including the role.")
@_role_option
def migrate_sql(game_schema: str, create_role: str | None, *, down: bool) -> None:
    """Print the migration as plain SQL, for psql or to keep with your own migrations."""
    everything = migrations.migrations()
    for migration in reversed(everything) if down else everything:
        click.echo(migrations.render(migration.down if down else migration.up, game_schema))
    if create_role is not None and not down:
        click.echo(migrations.render_role(create_role, game_schema))
