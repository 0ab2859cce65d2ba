"""Passwords in DSNs, right or wrong, against every command, its log and its pages: no part of one appears anywhere.

The commands run in this process, each as a user calls it. They are those that take a DSN, so a new one is covered.
"""

import http.client
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, get_args

import click
import pytest
from hypothesis import strategies as st
from tests.fuzz.dsns import FORMS, SPECIAL
from tests.fuzz.secret import SECRETS, leaks
from tests.fuzz.target import Check, Target
from tests.support import PATIENCE, clean_environment, free_port, preserved_logging

from mfg_notify.cli import main

Way = Literal["option", "option with =", "variable", "file", "PGPASSWORD", "argument"]
"""How the DSN comes to the command; an argument without `--dsn` is a mistake."""
NOBODY = ("127.0.0.1", 1)
"""Host and port that `FORMS` name, at which nothing listens."""
PAGES = ("/", "/metrics", "/-/ready", "/-/healthy", "/nothing")
LOG_FORMATS = ("logfmt", "json", "console")


@dataclass(frozen=True)
class Given:
    """A DSN with a password that has a secret on both sides of something special."""

    secret: str
    separator: str
    form: str
    way: Way
    log_format: str

    @property
    def password(self) -> str:
        """The whole password."""
        return self.secret + self.separator + self.secret

    @property
    def is_possible(self) -> bool:
        """Tell whether a user can give it this way, and whether a program can tell which part is the password."""
        if self.form == "without a host" and "@" in self.separator:
            return False  # the second half is the host
        if self.way == "argument" and self.form == "alone":
            return False  # nothing marks it as a DSN
        return self.way == "file" or "\0" not in self.separator


@dataclass(frozen=True)
class Surroundings:
    """Where commands run: a folder for the files that they are given, and the server that the DSNs name."""

    folder: Path
    host: str = NOBODY[0]
    port: int = NOBODY[1]

    def check(self, given: Given) -> None:
        """Run every command with a DSN; assert that nothing of its password is printed, logged or served."""
        arguments, environment = self._arguments(given)
        for path, command in commands_with_a_dsn(main):
            more = _more_arguments(command, given)
            if path == ["run"]:
                said = run_exporter([*path, *more, *arguments], environment)
            else:
                said = invoke([*path, *more, *arguments], environment)
            found = leaks(given.secret, said)
            assert not found, f"{' '.join(path)} repeats {found}: {said}"

    def _arguments(self, given: Given) -> tuple[list[str], dict[str, str]]:
        """Return what the command line and the environment say about the DSN."""
        dsn = FORMS[given.form](given.password)
        dsn = dsn.replace(f"{NOBODY[0]}:{NOBODY[1]}", f"{self.host}:{self.port}")
        dsn = dsn.replace(f"host={NOBODY[0]} port={NOBODY[1]}", f"host={self.host} port={self.port}")
        match given.way:
            case "option":
                return ["--dsn", dsn], {}
            case "option with =":
                return [f"--dsn={dsn}"], {}
            case "variable":
                return [], {"MFG_NOTIFY_DSN": dsn}
            case "argument":
                return [dsn], {}
            case "file":
                file = self.folder / "dsn"
                file.write_text(f"{dsn}\n", encoding="utf-8", errors="surrogateescape")
                return ["--dsn-file", str(file)], {}
            case "PGPASSWORD":
                return ["--dsn", f"postgresql://bot@{self.host}:{self.port}/game"], {"PGPASSWORD": given.password}


def commands_with_a_dsn(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[list[str], click.Command]]:
    """Yield every command that takes a DSN, with the words that call it."""
    for name, command in sorted(group.commands.items()):
        if isinstance(command, click.Group):
            yield from commands_with_a_dsn(command, (*path, name))
        elif any(parameter.name == "dsn" for parameter in command.params):
            yield [*path, name], command


def _more_arguments(command: click.Command, given: Given) -> list[str]:
    """Return the options that change what a command prints, and something for each argument that it requires."""
    names = {parameter.name for parameter in command.params}
    more = []
    if "log_format" in names:
        more += ["--log.level", "debug", "--log.format", given.log_format]
    if "as_json" in names and given.log_format == "json":
        more.append("--json")
    return more + ["1" for parameter in command.params if isinstance(parameter, click.Argument) and parameter.required]


@contextmanager
def _called_with(arguments: list[str], environment: Mapping[str, str]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["mfg-notify", *arguments])
        for name in os.environ.keys() - clean_environment().keys():
            patch.delenv(name)
        for name, value in environment.items():
            patch.setenv(name, value)
        yield


def invoke(arguments: list[str], environment: Mapping[str, str]) -> str:
    """Run a command to its end; return all that it has printed."""
    with (
        TemporaryDirectory() as folder,
        _called_with(arguments, environment),
        preserved_logging(),
        # A real file, because some commands write to its descriptor.
        (Path(folder) / "printed").open("w+", encoding="utf-8", errors="backslashreplace") as printed,
        redirect_stdout(printed),
        redirect_stderr(printed),
    ):
        with pytest.raises(SystemExit):
            main.main(arguments, prog_name="mfg-notify")
        printed.flush()
        return (Path(folder) / "printed").read_text(encoding="utf-8")


def run_exporter(arguments: list[str], environment: Mapping[str, str]) -> str:
    """Run the exporter until it has tried to connect; return its log and its pages as well."""
    port = free_port()
    ended = threading.Event()
    pages: list[str] = []

    def visit() -> None:
        while not ended.wait(0.01):
            try:
                if _get(port, "/-/ready").startswith("connecting"):
                    continue
            except OSError:  # it does not listen yet, or never will
                continue
            pages.extend([_get(port, path) for path in PAGES] + [_get(port, "/-/board/stream", whole=False)])
            os.kill(os.getpid(), signal.SIGTERM)
            return

    visitor = threading.Thread(target=visit)
    visitor.start()
    try:
        said = invoke([*arguments, "--web.listen-address", f"127.0.0.1:{port}"], environment)
    finally:
        ended.set()
        visitor.join()
    return said + "".join(pages)


def _get(port: int, path: str, *, whole: bool = True) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return (answer.read() if whole else answer.readline()).decode()
    finally:
        connection.close()


PASSWORDS = st.builds(
    Given,
    SECRETS,
    SPECIAL,
    st.sampled_from(sorted(FORMS)),
    st.sampled_from(get_args(Way)),
    st.sampled_from(LOG_FORMATS),
).filter(lambda given: given.is_possible)


@contextmanager
def _open(host: str = NOBODY[0], port: int = NOBODY[1]) -> Iterator[Check]:
    with TemporaryDirectory() as folder:
        yield Surroundings(Path(folder), host, port).check


TARGET = Target("passwords", PASSWORDS, _open, short=20, slice=150)


def target_at(host: str, port: int) -> Target:
    """Return the target with a server that the DSNs name."""
    return Target("passwords", PASSWORDS, partial(_open, host, port), short=6, slice=60)
