"""Bodies and payloads as the triggers write them, and everything else, which is malformed and nothing worse."""

import json
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mfg_notify.core.events import (
    VERSION,
    Change,
    Event,
    FactoryChange,
    FactoryImage,
    PipelineChange,
    PipelineImage,
    TaskChange,
    TaskImage,
    decode_change,
    decode_factory,
    decode_payload,
    decode_pipeline,
    decode_task,
)
from mfg_notify.errors import MalformedEvent

PIPELINE = '[1, "LASER_RIFLES", "PLANNING", 0, 0, 0, null, null]'
PIPELINE_DONE = '[1, "LASER_RIFLES", "COMPLETED", 400, 2400, -2000, 1700000000000000, 1700000000000001]'
TASK = '[2, "COLLECT_SELL", "PENDING", null, 0, 0, 0, null, null, null]'
TASK_DONE = (
    '[2, "COLLECT_SELL", "COMPLETED", "AGENT-1", 3, 30, 100, 1700000000000000, 1700000000000001, 1700000000000002]'
)
FACTORY = '[3, "X1-AB1-C2", "IRON", null, 0, 2, null, false, null]'
FACTORY_READY = '[3, "X1-AB1-C2", "IRON", "p-1", 2, 2, "HIGH", true, true]'

A_PIPELINE = PipelineImage(1, "LASER_RIFLES", "PLANNING", 0, 0, 0, None, None)
A_PIPELINE_DONE = PipelineImage(
    1, "LASER_RIFLES", "COMPLETED", 400, 2400, -2000, 1_700_000_000_000_000, 1_700_000_000_000_001
)
A_TASK = TaskImage(2, "COLLECT_SELL", "PENDING", None, 0, 0, 0, None, None, None)
A_TASK_DONE = TaskImage(
    2,
    "COLLECT_SELL",
    "COMPLETED",
    "AGENT-1",
    3,
    30,
    100,
    1_700_000_000_000_000,
    1_700_000_000_000_001,
    1_700_000_000_000_002,
)
A_FACTORY = FactoryImage(3, "X1-AB1-C2", "IRON", None, 0, 2, None, ready_for_collection=False, is_current=None)
A_FACTORY_READY = FactoryImage(3, "X1-AB1-C2", "IRON", "p-1", 2, 2, "HIGH", ready_for_collection=True, is_current=True)

FOUR_BYTES = "\U0001f680"

GOOD: list[tuple[str, Change]] = [
    (f'["pipeline", "I", "p-1", null, {PIPELINE}]', PipelineChange("I", "p-1", None, A_PIPELINE)),
    (
        f'["pipeline", "U", "p-1", {PIPELINE}, {PIPELINE_DONE}]',
        PipelineChange("U", "p-1", A_PIPELINE, A_PIPELINE_DONE),
    ),
    (f'["pipeline", "D", "p-1", {PIPELINE}, null]', PipelineChange("D", "p-1", A_PIPELINE, None)),
    ('["pipeline","T","",null,null]', PipelineChange("T", "", None, None)),
    (f'["task", "I", "t-1", null, {TASK}]', TaskChange("I", "t-1", None, A_TASK)),
    (f'["task", "U", "t-1", {TASK}, {TASK_DONE}]', TaskChange("U", "t-1", A_TASK, A_TASK_DONE)),
    (f'["task", "D", "t-1", {TASK}, null]', TaskChange("D", "t-1", A_TASK, None)),
    ('["task","T","",null,null]', TaskChange("T", "", None, None)),
    (f'["factory", "I", "17", null, {FACTORY}]', FactoryChange("I", "17", None, A_FACTORY)),
    (f'["factory", "U", "17", {FACTORY}, {FACTORY_READY}]', FactoryChange("U", "17", A_FACTORY, A_FACTORY_READY)),
    (f'["factory", "D", "17", {FACTORY_READY}, null]', FactoryChange("D", "17", A_FACTORY_READY, None)),
    ('["factory","T","",null,null]', FactoryChange("T", "", None, None)),
    # At the limits: 64-bit numbers, times of the epoch, 128 characters of four bytes, escapes.
    (
        f'["pipeline", "I", "{FOUR_BYTES * 128}", null, [-9223372036854775808, "\\n\\"\\\\\\u0001", "\\ud83d\\ude80", '
        f"9223372036854775807, -9223372036854775808, 0, 0, 9223372036854775807]]",
        PipelineChange(
            "I",
            FOUR_BYTES * 128,
            None,
            PipelineImage(-(2**63), '\n"\\\x01', FOUR_BYTES, 2**63 - 1, -(2**63), 0, 0, 2**63 - 1),
        ),
    ),
    ('["task","T","",null,null]' + " " * (7999 - 25), TaskChange("T", "", None, None)),
]


