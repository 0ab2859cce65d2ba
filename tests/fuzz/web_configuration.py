"""The web configuration: in force, or refused with the line and nothing of the file; a change never opens access."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from hypothesis import strategies as st
from structlog.testing import capture_logs
from tests.fuzz.mutation import mutated
from tests.fuzz.secret import leaks
from tests.fuzz.target import Check, Target
from tests.web_configuration import TLS, Setting

from mfg_notify.errors import UsageError
from mfg_notify.web.access import Access, Rules, _read

SECRET = "XVQZJJQXZVVX"  # noqa: S105 - of nobody
"""What the files contain in place of users, of names of files, and of other values."""
HASH = f"$2y$04$X0h1gDsPszWURQaxFh.zoub{SECRET}hoQNJgRrnGs7EsimhC"[:60]
_CLIENTS = {"client_auth_type": "RequireAndVerifyClientCert", "client_ca_file": "ca.crt"}
PROTECTED: dict[str, dict[str, Any]] = {
    "users": {"basic_auth_users": {SECRET: HASH, "bob": HASH}},
    "TLS": {"tls_server_config": TLS},
    "certificates": {"tls_server_config": TLS | _CLIENTS},
    "certificates if given": {"tls_server_config": TLS | _CLIENTS | {"client_auth_type": "VerifyClientCertIfGiven"}},
    "TLS and users": {"tls_server_config": TLS, "basic_auth_users": {SECRET: HASH}},
    "everything": {
        "tls_server_config": TLS | _CLIENTS | {"client_allowed_sans": [SECRET], "min_version": "TLS13"},
        "http_server_config": {"http2": False, "headers": {"X-Frame-Options": "deny"}},
        "basic_auth_users": {SECRET: HASH},
    },
}
"""Configurations that protect the exporter."""

_NAMES = st.sampled_from(
    [
        *("tls_server_config", "http_server_config", "basic_auth_users", "cert_file", "key_file", "client_ca_file"),
        *("client_ca", "client_auth_type", "client_allowed_sans", "min_version", "cipher_suites", "cert", "headers"),
        *("curve_preferences", "http2", "rate_limit", "X-Frame-Options", SECRET, HASH, "<<", "bob"),
    ]
)
_VALUES = st.recursive(
    st.one_of(
        *(st.none(), st.booleans(), st.integers(), st.floats(), st.dates(), st.binary(max_size=4), st.text(max_size=9)),
        st.sampled_from(
            [
                *("server.crt", "server.key", "ca.crt", "no.crt", ".", "", "\0", SECRET, HASH, "TLS12", "TLS13"),
                *("RequireAndVerifyClientCert", "RequireAnyClientCert", "NoClientCert", "CurveP256", "deny"),
            ]
        ),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES | st.integers(), inner, max_size=4),
    max_leaves=12,
)
_SECTIONS = st.fixed_dictionaries(
    {},
    optional={
        "tls_server_config": st.dictionaries(_NAMES, _VALUES, max_size=4).map(lambda more: TLS | more) | _VALUES,
        "http_server_config": _VALUES,
        "basic_auth_users": st.dictionaries(st.just(SECRET) | st.text(max_size=4), st.just(HASH) | _VALUES, max_size=3),
    },
)
_PIECES = st.sampled_from(
    [
        *("\n", "\t", "  ", ":", ": ", "- ", "[", "]", "{", "}", "#", "&a ", "*a", "!!int ", "!secret ", "|", ">", "'"),
        *('"', "? ", "---\n", "...\n", "%YAML 9\n", "null", "~", "\0", "\ufeff", "\x85", "\ud800", "\\", SECRET, HASH),
        *("basic_auth_users:\n", "client_auth_type: NoClientCert\n", "client_ca_file: \n", "<<: *a\n"),
    ]
)
_ODD = (
    "basic_auth_users:\n  alice: !!int x\n",
    "tls_server_config:\n  cert_file: 2001-99-99\n",
    "http_server_config:\n  http2: !!float x\n  headers:\n",
    "tls_server_config: &a\n  client_allowed_sans: [*a]\n",
)
"""What YAML itself cannot convert."""


@st.composite
def _reduced(draw: st.DrawFn) -> str:
    """Return a configuration without some of what protects."""
    sections = PROTECTED[draw(st.sampled_from(sorted(PROTECTED)))]
    left = {}
    for section, fields in sections.items():
        match draw(st.sampled_from(["keep", "keep", "reduce", "empty", "drop"])):
            case "keep":
                left[section] = fields
            case "reduce":
                left[section] = {name: value for name, value in fields.items() if draw(st.booleans())}
            case "empty":
                left[section] = None
    return yaml.safe_dump(left)


_FILES = (
    st.sampled_from([yaml.safe_dump(sections) for sections in PROTECTED.values()])
    | st.sampled_from([yaml.safe_dump(sections, sort_keys=False) for sections in PROTECTED.values()])
    | st.sampled_from(_ODD)
    | _SECTIONS.map(yaml.safe_dump)
)
_CONTENTS = st.one_of(
    _reduced().map(str.encode),
    mutated(_FILES, _PIECES).map(lambda text: text.encode(errors="surrogatepass")),
    _VALUES.map(lambda value: yaml.safe_dump(value).encode()),
    st.binary(max_size=60),
)


class _Folder:
    """A folder with certificates, and files that protect the exporter until another one replaces them."""

    def __init__(self, folder: Path) -> None:
        self.setting = Setting.in_folder(folder)
        for name, sections in PROTECTED.items():
            self.setting.write(**sections)
            shutil.copy(self.setting.file, folder / name)

    def check(self, given: tuple[str, bytes]) -> None:
        before, content = given
        self._check_start(content)
        self._check_change(before, content)

    def _check_start(self, content: bytes) -> None:
        """Assert that the file is accepted, or refused with the line and nothing of the file."""
        file = self.setting.file
        file.write_bytes(content)
        refusal = ""
        try:
            Access(file)
        except UsageError as error:
            refusal = str(error)
        if refusal:
            assert re.match(rf"--web\.config\.file {re.escape(str(file))}: line [0-9]+: \w", refusal), refusal
            self._check_said(refusal)

    def _check_change(self, before: str, content: bytes) -> None:
        """Assert that the file in place of one that protects the exporter protects it as much, or is not in force."""
        file = self.setting.file
        shutil.copy(file.parent / before, file)
        access = Access(file)
        old = access.rules
        file.write_bytes(content)
        with capture_logs() as lines:
            access._apply(_read(file))
        _assert_protects(access.rules, old)
        assert len(lines) == 1
        self._check_said(str(lines[0].get("error", "")))

    def _check_said(self, said: str) -> None:
        assert not leaks(SECRET, said), said
        assert HASH[7:20] not in said
        assert "\n" not in said
        assert len(said) < 500


def _assert_protects(new: Rules, old: Rules) -> None:
    assert bool(new.config.users) >= bool(old.config.users)
    if old.context is None:
        return
    assert new.context is not None
    assert new.context.verify_mode >= old.context.verify_mode
    assert (new.config.tls.client_allowed_sans is None) <= (old.config.tls.client_allowed_sans is None)
    # Without an authority of its own, it would admit everyone who has a certificate of any public one.
    assert bool(new.config.tls.client_ca_file or new.config.tls.client_ca) >= bool(old.config.tls.client_ca_file)


@contextmanager
def _open() -> Iterator[Check]:
    with TemporaryDirectory() as folder:
        yield _Folder(Path(folder)).check


TARGET = Target(
    "web_configuration",
    st.tuples(st.sampled_from(sorted(PROTECTED)), _CONTENTS),
    _open,
    short=300,
    slice=1000,
)
