"""The game: writers that change rows in transactions, and hold the locks that PostgreSQL would give them."""

from random import Random
from typing import Any

from tests.simulation.agenda import Agenda
from tests.simulation.database import EPOCH, Database, Transaction
from tests.simulation.weather import Weather

from mfg_notify.core.events import (
    Change,
    FactoryChange,
    FactoryImage,
    Operation,
    PipelineChange,
    PipelineImage,
    TaskChange,
    TaskImage,
)

Place = tuple[str, str]
"""A table and the key of a row; key '' is the whole table."""

WRITERS = 4
_TASK_STATUSES = ("PENDING", "READY", "ASSIGNED", "EXECUTING", "COMPLETED", "FAILED")
_LEVELS = ("SCARCE", "MODERATE", "ABUNDANT", None)


class Writer:
    """One session of the game."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.transaction: Transaction | None = None
        self.left = 0
        """Statements that are still to come in this transaction."""
        self.rolls_back = False
        self.locked: list[Place] = []
        self.images: dict[Place, Any] = {}
        """The rows that this transaction has changed, as it sees them."""
        self.generation = 0
        """Rises when the server ends the session, so that what was planned does not happen."""

    def __str__(self) -> str:
        return f"writer {self.number}"


class Game:
    """All writers."""

    def __init__(self, agenda: Agenda, database: Database, chance: Random) -> None:
        self._agenda = agenda
        self._database = database
        self._chance = chance
        self._locks: dict[Place, Writer] = {}
        self.weather = Weather()
        self.think = 1.0
        """Seconds between two transactions of a writer, on average."""
        self._paused = True
        self._parked: list[Writer] = []
        """Writers that would begin if the game were not paused."""
        self.writers = [Writer(number) for number in range(WRITERS)]
        for writer in self.writers:
            agenda.after(0.01 * writer.number, self._begin, writer, 0)

    def resume(self) -> None:
        """Let the writers begin transactions."""
        self._paused = False
        parked, self._parked = self._parked, []
        for writer in parked:
            self._begin(writer, writer.generation)

    def pause(self) -> None:
        """End every transaction now, most of them by a commit, and begin no other."""
        self._paused = True
        for writer in self.writers:
            if writer.transaction is not None:
                self._flush(writer, writer.generation)
                self._end(writer, writer.generation)

    def touch(self) -> None:
        """Commit one change and announce it."""
        transaction = Transaction(self._database.assign_xid(self))
        old = self._database.state.rows.tasks.get("touched")
        new = TaskImage(1, "SELL", "READY", None, 0, 0, (old.total_revenue if old else 0) + 1, EPOCH, None, None)
        self._database.change(transaction, TaskChange(_operation(old, new), "touched", old, new), announced=True)
        self._database.commit(transaction)
        self.committed(transaction)

    def abort(self) -> None:
        """Lose every transaction: the server ends all sessions."""
        for writer in self.writers:
            if writer.transaction is not None:
                self._database.roll_back(writer.transaction)
                self._clear(writer)

    # ------------------------------------------------------------------------------------------ transactions --

    def _begin(self, writer: Writer, generation: int) -> None:
        if generation != writer.generation:
            return
        if self._paused:
            self._parked.append(writer)
            return
        if not self._database.up:
            self._agenda.after(0.2, self._begin, writer, generation)
            return
        writer.left = self._chance.randint(1, self.weather.statements)
        self._write(writer, generation)

    def _write(self, writer: Writer, generation: int) -> None:
        """Change a row, then come back for the next statement or the end."""
        if generation != writer.generation:
            return
        chance, weather = self._chance, self.weather
        for change in self._choose(writer):
            if writer.transaction is None:
                writer.transaction = Transaction(self._database.assign_xid(writer))
            self._database.change(writer.transaction, change, chance.random() >= weather.unannounced)
        writer.left -= 1
        if writer.transaction is None:
            self._clear(writer)
            return
        delay = chance.random() * 2 * weather.statement
        if chance.random() < weather.long_transaction:
            delay = chance.random() * 2 * weather.long
        self._agenda.after(delay, self._write if writer.left > 0 else self._flush, writer, generation)

    def _flush(self, writer: Writer, generation: int) -> None:
        """Write what was buffered. The commit follows at once, as the server sees it, but not at the same moment."""
        if generation != writer.generation or writer.transaction is None:
            return
        writer.rolls_back = self._chance.random() < self.weather.roll_back
        if not writer.rolls_back or self._chance.random() < 0.5:
            self._database.flush(writer.transaction, self._chance.random() >= self.weather.unannounced)
        self._agenda.after(self._chance.random() * 2 * self.weather.commit, self._end, writer, generation)

    def _end(self, writer: Writer, generation: int) -> None:
        transaction = writer.transaction
        if generation != writer.generation or transaction is None:
            return
        if writer.rolls_back:
            self._database.roll_back(transaction)
        else:
            self._database.commit(transaction)
            self.committed(transaction)
        self._clear(writer)

    def committed(self, transaction: Transaction) -> None:
        """Do what the owner of the game wants to do after each commit."""

    def _clear(self, writer: Writer) -> None:
        writer.transaction = None
        writer.generation += 1
        for place in writer.locked:
            del self._locks[place]
        writer.locked, writer.images = [], {}
        self._agenda.after(self._chance.random() * 2 * self.think, self._begin, writer, writer.generation)

    # ---------------------------------------------------------------------------------------------- statements --

    def _image(self, writer: Writer, table: dict[Any, Any], place: Place, key: str | int) -> Any:  # noqa: ANN401 - an image of any table
        """Return a row as the writer sees it, None if there is none."""
        if place in writer.images:
            return writer.images[place]
        return None if (place[0], "") in writer.images else table.get(key)

    def _lock(self, writer: Writer, place: Place) -> bool:
        """Lock a row; return False if another has it or the whole table."""
        holder = self._locks.get(place) or self._locks.get((place[0], ""))
        if holder is not None and holder is not writer:
            return False
        if place not in self._locks:
            self._locks[place] = writer
            writer.locked.append(place)
        return True

    def _alone(self, writer: Writer) -> bool:
        return all(holder is writer for holder in self._locks.values())

    def _choose(self, writer: Writer) -> list[Change]:
        """Choose what a statement does; nothing if the row is locked."""
        draw = self._chance.random()
        if draw < 0.6:
            return self._change_task(writer, f"t{int(draw * 1000) % 8}")
        if draw < 0.8:
            return self._change_pipeline(writer, f"p{int(draw * 1000) % 5}")
        if draw < 1 - self.weather.truncate:
            return self._change_factory(writer, int(draw * 1000) % 4)
        return self._truncate(writer) if self._alone(writer) else []

    def _change_task(self, writer: Writer, key: str) -> list[Change]:
        place = ("task", key)
        if not self._lock(writer, place):
            return []
        chance = self._chance
        old: TaskImage | None = self._image(writer, self._database.state.rows.tasks, place, key)
        if old is not None and chance.random() < 0.1:
            new = None
        else:
            draw = chance.random()
            new = TaskImage(
                1 + int(key[1]) % 2,
                "SELL",
                _TASK_STATUSES[int(draw * len(_TASK_STATUSES))],
                "S" if draw < 0.5 else None,
                0,
                old.total_cost if old else 0,
                (old.total_revenue if old else 0) + 1 + int(draw * 9),
                EPOCH,
                None,
                None,
            )
        writer.images[place] = new
        return [TaskChange(_operation(old, new), key, old, new)]

    def _change_pipeline(self, writer: Writer, key: str) -> list[Change]:
        place = ("pipeline", key)
        if not self._lock(writer, place):
            return []
        rows, draw = self._database.state.rows, self._chance.random()
        old: PipelineImage | None = self._image(writer, rows.pipelines, place, key)
        if old is None:
            status = "PLANNING" if draw < 0.5 else "EXECUTING"
        elif old.status == "PLANNING":
            status = "EXECUTING"
        elif old.status == "EXECUTING":
            status = "COMPLETED" if draw < 0.6 else "PLANNING"
        elif draw < 0.1:
            status = "EXECUTING"
        elif draw < 0.3:
            status = "COMPLETED"
        elif self._alone(writer):
            return self._delete_pipeline(writer, key, old)
        else:
            return []
        revenue = (old.total_revenue if old else 0) + int(draw * 10)
        new = PipelineImage(1, "IRON", status, 0, revenue, int(draw * 900) - 300, EPOCH, self._database.clock())
        writer.images[place] = new
        return [PipelineChange(_operation(old, new), key, old, new)]

    def _delete_pipeline(self, writer: Writer, key: str, old: PipelineImage) -> list[Change]:
        """Delete a pipeline and, as its foreign key says, its factories."""
        writer.images["pipeline", key] = None
        changes: list[Change] = [PipelineChange("D", key, old, None)]
        for number in range(4):
            place = ("factory", str(number))
            row = self._image(writer, self._database.state.rows.factories, place, number)
            if row is not None and row.pipeline_id == key:
                self._lock(writer, place)
                writer.images[place] = None
                changes.append(FactoryChange("D", str(number), row, None))
        return changes

    def _change_factory(self, writer: Writer, number: int) -> list[Change]:
        place = ("factory", str(number))
        draw = self._chance.random()
        rows = self._database.state.rows
        owner = f"p{int(draw * 100) % 5}"
        if not self._lock(writer, place):
            return []
        old: FactoryImage | None = self._image(writer, rows.factories, place, number)
        new: FactoryImage | None = None
        if old is None:
            # The foreign key locks the pipeline against its deletion.
            if not self._lock(writer, ("pipeline", owner)):
                return []
            if self._image(writer, rows.pipelines, ("pipeline", owner), owner) is None:
                return []
            new = FactoryImage(1, f"F{number}", "IRON", owner, 0, 5, None, False, True)
        elif draw > 0.1:
            level = _LEVELS[int(draw * 1000) % 4]
            new = FactoryImage(1, f"F{number}", "IRON", old.pipeline_id, 0, 5, level, draw < 0.5, True)
        writer.images[place] = new
        return [FactoryChange(_operation(old, new), str(number), old, new)]

    def _truncate(self, writer: Writer) -> list[Change]:
        tables = ("task",) if self._chance.random() < 0.5 else ("pipeline", "factory")
        for table in tables:
            writer.images = {place: image for place, image in writer.images.items() if place[0] != table}
            writer.images[table, ""] = None
            self._lock(writer, (table, ""))
        kinds = {"task": TaskChange, "pipeline": PipelineChange, "factory": FactoryChange}
        return [kinds[table]("T", "", None, None) for table in tables]


def _operation(old: object, new: object) -> Operation:
    return "I" if old is None else "D" if new is None else "U"