@pytest.mark.parametrize(("body", "expected"), GOOD, ids=[f"{body[:18]} {n}" for n, (body, _) in enumerate(GOOD)])
def test_what_the_triggers_write(body: str, expected: Change) -> None:
    assert decode_change(body) == decode_change(body.encode()) == expected


def test_an_event_names_its_table() -> None:
    assert [Event(1, 1, 1, change).table for _, change in GOOD[:12:4]] == ["pipeline", "task", "factory"]


def test_images_of_live_rows() -> None:
    assert decode_pipeline(PIPELINE) == A_PIPELINE
    assert decode_task(TASK_DONE.encode()) == A_TASK_DONE
    assert decode_factory(FACTORY) == A_FACTORY


def task_body(**fields: str) -> str:
    """Return an INSERT of a task whose named fields are this JSON."""
    image = {
        "player_id": "2", "task_type": '"SELL"', "status": '"READY"', "assigned_ship": "null", "retry_count": "0",
        "total_cost": "0", "total_revenue": "0", "ready_at": "null", "started_at": "null", "completed_at": "null",
    }  # fmt: skip
    assert fields.keys() <= image.keys()
    return f'["task", "I", "t-1", null, [{", ".join((image | fields).values())}]]'


BAD: dict[str, str | bytes] = {
    "empty": "",
    "blank": "  \n",
    "junk": "fold",
    "NUL": "\x00",
    "null": "null",
    "number": "1",
    "text": '"task"',
    "object": '{"table": "task"}',
    "empty array": "[]",
    "only a table": '["task"]',
    "cut short": '["task","T","",null,nu',
    "too short": '["task","T","",null]',
    "too long": '["task","T","",null,null,null]',
    "two bodies": '["task","T","",null,null]["task","T","",null,null]',
    "byte order mark": b'\xef\xbb\xbf["task","T","",null,null]',
    "unknown table": '["ship","T","",null,null]',
    "table in capitals": '["TASK","T","",null,null]',
    "table of another type": '[1,"T","",null,null]',
    "table missing": '[null,"T","",null,null]',
    "unknown operation": '["task","X","",null,null]',
    "operation in lower case": '["task","t","",null,null]',
    "operation missing": '["task",null,"",null,null]',
    "key of another type": '["factory","T",17,null,null]',
    "key missing": '["task","T",null,null,null]',
    "insert without image": '["task","I","t",null,null]',
    "insert with both images": f'["task","I","t",{TASK},{TASK}]',
    "insert with the old image": f'["task","I","t",{TASK},null]',
    "update without old image": f'["pipeline","U","p",null,{PIPELINE}]',
    "update without new image": f'["pipeline","U","p",{PIPELINE},null]',
    "update without images": '["factory","U","1",null,null]',
    "delete without image": '["factory","D","1",null,null]',
    "delete with the new image": f'["factory","D","1",null,{FACTORY}]',
    "truncate with an image": f'["task","T","",{TASK},null]',
    "image of another table": f'["task","I","t",null,{PIPELINE}]',
    "image is an object": '["task","I","t",null,{}]',
    "image is text": '["task","I","t",null,"READY"]',
    "image too short": f'["task","I","t",null,{TASK[:-7]}]]',
    "image too long": f'["task","I","t",null,{TASK[:-1]}, null]]',
    "player missing": task_body(player_id="null"),
    "player as text": task_body(player_id='"2"'),
    "player as bool": task_body(player_id="true"),
    "task type missing": task_body(task_type="null"),
    "status as number": task_body(status="1"),
    "ship as number": task_body(assigned_ship="7"),
    "cost missing": task_body(total_cost="null"),
    "cost with a fraction": task_body(total_cost="1.5"),
    "cost is not a number": task_body(total_cost="NaN"),
    "cost is infinite": task_body(total_cost="1e999"),
    "cost past 64 bits": task_body(total_cost="9223372036854775808"),
    "cost past 64 bits below": task_body(total_cost="-9223372036854775809"),
    "cost past 65 bits": task_body(total_cost="36893488147419103232"),
    "cost of 5,000 digits": task_body(total_cost="9" * 5000),
    "time before the epoch": task_body(ready_at="-1"),
    "time past 64 bits": task_body(ready_at="9223372036854775808"),
    "time as text": task_body(started_at='"2025-01-01T00:00:00Z"'),
    "inputs below zero": f'["factory","I","1",null,{FACTORY.replace("0, 2", "-1, 2")}]',
    "ready as number": f'["factory","I","1",null,{FACTORY.replace("false", "0")}]',
    "is_current as text": f'["factory","I","1",null,{FACTORY.replace("false, null", "false, 1")}]',
    "129 characters": task_body(task_type=f'"{"A" * 129}"'),
    "129 characters of two bytes": task_body(assigned_ship=f'"{"é" * 129}"'),
    "129 escapes": task_body(status='"' + r"\u0041" * 129 + '"'),
    "key of 129 characters": f'["task","T","{"k" * 129}",null,null]',
    "key that makes 7,999 bytes": '["task","T","' + "k" * 7974 + '",null,null]',
    "line feed inside a text": task_body(status='"A\nB"'),
    "invalid UTF-8": task_body(status='"?"').encode().replace(b"?", b"\xff"),
    "UTF-8 cut short": task_body(status='"?"').encode().replace(b"?", b"\xf0\x9f\x9a"),
    "UTF-8 of a surrogate": task_body(status='"?"').encode().replace(b"?", b"\xed\xa0\x80"),
    "overlong UTF-8": task_body(status='"?"').encode().replace(b"?", b"\xc0\xaf"),
    "lone high surrogate escaped": task_body(status=r'"\ud800"'),
    "lone low surrogate escaped": task_body(status=r'"\udc00"'),
    "surrogates the wrong way round": task_body(status=r'"\ude80\ud83d"'),
    "lone surrogate in the text itself": task_body(status='"\ud800"'),
    "7,999 brackets": "[" * 7999,
    "100,000 brackets": "[" * 100_000,
    "deep in the key": '["task","T",' + "[" * 50_000 + "]" * 50_000 + ",null,null]",
    "deep in an image": '["task","I","t",null,[' + "[" * 50_000 + "]" * 50_000 + "]]",
    "deep past the end": '["task","T","",null,null,' + "[" * 50_000 + "]" * 50_000 + "]",
    "deep objects": '{"a":' * 50_000,
}


