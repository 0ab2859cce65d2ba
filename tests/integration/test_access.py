"""TLS, client certificates and passwords, as curl meets them; a web configuration that is wrong or changes."""

import base64
import os
import resource
import shutil
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import anyio
import bcrypt
import httpx
import pytest
import trustme
import yaml
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.types import Message
from tests.http_client import connect, request
from tests.support import PATIENCE, ExporterProcess, eventually
from tests.web_configuration import NO_DATABASE, PASSWORD, TLS, Setting, hashed

from mfg_notify.errors import UsageError
from mfg_notify.web.access import QUEUE_MAXIMUM, Access, BasicAuthMiddleware, Passwords, _read
from mfg_notify.web.configuration import ConfigurationError, parse

pytestmark = pytest.mark.slow

needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl on this machine")


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting.in_folder(tmp_path)


def curl(address: str, setting: Setting | None = None, *flags: str, **options: str) -> tuple[int, int]:
    """Ask for a page; return the status and curl's own exit code."""
    trust = ["--cacert", str(setting.folder / "ca.crt")] if setting is not None else []
    given = [part for name, text in options.items() for part in (f"--{name.strip('-').replace('_', '-')}", text)]
    done = subprocess.run(
        ["curl", "-sS", "-o", os.devnull, "-w", "%{http_code}", "--max-time", "20", *trust, *flags, *given, address],
        capture_output=True,
        text=True,
        check=False,
    )
    return int(done.stdout), done.returncode


def soon(expected: tuple[int, int], address: str, setting: Setting, *flags: str, **options: str) -> None:
    """Wait until curl gets this status and exit code: a changed file takes effect a moment later."""
    eventually(lambda: curl(address, setting, *flags, **options), lambda found: found == expected)


def warnings(exporter: ExporterProcess) -> list[str]:
    """Return the warnings in the log of an exporter, without those about the database that is not there."""
    lines = exporter.read_log().splitlines()
    return [line for line in lines if "level=warning" in line and "waiting for the database" not in line]


@needs_curl
def test_tls_and_passwords(setting: Setting) -> None:
    setting.write(
        tls_server_config=TLS,
        http_server_config={"http2": True, "headers": {"Strict-Transport-Security": "max-age=1"}},
        basic_auth_users={"alice": hashed(PASSWORD), "bob": hashed("b" * 72)},
    )
    with setting.exporter() as exporter:
        assert exporter.address.startswith("https://127.0.0.1:")
        assert "HTTP/2 is not served" in exporter.read_log()
        # Everything is behind the password, health too.
        for path in ("/metrics", "/-/healthy", "/", "/-/board/stream", "/nothing"):
            assert curl(exporter.address + path, setting) == (401, 0)
        assert curl(exporter.address + "/metrics", setting, user=f"alice:{PASSWORD}") == (200, 0)
        assert curl(exporter.address + "/-/healthy", setting, user="bob:" + "b" * 100) == (200, 0)
        for wrong in ("alice:", f"alice:{PASSWORD}x", f"carol:{PASSWORD}", f":{PASSWORD}", "alice:\x01"):
            assert curl(exporter.address + "/metrics", setting, user=wrong) == (401, 0)
        with httpx.Client(verify=ssl.create_default_context(cafile=setting.folder / "ca.crt")) as client:
            refused = client.get(exporter.address + "/metrics")
            assert refused.headers["www-authenticate"] == "Basic"
            assert refused.headers["strict-transport-security"] == "max-age=1"
            for authorization in (
                "Basic",
                "Basic !",
                "Basic YQ==",
                "Basic /////w==",
                "Bearer x",
                "basic " + "A" * 4000,
            ):
                assert client.get(exporter.address, headers={"authorization": authorization}).status_code == 401
        # Without TLS, and with another idea of whom to trust.
        assert curl(exporter.address.replace("https", "http"))[0] == 0
        assert curl(exporter.address) == (0, 60)
        assert PASSWORD not in exporter.read_log()
        assert "$2b$" not in exporter.read_log()


