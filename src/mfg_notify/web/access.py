"""TLS, client certificates and passwords, from a file in the form of the Prometheus exporter-toolkit.

https://github.com/prometheus/exporter-toolkit/blob/master/docs/web-configuration.md. The file and the certificates are
looked at with each connection and each request, and read again when they have changed. Nothing here is logged or said
that is in a key or in the list of users.
"""

import base64
import hashlib
import hmac
import ipaddress
import re
import secrets
import ssl
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import anyio
import anyio.to_thread
import bcrypt
import msgspec
import structlog
import yaml
from msgspec import Struct
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mfg_notify.errors import UsageError

OPTION = "--web.config.file"
CACHE_MAXIMUM = 100
"""Right passwords that are remembered, so that not every scrape costs a bcrypt."""
PASSWORD_MAXIMUM = 72
"""Bytes of a password that bcrypt looks at."""

log = structlog.get_logger(__name__)

ClientAuthType = Literal[
    "",
    "NoClientCert",
    "RequestClientCert",
    "RequireAnyClientCert",
    "RequireClientCert",
    "VerifyClientCertIfGiven",
    "RequireAndVerifyClientCert",
]
Version = Literal["TLS10", "TLS11", "TLS12", "TLS13"]
Curve = Literal["CurveP256", "CurveP384", "CurveP521", "X25519"]

_VERSIONS = {
    "TLS10": ssl.TLSVersion.TLSv1,
    "TLS11": ssl.TLSVersion.TLSv1_1,
    "TLS12": ssl.TLSVersion.TLSv1_2,
    "TLS13": ssl.TLSVersion.TLSv1_3,
}
_CURVES = {"CurveP256": "prime256v1", "CurveP384": "secp384r1", "CurveP521": "secp521r1", "X25519": "X25519"}
_CIPHERS = {
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA": "ECDHE-ECDSA-AES128-SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA": "ECDHE-ECDSA-AES256-SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA": "ECDHE-RSA-AES128-SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA": "ECDHE-RSA-AES256-SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256": "ECDHE-ECDSA-AES128-GCM-SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384": "ECDHE-ECDSA-AES256-GCM-SHA384",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256": "ECDHE-RSA-AES128-GCM-SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384": "ECDHE-RSA-AES256-GCM-SHA384",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-ECDSA-CHACHA20-POLY1305",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-RSA-CHACHA20-POLY1305",
}
_CIPHERS_OF_TLS_1_3 = {"TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"}
"""Named or not, these are always on where TLS 1.3 is, as they are in Go."""
_HEADERS: dict[str, tuple[str, ...]] = {
    "Content-Security-Policy": (),
    "Strict-Transport-Security": (),
    "X-Content-Type-Options": ("nosniff",),
    "X-Frame-Options": ("deny", "sameorigin"),
    "X-XSS-Protection": (),
}
_HASH = re.compile(r"\$2[aby]\$(0[4-9]|[12]\d|3[01])\$[./A-Za-z0-9]{53}")


Stamp = tuple[int, int, int] | None
"""By which a file that has changed is known; None where it cannot be found."""


class TlsConfig(Struct, forbid_unknown_fields=True):
    """The section `tls_server_config`."""

    cert_file: str = ""
    key_file: str = ""
    client_auth_type: ClientAuthType = ""
    client_ca: str = ""
    client_ca_file: str = ""
    client_allowed_sans: list[str] | None = None
    min_version: Version = "TLS12"
    max_version: Version = "TLS13"
    cipher_suites: list[str] = []
    prefer_server_cipher_suites: bool = True
    curve_preferences: list[Curve] = []
    cert: str = ""
    key: str = ""


class HttpConfig(Struct, forbid_unknown_fields=True):
    """The section `http_server_config`. HTTP/2 is not served, whatever it says."""

    http2: bool | None = None
    headers: dict[str, str] = {}


class WebConfig(Struct, forbid_unknown_fields=True):
    """The whole file."""

    tls_server_config: TlsConfig | None = None
    http_server_config: HttpConfig | None = None
    basic_auth_users: dict[str, str] | None = None


class _NotUsable(Exception):  # noqa: N818 - it never leaves this module
    """What is wrong with the file, and where in it."""


