"""What live pipelines wait for, read from the game's tables for the board. Reads only.

It needs three columns that no metric needs. If they are absent, or this role may not read them, the board does without.
"""

from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

from psycopg import DataError, ProgrammingError, sql

from mfg_notify.core.progress import FactoryNeeds, OpenTasks, Progress, missing_inputs
from mfg_notify.postgres.connection import Connection, fetch_without_locks, translated_errors
from mfg_notify.postgres.queries import QUERY
from mfg_notify.postgres.snapshot import game_tables, readable_columns

PIPELINES_MAXIMUM = 500
_COLUMNS = {"manufacturing_pipelines": {"created_at"}, "manufacturing_tasks": {"pipeline_id", "created_at"}}


class ProgressReading(NamedTuple):
    """The progress by pipeline id; None, and the name of the error if there was one, if it cannot be read."""

    progress: Mapping[str, Progress] | None
    error: str | None = None


async def read_progress(connection: Connection, schema: str) -> ProgressReading:
    """Read the progress of the oldest live pipelines."""
    with translated_errors():
        readable = await readable_columns(connection, schema, *_COLUMNS)
        if not all(columns <= readable.get(table, frozenset()) for table, columns in _COLUMNS.items()):
            return ProgressReading(None)
        names = {"maximum": sql.Literal(PIPELINES_MAXIMUM), **game_tables(schema)}
        queries = [sql.SQL(QUERY[name]).format(**names) for name in ("pipeline_progress", "factory_needs")]
        try:
            pipelines, factories = await fetch_without_locks(connection, *queries)
        except (DataError, ProgrammingError) as error:
            return ProgressReading(None, type(error).__name__)
    needs: defaultdict[str, list[FactoryNeeds]] = defaultdict(list)
    for key, symbol, good, supply, required, delivered in factories:
        needs[key].append(FactoryNeeds(symbol, good, supply or None, missing_inputs(required, delivered)))
    return ProgressReading(
        {
            key: Progress(
                created_at,
                pending=OpenTasks(*states[0:2]),
                ready=OpenTasks(*states[2:4]),
                executing=OpenTasks(*states[4:6]),
                factories=tuple(needs[key]),
            )
            for key, created_at, *states in pipelines
        }
    )