@needs_curl
@pytest.mark.parametrize("kind", ["RequireAndVerifyClientCert", "VerifyClientCertIfGiven", "RequestClientCert"])
def test_client_certificates(setting: Setting, kind: str) -> None:
    setting.write(tls_server_config=TLS | {"client_auth_type": kind, "client_ca_file": "ca.crt"})
    good = setting.certify("good", "prometheus@example.org")
    stranger = setting.certify("stranger", "prometheus@example.org", ca=trustme.CA())
    with setting.exporter() as exporter:
        page = exporter.address + "/-/healthy"
        assert curl(page, setting, **good) == (200, 0)
        status, failure = curl(page, setting)
        assert (status, bool(failure)) == ((0, True) if kind == "RequireAndVerifyClientCert" else (200, False))
        status, failure = curl(page, setting, **stranger)
        assert (status, bool(failure)) == ((200, False) if kind == "RequestClientCert" else (0, True))


@needs_curl
def test_names_of_clients(setting: Setting) -> None:
    allowed = ["prometheus@example.org", "scraper.example.org", "::1", "10.0.0.7"]
    setting.write(
        tls_server_config=TLS
        | {
            "client_auth_type": "RequireAndVerifyClientCert",
            "client_ca_file": "ca.crt",
            "client_allowed_sans": allowed,
        }
    )
    with setting.exporter() as exporter:
        page = exporter.address + "/-/healthy"
        for n, name in enumerate(allowed):
            assert curl(page, setting, **setting.certify(f"c{n}", "other.example.org", name)) == (200, 0)
        for n, name in enumerate(("x.example.org", "PROMETHEUS@example.org", "10.0.0.8", "*.example.org")):
            assert curl(page, setting, **setting.certify(f"d{n}", name))[0] == 0


@needs_curl
def test_versions_ciphers_and_curves(setting: Setting) -> None:
    suite = "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384"
    setting.write(
        tls_server_config=TLS
        | {
            "max_version": "TLS12",
            "cipher_suites": [suite, "TLS_AES_128_GCM_SHA256"],
            "curve_preferences": ["CurveP384"],
        }
    )
    with setting.exporter() as exporter:
        page = exporter.address + "/-/healthy"
        assert curl(page, setting, ciphers="ECDHE-ECDSA-AES256-GCM-SHA384") == (200, 0)
        assert curl(page, setting, ciphers="ECDHE-ECDSA-AES128-GCM-SHA256")[0] == 0
        assert curl(page, setting, curves="P-384:P-256") == (200, 0)
        assert curl(page, setting, curves="P-256")[0] == 0
        assert curl(page, setting, "--tlsv1.3")[0] == 0
        setting.write(tls_server_config=TLS | {"min_version": "TLS13"})
        soon((200, 0), page, setting, "--tlsv1.3")
        assert curl(page, setting, tls_max="1.2")[0] == 0


@needs_curl
def test_users_change_and_wrong_files_do_not_count(setting: Setting) -> None:
    setting.write(tls_server_config=TLS, basic_auth_users={"alice": hashed(PASSWORD)})
    with setting.exporter() as exporter:
        page = exporter.address + "/-/healthy"
        alice, bob = f"alice:{PASSWORD}", "bob:b"
        assert curl(page, setting, user=alice) == (200, 0)
        setting.write(tls_server_config=TLS, basic_auth_users={"bob": hashed("b")})
        soon((401, 0), page, setting, user=alice)
        assert curl(page, setting, user=bob) == (200, 0)

        wrong: list[dict[str, Any]] = [
            {"basic_auth_users": {"alice": PASSWORD}},
            {"tls_server_config": TLS | {"cert_fil": "x"}},
            {},
            {"basic_auth_users": {"bob": hashed("b")}},
            {"tls_server_config": TLS},
        ]
        for n, sections in enumerate(wrong, 1):
            setting.write(**sections)
            eventually(lambda: len(warnings(exporter)), lambda found, n=n: found == n)  # type: ignore[misc]
            assert curl(page, setting, user=bob) == (200, 0)
            assert curl(page, setting, user=alice) == (401, 0)
            assert curl(page, setting) == (401, 0)
        assert "line 2: tls_server_config has no field of this name; did you mean cert_file?" in exporter.read_log()
        for secret in (PASSWORD, "cert_fil:", "$2b$"):
            assert secret not in exporter.read_log()

        setting.write(tls_server_config=TLS, basic_auth_users={"alice": hashed(PASSWORD), "bob": hashed("b")})
        soon((200, 0), page, setting, user=alice)
        assert len(warnings(exporter)) == len(wrong)