@pytest.mark.parametrize("body", BAD.values(), ids=BAD.keys())
def test_what_is_malformed(body: str | bytes) -> None:
    with pytest.raises(MalformedEvent):
        decode_change(body)


@pytest.mark.parametrize("image", ["", "null", "[]", "[" * 100_000, b"\xff", '["1"]', "\ud800"],
                         ids=["empty", "null", "empty array", "deep", "bytes", "text", "surrogate"])  # fmt: skip
def test_an_image_is_malformed(image: str | bytes) -> None:
    for decode in (decode_pipeline, decode_task, decode_factory):
        with pytest.raises(MalformedEvent):
            decode(image)


def test_the_bytes_that_are_meant() -> None:
    """The payload limit of NOTIFY is 7,999 bytes."""
    assert len(BAD["key that makes 7,999 bytes"]) == 7999
    assert len(GOOD[-1][0]) == 7999


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from("IUDT"),
    lambda inner: st.lists(inner, max_size=10) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)
TABLES = st.sampled_from(["pipeline", "task", "factory"])


@dataclass(frozen=True)
class Damage:
    """Replaces one element of a good body, or of one of its images."""

    body: str
    image: int
    place: int
    by: object

    def do(self) -> str:
        """Return the damaged body."""
        change = json.loads(self.body)
        part = change[self.image] if self.image and isinstance(change[self.image], list) else change
        part[self.place % len(part)] = self.by
        return json.dumps(change)


BODIES = (
    st.binary()
    | st.text()
    | JSON.map(json.dumps)
    | st.tuples(TABLES, st.sampled_from("IUDT"), st.text(), JSON, JSON).map(json.dumps)
    | st.builds(Damage, st.sampled_from([body for body, _ in GOOD[:12]]), st.sampled_from([0, 3, 4]),
                st.integers(0, 9), JSON).map(Damage.do)
)  # fmt: skip
IMAGES = {"I": (False, True), "U": (True, True), "D": (True, False), "T": (False, False)}


@given(BODIES)
def test_a_change_or_malformed_and_nothing_else(body: str | bytes) -> None:
    try:
        change = decode_change(body)
    except MalformedEvent:
        return
    assert isinstance(change, PipelineChange | TaskChange | FactoryChange)
    assert IMAGES[change.operation] == (change.old is not None, change.new is not None)
    assert len(change.key) <= 128


@pytest.mark.parametrize(("body", "expected"), GOOD[:12], ids=[body[:15] for body, _ in GOOD[:12]])
def test_a_payload_is_an_event(body: str, expected: Change) -> None:
    assert decode_payload(f"[1, 17, 812, 1700000000000000, {body}]") == Event(17, 812, 1_700_000_000_000_000, expected)


