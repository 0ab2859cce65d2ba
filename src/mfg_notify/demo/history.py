"""Gives the demo a past: a day of the same players' game, of which only the finished rows are there.

It plays their worlds in memory, so it takes seconds. It never touches a game that has begun.
"""

from dataclasses import replace
from datetime import UTC, datetime
from itertools import takewhile

import psycopg

from mfg_notify.demo.commands import CommandRenderer
from mfg_notify.demo.game import WORLDS
from mfg_notify.demo.rows import LIVE_PIPELINE_STATUSES, LIVE_TASK_STATUSES, PipelineRow, TaskRow
from mfg_notify.demo.statements import Assign, DeletePipeline, DeleteTask, Enter, Insert, Save, Transaction
from mfg_notify.demo.world import GameOptions, World

DAY = 24 * 3600.0
"""Seconds, of the game and of the wall: the past runs at the speed at which its durations read."""
PLAYERS = 3
"""Players with a past at most: a day of one takes about two seconds."""


async def insert(conninfo: str, options: GameOptions) -> int:
    """Insert the finished pipelines and tasks of the last day into an empty game, and return how many rows these are.

    The players are those who enter when the game is played with these options. Raises psycopg's own errors.
    """
    inserted = 0
    now = datetime.now(UTC)
    async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as connection:
        for index in range(min(options.players, PLAYERS)):

            async def player(_: str, number: int = index + 1) -> int:
                # The sequence stays where it is: the player who enters first finds this row.
                return number

            world = WORLDS[options.daemon](replace(options, era_hours=1e6), index)
            entry, rows = _finished(world)
            # Ids are made of the seed; the game itself uses the other one.
            renderer = CommandRenderer(~options.seed)
            past = Transaction(DAY, (*entry, *(Insert(row) for row in rows)))
            async with connection.transaction(), connection.pipeline():
                for command in await renderer.render(past, now, player):
                    await connection.execute(command.query, command.values)
            inserted += len(rows)
    return inserted


def _finished(world: World) -> tuple[list[Enter], list[PipelineRow | TaskRow]]:
    """Play a day; return the player's entry, and the pipelines and tasks that are finished at its end."""
    entries: list[Enter] = []
    pipelines: dict[int, PipelineRow] = {}
    tasks: dict[int, TaskRow] = {}
    for transaction in takewhile(lambda each: each.at < DAY, world.transactions()):
        for statement in () if transaction.rolled_back else transaction.statements:
            match statement:
                case Enter():
                    entries.append(statement)
                case Insert(PipelineRow() as row) | Save(PipelineRow() as row):
                    pipelines[row.id] = row
                case Insert(TaskRow() as task) | Save(TaskRow() as task) | Assign(task):
                    tasks[task.id] = task
                case DeletePipeline(number):
                    pipelines.pop(number, None)
                case DeleteTask(number):
                    tasks.pop(number, None)
                case _:
                    pass
    done = {row.id: row for row in pipelines.values() if row.status not in LIVE_PIPELINE_STATUSES}
    of_them = (
        task
        for task in tasks.values()
        if task.status not in LIVE_TASK_STATUSES and (task.pipeline_id is None or task.pipeline_id in done)
    )
    return entries, [*done.values(), *of_them]
