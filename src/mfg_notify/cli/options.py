"""Options that several commands share, and what is checked about their values."""

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import click

from mfg_notify import logs
from mfg_notify.errors import OptionError, UsageError
from mfg_notify.web.limits import Limits

ADDRESS = "127.0.0.1:9810"
_ARG_START = 45
"""Index of arg_start among the fields of /proc/PID/stat that follow the program's name; proc(5) numbers it 48."""
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}

Command = TypeVar("Command", bound=Callable[..., Any])


class _Duration(click.ParamType[float]):
    """A duration such as 30s, 500ms or 1h30m, as Prometheus and Go write them; the value is in seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:  # noqa: ANN401
        if isinstance(value, float):
            return value
        number = r"\d{1,9}(?:\.\d{1,9})?"
        seconds = 0.0
        if re.fullmatch(rf"{number}|(?:{number}(?:ms|s|m|h)){{1,4}}", str(value), re.ASCII):
            parts = re.findall(rf"({number})(ms|s|m|h|)", str(value), re.ASCII)
            seconds = sum(float(count) * _SECONDS[unit] for count, unit in parts)
        if seconds == 0:
            self.fail(f"{value!r} is not a duration such as 30s, 500ms or 1h30m", param, ctx)
        return seconds


DURATION = _Duration()


def combine(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Return one decorator that adds all these options, in this order."""

    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def _hide_dsn(_: click.Context, __: click.Parameter, dsn: str) -> str:
    """Remove the DSN from the arguments of the process, where everyone on the machine can read its password."""
    if dsn and any(dsn in argument for argument in sys.argv):
        try:
            _overwrite_in_arguments(os.fsencode(dsn))
        except OSError as error:
            click.echo(f"Warning: other users can see --dsn ({error.strerror}); use --dsn-file instead", err=True)
    return dsn


def _overwrite_in_arguments(secret: bytes) -> None:
    """Replace a secret in this process's memory that /proc/PID/cmdline and ps show; only Linux has these files."""
    # The name of the program, in parentheses, may contain spaces.
    fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
    start, end = int(fields[_ARG_START]), int(fields[_ARG_START + 1])
    with Path("/proc/self/mem").open("r+b", buffering=0) as memory:
        memory.seek(start)
        arguments = memory.read(end - start)
        memory.seek(start)
        # The length stays, because the environment comes next.
        memory.write(arguments.replace(secret, b"*").ljust(end - start, b"\0"))


def _read_dsn(ctx: click.Context, _: click.Parameter, path: Path | None) -> None:
    """Let the DSN be the contents of a file, which neither the process title nor the environment shows."""
    if path is None:
        return
    if ctx.params.get("dsn"):
        raise OptionError("give either --dsn or --dsn-file, not both (or MFG_NOTIFY_DSN and MFG_NOTIFY_DSN_FILE)")
    try:
        ctx.params["dsn"] = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UsageError(f"--dsn-file {path}: {reason}") from None
    if not ctx.params["dsn"]:
        raise UsageError(f"--dsn-file {path}: it is empty")


schema_option = click.option(
    "--game-schema",
    envvar="MFG_NOTIFY_GAME_SCHEMA",
    show_envvar=True,
    default="public",
    show_default=True,
    help="Schema of the game's tables.",
)
connection_options = combine(
    click.option(
        "--dsn",
        callback=_hide_dsn,
        is_eager=True,
        envvar="MFG_NOTIFY_DSN",
        show_envvar=True,
        default="",
        help="Connection string or URI. Without it libpq's own PG* variables, service and password file decide. A "
        "password is better off in ~/.pgpass or in --dsn-file.",
    ),
    click.option(
        "--dsn-file",
        callback=_read_dsn,
        expose_value=False,
        envvar="MFG_NOTIFY_DSN_FILE",
        show_envvar=True,
        metavar="FILE",
        type=click.Path(path_type=Path),
        help="File that contains the connection string or URI, for example a systemd credential.",
    ),
    schema_option,
)
log_options = combine(
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
web_options = combine(
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
        "--web.max-requests",
        "max_requests",
        envvar="MFG_NOTIFY_WEB_MAX_REQUESTS",
        show_envvar=True,
        type=click.IntRange(min=0),
        default=Limits().max_requests,
        show_default=True,
        help="Maximum number of scrapes that are answered at the same time; more get 503. 0: no limit.",
    ),
    click.option(
        "--web.max-connections",
        "max_connections",
        envvar="MFG_NOTIFY_WEB_MAX_CONNECTIONS",
        show_envvar=True,
        type=click.IntRange(min=1),
        default=Limits().max_connections,
        show_default=True,
        help="Maximum number of open connections, less if the limit of open files is lower. For another one, the "
        "longest idle is closed.",
    ),
    click.option(
        "--web.no-board",
        "no_board",
        envvar="MFG_NOTIFY_WEB_NO_BOARD",
        show_envvar=True,
        is_flag=True,
        help="Serve a plain page at / instead of the live board.",
    ),
    click.option(
        "--web.grafana-url",
        "grafana_url",
        envvar="MFG_NOTIFY_WEB_GRAFANA_URL",
        show_envvar=True,
        metavar="URL",
        help="Address of your Grafana: the board links to its dashboard of manufacturing.",
    ),
)


def check_grafana_url(url: str | None) -> str | None:
    """Return the address. Raise `OptionError` if it is none that a browser can open, or one with a password in it."""
    if url is None:
        return None
    try:
        parts = urlsplit(url)
    except ValueError:
        raise OptionError("--web.grafana-url is not an address") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
        raise OptionError(
            "--web.grafana-url must look like https://grafana.example or http://host:3000/path, without a user"
        )
    return url


def configure_logs(level: str, log_format: logs.Format | None) -> None:
    """Set up the logs; without a format, people get the console's and programs get logfmt."""
    logs.configure(level, log_format or ("console" if sys.stderr.isatty() else "logfmt"))


def check_telemetry_path(path: str) -> str:
    """Return the path. Raise `OptionError` if the exporter cannot serve the metrics there."""
    if not path.startswith("/") or path.startswith("/-/"):
        raise OptionError(f"--web.telemetry-path {path!r} must begin with / and not with /-/")
    if re.search(r"[{}]", path):
        # The router would take what is between them for a parameter.
        raise OptionError(f"--web.telemetry-path {path!r} must contain neither {{ nor }}")
    return path
