"""TLS, client certificates and passwords, as curl meets them; a web configuration that is wrong, or changes."""

import os
import shutil
import ssl
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import bcrypt
import httpx
import pytest
import trustme
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from tests.support import ExporterProcess, eventually
from tests.web_configuration import NO_DATABASE, PASSWORD, TLS, Setting, hashed

from mfg_notify.errors import UsageError
from mfg_notify.web.access import Access, BasicAuthMiddleware

needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl on this machine")


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting.in_folder(tmp_path)


def curl(address: str, setting: Setting | None = None, *flags: str, **options: str) -> tuple[int, int]:
    """Ask; return the status and curl's own exit code."""
    trust = ["--cacert", str(setting.folder / "ca.crt")] if setting is not None else []
    given = [part for name, text in options.items() for part in (f"--{name.strip('-').replace('_', '-')}", text)]
    done = subprocess.run(
        ["curl", "-sS", "-o", os.devnull, "-w", "%{http_code}", "--max-time", "20", *trust, *flags, *given, address],
        capture_output=True,
        text=True,
        check=False,
    )
    return int(done.stdout), done.returncode


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
        assert curl(page, setting, "--tlsv1.3") == (200, 0)
        assert curl(page, setting, tls_max="1.2")[0] == 0


@needs_curl
def test_what_changes_is_seen_and_what_is_wrong_is_not_taken(setting: Setting) -> None:
    setting.write(tls_server_config=TLS, basic_auth_users={"alice": hashed(PASSWORD)})
    with setting.exporter() as exporter:
        page = exporter.address + "/-/healthy"
        alice, bob = f"alice:{PASSWORD}", "bob:b"
        assert curl(page, setting, user=alice) == (200, 0)
        setting.write(tls_server_config=TLS, basic_auth_users={"bob": hashed("b")})
        assert curl(page, setting, user=alice) == (401, 0)
        assert curl(page, setting, user=bob) == (200, 0)

        for wrong in ({"basic_auth_users": {"alice": PASSWORD}}, {"tls_server_config": TLS | {"cert_fil": "x"}}, {}):
            setting.write(**wrong)
            assert curl(page, setting, user=bob) == (200, 0)
            assert curl(page, setting, user=alice) == (401, 0)
        log = exporter.read_log()
        assert log.count("level=warning") - log.count("waiting for the database") == 3
        assert "cert_fil" in log
        assert PASSWORD not in log

        # A new certificate, of another authority: first without its key, as who renews may write them.
        setting.write(tls_server_config=TLS)
        assert curl(page, setting) == (200, 0)
        setting.ca = trustme.CA()
        key = (setting.folder / "server.key").read_bytes()
        setting.certify("new", "127.0.0.1")
        (setting.folder / "new.crt").replace(setting.folder / "server.crt")
        assert curl(page, setting) == (200, 0)
        assert "the key is not that of the certificate" in exporter.read_log()
        (setting.folder / "new.key").replace(setting.folder / "server.key")
        assert key != (setting.folder / "server.key").read_bytes()
        assert curl(page, setting) == (0, 60)
        setting.ca.cert_pem.write_to_path(str(setting.folder / "ca.crt"))
        assert curl(page, setting) == (200, 0)

        # Client certificates can be asked for from the next connection on.
        setting.write(
            tls_server_config=TLS | {"client_auth_type": "RequireAndVerifyClientCert", "client_ca_file": "ca.crt"}
        )
        assert curl(page, setting)[0] == 0
        assert curl(page, setting, **setting.certify("client", "me@example.org")) == (200, 0)
        setting.file.unlink()
        assert curl(page, setting)[0] == 0