def test_a_payload_at_the_limits() -> None:
    largest = 2**63 - 1
    assert decode_payload(f"[1,{largest},{largest},{largest},{TRUNCATED}]").id == largest
    assert decode_payload(f"[1,0,0,0,{TRUNCATED}]") == Event(0, 0, 0, TaskChange("T", "", None, None))


TRUNCATED = '["task","T","",null,null]'
BAD_PAYLOADS = {
    **{name: body for name, body in BAD.items() if isinstance(body, str)},
    **{f"body: {name}": f"[1,2,3,4,{body}]" for name, body in BAD.items() if isinstance(body, str)},
    "a body alone": TRUNCATED,
    "an older version": f"[0,2,3,4,{TRUNCATED}]",
    "a newer version": f"[{VERSION + 1},2,3,4,{TRUNCATED}]",
    "a newer version of another shape": f'[{VERSION + 1},2,3,4,["task","T","",null,null,9],"more"]',
    "version as text": f'["1",2,3,4,{TRUNCATED}]',
    "version missing": f"[null,2,3,4,{TRUNCATED}]",
    "version with a fraction": f"[1.5,2,3,4,{TRUNCATED}]",
    "without a version": f"[2,3,4,{TRUNCATED}]",
    "without a body": "[1,2,3,4]",
    "body missing": "[1,2,3,4,null]",
    "body as text": '[1,2,3,4,"[]"]',
    "something after the body": f"[1,2,3,4,{TRUNCATED},5]",
    "an object": f'{{"version":1,"id":2,"xid":3,"at":4,"change":{TRUNCATED}}}',
    "id below zero": f"[1,-2,3,4,{TRUNCATED}]",
    "id past 64 bits": f"[1,9223372036854775808,3,4,{TRUNCATED}]",
    "id as text": f'[1,"2",3,4,{TRUNCATED}]',
    "id as bool": f"[1,true,3,4,{TRUNCATED}]",
    "id missing": f"[1,null,3,4,{TRUNCATED}]",
    "xid below zero": f"[1,2,-3,4,{TRUNCATED}]",
    "xid missing": f"[1,2,null,4,{TRUNCATED}]",
    "before the epoch": f"[1,2,3,-4,{TRUNCATED}]",
    "time missing": f"[1,2,3,null,{TRUNCATED}]",
    "a barrier": "barrier 7",
    "a ping": "ping 7",
    "a text with the character 0": '[1,2,3,4,["task","T","\\u0000",null,null]]',
    "cut short": f"[1,2,3,4,{TRUNCATED}",
    "two payloads": f"[1,2,3,4,{TRUNCATED}]" * 2,
    "key of a factory is no number": f'[1,2,3,4,["factory","I","X1",null,{FACTORY}]]',
    "key of a factory is empty": f'[1,2,3,4,["factory","I","",null,{FACTORY}]]',
    "key of a factory is a sign": f'[1,2,3,4,["factory","I","-",null,{FACTORY}]]',
    "key of a factory is two signs": f'[1,2,3,4,["factory","I","--1",null,{FACTORY}]]',
    "key of a factory is a superscript": f'[1,2,3,4,["factory","I","²",null,{FACTORY}]]',
}


@pytest.mark.parametrize("payload", BAD_PAYLOADS.values(), ids=BAD_PAYLOADS.keys())
def test_a_payload_is_malformed(payload: str) -> None:
    with pytest.raises(MalformedEvent):
        decode_payload(payload)


HEADS = st.lists(st.just(VERSION) | st.integers() | JSON, min_size=3, max_size=5)
PAYLOADS = (
    st.text()
    | JSON.map(json.dumps)
    | st.tuples(HEADS, BODIES.filter(lambda body: isinstance(body, str))).map(
        lambda found: f"{json.dumps(found[0])[:-1]},{found[1]!s}]"
    )
    | BODIES.filter(lambda body: isinstance(body, str)).map(lambda body: f"[1,2,3,4,{body!s}]")
)


@given(PAYLOADS)
def test_a_payload_is_an_event_or_malformed_and_nothing_else(payload: str) -> None:
    try:
        found = decode_payload(payload)
    except MalformedEvent:
        return
    change = found.change
    assert min(found.id, found.xid, found.at) >= 0
    assert IMAGES[change.operation] == (change.old is not None, change.new is not None)
    if isinstance(change, FactoryChange) and change.operation != "T":
        int(change.key)
