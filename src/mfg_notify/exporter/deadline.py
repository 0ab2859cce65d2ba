"""The deadline for every answer of the database."""

from collections.abc import Awaitable
from typing import TypeVar

import anyio

from mfg_notify.errors import NoAnswer

Result = TypeVar("Result")


async def in_time(seconds: float, answer: Awaitable[Result]) -> Result:
    """Wait for an answer of the database. Raise `NoAnswer` if it takes too long.

    The connection is lost then: psycopg closes it when a statement is cancelled.
    """
    try:
        with anyio.fail_after(seconds):
            return await answer
    except TimeoutError as error:
        raise NoAnswer(f"the database did not answer within {seconds:.0f} s") from error
