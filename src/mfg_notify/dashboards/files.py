"""Owns the files of the command `dashboards`: writes the dashboards into a folder, and merges into a user's file.

Writes are atomic: every file is written next to its destination and renamed over it.
"""

import json
import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mfg_notify.dashboards.merge import Outcome, merge
from mfg_notify.dashboards.shipped import MARK, NAMES, read_dashboard
from mfg_notify.errors import UsageError

FILE_MODE = 0o644
_TOO_DEEP = "this is no dashboard that Grafana has written: it is nested too deeply"


def write_dashboards(folder: Path, *, force: bool = False, own_uids: bool = False) -> list[Path]:
    """Write every dashboard into a folder, creating it if necessary; return the files that changed.

    Raises UsageError, and writes nothing, if a file there was not made by mfg-notify, unless `force` is given.
    """
    texts = {folder / name: read_dashboard(name, own_uids=own_uids) for name in NAMES}
    with _readable_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        new = {file: text for file, text in texts.items() if text != _read(file)}
    for file in new:
        if not force and file.exists() and not _is_ours(file):
            raise UsageError(
                f"{file} exists and was not made by mfg-notify. Name another folder, or replace the file with --force"
                + (f", or add our row to it: mfg-notify dashboards merge {file}" if "market" in file.name else "")
            )
    for file, text in new.items():
        _replace(file, text)
    return list(new)


def merge_file(file: Path, *, own_uids: bool = False) -> Outcome:
    """Append or refresh the Manufacturing Overview row in a user's market dashboard, in place.

    With `own_uids` the row links to the dashboard that `write_dashboards` writes with `own_uids`. If nothing changes,
    the file is not written. Everything outside the row keeps its meaning and its order; the file keeps its indentation,
    its line ends and its escapes.
    """
    with _readable_errors(file):
        text = file.read_bytes().decode("utf-8-sig")
    try:
        document = json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except ValueError as error:
        raise UsageError(f"{file} is not JSON: {error}") from error
    except RecursionError as error:
        raise UsageError(f"{file}: {_TOO_DEEP}") from error
    if not isinstance(document, dict):
        raise UsageError(f"{file} is no dashboard: it holds no JSON object")
    try:
        outcome = merge(document, json.loads(read_dashboard("market-dynamics.json", own_uids=own_uids)))
    except UsageError as error:
        raise UsageError(f"{file}: {error}") from error
    except (AttributeError, KeyError, TypeError) as error:
        # For example null in place of a panel or of its position, which Grafana never writes.
        raise UsageError(f"{file}: this is no dashboard that Grafana has written ({error})") from error
    except RecursionError as error:
        raise UsageError(f"{file}: {_TOO_DEEP}") from error
    if outcome is not Outcome.UNCHANGED:
        _replace(file, _write_like(text, document))
    return outcome


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number in JSON")


def _finite(text: str) -> float:
    # A larger number would be written as Infinity, which Grafana cannot read.
    if not math.isfinite(number := float(text)):
        raise ValueError(f"the number {text} is too large")
    return number


def _write_like(text: str, document: dict[str, Any]) -> str:
    """Return a document as JSON with the indentation, separators, escapes, line ends and trailing newline of a text."""
    first, *more = text.rstrip().splitlines()
    indent = more[0][: len(more[0]) - len(more[0].lstrip())] if more else None
    separators = None if indent is not None or ": " in first else (",", ":")
    written = json.dumps(document, indent=indent, separators=separators, ensure_ascii=text.isascii())
    if "\r\n" in text:
        written = written.replace("\n", "\r\n")
    return written + text[len(text.rstrip()) :]


def _is_ours(file: Path) -> bool:
    try:
        return str(json.loads(_read(file) or "").get("description", "")).endswith(MARK)
    except (ValueError, AttributeError):
        return False


def _read(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        return ""


def _replace(file: Path, text: str) -> None:
    """Replace a file atomically, keeping its mode and owner. Of a symbolic link, the target is replaced."""
    with _readable_errors(file):
        place = file.resolve()
        before = place.stat() if place.exists() else None
        descriptor, beside = tempfile.mkstemp(dir=place.parent, prefix=f".{place.name}.")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as written:
                written.write(text)
                written.flush()
                os.fsync(descriptor)
            Path(beside).chmod(FILE_MODE if before is None else before.st_mode & 0o7777)
            if before is not None and (before.st_uid, before.st_gid) != (os.geteuid(), os.getegid()):
                os.chown(beside, before.st_uid, before.st_gid)
            Path(beside).replace(place)
        except BaseException:
            Path(beside).unlink(missing_ok=True)
            raise


@contextmanager
def _readable_errors(place: Path) -> Iterator[None]:
    try:
        yield
    except UnicodeError as error:
        raise UsageError(f"{place} is not UTF-8 text") from error
    except OSError as error:
        raise UsageError(f"{place}: {(error.strerror or str(error)).lower()}") from error
