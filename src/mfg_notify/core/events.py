"""Change events: what the triggers write, as frozen values.

Owns the shape of a journal row's body and of a payload, and their validation. It never interprets a change: that is
`rules`. The other half of this contract is `db/triggers/`: the image functions there list the same columns in the
same order.
"""

from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from mfg_notify.errors import MalformedEvent

VERSION = 1
"""Version of the event's shape; the journal has it in a column of its own."""

Text = Annotated[str, Meta(max_length=128)]
Whole = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Microseconds = Annotated[int, Meta(ge=0, le=2**63 - 1)]
"""Since the epoch, by the clock of the writer. The times of an old image may be left out: None."""


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


class TaskImage(Struct, frozen=True, gc=False, array_like=True, forbid_unknown_fields=True):
    """The watched columns of a row of manufacturing_tasks; assigned_ship '' is None."""

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


class PipelineChange(Struct, frozen=True, gc=False, array_like=True, tag="pipeline", forbid_unknown_fields=True):
    """One change of one pipeline."""

    operation: Operation
    key: Text
    old: PipelineImage | None
    new: PipelineImage | None


class TaskChange(Struct, frozen=True, gc=False, array_like=True, tag="task", forbid_unknown_fields=True):
    """One change of one task."""

    operation: Operation
    key: Text
    old: TaskImage | None
    new: TaskImage | None


class FactoryChange(Struct, frozen=True, gc=False, array_like=True, tag="factory", forbid_unknown_fields=True):
    """One change of one factory row; the key is the row's number as text."""

    operation: Operation
    key: Text
    old: FactoryImage | None
    new: FactoryImage | None


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
        return _TABLES[type(self.change)]


_TABLES = {kind: str(kind.__struct_config__.tag) for kind in (PipelineChange, TaskChange, FactoryChange)}


class _Payload(Struct, frozen=True, gc=False, array_like=True, forbid_unknown_fields=True):
    version: int
    id: Count
    xid: Count
    at: Microseconds
    change: Change


_Image = TypeVar("_Image")
_payload_decoder = msgspec.json.Decoder(_Payload)

_change_decoder: msgspec.json.Decoder[Change] = msgspec.json.Decoder(Change)
_pipeline_decoder = msgspec.json.Decoder(PipelineImage)
_task_decoder = msgspec.json.Decoder(TaskImage)
_factory_decoder = msgspec.json.Decoder(FactoryImage)

_NOT_AN_EVENT = (msgspec.DecodeError, UnicodeError, RecursionError)
"""What the decoder raises: the last of them for brackets nested a thousand deep."""
_IMAGES = {"I": (False, True), "U": (True, True), "D": (True, False), "T": (False, False)}


def decode_change(body: str | bytes) -> Change:
    """Decode the body of a journal row. Raise `MalformedEvent` where it is not one of this version."""
    try:
        change = _change_decoder.decode(body)
    except _NOT_AN_EVENT as error:
        raise MalformedEvent(str(error)) from error
    return _checked(change)


def decode_payload(payload: str) -> Event:
    """Decode a notification: `[version, id, xid, at, body]`. Raise `MalformedEvent` where it is not one.

    Anyone may have sent it who knows the channel: no text of the game's can hold the character 0, and none that does
    may reach a page, which ends there for Prometheus. (Nor does one that spells this escape: the journal has that.)
    """
    if "\\u0000" in payload:
        raise MalformedEvent("a text with the character 0")
    try:
        found = _payload_decoder.decode(payload)
    except _NOT_AN_EVENT as error:
        raise MalformedEvent(str(error)) from error
    if found.version != VERSION:
        raise MalformedEvent(f"version {found.version} is not {VERSION}")
    return Event(found.id, found.xid, found.at, _checked(found.change))


def _checked(change: Change) -> Change:
    if (change.old is not None, change.new is not None) != _IMAGES[change.operation]:
        raise MalformedEvent(f"operation {change.operation} does not go with its images")
    if isinstance(change, FactoryChange) and change.operation != "T" and not change.key.removeprefix("-").isdecimal():
        raise MalformedEvent("the key of a factory row is a number")
    return change


def decode_pipeline(image: str | bytes) -> PipelineImage:
    """Decode the image of a live row, as the snapshot reads it. Raise `MalformedEvent`."""
    return _decode_image(_pipeline_decoder, image)


def decode_task(image: str | bytes) -> TaskImage:
    """Decode the image of a live row, as the snapshot reads it. Raise `MalformedEvent`."""
    return _decode_image(_task_decoder, image)


def decode_factory(image: str | bytes) -> FactoryImage:
    """Decode the image of a live row, as the snapshot reads it. Raise `MalformedEvent`."""
    return _decode_image(_factory_decoder, image)


def _decode_image(decoder: msgspec.json.Decoder[_Image], image: str | bytes) -> _Image:
    try:
        return decoder.decode(image)
    except _NOT_AN_EVENT as error:
        raise MalformedEvent(str(error)) from error