class _Rules(Struct, frozen=True):
    """What was read at one time."""

    context: ssl.SSLContext | None
    headers: dict[str, str]
    users: dict[str, bytes]


class Access:
    """What the file says. Raise `UsageError` where it cannot be used at the start.

    Where it cannot be used later (a new certificate whose key is not there yet, a slip of the pen), what was read last
    goes on to hold, and the log says so once a change.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.on_change: Callable[[], None] = _nothing
        """Called when other rules hold."""
        self.on_failure: Callable[[], None] = _nothing
        """Called when the file or what it names has become unusable."""
        self._stamps: dict[Path, Stamp] = {}
        try:
            self._rules = _read(path, self._stamps)
        except _NotUsable as error:
            raise UsageError(f"{OPTION} {path}: {error}") from error
        self.context: ssl.SSLContext | None = None
        """For the server: each connection gets what the file says when it begins. None without TLS."""
        if self._rules.context is not None:
            self.context = _Current(ssl.PROTOCOL_TLS_SERVER)
            self.context.access = self

    @property
    def scheme(self) -> str:
        """`https`, or `http` where the file has no TLS."""
        return "http" if self.context is None else "https"

    def rules(self) -> _Rules:
        """Return what holds now."""
        if all(_stamp(path) == stamp for path, stamp in self._stamps.items()):
            return self._rules
        try:
            self._rules = self._read_again()
        except _NotUsable as error:
            log.warning(
                "the web configuration cannot be used; the last good one holds", file=str(self._path), error=str(error)
            )
            self.on_failure()
        else:
            log.info("read the web configuration again", file=str(self._path))
            self.on_change()
        return self._rules

    def _read_again(self) -> _Rules:
        self._stamps = {}
        rules = _read(self._path, self._stamps)
        if (rules.context is None) != (self._rules.context is None):
            raise _NotUsable("tls_server_config: TLS comes and goes with a restart only")
        return rules


class _Current(ssl.SSLContext):
    """Stands in for the context that holds when a connection begins, because asyncio takes one for all of them."""

    access: Access

    def wrap_bio(self, *arguments: Any, **more: Any) -> ssl.SSLObject:  # noqa: ANN401
        context = self.access.rules().context
        assert context is not None, "rules without TLS never follow rules with it"  # noqa: S101
        return context.wrap_bio(*arguments, **more)


class BasicAuthMiddleware:
    """Lets in who has a right password, where there are users, and adds the headers that the file asks for."""

    def __init__(self, application: ASGIApp, access: Access) -> None:
        self._application = application
        self._access = access
        self._key = secrets.token_bytes(32)
        self._right: dict[bytes, None] = {}
        # Guessing many passwords at once must not take all cores.
        self._one_at_a_time = anyio.CapacityLimiter(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 401, or pass the request on."""
        rules = self._access.rules()

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(rules.headers)
            await send(message)

        entrance = self._application
        if rules.users and not await self._is_right(rules.users, Headers(scope=scope).get("authorization", "")):
            entrance = PlainTextResponse("Unauthorized\n", 401, {"www-authenticate": "Basic"})
        await entrance(scope, receive, send_with_headers)

    async def _is_right(self, users: dict[str, bytes], authorization: str) -> bool:
        given = _parse(authorization)
        if given is None:
            return False
        user, password = given
        stored = users.get(user)
        # Of a user who is not there the password is checked all the same, or the time would tell.
        against = next(iter(users.values())) if stored is None else stored
        mark = hmac.digest(self._key, b"\0".join((user.encode(), against, password)), hashlib.sha256)
        if stored is not None and mark in self._right:
            return True
        matches = await anyio.to_thread.run_sync(
            bcrypt.checkpw, password[:PASSWORD_MAXIMUM], against, abandon_on_cancel=True, limiter=self._one_at_a_time
        )
        if stored is None or not matches:
            return False
        # Wrong ones are not remembered: they could push the right ones out.
        if len(self._right) >= CACHE_MAXIMUM:
            del self._right[next(iter(self._right))]
        self._right[mark] = None
        return True


def _nothing() -> None:
    pass


