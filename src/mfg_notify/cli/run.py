"""`mfg-notify run`: the exporter, with systemd informed about it."""

import os
import socket
from contextlib import closing
from pathlib import Path

import anyio
import click

from mfg_notify import logs, systemd
from mfg_notify.cli.options import (
    DURATION,
    check_grafana_url,
    check_telemetry_path,
    configure_logs,
    connection_options,
    log_options,
    web_options,
)
from mfg_notify.core.capped_totals import SERIES_MAXIMUM
from mfg_notify.core.notify_mode import Policy
from mfg_notify.exporter import Exporter, Settings
from mfg_notify.exporter.market_reader import MARKET_INTERVAL
from mfg_notify.web import server
from mfg_notify.web.access import Access
from mfg_notify.web.limits import Limits


@click.command()
@connection_options
@web_options
@click.option(
    "--reconcile-interval",
    envvar="MFG_NOTIFY_RECONCILE_INTERVAL",
    show_envvar=True,
    type=DURATION,
    default="30s",
    show_default=True,
    help="Time between two reconciliations of the gauges with the live rows.",
)
@click.option(
    "--max-series",
    "series_maximum",
    envvar="MFG_NOTIFY_MAX_SERIES",
    show_envvar=True,
    type=click.IntRange(min=1),
    default=SERIES_MAXIMUM,
    show_default=True,
    help="Maximum number of the game's series; totals beyond it are summed under the label value 'other'.",
)
@click.option(
    "--collect-market",
    envvar="MFG_NOTIFY_COLLECT_MARKET",
    show_envvar=True,
    is_flag=True,
    help="Also read market_data once a minute; leave it off if the bot exports its own market metrics.",
)
@click.option(
    "--notify",
    envvar="MFG_NOTIFY_NOTIFY",
    show_envvar=True,
    type=click.Choice([policy.value for policy in Policy]),
    default=Policy.ADAPTIVE.value,
    show_default=True,
    help="When the triggers notify. adaptive: not while changes come fast; the exporter then polls the journal.",
)
@log_options
def run(
    dsn: str,
    game_schema: str,
    listen_addresses: tuple[str, ...],
    telemetry_path: str,
    web_config_file: Path | None,
    max_requests: int,
    max_connections: int,
    grafana_url: str | None,
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

    It starts even if the database is down, reports that, and recovers without help. SIGTERM and SIGINT end it after a
    last fold. Under systemd (Type=notify) it reports readiness, status and the watchdog's keep-alive.
    """
    configure_logs(log_level, log_format)
    settings = Settings(
        dsn=dsn,
        schema=game_schema,
        reconcile_interval=reconcile_interval,
        telemetry_path=check_telemetry_path(telemetry_path),
        series_maximum=series_maximum,
        market_interval=MARKET_INTERVAL if collect_market else None,
        notify=Policy(notify),
        board=not no_board,
        grafana_url=check_grafana_url(grafana_url),
        access=Access(web_config_file) if web_config_file else None,
        limits=Limits(max_requests, max_connections),
    )
    exporter = Exporter(settings)
    anyio.run(_export, exporter, server.bind(listen_addresses))


async def _export(exporter: Exporter, sockets: list[socket.socket]) -> None:
    with closing(systemd.ServiceManager(os.environ)) as manager:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(systemd.report, exporter, manager)
            await exporter.run(sockets, handle_signals=True)
            tasks.cancel_scope.cancel()
