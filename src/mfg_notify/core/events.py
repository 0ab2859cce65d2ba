"""Change events: what the triggers write, as frozen values.

Owns the shape of a journal row's body and of a payload, and their validation. It never interprets a change: that is
`rules`. The other half of this contract is `db/triggers/`: `mfg_notify.watched_columns()` lists the columns in the
order in which they come here. The triggers write bare columns; what is conversion is done here.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Decimal
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

import msgspec
from msgspec import Meta, Struct

from mfg_notify.errors import MalformedEvent

VERSION = 1
"""Version of the event's shape; the journal has it in a column of its own."""

Text = Annotated[str, Meta(max_length=128)]
Whole = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Microseconds = Annotated[int, Meta(ge=0, le=2**63 - 1)]
"""Since the epoch, by the clock of the writer. An old image has no times: they are None."""


Material = tuple[Text, Whole, Whole]
"""A good that a construction site needs: its symbol, the units delivered and the units needed."""


class PipelineImage(Struct, frozen=True, gc=False, array_like=True, forbid_unknown_fields=True):
    """The watched columns of a row of manufacturing_pipelines."""

    player_id: Whole
    product_good: Text
    status: Text
    total_cost: Whole
    total_revenue: Whole
    net_profit: Whole
    started_at: Microseconds | None
    completed_at: Microseconds | None
    construction_site: Text | None = None
    """None if this is no construction pipeline, or the game has no column of materials; '' if the site has no name."""
    materials: tuple[Material, ...] = ()
    """What the site needs; each good once."""


class TaskImage(Struct, frozen=True, gc=False, array_like=True, forbid_unknown_fields=True):
    """The watched columns of a row of manufacturing_tasks; assigned_ship '' is None.

    `actual_quantity` is optional: None if it is absent.
    """

    player_id: Whole
    task_type: Text
    status: Text
    assigned_ship: Text | None
    retry_count: Whole
    total_cost: Whole
    total_revenue: Whole
    ready_at: Microseconds | None
    started_at: Microseconds | None
    completed_at: Microseconds | None
    actual_quantity: Whole | None = None


class FactoryImage(Struct, frozen=True, gc=False, array_like=True, forbid_unknown_fields=True):
    """The watched columns of a row of manufacturing_factory_states; current_supply '' is None.

    `is_current`: was this the newest live row of its factory when it changed (asked only where supply or readiness
    changed, else None)?
    """

    player_id: Whole
    factory_symbol: Text
    output_good: Text
    pipeline_id: Text | None
    inputs_delivered: Count
    inputs_required: Count
    current_supply: Text | None
    ready_for_collection: bool
    is_current: bool | None


Operation = Literal["I", "U", "D", "T"]
"""INSERT, UPDATE, DELETE of a row; TRUNCATE of the table (no key, no images)."""
Booked = tuple[bool, bool]
"""Whether the old and the new image of a change move the balance of live rows; if not, another event moves it."""
BOTH: Booked = (True, True)
ONLY_NEW: Booked = (False, True)
NEITHER: Booked = (False, False)


class PipelineChange(Struct, frozen=True, gc=False, array_like=True, tag="pipeline", forbid_unknown_fields=True):
    """One change of one pipeline."""

    operation: Operation
    key: Text
    old: PipelineImage | None
    new: PipelineImage | None
    booked: Booked = BOTH


class TaskChange(Struct, frozen=True, gc=False, array_like=True, tag="task", forbid_unknown_fields=True):
    """One change of one task."""

    operation: Operation
    key: Text
    old: TaskImage | None
    new: TaskImage | None
    booked: Booked = BOTH


class FactoryChange(Struct, frozen=True, gc=False, array_like=True, tag="factory", forbid_unknown_fields=True):
    """One change of one factory row; the key is the row's number as text."""

    operation: Operation
    key: Text
    old: FactoryImage | None
    new: FactoryImage | None
    booked: Booked = BOTH


Change = PipelineChange | TaskChange | FactoryChange


class Event(Struct, frozen=True, gc=False):
    """A change as the journal keeps it: its number, its transaction, and when it was written (database clock)."""

    id: int
    xid: int
    at: int
    change: Change

    @property
    def table(self) -> str:
        """`pipeline`, `task` or `factory`."""
        return table_of(self.change)


def table_of(change: Change) -> str:
    """Return `pipeline`, `task` or `factory`."""
    return _TABLES[type(change)]


_TABLES = {kind: str(kind.__struct_config__.tag) for kind in (PipelineChange, TaskChange, FactoryChange)}


