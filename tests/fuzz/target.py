"""A target of the fuzzer: what its input looks like, and what has to hold for every input."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import SearchStrategy

Check = Callable[[Any], None]
"""Raises if something does not hold for an input."""


@dataclass(frozen=True)
class Target:
    """One target. `open` makes what it needs, such as a server or a folder, for all inputs of a run."""

    name: str
    inputs: SearchStrategy[Any]
    open: Callable[[], AbstractContextManager[Check]]
    short: int
    """Inputs of the short form, which take a few seconds."""
    slice: int
    """Inputs of one turn of the long form. A seed repeats a turn only with the same number."""

    def run(self, examples: int, seed: int | None = None) -> int:
        """Check this many inputs, and return how many were checked. Without a seed they are always the same ones.

        Raise what the check has raised; hypothesis adds the smallest input that it has found for it.
        """
        checked = 0
        with self.open() as check:

            @given(self.inputs)
            @settings(
                max_examples=examples,
                derandomize=seed is None,
                # A seed alone has to repeat a turn, so nothing is taken from earlier runs.
                database=None,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                # Explaining a failure takes as long as finding it.
                phases=[Phase.generate, Phase.shrink],
            )
            def fuzz(given_input: Any) -> None:  # noqa: ANN401
                nonlocal checked
                checked += 1
                check(given_input)

            if seed is not None:
                fuzz = hypothesis.seed(seed)(fuzz)
            fuzz()
        return checked