@needs_curl
@pytest.mark.thorough
def test_certificates_are_renewed(setting: Setting) -> None:
    setting.write(tls_server_config=TLS)
    with setting.exporter() as exporter:
        page = exporter.address + "/-/healthy"
        assert curl(page, setting) == (200, 0)
        # Of another authority; its key comes late.
        setting.ca = trustme.CA()
        setting.certify("new", "127.0.0.1")
        (setting.folder / "new.crt").replace(setting.folder / "server.crt")
        eventually(lambda: "the key in key_file is not that of the certificate" in exporter.read_log())
        assert curl(page, setting) == (200, 0)
        (setting.folder / "new.key").replace(setting.folder / "server.key")
        soon((0, 60), page, setting)
        setting.ca.cert_pem.write_to_path(str(setting.folder / "ca.crt"))
        assert curl(page, setting) == (200, 0)

        # Client certificates may be asked for from now on; that they are not any more would take a restart.
        verifying = {"client_auth_type": "RequireAndVerifyClientCert", "client_ca_file": "ca.crt"}
        setting.write(tls_server_config=TLS | verifying)
        eventually(lambda: curl(page, setting)[0], lambda status: status == 0)
        client = setting.certify("client", "me@example.org")
        assert curl(page, setting, **client) == (200, 0)
        setting.write(tls_server_config=TLS)
        eventually(lambda: len(warnings(exporter)), lambda n: n == 2)
        assert curl(page, setting)[0] == 0
        setting.file.unlink()
        eventually(lambda: len(warnings(exporter)), lambda n: n == 3)
        assert curl(page, setting)[0] == 0
        assert curl(page, setting, **client) == (200, 0)


@pytest.mark.parametrize(
    "content", [b"", b"# nothing\n", b"{}", b"null", b"basic_auth_users:\n", b"basic_auth_users: {}\n"]
)
def test_an_emptied_file_opens_nothing(setting: Setting, content: bytes) -> None:
    setting.write(basic_auth_users={"alice": hashed(PASSWORD)})
    with setting.exporter() as exporter:
        assert exporter.get("/metrics").status_code == 401
        setting.file.write_bytes(content)
        eventually(lambda: "needs a restart" in exporter.read_log())
        assert exporter.get("/metrics").status_code == 401
        # The same file at a start says that everyone may read.
        with setting.exporter() as another:
            assert another.get("/metrics").status_code == 200


@pytest.mark.parametrize("authority_last", [False, True])
def test_a_half_written_file_opens_nothing(setting: Setting, *, authority_last: bool) -> None:
    """Cut off after each of its bytes, the file is wrong, or protects as much as before."""
    setting.write(
        basic_auth_users={"alice": hashed(PASSWORD), "bob": hashed("b")},
        http_server_config={"headers": {"X-Frame-Options": "deny"}},
        tls_server_config=TLS
        | {
            "client_allowed_sans": ["prometheus@example.org"],
            "client_auth_type": "RequireAndVerifyClientCert",
            "client_ca_file": "ca.crt",
            "min_version": "TLS13",
        },
    )
    whole = setting.file.read_bytes()
    if authority_last:
        authority = b"  client_ca_file: ca.crt\n"
        whole = whole.replace(authority, b"") + authority
        setting.file.write_bytes(whole)
    access = Access(setting.file)
    failures = []
    access.on_failure = lambda: failures.append(1)
    first = access.rules
    for length in range(len(whole)):
        setting.file.write_bytes(whole[:length])
        access._apply(_read(setting.file))
        rules = access.rules
        assert rules.config.users.items() <= first.config.users.items()
        assert rules.config.users
        assert rules.context is not None
        assert rules.context.verify_mode == ssl.CERT_REQUIRED
        assert rules.config.tls.client_allowed_sans is not None
        # Without it, the machine's list of public authorities would count.
        assert rules.config.tls.client_ca_file == "ca.crt"
    assert len(failures) > len(whole) / 2
    setting.file.write_bytes(whole)
    access._apply(_read(setting.file))
    assert access.rules.config == first.config


