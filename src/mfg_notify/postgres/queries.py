"""The named statements of queries.sql, loaded once."""

import re
from importlib.resources import files
from types import MappingProxyType
from typing import LiteralString, cast


def _load() -> dict[str, LiteralString]:
    text = files(__package__).joinpath("queries.sql").read_text(encoding="utf-8")
    _, *parts = re.split(r"^-- name: (\w+)\n", text, flags=re.MULTILINE)
    names, bodies = parts[::2], parts[1::2]
    # They come from our own file, which is as good as a literal.
    return {name: cast(LiteralString, body.strip()) for name, body in zip(names, bodies, strict=True)}


QUERY = MappingProxyType(_load())
"""Statement by name. An unknown name is a KeyError."""
