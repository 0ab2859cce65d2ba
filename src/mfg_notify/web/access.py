"""Access control from a web configuration file: TLS, client certificates and passwords.

Owns the rules in force: when the file is read again, and which changes need a restart. Never logs or sends a key, a
hash or a password.
"""

import base64
import hashlib
import hmac
import secrets
import ssl
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal

import anyio
import anyio.to_thread
import bcrypt
import structlog
from msgspec import Struct, structs
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mfg_notify.errors import UsageError
from mfg_notify.web.configuration import ConfigurationError, WebConfig, parse
from mfg_notify.web.tls import ContextMaker, Stamp, stamp

OPTION = "--web.config.file"
LOOK_INTERVAL = 0.25
"""Seconds between two checks for changed files."""
SETTLED = 0.75
"""Seconds without a change before files are read again (debounce): a file may be half-written until then."""
CACHE_MAXIMUM = 100
"""Correct passwords that are cached, so that not every scrape costs a bcrypt."""
QUEUE_MAXIMUM = 10
"""Password checks that may be pending, including the one that runs; more get 429."""
PASSWORD_MAXIMUM = 72
"""Bytes of a password that bcrypt uses."""

log = structlog.get_logger(__name__)


class Rules(Struct, frozen=True):
    """A usable web configuration, and the TLS context that it asks for."""

    config: WebConfig = WebConfig()
    context: ssl.SSLContext | None = None


class _Reading(Struct, frozen=True):
    """The outcome of reading the file. `stamps` are those of all files that were read, taken before they were read."""

    stamps: dict[Path, Stamp]
    rules: Rules = Rules()
    error: str | None = None


class Access:
    """The rules of a web configuration file. `watch` reads it again when it, or a file that it names, has changed.

    If the new content cannot be used, or removes protection, the last good rules stay in force and the log has one line
    about it. Removing protection needs a restart, because an emptied or truncated file must never do it.
    """

    def __init__(self, path: Path) -> None:
        """Read the file. Raise `UsageError` if it cannot be used."""
        self._path = path
        self.on_change: Callable[[], None] = _nothing
        """Called when new rules are in force."""
        self.on_failure: Callable[[], None] = _nothing
        """Called when a file has changed and cannot be used."""
        self._reading = _read(path)
        if self._reading.error is not None:
            raise UsageError(f"{OPTION} {path}: {self._reading.error}")
        self.rules = self._reading.rules
        """The rules in force."""
        if self.rules.config.http.http2:
            log.info("HTTP/2 is not served, HTTP/1.1 is", file=str(path))

    @property
    def scheme(self) -> str:
        """`https`, or `http` if the file has no TLS."""
        return "http" if self.rules.context is None else "https"

    async def watch(self) -> None:
        """Read the files again whenever they have changed, until cancelled. Only a thread touches the disk."""
        seen, unchanged_since = self._reading.stamps, 0.0
        while True:
            await anyio.sleep(LOOK_INTERVAL)
            now = time.monotonic()
            found = await anyio.to_thread.run_sync(_stamps_of, seen)
            if found != seen:
                seen, unchanged_since = found, now
            # Retry after an error even without a change: the process may have had too many open files.
            elif now - unchanged_since >= SETTLED and (found != self._reading.stamps or self._reading.error):
                self._apply(await anyio.to_thread.run_sync(_read, self._path))
                seen, unchanged_since = self._reading.stamps, now

    def _apply(self, reading: _Reading) -> None:
        """Put what was read in force, if it can be used."""
        error = reading.error or _lost_protection(self.rules, reading.rules)
        is_new = reading.stamps != self._reading.stamps or error != self._reading.error
        self._reading = structs.replace(reading, error=error)
        if error is None:
            self.rules = reading.rules
            log.info("read the web configuration again", file=str(self._path))
            self.on_change()
        elif is_new:
            log.warning(
                "the web configuration cannot be used; the last good one holds", file=str(self._path), error=error
            )
            self.on_failure()


def _read(path: Path) -> _Reading:
    # Take the stamps first, so that a change during the reading is noticed.
    stamps = {path: stamp(path)}
    try:
        config = parse(path.read_bytes())
        maker = ContextMaker(config.tls, path.parent, config.lines)
        try:
            return _Reading(stamps, Rules(config, maker.make()))
        finally:
            stamps |= maker.stamps
    except OSError as error:
        return _Reading(stamps, error=error.strerror or "cannot be read")
    except ConfigurationError as error:
        return _Reading(stamps, error=str(error))


def _stamps_of(files: Iterable[Path]) -> dict[Path, Stamp]:
    return {file: stamp(file) for file in files}


