"""A writer: plays the simulated game until SIGTERM, and reports in one line of JSON.

It reconnects if it loses its connection. With `once` it ends without an error instead, because a game cannot continue
after a crash that lost commits it relies on. Any other error ends it with exit code 1, because the game must see none.
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
            print("receiving", flush=True)  # noqa: T201 - from here on SIGTERM leads to a report
            async for _ in signals:
                scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(end, tasks.cancel_scope)
        try:
            progress = await play(dsn, options, on_progress=remember, reconnect=not once)
        except psycopg.Error as raised:
            if not (once and is_lost(raised)):
                error = f"{type(raised).__name__}: {raised}"
        tasks.cancel_scope.cancel()
    return progress, error


def main(dsn: str, seed: str, players: str, rate: str, connections: str) -> int:
    """Play; return exit code 1 if the database raised an error."""
    # Short eras: a soak at thousands of changes a second should see many of them end.
    options = GameOptions(seed=int(seed), players=int(players), rate=float(rate), era_hours=30)
    progress, error = anyio.run(partial(_play, dsn, options, once=connections == "once"))
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
