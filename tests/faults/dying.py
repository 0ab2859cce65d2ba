"""An exporter that kills itself with SIGKILL at a named step of its fold, after N folds.

`python -m tests.faults.dying STEP N run …`. A step is the name of a statement of the fold (the exporter dies before it
sends that statement), COMMIT (it has sent everything else) or `committed` (the server has committed, but the exporter
has not recorded it).
"""

import os
import signal
import sys
from typing import Any

import psycopg

from mfg_notify.cli import main
from mfg_notify.postgres import journal
from mfg_notify.postgres.queries import QUERY

STEPS = (
    *("begin_fold", "take_events", "add_totals", "add_recent", "add_latest", "end_fold"),
    *("COMMIT", "committed"),
)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(step: str, folds: int) -> None:
    """Make this process die at a step of a fold with events, after `folds` such folds."""
    left = folds
    execute, fold, transaction_exit = (
        psycopg.AsyncConnection.execute,
        journal.fold,
        psycopg.AsyncTransaction.__aexit__,
    )

    async def dying_execute(self: Any, query: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        nonlocal left
        if step in QUERY and query == QUERY[step]:
            if left == 0:
                _die()
            left -= 1
        return await execute(self, query, *args, **kwargs)

    async def dying_exit(self: Any, *args: Any) -> Any:  # noqa: ANN401
        nonlocal left
        if step == "COMMIT":
            if left == 0:
                _die()
            left -= 1
        return await transaction_exit(self, *args)

    async def dying_fold(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        nonlocal left
        done = await fold(*args, **kwargs)
        if step == "committed" and done is not None and done.events:
            if left == 0:
                _die()
            left -= 1
        return done

    psycopg.AsyncConnection.execute = dying_execute  # type: ignore[method-assign]
    psycopg.AsyncTransaction.__aexit__ = dying_exit  # type: ignore[method-assign,assignment]
    journal.fold = dying_fold


if __name__ == "__main__":
    arm(sys.argv[1], int(sys.argv[2]))
    sys.argv[:3] = ["mfg-notify"]
    main()