def test_a_file_that_is_being_written_is_not_read(setting: Setting) -> None:
    setting.write(basic_auth_users={"alice": hashed(PASSWORD)})
    with setting.exporter() as exporter:
        assert exporter.get("/metrics").status_code == 401
        with setting.file.open("wb", buffering=0) as file:
            for byte in f"basic_auth_users: {{bob: {hashed('b')}}}".encode():
                file.write(bytes([byte]))
                assert exporter.get("/metrics").status_code == 401
        address = exporter.address + "/metrics"
        eventually(lambda: httpx.get(address, auth=("bob", "b")).status_code, lambda status: status == 200)
        assert warnings(exporter) == []


@pytest.mark.parametrize("users", [{"bob": hashed("b")}, {}])
def test_viewers_of_the_board_are_asked_again_when_users_change(setting: Setting, users: dict[str, str]) -> None:
    setting.write(basic_auth_users={"alice": hashed(PASSWORD)})
    with setting.exporter() as exporter:
        stream = exporter.address + "/-/board/stream"
        with httpx.stream("GET", stream, auth=("alice", PASSWORD), timeout=30) as answer:
            assert answer.status_code == 200
            lines = answer.iter_lines()
            assert next(lines).startswith("data: {")
            setting.write(basic_auth_users=users)
            if users:
                assert [line for line in lines if "never" in line] == []
            else:
                eventually(lambda: "needs a restart" in exporter.read_log())
                assert any(line.startswith("data: ") for line in lines)
        with httpx.stream("GET", stream, auth=("alice", PASSWORD)) as answer:
            assert answer.status_code == (401 if users else 200)