@pytest.mark.parametrize("users", [{"bob": hashed("b")}, {}])
def test_who_watches_the_board_is_asked_again_when_users_change(setting: Setting, users: dict[str, str]) -> None:
    setting.write(basic_auth_users={"alice": hashed(PASSWORD)})
    with setting.exporter() as exporter:
        stream = exporter.address + "/-/board/stream"
        with httpx.stream("GET", stream, auth=("alice", PASSWORD), timeout=30) as answer:
            assert answer.status_code == 200
            lines = answer.iter_lines()
            assert next(lines).startswith("data: {")
            setting.write(basic_auth_users=users)
            assert httpx.get(exporter.address + "/-/healthy").status_code == (401 if users else 200)
            assert [line for line in lines if "never" in line] == []
        with httpx.stream("GET", stream, auth=("alice", PASSWORD)) as answer:
            assert answer.status_code == (401 if users else 200)


GOOD_HASH = "$2y$10$X0h1gDsPszWURQaxFh.zoubFi6DXncSjhoQNJgRrnGs7EsimhC7zG"
WRONG: list[tuple[str, str]] = [
    ("tls_server_config: [", "line 1: "),
    ("basic_auth_users:\n\talice: secret-word", "line 2: "),
    ("basic_auth_users:\n  a: b\n  a: secret-word", "line 3: 'a' comes twice"),
    ("a: \x00", "is not YAML"),
    ("[" * 5000, "is not YAML"),
    ('tls_server_config: {cert_file: "a\\0b", key_file: server.key}', "tls_server_config.cert_file"),
    ("tls: {}", "unknown field `tls`"),
    ("rate_limit: {burst: 1}", "unknown field `rate_limit`"),
    ("tls_server_config: {certfile: x}", "unknown field `certfile` - at `$.tls_server_config`"),
    ("tls_server_config: {cert_file: 3}", "`$.tls_server_config.cert_file`"),
    ("tls_server_config: {cert_file: server.crt}", "tls_server_config.key_file: is missing"),
    ("tls_server_config: {key_file: server.key}", "tls_server_config.cert_file: is missing"),
    ("tls_server_config: {client_auth_type: NoClientCert}", "cert_file: is missing"),
    ("tls_server_config: {cert: x, key_file: y}", "tls_server_config.cert: is read from a file only"),
    ("tls_server_config: {cert_file: no.crt, key_file: server.key}", "no.crt: No such file"),
    ("tls_server_config: {cert_file: server.crt, key_file: other.key}", "the key is not that of the certificate"),
    ("tls_server_config: {cert_file: server.key, key_file: server.key}", "tls_server_config.cert_file"),
    ("tls_server_config: {cert_file: server.crt, key_file: locked.key}", "locked.key has a password"),
    ("{TLS}, client_auth_type: Maybe}", "`$.tls_server_config.client_auth_type`"),
    ("{TLS}, client_auth_type: RequireAnyClientCert}", "use RequireAndVerifyClientCert"),
    ("{TLS}, client_ca_file: ca.crt}", "client_auth_type: is missing"),
    ("{TLS}, client_auth_type: RequireAndVerifyClientCert, client_ca_file: no.crt}", "client_ca_file"),
    ("{TLS}, client_auth_type: RequireAndVerifyClientCert, client_ca_file: server.key}", "client_ca_file"),
    ("{TLS}, client_auth_type: RequireAndVerifyClientCert, client_ca: junk}", "client_ca: no certificates"),
    ("{TLS}, client_auth_type: VerifyClientCertIfGiven, client_allowed_sans: [a]}", "client_allowed_sans: needs"),
    ("{TLS}, min_version: TLS9}", "`$.tls_server_config.min_version`"),
    ("{TLS}, min_version: TLS13, max_version: TLS12}", "min_version: TLS13 is above max_version"),
    ("{TLS}, cipher_suites: [RC4]}", "cipher_suites: 'RC4' is not one of TLS_"),
    ("{TLS}, max_version: TLS12, cipher_suites: [TLS_AES_128_GCM_SHA256]}", "none of them goes with max_version"),
    ("{TLS}, curve_preferences: [X25519, CurveP256]}", "takes one curve"),
    ("{TLS}, curve_preferences: [P1]}", "`$.tls_server_config.curve_preferences[0]`"),
    ("http_server_config: {headers: {X-Mine: a}}", "'X-Mine' is not one of Content-Security-Policy"),
    ("http_server_config: {headers: {X-Frame-Options: allow}}", "'allow' is not deny or sameorigin"),
    ('http_server_config: {headers: {X-XSS-Protection: "a\\r\\nb"}}', "characters that a header cannot carry"),
    ("basic_auth_users: {alice: secret-word}", "basic_auth_users.alice: not a bcrypt hash"),
    ("basic_auth_users: {alice: $2y$99$" + GOOD_HASH[7:] + "}", "basic_auth_users.alice: not a bcrypt hash"),
    ("basic_auth_users: [alice]", "`$.basic_auth_users`"),
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
    setting.file.write_text(text.replace("{TLS}", tls), encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        Access(setting.file)
    assert str(caught.value).startswith(f"--web.config.file {setting.file}: ")
    assert said in str(caught.value)
    assert "secret-word" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tls_server_config:\nhttp_server_config:\nbasic_auth_users:\n",
        "tls_server_config: {min_version: TLS10}",
        f"basic_auth_users: {{alice: {GOOD_HASH}}}",
        "http_server_config: {http2: false, headers: {X-Frame-Options: deny, Content-Security-Policy: ''}}",
    ],
)
def test_without_tls(setting: Setting, text: str) -> None:
    setting.file.write_text(text, encoding="utf-8")
    assert Access(setting.file).scheme == "http"


