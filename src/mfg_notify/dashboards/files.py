"""Owns the files of the command `dashboards`: writes the dashboards into a folder, and merges into a user's file."""

import json
import math
from pathlib import Path
from typing import Any

from mfg_notify.dashboards.merge import Outcome, merge
from mfg_notify.dashboards.shipped import AS_SHIPPED, MARK, NAMES, Form, read_dashboard
from mfg_notify.errors import UsageError
from mfg_notify.files import readable_errors, replace_file

_TOO_DEEP = "this is no dashboard that Grafana has written: it is nested too deeply"


def write_dashboards(folder: Path, form: Form = AS_SHIPPED, *, force: bool = False) -> list[Path]:
    """Write every dashboard into a folder, creating it if necessary; return the files that changed.

    Raises UsageError, and writes nothing, if a file there was not made by mfg-notify, unless `force` is given.
    """
    texts = {folder / name: read_dashboard(name, form) for name in NAMES}
    with readable_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        new = {file: text for file, text in texts.items() if text != _read(file)}
    for file in new:
        if not force and file.exists() and not _is_ours(file):
            raise UsageError(
                f"{file} exists and was not made by mfg-notify. Name another folder, or replace the file with --force"
                + (f", or add our row to it: mfg-notify dashboards merge {file}" if "market" in file.name else "")
            )
    for file, text in new.items():
        replace_file(file, text)
    return list(new)


def merge_file(file: Path, form: Form = AS_SHIPPED) -> Outcome:
    """Append or refresh the Manufacturing Overview row in a user's market dashboard, in place.

    The row queries the data source of the form, else the one that most of the user's panels query. If nothing changes,
    the file is not written. Everything outside the row keeps its meaning and its order; the file keeps its indentation,
    its line ends and its escapes.
    """
    with readable_errors(file):
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
        outcome = merge(document, json.loads(read_dashboard("market-dynamics.json", form)), form.datasource_uid)
    except UsageError as error:
        raise UsageError(f"{file}: {error}") from error
    except (AttributeError, KeyError, TypeError) as error:
        # For example null in place of a panel or of its position, which Grafana never writes.
        raise UsageError(f"{file}: this is no dashboard that Grafana has written ({error})") from error
    except RecursionError as error:
        raise UsageError(f"{file}: {_TOO_DEEP}") from error
    if outcome is not Outcome.UNCHANGED:
        replace_file(file, _write_like(text, document))
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