GOOD_HASH = "$2y$10$X0h1gDsPszWURQaxFh.zoubFi6DXncSjhoQNJgRrnGs7EsimhC7zG"
SECRETS = ("secret-word", GOOD_HASH, GOOD_HASH[7:])
WRONG: list[tuple[str, str]] = [
    ("tls_server_config: [", "line 1: this is not valid YAML"),
    ("basic_auth_users:\n\talice: secret-word", "line 2: this is not valid YAML"),
    ("basic_auth_users:\n  a: b\n  a: secret-word", "line 3: this name occurs twice in basic_auth_users"),
    ("basic_auth_users:\n  $HASH: a\n  $HASH: b", "line 3: this name occurs twice"),
    ("basic_auth_users: {alice: *secret-word}", "line 1: this is not valid YAML"),
    ("basic_auth_users: {alice: !secret-word x}", "line 1: this is not valid YAML"),
    ("a: 1\nb: \x00", "line 2: this is not valid YAML"),
    ("[\n" + "[" * 5000, "line 2: this is not valid YAML"),
    ("- 1\n- 2", "line 1: the file must be a mapping"),
    ("--- {}\n--- {}", "line 2: this is not valid YAML"),
    ("secret-word", "line 1: the file must be a mapping"),
    ("? [a, b]\n: c", "line 1: names in the file must be text"),
    ("basic_auth_users: {? {a: b} : c}", "line 1: names in basic_auth_users must be text"),
    ("basic_auth_users:\n  1: $HASH", "line 2: names in basic_auth_users must be text"),
    ("tls_server_config:\n  <<: {cert_file: a}", "line 2: names in tls_server_config must be text"),
    ("basic_auth_users: &a {alice: *a}", "line 1: this is not valid YAML"),
    ("basic_auth_users:\n  alice: 3", "line 2: a hash in basic_auth_users must be text"),
    ("basic_auth_users:\n  alice:\n", "line 2: a hash in basic_auth_users must be text"),
    ("basic_auth_users:\n  alice: 2001-99-99", "line 2: a hash in basic_auth_users must be text"),
    ("basic_auth_users:\n  alice: !!int secret-word", "line 2: a hash in basic_auth_users must be text"),
    ("http_server_config:\n  http2: !!float", "line 2: http_server_config.http2 must be true or false"),
    ("http_server_config:\n  http2: !!bool secret-word", "line 2: http_server_config.http2 must be true or false"),
    ("http_server_config:\n  http2: !!timestamp secret-word", "line 2: http_server_config.http2 must be true or false"),
    ("basic_auth_users:\n  - alice", "line 2: basic_auth_users must be a mapping"),
    ("tls_server_config:\n  cert_file: 3", "line 2: tls_server_config.cert_file must be text"),
    ("tls_server_config:\n  cert_file: [a]", "line 2: tls_server_config.cert_file must be text"),
    ("tls_server_config:\n  client_allowed_sans: a", "line 2: tls_server_config.client_allowed_sans must be a list"),
    ("tls_server_config:\n  client_allowed_sans: [1]", "line 2: tls_server_config.client_allowed_sans must be a list"),
    ("tls_server_config:\n  prefer_server_cipher_suites: 1", "line 2: tls_server_config.prefer_server_cipher_suites"),
    ("http_server_config:\n  http2: maybe", "line 2: http_server_config.http2 must be true or false"),
    ("http_server_config:\n  headers: [a]", "line 2: http_server_config.headers must be a mapping"),
    ("http_server_config:\n  headers:\n    X-Frame-Options: 1", "line 3: the header X-Frame-Options must be text"),
    ('tls_server_config: {cert_file: "a\\0b", key_file: server.key}', "tls_server_config.cert_file: this cannot be"),
    ("tls: {}", "line 1: the file has no field of this name; known are tls_server_config"),
    ("tls_server_confi: {}", "did you mean tls_server_config?"),
    ("rate_limit: {burst: 1}", "line 1: the file has no field of this name"),
    ("alice: $HASH", "line 1: the file has no field of this name"),
    ("$HASH: alice", "line 1: the file has no field of this name"),
    (
        "tls_server_config: {certfile: x}",
        "line 1: tls_server_config has no field of this name; did you mean cert_file?",
    ),
    ("tls_server_config: {cert_file: server.crt}", "line 1: tls_server_config.key_file: is missing"),
    ("tls_server_config: {key_file: server.key}", "tls_server_config.cert_file: is missing"),
    ("tls_server_config: {client_auth_type: NoClientCert}", "cert_file: is missing"),
    ("tls_server_config:\n  key_file: y\n  cert: x", "line 3: tls_server_config.cert: is read from a file only"),
    (
        "tls_server_config: {cert_file: no.crt, key_file: server.key}",
        "line 1: tls_server_config.cert_file: No such file",
    ),
    ("tls_server_config: {cert_file: ., key_file: server.key}", "line 1: tls_server_config.cert_file: Is a directory"),
    ("tls_server_config: {cert_file: server.crt, key_file: other.key}", "the key in key_file is not that of the"),
    ("tls_server_config: {cert_file: server.key, key_file: server.key}", "tls_server_config.cert_file"),
    ("tls_server_config: {cert_file: server.crt, key_file: locked.key}", "key_file: the key has a password"),
    ("{TLS}, client_auth_type: Maybe}", "tls_server_config.client_auth_type must be one of NoClientCert"),
    ("{TLS}, client_auth_type: RequireAnyClientCert}", "use RequireAndVerifyClientCert"),
    ("{TLS}, client_ca_file: ca.crt}", "client_auth_type: is missing"),
    ("{TLS}, client_auth_type: RequireAndVerifyClientCert, client_ca_file: no.crt}", "client_ca_file"),
    ("{TLS}, client_auth_type: RequireAndVerifyClientCert, client_ca_file: server.key}", "client_ca_file"),
    ("{TLS}, client_auth_type: RequireAndVerifyClientCert, client_ca: junk}", "client_ca: no certificates"),
    ("{TLS}, client_auth_type: VerifyClientCertIfGiven, client_allowed_sans: [a]}", "client_allowed_sans: needs"),
    ("{TLS}, min_version: TLS9}", "tls_server_config.min_version must be one of TLS10, TLS11, TLS12, TLS13"),
    ("{TLS}, min_version: TLS13, max_version: TLS12}", "min_version: TLS13 is above max_version"),
    ("{TLS}, cipher_suites: [RC4]}", "cipher_suites: each must be one of TLS_"),
    ("{TLS}, max_version: TLS12, cipher_suites: [TLS_AES_128_GCM_SHA256]}", "none of them goes with max_version"),
    ("{TLS}, curve_preferences: [X25519, CurveP256]}", "takes one curve"),
    ("{TLS}, curve_preferences: [P1]}", "tls_server_config.curve_preferences must be a list, each one of CurveP256"),
    (
        "http_server_config: {headers: {X-Mine: a}}",
        "http_server_config.headers has no field of this name; known are Con",
    ),
    (
        "http_server_config: {headers: {X-Frame-Options: allow}}",
        "the header X-Frame-Options must be deny or sameorigin",
    ),
    ('http_server_config: {headers: {X-XSS-Protection: "a\\r\\nb"}}', "X-XSS-Protection must be printable ASCII"),
    ("basic_auth_users: {alice: secret-word}", "line 1: basic_auth_users must have bcrypt hashes"),
    ("basic_auth_users:\n  $HASH: alice", "line 2: basic_auth_users must have bcrypt hashes"),
    ("basic_auth_users: {alice: $2y$99$" + GOOD_HASH[7:] + "}", "basic_auth_users must have bcrypt hashes"),
]


