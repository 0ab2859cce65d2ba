"""What a running exporter tells systemd, on a real socket, and whether the unit in `systemd/` fits the exporter."""

import configparser
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.conftest import Database
from tests.support import PATIENCE, ROOT, ExporterProcess, eventually

from mfg_notify.cli import main
from mfg_notify.core.tuning import Tuning
from mfg_notify.systemd import ServiceManager
from mfg_notify.web.server import GRACE

pytestmark = pytest.mark.slow

NOWHERE = "host=/nonexistent dbname=game"


class Systemd:
    """The other end of $NOTIFY_SOCKET."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.heard: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self._socket.settimeout(PATIENCE)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def wait_for(self, assignment: str) -> list[str]:
        """Wait for an assignment; return all assignments up to then except keep-alives."""
        while not any(assignment in said for said in self.heard):
            self.heard += self._socket.recv(65536).decode().split("\n")
        return [said for said in self.heard if said != "WATCHDOG=1"]

    def wait_for_silence(self) -> None:
        """Wait until nothing arrives for many times the interval between two keep-alives."""
        self._socket.settimeout(1.5)
        with suppress(TimeoutError):
            for _ in range(100):
                self._socket.recv(65536)
            pytest.fail("the keep-alives do not stop")


@pytest.fixture(params=["a file", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Systemd]:
    """Listen on a socket that an exporter can report to."""
    name = f"@mfg-notify/{secrets.token_hex(8)}" if request.param == "abstract" else str(tmp_path / "notify")
    listening = Systemd(name)
    yield listening
    listening.close()


def test_from_start_to_stop(installed: Database, systemd: Systemd) -> None:
    with ExporterProcess(installed.dsn, environment={"NOTIFY_SOCKET": systemd.address}) as exporter:
        heard = systemd.wait_for("STATUS=ready")
        # Readiness comes first, then the status.
        assert heard[0] == "READY=1"
        assert heard.count("READY=1") == 1
        assert exporter.get("/-/ready").status_code == 200
        exporter.process.send_signal(signal.SIGTERM)
        heard = systemd.wait_for("STOPPING=1")
        assert exporter.process.wait(PATIENCE) == 0
        assert "WATCHDOG=1" not in systemd.heard


def test_it_is_ready_without_a_database(systemd: Systemd) -> None:
    with ExporterProcess(NOWHERE, environment={"NOTIFY_SOCKET": systemd.address}) as exporter:
        assert systemd.wait_for("READY=1")[0] == "READY=1"
        assert exporter.get("/-/healthy").status_code == 200
        # The status is one line, although libpq's errors have several.
        assert [said for said in systemd.wait_for("/nonexistent") if "=" not in said] == []
        assert exporter.terminate() == 0
        systemd.wait_for("STOPPING=1")


def test_keep_alives_stop_when_the_event_loop_hangs(systemd: Systemd) -> None:
    watched = {"NOTIFY_SOCKET": systemd.address, "WATCHDOG_USEC": "300000"}
    with ExporterProcess(NOWHERE, program=("tests.integration.hanging",), environment=watched) as exporter:
        systemd.wait_for("READY=1")
        for _ in range(3):
            systemd.heard.clear()
            systemd.wait_for("WATCHDOG=1")
        exporter.process.send_signal(signal.SIGUSR1)
        systemd.wait_for_silence()


def test_no_keep_alive_for_another_process(systemd: Systemd) -> None:
    environment = {"NOTIFY_SOCKET": systemd.address, "WATCHDOG_USEC": "3000", "WATCHDOG_PID": str(os.getpid())}
    with ExporterProcess(NOWHERE, environment=environment) as exporter:
        systemd.wait_for("READY=1")
        assert exporter.terminate() == 0
        systemd.wait_for("STOPPING=1")
        assert "WATCHDOG=1" not in systemd.heard


def test_it_starts_where_sockets_have_no_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS."""
    monkeypatch.delattr(socket, "SOCK_CLOEXEC")
    with closing(ServiceManager({})) as manager:
        assert not manager.present


def test_a_missing_socket_is_logged_once(tmp_path: Path) -> None:
    environment = {"NOTIFY_SOCKET": str(tmp_path / "gone"), "WATCHDOG_USEC": "3000"}
    with ExporterProcess(NOWHERE, environment=environment) as exporter:
        eventually(lambda: "cannot notify systemd" in exporter.read_log())
        eventually(lambda: "waiting for the database" in exporter.read_log())
        assert exporter.get("/-/healthy").status_code == 200
        assert exporter.terminate() == 0
        assert exporter.read_log().count("cannot notify systemd") == 1


@pytest.mark.parametrize("name", ["mfg-notify.service", "mfg-notify@.service"])
def test_the_unit(name: str) -> None:
    unit = configparser.RawConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(ROOT / "systemd" / name, encoding="utf-8")
    service = unit["Service"]
    assert service["Type"] == "notify"
    assert int(service["WatchdogSec"]) > 0
    assert int(service["TimeoutStopSec"]) > Tuning().final_fold_timeout + GRACE
    program, *arguments = service["ExecStart"].split()
    assert program.endswith("/bin/mfg-notify")
    # Its options exist: with --help in addition, the command only prints its help.
    assert CliRunner().invoke(main, [*arguments, "--help"]).exit_code == 0
    assert CliRunner().invoke(main, [*arguments, "--no-such-option"]).exit_code == 2


def test_the_template_is_the_unit_with_the_name_of_the_game() -> None:
    def settings(name: str) -> list[str]:
        text = (ROOT / "systemd" / name).read_text(encoding="utf-8")
        return text[text.index("[Unit]") :].splitlines()

    of_one, template = settings("mfg-notify.service"), settings("mfg-notify@.service")
    other = {line: template[number] for number, line in enumerate(of_one) if line != template[number]}
    assert len(of_one) == len(template)
    assert {line.partition("=")[0]: line for line in other.values()} == {
        "Description": "Description=mfg-notify for %i, Prometheus exporter of a SpaceTraders bot's manufacturing",
        "EnvironmentFile": "EnvironmentFile=/etc/mfg-notify/%i.env",
        "User": "User=mfg-notify-%i",
    }


@pytest.mark.parametrize("name", ["mfg-notify.service", "mfg-notify@.service"])
def test_systemd_accepts_the_unit(name: str, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    text = (ROOT / "systemd" / name).read_text(encoding="utf-8")
    unit = tmp_path / name
    # The one thing that is not here is the command itself.
    unit.write_text(text.replace("/opt/mfg-notify/bin/mfg-notify", sys.executable), encoding="utf-8")
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert (done.returncode, [line for line in done.stderr.splitlines() if "mfg-notify" in line]) == (0, [])
