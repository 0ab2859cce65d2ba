"""Owns how files of users are written: atomically, next to the destination and renamed over it."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mfg_notify.errors import UsageError

FILE_MODE = 0o644


def replace_file(file: Path, text: str) -> None:
    """Replace a file atomically, keeping its mode and owner. Of a symbolic link, the target is replaced."""
    with readable_errors(file):
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
def readable_errors(place: Path) -> Iterator[None]:
    """Raise UsageError with the name of the file if it cannot be read or written."""
    try:
        yield
    except UnicodeError as error:
        raise UsageError(f"{place} is not UTF-8 text") from error
    except OSError as error:
        raise UsageError(f"{place}: {(error.strerror or str(error)).lower()}") from error