@pytest.mark.parametrize(("text", "said"), WRONG)
def test_a_wrong_file_is_a_clear_error(setting: Setting, text: str, said: str) -> None:
    setting.certify("other", "x")
    locked = subprocess.run(
        ["openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-aes256", "-pass", "pass:x"],
        capture_output=True,
        check=True,
    )
    (setting.folder / "locked.key").write_bytes(locked.stdout)
    tls = "tls_server_config: {cert_file: server.crt, key_file: server.key"
    setting.file.write_text(text.replace("{TLS}", tls).replace("$HASH", GOOD_HASH), encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        Access(setting.file)
    assert str(caught.value).startswith(f"--web.config.file {setting.file}: ")
    assert said in str(caught.value)
    for secret in SECRETS:
        assert secret not in str(caught.value)


_NAMES = st.sampled_from(
    [
        *("tls_server_config", "http_server_config", "basic_auth_users", "cert_file", "client_allowed_sans", "headers"),
        *("http2", "min_version", "alice", GOOD_HASH, "<<"),
    ]
)
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.dates() | st.binary(max_size=4) | st.text(max_size=9)
    | st.sampled_from(["server.crt", "TLS12", GOOD_HASH]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES | st.integers(), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(st.one_of(_VALUES.map(lambda value: yaml.safe_dump(value).encode()), st.binary(max_size=60)))
def test_any_content_is_read_or_refused(content: bytes) -> None:
    refusal = ""
    try:
        parse(content)
    except ConfigurationError as error:
        refusal = str(error)
    assert GOOD_HASH[7:] not in refusal
    assert len(refusal) < 300


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tls_server_config:\nhttp_server_config:\nbasic_auth_users:\n",
        "tls_server_config: {min_version: TLS10, cert_file: }",
        f"basic_auth_users: {{alice: {GOOD_HASH}}}",
        "http_server_config: {http2: false, headers: {X-Frame-Options: deny, Content-Security-Policy: ''}}",
    ],
)
def test_without_tls(setting: Setting, text: str) -> None:
    setting.file.write_text(text, encoding="utf-8")
    assert Access(setting.file).scheme == "http"


def test_the_command_reports_a_wrong_file(setting: Setting) -> None:
    setting.write(basic_auth_users={"alice": "x"})
    with setting.exporter() as exporter:
        assert exporter.process.wait(30) == 1
        assert "Error: --web.config.file" in exporter.read_log()
        assert "Traceback" not in exporter.read_log()