def test_a_wrong_file_is_said_by_the_command(setting: Setting) -> None:
    setting.write(basic_auth_users={"alice": "x"})
    with setting.exporter() as exporter:
        assert exporter.process.wait(30) == 1
        assert "Error: --web.config.file" in exporter.read_log()
        assert "Traceback" not in exporter.read_log()


class Counting:
    """Stands before bcrypt and counts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.checked = 0
        self._check = bcrypt.checkpw
        monkeypatch.setattr(bcrypt, "checkpw", self)

    def __call__(self, password: bytes, stored: bytes) -> bool:
        """Check a password."""
        self.checked += 1
        return self._check(password, stored)


@contextmanager
def guarded(setting: Setting, users: dict[str, str]) -> Iterator[Callable[..., httpx.AsyncClient]]:
    setting.write(basic_auth_users=users)
    inside = Starlette(routes=[Route("/", lambda _: PlainTextResponse("inside"))])
    gate = BasicAuthMiddleware(inside, Access(setting.file))
    yield lambda **auth: httpx.AsyncClient(transport=httpx.ASGITransport(gate), base_url="http://x", **auth)


@pytest.mark.anyio
async def test_a_right_password_costs_bcrypt_once(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    counting = Counting(monkeypatch)
    with guarded(setting, {"alice": hashed(PASSWORD)}) as client:
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
            assert (await alice.get("/")).status_code == 200
            assert counting.checked == 5


@pytest.mark.anyio
async def test_who_is_not_there_costs_as_much(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    counting = Counting(monkeypatch)
    with guarded(setting, {"alice": hashed(PASSWORD)}) as client:
        async with client(auth=("carol", PASSWORD)) as carol:
            for n in range(1, 4):
                assert (await carol.get("/")).status_code == 401
                assert counting.checked == n


@pytest.mark.anyio
@pytest.mark.slow
async def test_bcrypt_does_not_hold_up_the_others(setting: Setting) -> None:
    finished: list[str] = []
    with guarded(setting, {"alice": hashed(PASSWORD), "slow": hashed("x", 14)}) as client:
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


def test_the_environment_names_it_too(setting: Setting) -> None:
    setting.write(tls_server_config=TLS)
    with ExporterProcess(NO_DATABASE, environment={"MFG_NOTIFY_WEB_CONFIG_FILE": str(setting.file)}) as exporter:
        eventually(lambda: "address=https://127.0.0.1" in exporter.read_log())
