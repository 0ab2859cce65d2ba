"""The cap on series: the same series have places after a restart, and what has none costs nothing."""

import anyio
import pytest
from tests.conftest import Database
from tests.game_rows import add_pipeline, add_player
from tests.samples import PREFIX, Series, applied, samples
from tests.support import PATIENCE, exporting, page_of

from mfg_notify.core.tuning import Tuning
from mfg_notify.postgres import journal
from mfg_notify.postgres.connection import connect

pytestmark = pytest.mark.anyio
MAXIMUM = 36
"""Room for three products: a completion is 2 counters and a histogram of 9 series."""
NEVER = 3600.0
COUNTED = ("_total", "_sum", "_count", "_bucket")


def counters(page: str) -> dict[Series, float]:
    """Return the samples of the game that must not fall."""
    return {
        (name, labels): n
        for (name, labels), n in samples(page).items()
        if name.startswith(PREFIX) and name.endswith(COUNTED) and n
    }


async def test_the_same_series_have_places_after_a_restart(installed: Database) -> None:
    """Payloads come in the order of commits, and a fold finds events in the order of ids."""
    finish = "UPDATE manufacturing_pipelines SET status = 'COMPLETED', completed_at = now() WHERE id = %s"
    # Nothing but a payload that could not be counted asks for a fold.
    tuning = Tuning(confirming_fold_delay=NEVER)
    with installed.connect() as game, installed.connect() as slow:
        add_player(game)
        for key in "abcd":
            add_pipeline(game, key, product_good=key.upper(), status="EXECUTING", total_revenue=7)
        async with exporting(installed.dsn, NEVER, tuning=tuning, series_maximum=MAXIMUM) as exporter:

            async def wait_for(events: float) -> None:
                with anyio.fail_after(PATIENCE):
                    while applied(page_of(exporter)) < events:
                        await anyio.lowlevel.checkpoint()

            counted = applied(page_of(exporter))
            for lower_id, lower_commit in ("ab", "cd"):
                with slow.transaction():
                    slow.execute(finish, (lower_id,))
                    game.execute(finish, (lower_commit,))
                    await wait_for(counted + 1)
                counted += 2
                await wait_for(counted)
            shown = counters(page_of(exporter))
        products = {dict(labels).get("product_good") for _, labels in shown}
        assert "other" in products
        async with exporting(installed.dsn, tuning=tuning, series_maximum=MAXIMUM) as exporter:
            assert counters(page_of(exporter)) == shown


async def test_totals_past_the_cap_are_not_held_in_memory(installed: Database) -> None:
    with installed.connect() as game:
        game.execute(
            """INSERT INTO mfg_notify.total (metric, labels, n)
               SELECT 'manufacturing_task_retry_total', jsonb_build_object('player_id', '1', 'task_type', 'T' || n), 3
               FROM generate_series(1, 20000) AS n"""
        )
    async with await connect(installed.dsn) as connection:
        held = (await journal.read_totals(connection, MAXIMUM)).counters.copy()
    assert len(held) == MAXIMUM + 1
    assert held["manufacturing_task_retry_total", ("1", "T1")] == 3
    assert held["manufacturing_task_retry_total", ("1", "other")] == 3 * (20_000 - MAXIMUM)