def _lost_protection(old: Rules, new: Rules) -> str | None:
    """Return why the new rules need a restart; None if they protect as much as the old ones."""
    if new.config.empty:
        return "the file is empty; removing all protection needs a restart"
    if old.config.users and not new.config.users:
        return "basic_auth_users: removing all users needs a restart"
    if old.context is None or new.context is None:
        return None if old.context is new.context else "tls_server_config: switching TLS on or off needs a restart"
    if new.context.verify_mode < old.context.verify_mode:
        return "tls_server_config.client_auth_type: asking less of clients needs a restart"
    if _has_authority(old.config) and not _has_authority(new.config):
        # The machine's list of public authorities would count instead.
        return "tls_server_config.client_ca_file: removing it needs a restart"
    if old.config.tls.client_allowed_sans is not None and new.config.tls.client_allowed_sans is None:
        return "tls_server_config.client_allowed_sans: removing it needs a restart"
    return None


def _has_authority(config: WebConfig) -> bool:
    return bool(config.tls.client_ca_file or config.tls.client_ca)


class BasicAuthMiddleware:
    """ASGI middleware for basic authentication; also adds the headers that the file asks for."""

    def __init__(self, application: ASGIApp, access: Access) -> None:
        self._application = application
        self._access = access
        self._passwords = Passwords()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 401 or 429."""
        config = self._access.rules.config

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(config.http.headers)
            await send(message)

        verdict: Verdict = "right"
        if config.users:
            verdict = await self._authenticate(config.users, Headers(scope=scope).get("authorization", ""), receive)
        match verdict:
            case "right":
                await self._application(scope, receive, send_with_headers)
            case "wrong":
                refused = PlainTextResponse("Unauthorized\n", 401, {"www-authenticate": "Basic"})
                await refused(scope, receive, send_with_headers)
            case "busy":
                busy = PlainTextResponse("Too many passwords are being checked\n", 429, {"retry-after": "1"})
                await busy(scope, receive, send_with_headers)
            case "gone":
                pass

    async def _authenticate(self, users: dict[str, bytes], authorization: str, receive: Receive) -> "Verdict":
        credentials = _decode(authorization)
        if credentials is None:
            return "wrong"
        verdict: Verdict = "gone"
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_cancel_on_disconnect, receive, tasks.cancel_scope)
            verdict = await self._passwords.check(users, *credentials)
            tasks.cancel_scope.cancel()
        return verdict


Verdict = Literal["right", "wrong", "busy", "gone"]
"""The outcome of a password check; `gone` if the client has disconnected, so that nobody waits for an answer."""


class Passwords:
    """Checks passwords in a thread, one at a time, and caches the correct ones."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)
        self._verified: dict[bytes, None] = {}
        """Keyed hashes of users and correct passwords, oldest first."""
        self._pending = 0
        # One at a time, so that guessing many passwords at once cannot occupy all cores.
        self._one_at_a_time = anyio.CapacityLimiter(1)

    async def check(self, users: dict[str, bytes], user: str, password: bytes) -> Verdict:
        """Check a password. Cancelling a check removes it from the queue."""
        password = password[:PASSWORD_MAXIMUM]
        stored = users.get(user)
        digest = hmac.digest(self._key, b"\0".join((user.encode(), stored or b"", password)), hashlib.sha256)
        if digest in self._verified:
            return "right"
        if self._pending >= QUEUE_MAXIMUM:
            return "busy"
        costs = sorted({_cost(each) for each in users.values()})
        self._pending += 1
        try:
            # Wait for the thread even when cancelled; otherwise the next check would run beside it.
            matches = await anyio.to_thread.run_sync(_matches, password, stored, costs, limiter=self._one_at_a_time)
        finally:
            self._pending -= 1
        if not matches:
            # Do not cache wrong passwords: they could push the correct ones out.
            return "wrong"
        if len(self._verified) >= CACHE_MAXIMUM:
            del self._verified[next(iter(self._verified))]
        self._verified[digest] = None
        return "right"


def _matches(password: bytes, stored: bytes | None, costs: Sequence[int]) -> bool:
    """Tell whether a password matches a user's hash, None for an unknown user; `costs` are those of all users' hashes.

    Runs bcrypt once for each cost, for every user, so that timing reveals neither which users exist nor what their
    hashes cost. All runs but the one on the user's own hash are on decoys that match nothing.
    """
    matches = False
    for cost in costs:
        is_own = stored is not None and _cost(stored) == cost
        compared = stored if stored is not None and is_own else b"$2b$%02d$" % cost + b"." * 53
        matches |= bcrypt.checkpw(password, compared) and is_own
    return matches


def _cost(stored: bytes) -> int:
    return int(stored[4:6])


async def _cancel_on_disconnect(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


def _nothing() -> None:
    pass


def _decode(authorization: str) -> tuple[str, bytes] | None:
    scheme, _, credentials = authorization.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        user, colon, password = base64.b64decode(credentials.strip(), validate=True).partition(b":")
        return (user.decode(), password) if colon else None
    except ValueError:  # neither base64 nor UTF-8
        return None
