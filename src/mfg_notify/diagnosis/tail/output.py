"""What tail prints: an event or a gap as a line for people or as a JSON object, written without blocking.

It never interprets an event; the words for a change come from `core.board`.
"""

import json
import os
import select
import stat
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

import anyio
import msgspec
from rich.text import Text

from mfg_notify.core.board import describe_change
from mfg_notify.core.events import FactoryImage, PipelineImage, TaskImage
from mfg_notify.diagnosis.tail.gaps import Gap, Item

Image: TypeAlias = PipelineImage | TaskImage | FactoryImage

_OPERATIONS = {"I": "insert", "U": "update", "D": "delete", "T": "truncate"}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LAST = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1)
"""The last time of Python's calendar. A payload may come from a zone in which that day is not over yet."""
_STYLES = {"COMPLETED": "green", "FAILED": "red", "CANCELLED": "red"}


def printable(text: str) -> str:
    """Return the text with U+FFFD for control characters: the game writes it, and a terminal would obey them."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def format_json(item: Item) -> str:
    """Return the item as a JSON object in one line: an event with the names of its columns, or a gap."""
    if isinstance(item, Gap):
        gap = {"events": item.events, "first_id": item.first, "last_id": item.last, "reason": item.reason}
        return json.dumps({"not_shown": gap}, ensure_ascii=False)
    change = item.change
    image = change.new or change.old
    fields = {
        "id": item.id,
        "xid": item.xid,
        "at": _time(item.at).isoformat(timespec="microseconds"),
        "table": item.table,
        "operation": _OPERATIONS[change.operation],
        "key": change.key,
        "player_id": image.player_id if image is not None else None,
        "old": None if change.old is None else _columns(change.old, times=False),
        "new": None if change.new is None else _columns(change.new, times=True),
    }
    return json.dumps(fields, ensure_ascii=False)


def _columns(image: Image, *, times: bool) -> dict[str, object]:
    columns: dict[str, object] = {}
    for name, value in msgspec.structs.asdict(image).items():
        if not name.endswith("_at"):
            columns[name] = value
        elif times:
            columns[name] = None if value is None else _time(value).isoformat(timespec="microseconds")
    return columns


def format_line(item: Item) -> Text:
    """Return the item as a line for people."""
    if isinstance(item, Gap):
        one = item.events == 1
        ids = f"number {item.first}" if one else f"within numbers {item.first} to {item.last}"
        return Text(f"… {item.events} {'event is' if one else 'events are'} not shown ({ids}): {item.reason}", "dim")
    change = describe_change(item)
    operation = item.change.operation
    line = Text()
    line.append(f"{_local_time(item.at):%H:%M:%S.%f}"[:-3], "dim")
    if operation == "T":
        return line.append(f"  {change.kind}  {change.remark}")
    line.append(f"  player {change.player}  {change.kind:<8}  {printable(change.key)}  {printable(change.subject)}")
    before = "new" if operation == "I" else change.before or "unknown"
    after = "deleted" if operation == "D" else change.after or "unknown"
    status = after if before == after else f"{before} → {after}"
    # A factory's state is its supply, which has no name of its own; every other state is a status.
    state = f"supply {status}" if change.kind == "factory" else status
    line.append("  ").append(printable(state), "dim" if before == after else _STYLES.get(after, "yellow"))
    if change.ship:
        line.append(f"  ship {printable(change.ship)}")
    if operation == "U" and change.remark:
        line.append(f"  {printable(change.remark)}", "bold")
    return line


def _time(microseconds: int) -> datetime:
    return _EPOCH + timedelta(microseconds=min(microseconds, _LAST))


def _local_time(microseconds: int) -> datetime:
    time = _time(microseconds)
    try:
        return time.astimezone()
    except (OverflowError, ValueError):  # the first or last day of the calendar, which has no neighbour
        return time


class Output:
    """Writes lines to a file descriptor. However slow the reader is, a write never blocks the event loop."""

    def __init__(self, descriptor: int, format_item: Callable[[Item], str]) -> None:
        self._descriptor = descriptor
        self._format = format_item
        self._poll = select.poll()
        self._poll.register(descriptor, 0)
        # A regular file accepts everything at once, and an event loop cannot wait for it.
        self._waits = not stat.S_ISREG(os.fstat(descriptor).st_mode)

    async def show(self, items: Sequence[Item]) -> None:
        """Write the items. Raise `BrokenPipeError` if the reader is gone, even if there are no items."""
        if any(event & (select.POLLERR | select.POLLHUP) for _, event in self._poll.poll(0)):
            raise BrokenPipeError
        text = "".join(f"{self._format(item)}\n" for item in items).encode()
        while text:
            if self._waits:
                await anyio.wait_writable(self._descriptor)
            # A writable pipe accepts at least this much without blocking.
            text = text[os.write(self._descriptor, text[: select.PIPE_BUF]) :]
