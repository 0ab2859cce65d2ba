"""Valid input with a few errors in it: cut off, repeated, exchanged, interspersed."""

from dataclasses import dataclass
from typing import Literal, get_args

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

Kind = Literal["cut", "insert", "replace", "repeat", "truncate", "drop line"]


@dataclass(frozen=True)
class _Edit:
    """One error, at a fraction of the length of the text, so that it has a place in every text."""

    kind: Kind
    place: float
    length: int
    piece: str

    def apply(self, text: str) -> str:
        at = round(self.place * len(text))
        to = at + self.length
        match self.kind:
            case "cut":
                return text[:at] + text[to:]
            case "insert":
                return text[:at] + self.piece + text[at:]
            case "replace":
                return text[:at] + self.piece + text[to:]
            case "repeat":
                return text[:to] + text[at:]
            case "truncate":
                return text[:at]
            case "drop line":
                lines = text.splitlines(keepends=True)
                number = text.count("\n", 0, at)
                return "".join(lines[:number] + lines[number + 1 :])


def mutated(originals: SearchStrategy[str], pieces: SearchStrategy[str]) -> SearchStrategy[str]:
    """Return texts like the originals with up to four errors; `pieces` are what is inserted."""
    edits = st.lists(
        st.builds(
            _Edit,
            st.sampled_from(get_args(Kind)),
            st.floats(0, 1),
            st.integers(1, 12),
            pieces,
        ),
        max_size=4,
    )
    return st.tuples(originals, edits).map(_apply)


def _apply(drawn: tuple[str, list[_Edit]]) -> str:
    text, edits = drawn
    for edit in edits:
        text = edit.apply(text)
    return text
