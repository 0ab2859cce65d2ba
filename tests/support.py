"""Runs programs as processes and exporters in the test's own event loop, and waits for what they do."""

import logging
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import LiteralString, Self, TypeVar

import anyio
import httpx
import psycopg
import structlog
from tenacity import retry, retry_if_result, stop_after_delay, wait_fixed
from tests import truth
from tests.samples import number

from mfg_notify.core.capped_totals import SERIES_MAXIMUM
from mfg_notify.core.notify_mode import Policy
from mfg_notify.core.tuning import Tuning
from mfg_notify.exporter import Exporter, Settings

ROOT = Path(__file__).parents[1]
PATIENCE = 60.0
"""Seconds that a test waits for something that should happen soon. No assertion is about time."""
_NO_TRUST = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""For httpx, which otherwise spends 45 ms on reading the machine's certificates for every page."""

Answer = TypeVar("Answer")


def to_trigger_role(statement: LiteralString) -> LiteralString:
    """Return a statement that runs this one with the owner of the trigger functions in place of `%1$s`."""
    owner = "(SELECT proowner::regrole FROM pg_proc WHERE proname = 'task_changed')"
    return f"DO $do$ BEGIN EXECUTE format($text${statement}$text$, {owner}); END $do$"


def eventually(
    ask: Callable[[], Answer], satisfied: Callable[[Answer], bool] = bool, patience: float = PATIENCE
) -> Answer:
    """Call `ask` until its answer satisfies; fail with the last answer after `patience` seconds."""
    asking = retry(
        retry=retry_if_result(lambda answer: not satisfied(answer)),
        wait=wait_fixed(0.02),
        stop=stop_after_delay(patience),
        retry_error_callback=lambda state: state.outcome.result() if state.outcome else None,
    )
    answer: Answer = asking(ask)()
    assert satisfied(answer), f"still {answer!r} after {patience:.0f} s"
    return answer


def free_port() -> int:
    """Return a TCP port that is free at the moment."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def clean_environment(*also: str) -> dict[str, str]:
    """Return the environment without variables of libpq, of mfg-notify, and those that begin like one of `also`."""
    return {name: text for name, text in os.environ.items() if not name.startswith(("PG", "MFG_NOTIFY_", *also))}


@contextmanager
def preserved_logging() -> Iterator[None]:
    """Restore the logs of this process in the end: those of a command that runs in it go to a stream that is closed."""
    loggers = [logging.getLogger(name) for name in (None, "psycopg", "uvicorn")]
    before = structlog.get_config(), [(each, each.handlers[:], each.level) for each in loggers]
    try:
        yield
    finally:
        logging.captureWarnings(capture=False)
        structlog.configure(**before[0])
        for logger, handlers, level in before[1]:
            logger.handlers[:] = handlers
            logger.setLevel(level)


def run_command(*arguments: str, environment: Mapping[str, str] = MappingProxyType({})) -> tuple[int, str]:
    """Run mfg-notify to its end, in a clean environment with these variables; return exit code and all it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "mfg_notify", *arguments],
        env=clean_environment() | dict(environment), cwd=ROOT, capture_output=True, text=True, check=False,
        timeout=2 * PATIENCE,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


class Process:
    """A program that runs beside the test. What it prints is read as it arrives; it is killed when the block ends."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        folder: Path = ROOT,
        stdout: int | None = None,
        user: str | None = None,
    ) -> None:
        """Start it, in a clean environment by default. If `stdout` is given, only standard error is read here."""
        self._printed = b""
        self._output, writer = os.pipe()
        self.process = subprocess.Popen(
            command,
            stdout=writer if stdout is None else stdout,
            stderr=writer,
            env=clean_environment() if environment is None else environment,
            cwd=folder,
            user=user,
        )
        os.close(writer)
        os.set_blocking(self._output, False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill it if it still runs, and stop reading."""
        self.kill()
        os.close(self._output)

    def read_log(self) -> str:
        """Return everything that it has printed so far."""
        try:
            while chunk := os.read(self._output, 65536):
                self._printed += chunk
        except BlockingIOError:
            pass
        return self._printed.decode(errors="replace")

    def find(self, pattern: str) -> re.Match[str]:
        """Wait until it has printed something that matches; return the first match. Fail if it ends without that."""

        def look() -> re.Match[str] | bool | None:
            ended = self.process.poll() is not None
            return re.search(pattern, self.read_log()) or ended

        found = eventually(look)
        assert isinstance(found, re.Match), self.read_log()
        return found

    def wait_for(self, text: str) -> str:
        """Wait until it has printed this; return everything that it has printed."""
        return self.find(re.escape(text)).string

    def kill(self) -> None:
        """End it as a crash would."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def terminate(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ask it to end; return its exit code."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)


class ExporterProcess(Process):
    """`mfg-notify run` as a process, as a user would start it."""

    def __init__(
        self,
        dsn: str,
        *options: str,
        port: int = 0,
        program: Sequence[str] = ("mfg_notify",),
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Start it with these variables. `program` is the module in place of `mfg_notify`, and what precedes `run`."""
        super().__init__(
            [
                *(sys.executable, "-m", *program, "run", "--dsn", dsn, "--log.format", "logfmt"),
                *("--web.listen-address", f"127.0.0.1:{port}", *options),
            ],
            environment=clean_environment() | dict(environment),
        )

    @property
    def address(self) -> str:
        """Where it serves, from its own log."""
        return self.find(r'address"?[=:] ?"?([^\s",}]+)').group(1)

    def get(self, path: str, accept: str = "*/*") -> httpx.Response:
        """Ask for a page."""
        return httpx.get(self.address + path, verify=_NO_TRUST, headers={"accept": accept}, timeout=PATIENCE)

    def page(self) -> str:
        """Return the metrics as text."""
        return self.get("/metrics").raise_for_status().text

    def wait_ready(self) -> None:
        """Wait until it is ready."""
        eventually(lambda: self.get("/-/ready"), lambda answer: answer.status_code == 200)