def _parse(authorization: str) -> tuple[str, bytes] | None:
    scheme, _, credentials = authorization.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        user, colon, password = base64.b64decode(credentials.strip(), validate=True).partition(b":")
        return (user.decode(), password) if colon else None
    except ValueError:  # not of base64's characters, of another length, not UTF-8
        return None


def _stamp(path: Path) -> Stamp:
    try:
        found = path.stat()
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


class _Loader(yaml.SafeLoader):
    """Of two keys of the same name YAML forbids the second, and PyYAML takes it."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names: set[str] = set()
        for key, _ in node.value:
            if key.value in names:
                raise yaml.MarkedYAMLError(problem=f"{key.value!r} comes twice", problem_mark=key.start_mark)
            if isinstance(key, yaml.ScalarNode):
                names.add(key.value)
        return super().construct_mapping(node, deep)


def _read(path: Path, stamps: dict[Path, Stamp]) -> _Rules:
    """Read the file and what it names; put the stamps of all of them, from before they were read, into `stamps`."""
    stamps[path] = _stamp(path)
    try:
        given = yaml.load(path.read_bytes(), _Loader)  # noqa: S506 - a kind of SafeLoader
        config = msgspec.convert({} if given is None else given, WebConfig)
    except OSError as error:
        raise _NotUsable(error.strerror or "cannot be read") from error
    except yaml.MarkedYAMLError as error:
        # Not its own words, which repeat the line: a password may stand there.
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise _NotUsable(f"line {line}: {error.problem}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise _NotUsable(f"is not YAML: {str(error).splitlines()[0]}") from error
    except msgspec.ValidationError as error:
        raise _NotUsable(str(error)) from error
    http = config.http_server_config or HttpConfig()
    if http.http2:
        log.info("HTTP/2 is not served, HTTP/1.1 is", file=str(path))
    return _Rules(
        _make_context(config.tls_server_config or TlsConfig(), path.parent, stamps),
        _checked_headers(http.headers),
        _checked_users(config.basic_auth_users or {}),
    )


def _checked_headers(headers: dict[str, str]) -> dict[str, str]:
    for name, value in headers.items():
        if name not in _HEADERS:
            raise _NotUsable(f"http_server_config.headers: {name!r} is not one of {', '.join(_HEADERS)}")
        if _HEADERS[name] and value not in ("", *_HEADERS[name]):
            raise _NotUsable(f"http_server_config.headers.{name}: {value!r} is not {' or '.join(_HEADERS[name])}")
        if not re.fullmatch(r"[\t -~]*", value):
            raise _NotUsable(f"http_server_config.headers.{name} has characters that a header cannot carry")
    return {name: value for name, value in headers.items() if value}


def _checked_users(users: dict[str, str]) -> dict[str, bytes]:
    for user, stored in users.items():
        if not _HASH.fullmatch(stored):
            raise _NotUsable(f"basic_auth_users.{user}: not a bcrypt hash; make one with htpasswd -nBC 10 {user}")
    return {user: stored.encode() for user, stored in users.items()}


def _make_context(tls: TlsConfig, folder: Path, stamps: dict[Path, Stamp]) -> ssl.SSLContext | None:
    def refuse(key: str, why: str) -> _NotUsable:
        return _NotUsable(f"tls_server_config.{key}: {why}")

    def readable(key: str, name: str) -> Path:
        path = folder / name
        stamps[path] = _stamp(path)
        try:
            path.open("rb").close()
        except OSError as error:
            raise refuse(key, f"{path}: {error.strerror}") from error
        except ValueError as error:
            raise refuse(key, f"{str(path)!r}: {error}") from error
        return path

    if not any(
        (tls.cert, tls.key, tls.cert_file, tls.key_file, tls.client_ca, tls.client_ca_file, tls.client_auth_type)
    ):
        return None
    for key, given in (("cert", tls.cert), ("key", tls.key)):
        if given:
            raise refuse(key, f"is read from a file only: use {key}_file")
    for key, given in (("cert_file", tls.cert_file), ("key_file", tls.key_file)):
        if not given:
            raise refuse(key, "is missing")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])

    certificate, private_key = readable("cert_file", tls.cert_file), readable("key_file", tls.key_file)

    def no_password() -> str:
        raise refuse("key_file", f"{private_key} has a password; give one without")

    try:
        context.load_cert_chain(certificate, private_key, no_password)
    except ssl.SSLError as error:
        reason = "the key is not that of the certificate" if error.reason == "KEY_VALUES_MISMATCH" else error
        raise refuse("cert_file", f"{certificate} with {private_key}: {reason}") from error

    if tls.client_auth_type in ("RequireAnyClientCert", "RequireClientCert"):
        raise refuse(
            "client_auth_type",
            f"{tls.client_auth_type} asks for a certificate and does not look at it, which protects nothing and is not "
            "possible here; use RequireAndVerifyClientCert",
        )
    if (tls.client_ca or tls.client_ca_file) and tls.client_auth_type in ("", "NoClientCert"):
        raise refuse("client_auth_type", "is missing beside a client CA; use RequireAndVerifyClientCert")
    if tls.client_allowed_sans is not None:
        if tls.client_auth_type != "RequireAndVerifyClientCert":
            raise refuse("client_allowed_sans", "needs client_auth_type: RequireAndVerifyClientCert")
        context.sslobject_class = _who_is_named(frozenset(tls.client_allowed_sans))
    if tls.client_auth_type in ("VerifyClientCertIfGiven", "RequireAndVerifyClientCert"):
        required = tls.client_auth_type == "RequireAndVerifyClientCert"
        context.verify_mode = ssl.CERT_REQUIRED if required else ssl.CERT_OPTIONAL
        try:
            if tls.client_ca_file:
                context.load_verify_locations(readable("client_ca_file", tls.client_ca_file))
            elif tls.client_ca:
                context.load_verify_locations(cadata=tls.client_ca)
            else:
                context.load_default_certs(ssl.Purpose.CLIENT_AUTH)
        except (ssl.SSLError, ValueError) as error:
            raise refuse(
                "client_ca_file" if tls.client_ca_file else "client_ca", f"no certificates: {error}"
            ) from error

    if _VERSIONS[tls.min_version] > _VERSIONS[tls.max_version]:
        raise refuse("min_version", f"{tls.min_version} is above max_version {tls.max_version}")
    with warnings.catch_warnings():
        # Python calls the old versions deprecated; who writes them here knows.
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = _VERSIONS[tls.min_version]
        context.maximum_version = _VERSIONS[tls.max_version]
    if tls.cipher_suites:
        for name in tls.cipher_suites:
            if name not in _CIPHERS and name not in _CIPHERS_OF_TLS_1_3:
                raise refuse("cipher_suites", f"{name!r} is not one of {', '.join(_CIPHERS)}")
        older = [_CIPHERS[name] for name in tls.cipher_suites if name in _CIPHERS]
        if older:
            try:
                context.set_ciphers(":".join(older))
            except ssl.SSLError as error:
                raise refuse("cipher_suites", f"OpenSSL has none of them here: {error}") from error
        elif _VERSIONS[tls.max_version] < ssl.TLSVersion.TLSv1_3:
            raise refuse("cipher_suites", f"none of them goes with max_version {tls.max_version}")
        else:
            context.minimum_version = ssl.TLSVersion.TLSv1_3
    if not tls.prefer_server_cipher_suites:
        context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    if len(tls.curve_preferences) > 1:
        raise refuse("curve_preferences", "Python's ssl takes one curve; name one, or leave it to OpenSSL")
    for curve in tls.curve_preferences:
        context.set_ecdh_curve(_CURVES[curve])
    return context


def _who_is_named(allowed: frozenset[str]) -> type[ssl.SSLObject]:
    class Named(ssl.SSLObject):
        """A connection whose handshake fails unless the client's certificate has one of the allowed names."""

        def do_handshake(self) -> None:
            super().do_handshake()
            if allowed.isdisjoint(_names(self.getpeercert())):
                raise ssl.SSLCertVerificationError("the client's certificate has none of client_allowed_sans")

    return Named


def _names(certificate: Any) -> Iterator[str]:  # noqa: ANN401
    for kind, name in (certificate or {}).get("subjectAltName", ()):
        yield str(ipaddress.ip_address(name)) if kind == "IP Address" else name
