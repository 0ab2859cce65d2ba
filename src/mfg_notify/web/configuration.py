"""The format of the web configuration file, and on which line a file breaks it.

https://github.com/prometheus/exporter-toolkit/blob/master/docs/web-configuration.md. Owns the syntax; `tls` and
`access` decide what it means. An error names the line and what is expected there. It never repeats the file, because
the line may contain a password or a hash.
"""

import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin

import msgspec
import yaml
from msgspec import Struct

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

_HEADERS: dict[str, tuple[str, ...]] = {
    "Content-Security-Policy": (),
    "Strict-Transport-Security": (),
    "X-Content-Type-Options": ("nosniff",),
    "X-Frame-Options": ("deny", "sameorigin"),
    "X-XSS-Protection": (),
}
"""The headers that the toolkit allows, with their allowed values; () allows any."""
_HASH = re.compile(r"\$2[aby]\$(0[4-9]|[12]\d|3[01])\$[./A-Za-z0-9]{53}")
TLS_SECTION = "tls_server_config"
_TEXT = "tag:yaml.org,2002:str"
_NULL = "tag:yaml.org,2002:null"

Section = TypeVar("Section", bound=Struct)


class TlsConfig(Struct, frozen=True):
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


class HttpConfig(Struct, frozen=True):
    """The section `http_server_config`. `http2` is ignored: HTTP/2 is never served."""

    http2: bool = False
    headers: dict[str, str] = {}


class WebConfig(Struct, frozen=True):
    """The whole file."""

    tls: TlsConfig = TlsConfig()
    http: HttpConfig = HttpConfig()
    users: dict[str, bytes] = {}
    """bcrypt hashes by user."""
    lines: dict[str, int] = {}
    """The line of each field of `tls_server_config`, and that of the section itself."""
    empty: bool = False
    """No section has any field."""


class ConfigurationError(Exception):
    """The file, or a file that it names, cannot be used. The message says where and why."""


def parse(content: bytes) -> WebConfig:
    """Read the content of a web configuration file. Raise `ConfigurationError`."""
    loader = None
    try:
        loader = yaml.SafeLoader(content)
        return _Reader(loader).read(loader.get_single_node())
    except yaml.MarkedYAMLError as error:
        # PyYAML's own message would repeat parts of the line.
        mark = error.problem_mark or error.context_mark
        raise ConfigurationError(f"line {mark.line + 1 if mark else '?'}: this is not valid YAML") from None
    except yaml.reader.ReaderError as error:
        raise ConfigurationError(f"line {_line_of_character(content, error)}: this is not valid YAML") from None
    except RecursionError:
        raise ConfigurationError(f"line {loader.line + 1 if loader else '?'}: this is not valid YAML") from None


class _Reader:
    """Converts the nodes of a YAML document into a configuration. Unlike values, nodes know their lines."""

    def __init__(self, loader: yaml.SafeLoader) -> None:
        self._loader = loader
        self._lines: dict[str, int] = {}

    def read(self, document: yaml.Node | None) -> WebConfig:
        names = ("tls_server_config", "http_server_config", "basic_auth_users")
        sections = dict(self._items(document, "the file", names))
        tls, http, users = ({**dict(self._items(sections.get(name), name, _names(name)))} for name in names)
        if tls:
            self._lines[TLS_SECTION] = _line(sections[TLS_SECTION])
        for name, node in tls.items():
            self._lines[name] = _line(node)
        headers = http.pop("headers", None)
        return WebConfig(
            self._section(tls, "tls_server_config", TlsConfig),
            msgspec.structs.replace(
                self._section(http, "http_server_config", HttpConfig), headers=dict(self._headers(headers))
            ),
            dict(self._users(users)),
            self._lines,
            empty=not (tls or http or headers or users),
        )

    def _items(
        self, node: yaml.Node | None, place: str, known: Sequence[str] | None
    ) -> Iterator[tuple[str, yaml.Node]]:
        """Yield the names and nodes of a mapping, if there is one. Each name must be `known` and occur once."""
        if node is None or node.tag == _NULL:
            return
        if not isinstance(node, yaml.MappingNode):
            raise _wrong(node, f"{place} must be a mapping")
        seen: set[str] = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag != _TEXT:
                raise _wrong(key, f"names in {place} must be text")
            if known is not None and key.value not in known:
                close = get_close_matches(key.value, known, 1)
                hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
                raise _wrong(key, f"{place} has no field of this name; {hint}")
            if key.value in seen:
                raise _wrong(key, f"this name occurs twice in {place}")
            seen.add(key.value)
            yield key.value, value

    def _section(self, nodes: dict[str, yaml.Node], place: str, kind: type[Section]) -> Section:
        types = {each.name: each.type for each in msgspec.structs.fields(kind)}
        given = {
            name: self._value(node, types[name], f"{place}.{name}") for name, node in nodes.items() if node.tag != _NULL
        }
        return kind(**given)

    def _headers(self, node: yaml.Node | None) -> Iterator[tuple[str, str]]:
        for name, value in self._items(node, "http_server_config.headers", tuple(_HEADERS)):
            text, allowed = self._value(value, str, f"the header {name}"), _HEADERS[name]
            if allowed and text not in ("", *allowed):
                raise _wrong(value, f"the header {name} must be {' or '.join(allowed)}")
            if not re.fullmatch(r"[\t -~]*", text):
                raise _wrong(value, f"the header {name} must be printable ASCII")
            if text:
                yield name, text

    def _users(self, nodes: dict[str, yaml.Node]) -> Iterator[tuple[str, bytes]]:
        for user, node in nodes.items():
            if not _HASH.fullmatch(stored := self._value(node, str, "a hash in basic_auth_users")):
                raise _wrong(
                    node,
                    "basic_auth_users must have bcrypt hashes of cost 4 to 31; make one with htpasswd -nBC 10 USER",
                )
            yield user, stored.encode()

    def _value(self, node: yaml.Node, kind: Any, place: str) -> Any:  # noqa: ANN401
        try:
            return msgspec.convert(self._loader.construct_object(node, deep=True), kind)
        except (msgspec.ValidationError, *_NO_VALUE):
            raise _wrong(node, f"{place} must be {_describe(kind)}") from None


_NO_VALUE = (ValueError, LookupError, AttributeError, RecursionError)
"""What the YAML library raises for `!!int abc`, `!!bool abc` or `!!float` without a value, and `!!timestamp abc`."""


def _names(section: str) -> Sequence[str] | None:
    kinds: dict[str, type[Struct]] = {"tls_server_config": TlsConfig, "http_server_config": HttpConfig}
    return kinds[section].__struct_fields__ if section in kinds else None


def _describe(kind: Any) -> str:  # noqa: ANN401
    """Describe the values of a type."""
    if kind is str:
        return "text"
    if kind is bool:
        return "true or false"
    if get_origin(kind) is Literal:
        return f"one of {', '.join(filter(None, get_args(kind)))}"
    if get_origin(kind) is list:
        return f"a list, each {_describe(get_args(kind)[0])}"
    assert isinstance(kind, UnionType), kind  # noqa: S101 - no field has another type
    return _describe(get_args(kind)[0])


def _line_of_character(content: bytes, error: yaml.reader.ReaderError) -> int:
    # The position counts bytes if they could not be decoded, characters if one of them is not allowed.
    text = content.decode("latin-1" if error.encoding == "utf-8" else "utf-8", "replace")
    return text.count("\n", 0, error.position) + 1


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _wrong(node: yaml.Node, what: str) -> ConfigurationError:
    return ConfigurationError(f"line {_line(node)}: {what}")
