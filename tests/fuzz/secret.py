"""Secrets that no output may repeat, and the search for parts of them."""

from hypothesis import strategies as st

_LENGTH = 12
_PART = 4
"""Characters in a row that count as a leak."""

SECRETS = st.text(st.sampled_from("JQVXZ"), min_size=_LENGTH, max_size=_LENGTH)
"""Letters that no word of the program has in a row, so a part of it that appears somewhere was repeated."""


def leaks(secret: str, text: str) -> list[str]:
    """Return the parts of a secret that are in a text, in any case."""
    upper = text.upper()
    parts = {secret[n : n + _PART] for n in range(len(secret) - _PART + 1)}
    return sorted(part for part in parts if part in upper)
