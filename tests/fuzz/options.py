"""Values of options, and text in log lines: understood or refused in one line, and a line stays one line."""

import io
import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from typing import Literal

import anyio
import click
import structlog
from hypothesis import strategies as st
from starlette.types import ASGIApp, Message
from tests.fuzz.mutation import mutated
from tests.fuzz.target import Check, Target
from tests.support import preserved_logging

from mfg_notify import logs
from mfg_notify.cli.options import DURATION, check_telemetry_path
from mfg_notify.errors import UsageError
from mfg_notify.exposition import Page
from mfg_notify.web.application import make_application
from mfg_notify.web.server import bind

Kind = Literal["duration", "path", "address", "log"]

_DIGITS = st.text(st.sampled_from("0123456789.٣²"), max_size=400)
_DURATIONS = st.tuples(_DIGITS, st.sampled_from(["", "s", "ms", "m", "h", "d", " s"])).map("".join) | st.text(
    max_size=5
)
_DURATIONS |= st.sampled_from(["9" * 400, f"0.{'0' * 330}5s", f"0.{'0' * 322}5ms", "٣s", "1e9", "0.0"])
_PATHS = mutated(
    st.sampled_from(["/metrics", "/a/b", "/", "/-/x", "metrics"]),
    st.sampled_from(["{", "}", "{a}", "{a:path}", "{a:x}", "?", "#", "%", "%2F", "//", "..", " ", "é", "\n", '"', "<"]),
)
_ADDRESSES = mutated(
    st.sampled_from(["127.0.0.1:0", "[::1]:0", ":0", "127.0.0.1:70000", "localhost:0"]),
    # No other names, because looking them up takes its time.
    st.sampled_from(["[", "]", ":", "%", "\0", "é.é", "xn--é", "²", ".", "a" * 64, "-1", "_", "%lo"]),
)
_LINES = st.text(max_size=30) | st.sampled_from(["a\nb", "a\r\nb", "\x1b[31m", 'x="y" z', "\u2028", "\x85", "\\"])


def _check_duration(text: str) -> None:
    with suppress(click.BadParameter):
        assert 0 < DURATION.convert(text, None, None) < math.inf


def _check_path(path: str) -> None:
    """Serve the metrics at exactly this path, or refuse it."""
    try:
        served = check_telemetry_path(path)
    except UsageError:
        return
    application = make_application(Page(lambda: None, lambda: 0), lambda: (True, "ready"), served)
    assert anyio.run(_status, application, path) == 200
    assert anyio.run(_status, application, path + "x") == 404


async def _status(application: ASGIApp, path: str) -> int:
    """Return the status of the answer to a request for a path, which a server has unquoted."""
    statuses: list[int] = []

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        statuses.extend([message["status"]] if "status" in message else [])

    await application({"type": "http", "method": "GET", "path": path, "headers": []}, receive, send)
    return statuses[0]


def _check_address(address: str) -> None:
    with suppress(UsageError):
        for each in bind([address]):
            each.close()


def _check_log(text: str) -> None:
    """One line whatever the text, which JSON gives back as it was."""
    formats: tuple[logs.Format, ...] = ("logfmt", "json")
    for log_format in formats:
        with preserved_logging(), redirect_stderr(io.StringIO()) as written:
            logs.configure("info", log_format)
            structlog.get_logger("fuzz").warning("something happened", error=text)
        line = written.getvalue()
        assert re.fullmatch(r"[^\x00-\x1f\x7f-\x9f\u2028\u2029]*\n", line), line
        if log_format == "json":
            assert json.loads(line)["error"] == text


_CHECKS = {"duration": _check_duration, "path": _check_path, "address": _check_address, "log": _check_log}


def _check(given: tuple[Kind, str]) -> None:
    kind, text = given
    _CHECKS[kind](text)


@contextmanager
def _open() -> Iterator[Check]:
    yield _check


def _of(kind: Kind, texts: st.SearchStrategy[str]) -> st.SearchStrategy[tuple[Kind, str]]:
    return st.tuples(st.just(kind), texts)


TARGET = Target(
    "options",
    _of("duration", _DURATIONS) | _of("path", _PATHS) | _of("address", _ADDRESSES) | _of("log", _LINES),
    _open,
    short=300,
    slice=3000,
)
