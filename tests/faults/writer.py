"""A writer: plays the simulated game until SIGTERM, and says in one line of JSON how it went.

When the connection is lost it connects again, or ends in peace where it is told `once`: a game that believes what a
crash has lost cannot go on. Any other error ends it with exit code 1: the game must see none.
"""

import json
import signal
import sys
from functools import partial

import anyio
import psycopg

from mfg_notify.demo.game import GameProgress, is_lost, play
from mfg_notify.demo.world import GameOptions


async def _play(dsn: str, options: GameOptions, *, once: bool) -> tuple[GameProgress, str | None]:
    progress = GameProgress()
    error: str | None = None

    def remember(now: GameProgress) -> None:
        nonlocal progress
        progress = now

    async def end(scope: anyio.CancelScope) -> None:
        with anyio.open_signal_receiver(signal.SIGTERM) as signals:
            print("receiving", flush=True)  # noqa: T201 - from here on SIGTERM ends in a report
            async for _ in signals:
                scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(end, tasks.cancel_scope)
        try:
            progress = await play(dsn, options, on_progress=remember, reconnect=not once)
        except psycopg.Error as refused:
            if not (once and is_lost(refused)):
                error = f"{type(refused).__name__}: {refused}"
        tasks.cancel_scope.cancel()
    return progress, error


def main(dsn: str, seed: str, players: str, rate: str, patience: str) -> int:
    """Play; exit code 1 if the database refused anything."""
    options = GameOptions(seed=int(seed), players=int(players), rate=float(rate))
    progress, error = anyio.run(partial(_play, dsn, options, once=patience == "once"))
    print(  # noqa: T201 - its only output
        json.dumps(
            {
                "statements": progress.statements,
                "transactions": progress.transactions,
                "reconnects": progress.reconnects,
                "slowest_seconds": progress.slowest_seconds,
                "error": error,
            }
        )
    )
    return error is not None


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
