"""The command `mfg-notify`: reads options, builds the parts, runs them.

The only room that reads the environment, prints, and ends the process.
"""

import re
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import anyio
import click
import psycopg
from rich.console import Console

from mfg_notify import __version__, logs, web
from mfg_notify.errors import MfgNotifyError, UsageError
from mfg_notify.exporter import Exporter, Settings
from mfg_notify.postgres import migrations
from mfg_notify.postgres.connection import complete_conninfo, describe, translated_errors

ADDRESS = "127.0.0.1:9810"
Command = TypeVar("Command", bound=Callable[..., Any])

say = partial(Console(highlight=False, soft_wrap=True).print)
"""To standard output: colours on a terminal, plain text in a pipe."""


_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}


class _Duration(click.ParamType[float]):
    name = "duration"
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:  # noqa: ANN401
        if isinstance(value, float):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h|)", str(value))
        if not match or float(match.group(1)) == 0:
            self.fail(f"{value!r} is not a duration such as 30s, 500ms or 1m", param, ctx)
        return float(match.group(1)) * _SECONDS[match.group(2)]


DURATION = _Duration()


class _Group(click.Group):
    """Turns our errors into a line on standard error and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401
        try:
            return super().invoke(ctx)
        except MfgNotifyError as error:
            raise click.ClickException(str(error)) from error


def _options(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


connection_options = _options(
    click.option(
        "--dsn",
        envvar="MFG_NOTIFY_DSN",
        show_envvar=True,
        default="",
        help="Connection string or URI. Without it libpq's own PG* variables, service and password file decide.",
    ),
    click.option(
        "--game-schema",
        envvar="MFG_NOTIFY_GAME_SCHEMA",
        show_envvar=True,
        default="public",
        show_default=True,
        help="Schema of the game's tables.",
    ),
)
log_options = _options(
    click.option(
        "--log.level",
        "log_level",
        envvar="MFG_NOTIFY_LOG_LEVEL",
        show_envvar=True,
        type=click.Choice(list(logs.LEVELS)),
        default="info",
        show_default=True,
    ),
    click.option(
        "--log.format",
        "log_format",
        envvar="MFG_NOTIFY_LOG_FORMAT",
        show_envvar=True,
        type=click.Choice(["console", "logfmt", "json"]),
        default=None,
        help="Default: console on a terminal, logfmt elsewhere.",
    ),
)
web_options = _options(
    click.option(
        "--web.listen-address",
        "listen_addresses",
        envvar="MFG_NOTIFY_WEB_LISTEN_ADDRESS",
        show_envvar=True,
        multiple=True,
        default=[ADDRESS],
        show_default=True,
        metavar="HOST:PORT",
        help="Address to serve on; may be given more than once.",
    ),
    click.option(
        "--web.telemetry-path",
        "telemetry_path",
        envvar="MFG_NOTIFY_WEB_TELEMETRY_PATH",
        show_envvar=True,
        default="/metrics",
        show_default=True,
        help="Path of the metrics.",
    ),
)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", prog_name="mfg-notify")
def main() -> None:
    """Exact Prometheus metrics of a SpaceTraders bot's manufacturing, from PostgreSQL LISTEN/NOTIFY.

    On an empty machine: mfg-notify demo. On a game database: mfg-notify migrate up, then mfg-notify run.
    """


@main.command()
@connection_options
@web_options
@click.option(
    "--reconcile-interval",
    envvar="MFG_NOTIFY_RECONCILE_INTERVAL",
    show_envvar=True,
    type=DURATION,
    default="30s",
    show_default=True,
    help="Time between two readings of the live rows.",
)
@log_options
def run(
    dsn: str,
    game_schema: str,
    listen_addresses: tuple[str, ...],
    telemetry_path: str,
    reconcile_interval: float,
    log_level: str,
    log_format: logs.Format | None,
) -> None:
    """Run the exporter: listen, fold, reconcile, serve.

    It starts even while the database is down, says so, and recovers by itself. SIGTERM and SIGINT fold once more and
    end it.
    """
    _configure_logs(log_level, log_format)
    settings = Settings(dsn, game_schema, reconcile_interval, _checked_path(telemetry_path))
    sockets = web.bind(listen_addresses)
    exporter = Exporter(settings)
    anyio.run(partial(exporter.run, sockets, handle_signals=True))


@main.group()
def migrate() -> None:
    """Install, remove, inspect or print the triggers in the game database."""


@migrate.command("up")
@connection_options
def migrate_up(dsn: str, game_schema: str) -> None:
    """Install or upgrade. Safe to repeat, also under a running game and a running exporter."""
    conninfo = complete_conninfo(dsn)
    with _connected(conninfo) as connection:
        applied = migrations.up(connection, game_schema, _say_waiting)
        status = migrations.read_status(connection, game_schema)
    for migration in applied:
        say(f"[green]applied[/] {migration.number:04d}_{migration.name}")
    if not applied:
        say(f"nothing to do: {describe(conninfo)} has version {status.version}")
    if status.notify is False:
        say(
            "[yellow]note[/]: max_prepared_transactions is not 0 here, so the triggers write the journal and do not "
            "notify; the exporter looks once a second"
        )


@migrate.command("down")
@connection_options
def migrate_down(dsn: str, game_schema: str) -> None:
    """Remove everything that was installed; the totals go with it."""
    conninfo = complete_conninfo(dsn)
    with _connected(conninfo) as connection:
        connection.add_notice_handler(lambda notice: say(f"[yellow]note[/]: {notice.message_primary}"))
        removed = migrations.down(connection, game_schema, _say_waiting)
    say("[green]removed[/]" if removed else f"nothing to remove in {describe(conninfo)}")


@migrate.command("status")
@connection_options
def migrate_status(dsn: str, game_schema: str) -> None:
    """Say what is installed. Exit code 1 if that is not the newest version with all its triggers."""
    with _connected(complete_conninfo(dsn)) as connection:
        status = migrations.read_status(connection, game_schema)
    latest = migrations.latest_version()
    say(f"version   {'not installed' if status.version is None else status.version} (newest: {latest})")
    for table, count in sorted(status.triggers.items()):
        say(f"triggers  {table}: {count} of {migrations.TRIGGERS // 3} enabled")
    if not status.triggers:
        say(f"triggers  the game's tables are not in schema {game_schema}; see --game-schema")
    if status.notify is not None:
        say(f"notify    {'on' if status.notify else 'off'}")
    if not status.complete:
        say("[yellow]not complete[/]: run mfg-notify migrate up")
        sys.exit(1)


@migrate.command("sql")
@click.option("--game-schema", default="public", show_default=True, help="Schema of the game's tables.")
@click.option("--down", is_flag=True, help="Print what removes it.")
def migrate_sql(game_schema: str, *, down: bool) -> None:
    """Print the migration as plain SQL, for psql or to keep with your own."""
    everything = migrations.migrations()
    for migration in reversed(everything) if down else everything:
        click.echo(migrations.render(migration.down if down else migration.up, game_schema))


def _connected(conninfo: str) -> psycopg.Connection:
    with translated_errors():
        return psycopg.connect(conninfo, autocommit=True)


def _say_waiting(reason: str) -> None:
    say(f"[yellow]waiting[/]: {reason}")


def _configure_logs(level: str, log_format: logs.Format | None) -> None:
    logs.configure(level, log_format or ("console" if sys.stderr.isatty() else "logfmt"))


def _checked_path(path: str) -> str:
    if not path.startswith("/") or path.startswith("/-/"):
        raise UsageError(f"--web.telemetry-path {path!r} must begin with / and not with /-/")
    return path