_Time: TypeAlias = Annotated[datetime, Meta(tz=True)]
_Number: TypeAlias = Whole | None
_Inputs: TypeAlias = tuple[Count, Count] | None
_Construction: TypeAlias = tuple[Text, tuple[Material, ...]] | None
_Operation: TypeAlias = Literal["I", "U", "D", "M", "R", "X"]
"""M is an update that changes the key or the player; a D of the old row comes before it. R repeats a row as it is, X
that it is gone, because the events of its changes came out of order: they count nothing."""
_Pipeline: TypeAlias = tuple[
    Literal["pipeline"],
    _Operation,
    tuple[Text | None, Text, Text, Text],
    tuple[_Number, _Number, _Number, Whole, _Number, _Number, _Number],
    tuple[_Time | None, _Time | None],
    _Construction,
    _Construction,
]
_Task: TypeAlias = tuple[
    Literal["task"],
    _Operation,
    tuple[Text | None, Text | None, Text, Text, Text, Text | None],
    tuple[_Number, _Number, _Number, _Number, Whole, _Number, _Number, _Number, _Number],
    tuple[_Time | None, _Time | None, _Time | None],
]
_Factory: TypeAlias = tuple[
    Literal["factory"],
    _Operation,
    tuple[Text | None, Text, Text, Text | None, Text | None],
    tuple[Whole, Whole],
    tuple[bool | None, bool | None],
    bool | None,
    _Inputs,
    _Inputs,
]
"""An event as it is written: table, operation, then the columns by kind, those of the old row first."""


def _pipeline(event: _Pipeline) -> PipelineChange:
    _, operation, texts, numbers, (started, completed), was_construction, construction = event
    was, key, product_good, status = texts
    was_cost, was_revenue, was_profit, player_id, cost, revenue, profit = numbers
    row = PipelineImage(
        player_id,
        product_good,
        status,
        cost or 0,
        revenue or 0,
        profit or 0,
        _microseconds(started),
        _microseconds(completed),
        *(construction or ()),
    )
    if operation == "I":
        return PipelineChange("I", key, None, row)
    if operation in ("D", "X"):
        return PipelineChange("D", key, row, None, BOTH if operation == "D" else NEITHER)
    if operation == "R":
        # If it is not COMPLETED (any more), the profit rate must forget it.
        was, was_cost, was_revenue, was_profit, was_construction = "COMPLETED", cost, revenue, profit, construction
    old = PipelineImage(
        player_id,
        product_good,
        _present(was),
        was_cost or 0,
        was_revenue or 0,
        was_profit or 0,
        None,
        None,
        *(was_construction or ()),
    )
    return PipelineChange("U", key, old, row, NEITHER if operation == "R" else ONLY_NEW if operation == "M" else BOTH)


def _task(event: _Task) -> TaskChange:
    _, operation, texts, numbers, (ready, started, completed) = event
    was, was_on, key, task_type, status, ship = texts
    was_retries, was_cost, was_revenue, was_quantity, player_id, retries, cost, revenue, quantity = numbers
    row = TaskImage(
        player_id,
        task_type,
        status,
        ship or None,
        retries or 0,
        cost or 0,
        revenue or 0,
        _microseconds(ready),
        _microseconds(started),
        _microseconds(completed),
        quantity,
    )
    if operation == "I":
        return TaskChange("I", key, None, row)
    if operation in ("D", "X"):
        return TaskChange("D", key, row, None, BOTH if operation == "D" else NEITHER)
    if operation == "R":
        return TaskChange("U", key, row, row, NEITHER)
    old = TaskImage(
        player_id,
        task_type,
        _present(was),
        was_on or None,
        was_retries or 0,
        was_cost or 0,
        was_revenue or 0,
        None,
        None,
        None,
        was_quantity,
    )
    return TaskChange("U", key, old, row, BOTH if operation == "U" else ONLY_NEW)


def _factory(event: _Factory) -> FactoryChange:
    _, operation, texts, (number, player_id), (was_ready, ready), is_current, was_inputs, inputs = event
    was, symbol, good, pipeline_id, supply = texts
    delivered, required = inputs or was_inputs or (0, 0)
    row = FactoryImage(
        player_id, symbol, good, pipeline_id, delivered, required, supply or None, bool(ready), is_current
    )
    key = str(number)
    if operation == "I":
        return FactoryChange("I", key, None, row)
    if operation in ("D", "X"):
        return FactoryChange("D", key, row, None, BOTH if operation == "D" else NEITHER)
    if operation == "R":
        return FactoryChange("U", key, row, row, NEITHER)
    delivered, required = was_inputs or inputs or (0, 0)
    old = FactoryImage(
        player_id, symbol, good, pipeline_id, delivered, required, was or None, bool(was_ready), is_current=None
    )
    return FactoryChange("U", key, old, row, BOTH if operation == "U" else ONLY_NEW)


