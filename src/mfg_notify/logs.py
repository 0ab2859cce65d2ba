"""Logs: one line on standard error for each event that matters to an operator; never a payload, never a secret.

A state is logged when it begins and when it ends, not at each retry. Lines of the libraries have the same format.
"""

import logging
import re
import sys
from typing import Literal

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

Format = Literal["console", "logfmt", "json"]
LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
"""Control characters except the line feed, which is escaped; line separators; characters that turn text around."""


def configure(level: str, log_format: Format) -> None:
    """Configure the logs of the process. `level` is a key of `LEVELS`; colours appear only on a terminal."""
    console = log_format == "console"
    renderer: Processor
    match log_format:
        case "console":
            renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
        case "json":
            renderer = structlog.processors.JSONRenderer()
        case "logfmt":
            renderer = structlog.processors.LogfmtRenderer(
                key_order=["timestamp", "level", "event"], drop_missing=True, bool_as_flag=False
            )
    common: list[Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if console else "iso", utc=not console),
    ]
    # In the formats for programs, a traceback is a field of its line.
    tracebacks: list[Processor] = [] if console else [structlog.processors.format_exc_info]
    if log_format == "logfmt":
        # The other two renderers escape them.
        tracebacks.append(_replace_control_characters)
    structlog.configure(
        processors=[*common, *tracebacks, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    libraries = logging.StreamHandler(sys.stderr)
    libraries.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=common,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *tracebacks, renderer],
        )
    )
    logging.basicConfig(handlers=[libraries], level=max(LEVELS[level], logging.WARNING), force=True)
    logging.captureWarnings(capture=True)
    # psycopg warns of a rollback on a broken connection; the reconnect that follows has a line of its own.
    logging.getLogger("psycopg").setLevel(logging.CRITICAL)
    # uvicorn warns of requests that are not HTTP: anyone who reaches the port could flood the log.
    logging.getLogger("uvicorn").setLevel(logging.ERROR)


def _replace_control_characters(_: WrappedLogger, __: str, fields: EventDict) -> EventDict:
    """Put U+FFFD for them: a message of the server may contain whatever a role has chosen as a name."""
    return {
        name: _CONTROL.sub("\N{REPLACEMENT CHARACTER}", value) if isinstance(value, str) else value
        for name, value in fields.items()
    }
