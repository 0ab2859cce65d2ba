"""Lines of the log: one for each event, whatever text a server or a role has put into it."""

import io
import json
from contextlib import redirect_stderr

import structlog
from tests.support import preserved_logging

from mfg_notify import logs


def line(log_format: logs.Format, text: str) -> str:
    with preserved_logging(), redirect_stderr(io.StringIO()) as written:
        logs.configure("info", log_format)
        structlog.get_logger("test").warning("something happened", error=text)
    return written.getvalue()


TEXT = "a\r\nb\x1b[31m\x85\u2028\u202ec é"


def test_logfmt_has_no_control_characters() -> None:
    """A terminal would obey them, and a carriage return hides what precedes it."""
    shown = "a?\\nb?[31m???c é".replace("?", "\N{REPLACEMENT CHARACTER}")
    assert f'error="{shown}"\n' in line("logfmt", TEXT)


def test_the_console_has_no_control_characters() -> None:
    assert "error='a\\r\\nb\\x1b[31m\\x85\\u2028\\u202ec é'\n" in line("console", TEXT)


def test_json_gives_the_text_back() -> None:
    assert json.loads(line("json", TEXT))["error"] == TEXT