def leads(exporter: ExporterProcess) -> bool:
    """Tell whether this exporter is the active one, by its own metric."""
    return number(exporter.page(), "mfg_notify_leader") == 1


def stands_by(exporter: ExporterProcess) -> bool:
    """Tell whether this exporter stands by, by its own metric."""
    return number(exporter.page(), "mfg_notify_standby") == 1


def peak_memory(exporter: ExporterProcess) -> int:
    """Return the peak of the exporter's resident memory in MiB."""
    status = Path(f"/proc/{exporter.process.pid}/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) // 1024


def settled_page(exporter: ExporterProcess) -> str:
    """Wait until the gauges have been read again, and return the page."""
    exporter.wait_ready()
    read = "mfg_notify_reconcile_duration_seconds_count"
    before = number(exporter.page(), read)
    # The reconciliation that is under way may have begun too early, and the next may be 30 s away.
    return eventually(exporter.page, lambda page: number(page, read) > before + 1, patience=4 * PATIENCE)


def stop_backend(connection: psycopg.Connection) -> int:
    """Freeze the backend that the active exporter works with, between two transactions; return its process id."""

    def freeze() -> int:
        [(pid,)] = connection.execute("SELECT backend_pid FROM mfg_notify.lease").fetchall()
        try:
            os.kill(pid, signal.SIGSTOP)
        except ProcessLookupError:
            return 0  # it has just gone: the exporter reconnects
        states = connection.execute("SELECT state FROM pg_stat_activity WHERE pid = %s", (pid,)).fetchall()
        if states == [("idle",)]:
            return int(pid)
        os.kill(pid, signal.SIGCONT)
        return 0

    return eventually(freeze)


@asynccontextmanager
async def exporting(
    dsn: str,
    reconcile_interval: float = 30.0,
    market_interval: float | None = None,
    notify: Policy = Policy.ADAPTIVE,
    tuning: Tuning | None = None,
    series_maximum: int = SERIES_MAXIMUM,
) -> AsyncIterator[Exporter]:
    """Run an exporter in this loop until the block ends; it is ready when the block begins."""
    settings = Settings(
        dsn,
        reconcile_interval=reconcile_interval,
        market_interval=market_interval,
        notify=notify,
        series_maximum=series_maximum,
    )
    exporter = Exporter(settings, tuning=tuning)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(exporter.run)
        with anyio.fail_after(PATIENCE):
            await exporter.wait_until(lambda state: state.ready)
        yield exporter
        exporter.stop()


def page_of(exporter: Exporter) -> str:
    """Return the metrics of an exporter in this loop as text."""
    return exporter.page.render()[0].decode()


async def settled(exporter: Exporter, connection: psycopg.Connection) -> str:
    """Wait until everything committed so far is folded and the gauges were read after that; return the page."""
    with anyio.fail_after(PATIENCE):
        while connection.execute("SELECT EXISTS (SELECT FROM mfg_notify.event)").fetchone() != (False,):
            await exporter.wait_until(lambda state, before=exporter.state.folds: state.folds > before)  # type: ignore[misc]
        # The one that is under way may have begun too early.
        await exporter.wait_until(lambda state, before=exporter.state.reconciles: state.reconciles > before + 1)  # type: ignore[misc]
    return page_of(exporter)


def assert_exact(page: str, connection: psycopg.Connection) -> None:
    """Compare every metric of the game on the page with the recount of the audit."""
    differences = truth.compare(page, connection)
    assert not differences, "\n".join(differences[:20])


def wait_exact(exporter: ExporterProcess, connection: psycopg.Connection) -> str:
    """Wait until an exporter's page agrees with the recount of the audit; return it."""

    def compared() -> tuple[list[str], str]:
        page = exporter.page()
        return truth.compare(page, connection)[:20], page

    return eventually(compared, lambda found: found[0] == [])[1]


def check_with_promtool(page: str) -> list[str]:
    """Return the objections of promtool, one per line; none if promtool is not installed."""
    if (promtool := shutil.which("promtool")) is None:
        return []
    done = subprocess.run([promtool, "check", "metrics"], input=page, capture_output=True, text=True, check=False)
    return (done.stdout + done.stderr).splitlines()


@contextmanager
def simulated_game(dsn: str, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """Play the simulated game in another process until the block ends."""
    command = [sys.executable, "-m", "mfg_notify", "simulate", "--force", "--dsn", dsn, *options]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=clean_environment()) as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(PATIENCE)
