"""Every statement that is sent to a game database, by name.

Each `.sql` file beside this one holds the statements of one module of `postgres`, and its first line names that module.
A statement begins with `-- name: …` and a comment that says what it is for. `{…}` stands for an identifier, `%(…)s` for
a value. The cost of a statement must not grow with the game's history, except in history.sql and of `factory_accounts`.
"""

import re
from importlib.resources import files
from types import MappingProxyType
from typing import LiteralString, cast


def _load() -> dict[str, LiteralString]:
    found: dict[str, LiteralString] = {}
    for file in files(__package__).iterdir():
        if not file.name.endswith(".sql"):
            continue
        _, *parts = re.split(r"^-- name: (\w+)\n", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
        for name, text in zip(parts[::2], parts[1::2], strict=True):
            if name in found:
                raise ValueError(f"two queries are named {name}")
            # The files are part of this package, so their text is as safe as a literal.
            found[name] = cast(LiteralString, text.strip())
    return found


QUERY = MappingProxyType(_load())
"""Statement by name. An unknown name raises KeyError."""