def test_a_file_that_could_not_be_opened_is_tried_again(setting: Setting) -> None:
    """Even without another change: the process may have had too many open files."""
    setting.write(basic_auth_users={"alice": hashed(PASSWORD)})
    access = Access(setting.file)
    setting.write(basic_auth_users={"bob": hashed("b")})
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        reading = _read(setting.file)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert reading.error == "Too many open files"
    access._apply(reading)
    assert list(access.rules.config.users) == ["alice"]

    async def watch() -> None:
        async with anyio.create_task_group() as tasks:
            access.on_change = tasks.cancel_scope.cancel
            tasks.start_soon(access.watch)

    anyio.run(watch)
    assert list(access.rules.config.users) == ["bob"]


class Counting:
    """Counts calls of bcrypt."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.costs: list[int] = []
        self._check = bcrypt.checkpw
        monkeypatch.setattr(bcrypt, "checkpw", self)

    @property
    def checked(self) -> int:
        """How often it was asked."""
        return len(self.costs)

    def __call__(self, password: bytes, stored: bytes) -> bool:
        """Check a password."""
        self.costs.append(int(stored[4:6]))
        return self._check(password, stored)


@contextmanager
def guarded(setting: Setting, users: dict[str, str]) -> Iterator[tuple[Access, Callable[..., httpx.AsyncClient]]]:
    """Yield the rules, and what makes clients of a page behind them."""
    setting.write(basic_auth_users=users)
    access = Access(setting.file)
    inside = Starlette(routes=[Route("/", lambda _: PlainTextResponse("inside"))])
    protected = BasicAuthMiddleware(inside, access)
    yield (
        access,
        lambda **auth: httpx.AsyncClient(transport=httpx.ASGITransport(protected), base_url="http://x", **auth),
    )


@pytest.mark.anyio
async def test_a_right_password_costs_bcrypt_once(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    counting = Counting(monkeypatch)
    with guarded(setting, {"alice": hashed(PASSWORD)}) as (access, client):
        async with client(auth=("alice", PASSWORD)) as alice, client(auth=("alice", "wrong")) as wrong:
            for _ in range(3):
                assert (await alice.get("/")).text == "inside"
            assert counting.checked == 1
            for _ in range(3):
                assert (await wrong.get("/")).status_code == 401
            assert counting.checked == 4
            assert (await alice.get("/")).status_code == 200
            assert counting.checked == 4
            # Another hash of the same password is looked at.
            setting.write(basic_auth_users={"alice": hashed(PASSWORD)})
            access._apply(_read(setting.file))
            assert (await alice.get("/")).status_code == 200
            assert counting.checked == 5


@pytest.mark.anyio
@pytest.mark.parametrize("user", ["cheap", "dear", "same", "nobody", ""])
async def test_every_user_costs_the_same_check(setting: Setting, monkeypatch: pytest.MonkeyPatch, user: str) -> None:
    """Timing reveals neither whether a user exists nor what the user's hash costs."""
    counting = Counting(monkeypatch)
    users = {"cheap": hashed("c", 4), "dear": hashed("d", 7), "same": hashed("s", 4)}
    with guarded(setting, users) as (_, client):
        async with client(auth=(user, "wrong")) as guessing:
            assert (await guessing.get("/")).status_code == 401
    assert counting.costs == [4, 7]


@pytest.mark.anyio
async def test_no_decoy_lets_anyone_in(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bcrypt, "checkpw", lambda _, stored: stored.endswith(b"." * 53))
    with guarded(setting, {"cheap": hashed("c", 4), "dear": hashed("d", 5)}) as (_, client):
        for user in ("cheap", "dear", "nobody"):
            async with client(auth=(user, "wrong")) as guessing:
                assert (await guessing.get("/")).status_code == 401


@pytest.mark.anyio
async def test_bcrypt_does_not_hold_up_the_others(setting: Setting) -> None:
    finished: list[str] = []
    with guarded(setting, {"alice": hashed(PASSWORD), "slow": hashed("x", 14)}) as (access, client):
        async with client(auth=("alice", PASSWORD)) as alice, client(auth=("slow", "guess")) as guessing:
            assert (await alice.get("/")).status_code == 200

            async def guess() -> None:
                await guessing.get("/")
                finished.append("guess")

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(guess)
                await anyio.lowlevel.checkpoint()
                assert (await alice.get("/")).status_code == 200
                finished.append("alice")
    assert finished[0] == "alice"
    assert access.scheme == "http"