def _present(status: str | None) -> str:
    if status is None:
        raise MalformedEvent("an update without the old status")
    return status


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _microseconds(time: datetime | None) -> int | None:
    """Return epoch microseconds; None if there is no sensible time: before 1970, for example Go's zero time."""
    if time is None or time < _EPOCH:
        return None
    since = time - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


class _Table(NamedTuple):
    decoder: msgspec.json.Decoder[Any]
    build: Callable[[Any], Change]
    truncated: Change


_TABLE_OF = {
    "p": _Table(msgspec.json.Decoder(_Pipeline), _pipeline, PipelineChange("T", "", None, None)),
    "t": _Table(msgspec.json.Decoder(_Task), _task, TaskChange("T", "", None, None)),
    "f": _Table(msgspec.json.Decoder(_Factory), _factory, FactoryChange("T", "", None, None)),
}
"""By the first letter of the table, the third character of an event."""
_NOT_AN_EVENT = (msgspec.DecodeError, UnicodeError, RecursionError)
"""What the decoder raises: the last of them for brackets nested a thousand deep."""


def decode_change(body: str | bytes) -> Change:
    """Decode the body of a journal row. Raise `MalformedEvent` if it is not one of this version.

    Whatever comes out fits into the tables that a fold writes to: no character 0, no number or time beyond them.
    """
    try:
        text = body if isinstance(body, str) else body.decode()
        table = _TABLE_OF.get(text[2:3])
        if table is None:
            raise MalformedEvent("of no table")
        try:
            event = table.decoder.decode(text)
        except msgspec.ValidationError:
            event = _decode_unusual(table, text)
            if event is None:
                return table.truncated
        change = table.build(event)
    except _NOT_AN_EVENT as error:
        raise MalformedEvent(str(error)) from error
    if "\\u0000" in text and any(part is not None and "\0" in part for part in event[2]):
        raise MalformedEvent("a text with the character 0")
    return change


_any_decoder = msgspec.json.Decoder(float_hook=Decimal)
_TIMES = 4
"""Place of the times in an event of a pipeline or task."""


def _decode_unusual(table: _Table, text: str) -> Any | None:  # noqa: ANN401 - one of the types above
    """Decode what the decoder of the table refuses, if it is an event.

    That of a TRUNCATE, which is None, or one with a number that has a fraction or an exponent, or with a time that
    Python's calendar does not have.
    """
    parts = _any_decoder.decode(text)
    if not isinstance(parts, list):
        raise MalformedEvent("no array")
    if parts[1:] == ["T"]:
        return None
    parts = _rounded(parts)
    if parts[0] != "factory" and len(parts) > _TIMES and isinstance(parts[_TIMES], list):
        parts[_TIMES] = [_in_calendar(time) for time in parts[_TIMES]]
    return msgspec.convert(parts, table.decoder.type)


def _rounded(part: Any) -> Any:  # noqa: ANN401 - JSON
    # As PostgreSQL casts numeric to bigint.
    if isinstance(part, Decimal):
        if not part.is_finite() or part.adjusted() > len(str(2**63)):
            raise MalformedEvent("a number that no bigint can hold")
        return int(part.to_integral_value(ROUND_HALF_UP))
    return [_rounded(each) for each in part] if isinstance(part, list) else part


def _in_calendar(text: Any) -> Any:  # noqa: ANN401 - JSON
    # As PostgreSQL writes times in JSON: the year may have more than four digits, the offset seconds.
    if not isinstance(text, str):
        return text
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        year = text.partition("-")[0]
        beyond = text in ("infinity", "-infinity") or text.endswith(" BC") or (len(year) > 4 and year.isdecimal())
        return None if beyond else text
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)


_payload_decoder = msgspec.json.Decoder(tuple[int, Count, Count, _Time, msgspec.Raw])


def decode_payload(payload: str) -> Event:
    """Decode a notification: `[version, id, xid, at, body]`. Raise `MalformedEvent` if it is not one.

    Anyone may have sent it who knows the channel.
    """
    try:
        version, number, xid, written, body = _payload_decoder.decode(payload)
        at = _microseconds(written)
    except _NOT_AN_EVENT as error:
        raise MalformedEvent(str(error)) from error
    if version != VERSION:
        raise MalformedEvent(f"version {version} is not {VERSION}")
    if at is None:
        raise MalformedEvent("no time")
    return Event(number, xid, at, decode_change(bytes(body)))
