"""Logs: one line an event that an operator cares about, to standard error. Never a payload, never a secret.

A state is said when it begins and when it ends, not at each try. What the libraries log takes the same form.
"""

import logging
import sys
from typing import Literal

import structlog
from structlog.typing import Processor

Format = Literal["console", "logfmt", "json"]
LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def configure(level: str, log_format: Format) -> None:
    """Set the process's logs up: one of `LEVELS`, one of `Format`; colours only on a terminal."""
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
    # A traceback is a field of its line, except for people.
    tracebacks: list[Processor] = [] if console else [structlog.processors.format_exc_info]
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
    # What psycopg warns of (a rollback on a broken connection) is part of a reconnect, which has its own line.
    logging.getLogger("psycopg").setLevel(logging.CRITICAL)
    # Anyone who reaches the port can send what is no HTTP, as often as they like.
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
