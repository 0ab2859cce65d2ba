"""The section `tls_server_config` as an `ssl.SSLContext`.

Owns what each field means to OpenSSL, and which of the toolkit's fields Python's ssl cannot honour.
"""

import ipaddress
import ssl
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mfg_notify.web.configuration import TLS_SECTION, ConfigurationError, TlsConfig

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
"""TLS 1.3 always offers these, whether they are named or not, as in Go."""


Stamp = tuple[int, int, int] | None
"""Modification time, size and inode of a file, by which a change is noticed; None if there is no such file."""


def stamp(path: Path) -> Stamp:
    """Return the stamp of a file as it is now."""
    try:
        found = path.stat()
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


class ContextMaker:
    """Makes the context for a section whose file names are relative to `folder`."""

    def __init__(self, tls: TlsConfig, folder: Path, lines: Mapping[str, int]) -> None:
        """`lines` are those of the section's fields, for errors."""
        self.stamps: dict[Path, Stamp] = {}
        """The files that were read, with the stamps from before; also after an error."""
        self._tls = tls
        self._folder = folder
        self._lines = lines

    def make(self) -> ssl.SSLContext | None:
        """Return the context; None if the section asks for no TLS. Raise `ConfigurationError`."""
        tls = self._tls
        if not any(
            (tls.cert, tls.key, tls.cert_file, tls.key_file, tls.client_ca, tls.client_ca_file, tls.client_auth_type)
        ):
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.options |= ssl.OP_NO_RENEGOTIATION
        context.set_alpn_protocols(["http/1.1"])
        self._load_certificate(context)
        self._verify_clients(context)
        self._restrict(context)
        return context

    def _load_certificate(self, context: ssl.SSLContext) -> None:
        tls = self._tls
        for field, given in (("cert", tls.cert), ("key", tls.key)):
            if given:
                raise self._refuse(field, f"is read from a file only: use {field}_file")
        for field, given in (("cert_file", tls.cert_file), ("key_file", tls.key_file)):
            if not given:
                raise self._refuse(field, "is missing")
        certificate, key = self._readable("cert_file", tls.cert_file), self._readable("key_file", tls.key_file)

        def no_password() -> str:
            raise self._refuse("key_file", "the key has a password; use one without")

        try:
            context.load_cert_chain(certificate, key, no_password)
        except OSError as error:  # ssl.SSLError is one, too
            mismatch = isinstance(error, ssl.SSLError) and error.reason == "KEY_VALUES_MISMATCH"
            raise self._refuse(
                "cert_file", "the key in key_file is not that of the certificate" if mismatch else str(error)
            ) from error

    def _verify_clients(self, context: ssl.SSLContext) -> None:
        tls = self._tls
        if tls.client_auth_type in ("RequireAnyClientCert", "RequireClientCert"):
            raise self._refuse(
                "client_auth_type",
                f"{tls.client_auth_type} asks for a certificate without checking it, which protects nothing and is not "
                "possible here; use RequireAndVerifyClientCert",
            )
        if (tls.client_ca or tls.client_ca_file) and tls.client_auth_type in ("", "NoClientCert"):
            raise self._refuse("client_auth_type", "is missing beside a client CA; use RequireAndVerifyClientCert")
        if tls.client_allowed_sans is not None:
            if tls.client_auth_type != "RequireAndVerifyClientCert":
                raise self._refuse("client_allowed_sans", "needs client_auth_type: RequireAndVerifyClientCert")
            context.sslobject_class = _checking_names(frozenset(tls.client_allowed_sans))
        if tls.client_auth_type not in ("VerifyClientCertIfGiven", "RequireAndVerifyClientCert"):
            return
        required = tls.client_auth_type == "RequireAndVerifyClientCert"
        context.verify_mode = ssl.CERT_REQUIRED if required else ssl.CERT_OPTIONAL
        field = "client_ca_file" if tls.client_ca_file else "client_ca"
        try:
            if tls.client_ca_file:
                context.load_verify_locations(self._readable("client_ca_file", tls.client_ca_file))
            elif tls.client_ca:
                context.load_verify_locations(cadata=tls.client_ca)
            else:
                context.load_default_certs(ssl.Purpose.CLIENT_AUTH)
        except (OSError, ValueError) as error:
            raise self._refuse(field, f"no certificates: {error}") from error

    def _restrict(self, context: ssl.SSLContext) -> None:
        tls = self._tls
        if _VERSIONS[tls.min_version] > _VERSIONS[tls.max_version]:
            raise self._refuse("min_version", f"{tls.min_version} is above max_version {tls.max_version}")
        with warnings.catch_warnings():
            # Python warns about the old versions, but the file names them explicitly.
            warnings.simplefilter("ignore", DeprecationWarning)
            context.minimum_version = _VERSIONS[tls.min_version]
            context.maximum_version = _VERSIONS[tls.max_version]
        if tls.cipher_suites:
            if not _CIPHERS.keys() | _CIPHERS_OF_TLS_1_3 >= set(tls.cipher_suites):
                raise self._refuse("cipher_suites", f"each must be one of {', '.join(_CIPHERS)}")
            older = [_CIPHERS[name] for name in tls.cipher_suites if name in _CIPHERS]
            if older:
                try:
                    context.set_ciphers(":".join(older))
                except ssl.SSLError as error:
                    raise self._refuse("cipher_suites", f"OpenSSL has none of them here: {error}") from error
            elif _VERSIONS[tls.max_version] < ssl.TLSVersion.TLSv1_3:
                raise self._refuse("cipher_suites", f"none of them goes with max_version {tls.max_version}")
            else:
                context.minimum_version = ssl.TLSVersion.TLSv1_3
        if not tls.prefer_server_cipher_suites:
            context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
        if len(tls.curve_preferences) > 1:
            raise self._refuse("curve_preferences", "Python's ssl takes one curve; name one, or leave it to OpenSSL")
        for curve in tls.curve_preferences:
            context.set_ecdh_curve(_CURVES[curve])

    def _readable(self, field: str, name: str) -> Path:
        path = self._folder / name
        self.stamps[path] = stamp(path)
        try:
            path.open("rb").close()
        except OSError as error:
            raise self._refuse(field, f"{error.strerror} (names are relative to the web configuration)") from error
        except ValueError as error:
            raise self._refuse(field, "this cannot be the name of a file") from error
        return path

    def _refuse(self, field: str, why: str) -> ConfigurationError:
        line = self._lines.get(field, self._lines[TLS_SECTION])
        return ConfigurationError(f"line {line}: {TLS_SECTION}.{field}: {why}")


def _checking_names(allowed: frozenset[str]) -> type[ssl.SSLObject]:
    class NameCheckingObject(ssl.SSLObject):
        """A connection whose handshake fails unless the client's certificate has one of the allowed names."""

        def do_handshake(self) -> None:
            super().do_handshake()
            if allowed.isdisjoint(_names(self.getpeercert())):
                raise ssl.SSLCertVerificationError("the client's certificate has none of client_allowed_sans")

    return NameCheckingObject


def _names(certificate: Any) -> Iterator[str]:  # noqa: ANN401
    for kind, name in (certificate or {}).get("subjectAltName", ()):
        yield str(ipaddress.ip_address(name)) if kind == "IP Address" else name