class Held:
    """Replaces bcrypt; each check waits to be released."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun = 0
        self.release = threading.Event()
        monkeypatch.setattr(bcrypt, "checkpw", self)

    def __call__(self, password: bytes, _: bytes) -> bool:
        """Wait, and accept the one password."""
        self.begun += 1
        assert self.release.wait(PATIENCE)
        return password == PASSWORD.encode()


@pytest.mark.anyio
async def test_the_queue_of_passwords_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    held, passwords, users = Held(monkeypatch), Passwords(), {"alice": hashed(PASSWORD).encode()}
    verdicts = []

    async def check(password: bytes) -> None:
        verdicts.append(await passwords.check(users, "alice", password))

    async with anyio.create_task_group() as tasks:
        for n in range(QUEUE_MAXIMUM + 5):
            tasks.start_soon(check, b"%d" % n)
        await anyio.wait_all_tasks_blocked()
        assert verdicts == ["busy"] * 5
        held.release.set()
    assert verdicts[5:] == ["wrong"] * QUEUE_MAXIMUM
    await check(PASSWORD.encode())
    assert verdicts[-1] == "right"


def test_too_many_passwords_at_once_get_429(setting: Setting) -> None:
    setting.write(basic_auth_users={"alice": hashed(PASSWORD, 11)})
    with setting.exporter() as exporter, ExitStack() as stack:
        wrong = base64.b64encode(b"alice:wrong").decode()
        asking = [stack.enter_context(connect(exporter)) for _ in range(QUEUE_MAXIMUM + 10)]
        for connection in asking:
            connection.sendall(request(Authorization=f"Basic {wrong}"))
        assert {connection.recv(12)[-3:] for connection in asking} == {b"401", b"429"}


@pytest.mark.anyio
async def test_clients_that_have_gone_leave_the_queue(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(monkeypatch)
    setting.write(basic_auth_users={"alice": hashed(PASSWORD)})
    protected = BasicAuthMiddleware(PlainTextResponse("inside"), Access(setting.file))
    gone = anyio.Event()
    statuses: list[int] = []

    async def ask(password: str, leaves: anyio.Event) -> None:
        async def receive() -> Message:
            await leaves.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            statuses.append(message.get("status", 0))

        credentials = base64.b64encode(f"alice:{password}".encode())
        await protected({"type": "http", "headers": [(b"authorization", b"Basic " + credentials)]}, receive, send)

    async with anyio.create_task_group() as tasks:
        for n in range(QUEUE_MAXIMUM):
            tasks.start_soon(ask, f"wrong {n}", gone)
        await anyio.wait_all_tasks_blocked()
        gone.set()
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(ask, PASSWORD, anyio.Event())
        await anyio.wait_all_tasks_blocked()
        held.release.set()
    # Only the one that was being checked already, and the right one.
    assert held.begun == 2
    assert statuses == [401, 0, 200, 0]


def test_disconnected_guesses_do_not_delay_the_right_password(setting: Setting) -> None:
    setting.write(basic_auth_users={"alice": hashed(PASSWORD, 11)})
    with setting.exporter() as exporter:
        wrong = base64.b64encode(b"alice:wrong").decode()
        for _ in range(300):
            with connect(exporter) as connection:
                connection.sendall(request(Authorization=f"Basic {wrong}"))
        address = exporter.address + "/metrics"
        # The last of them may still wait for their turn.
        eventually(
            lambda: httpx.get(address, auth=("alice", PASSWORD), timeout=PATIENCE).status_code, lambda s: s == 200
        )


def test_the_environment_names_it_too(setting: Setting) -> None:
    setting.write(tls_server_config=TLS)
    with ExporterProcess(NO_DATABASE, environment={"MFG_NOTIFY_WEB_CONFIG_FILE": str(setting.file)}) as exporter:
        eventually(lambda: "address=https://127.0.0.1" in exporter.read_log())
