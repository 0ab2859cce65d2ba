"""Bodies and payloads as the triggers write them, and everything else, which is malformed and nothing worse."""

import json
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mfg_notify.core.events import (
    NEITHER,
    ONLY_NEW,
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
    decode_payload,
)
from mfg_notify.core.rules import increments
from mfg_notify.errors import MalformedEvent

AT = ("2023-11-14T22:13:20+00:00", "2023-11-14T22:13:20.000001+00:00", "2023-11-14T22:13:20.000002+00:00")
"""The times of the images below, as PostgreSQL writes them."""
PIPELINE = '[null,"p-1","LASER_RIFLES","PLANNING"],[null,null,null,1,0,0,0],[null,null],null,null'
PIPELINE_DONE = (
    '["PLANNING","p-1","LASER_RIFLES","COMPLETED"],[0,0,0,1,400,2400,-2000],'
    f'["{AT[0]}","{AT[1]}"],["X1-I52",[["IRON",3,10]]],["X1-I52",[["GOLD",0,1],["IRON",10,10]]]'
)
TASK = '[null,null,"t-1","COLLECT_SELL","PENDING",null],[null,null,null,null,2,0,0,0,null],[null,null,null]'
TASK_DONE = (
    '["PENDING",null,"t-1","COLLECT_SELL","COMPLETED","AGENT-1"],[0,0,0,0,2,3,30,100,40],'
    f'["{AT[0]}","{AT[1]}","{AT[2]}"]'
)
FACTORY = '[null,"X1-AB1-C2","IRON",null,null],[17,3],[null,false],null,null,[0,2]'
FACTORY_READY = '[null,"X1-AB1-C2","IRON","p-1","HIGH"],[17,3],[false,true],true,[0,2],[2,2]'

A_PIPELINE = PipelineImage(1, "LASER_RIFLES", "PLANNING", 0, 0, 0, None, None)
A_PIPELINE_BEFORE = PipelineImage(1, "LASER_RIFLES", "PLANNING", 0, 0, 0, None, None, "X1-I52", (("IRON", 3, 10),))
A_PIPELINE_DONE = PipelineImage(
    1,
    "LASER_RIFLES",
    "COMPLETED",
    400,
    2400,
    -2000,
    1_700_000_000_000_000,
    1_700_000_000_000_001,
    "X1-I52",
    (("GOLD", 0, 1), ("IRON", 10, 10)),
)
A_TASK = TaskImage(2, "COLLECT_SELL", "PENDING", None, 0, 0, 0, None, None, None)
A_TASK_BEFORE = TaskImage(2, "COLLECT_SELL", "PENDING", None, 0, 0, 0, None, None, None, 0)
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
    40,
)
A_FACTORY = FactoryImage(3, "X1-AB1-C2", "IRON", None, 0, 2, None, ready_for_collection=False, is_current=None)
A_FACTORY_READY = FactoryImage(3, "X1-AB1-C2", "IRON", "p-1", 2, 2, "HIGH", ready_for_collection=True, is_current=True)
A_FACTORY_BEFORE = FactoryImage(3, "X1-AB1-C2", "IRON", "p-1", 0, 2, None, ready_for_collection=False, is_current=None)

FOUR_BYTES = "\U0001f680"
LARGEST, SMALLEST = 2**63 - 1, -(2**63)

GOOD: list[tuple[str, Change]] = [
    (f'["pipeline","I",{PIPELINE}]', PipelineChange("I", "p-1", None, A_PIPELINE)),
    (f'["pipeline","U",{PIPELINE_DONE}]', PipelineChange("U", "p-1", A_PIPELINE_BEFORE, A_PIPELINE_DONE)),
    (f'["pipeline","D",{PIPELINE}]', PipelineChange("D", "p-1", A_PIPELINE, None)),
    ('["pipeline","T"]', PipelineChange("T", "", None, None)),
    (f'["task","I",{TASK}]', TaskChange("I", "t-1", None, A_TASK)),
    (f'["task","U",{TASK_DONE}]', TaskChange("U", "t-1", A_TASK_BEFORE, A_TASK_DONE)),
    (f'["task","D",{TASK}]', TaskChange("D", "t-1", A_TASK, None)),
    ('["task","T"]', TaskChange("T", "", None, None)),
    (f'["factory","I",{FACTORY}]', FactoryChange("I", "17", None, A_FACTORY)),
    (f'["factory","U",{FACTORY_READY}]', FactoryChange("U", "17", A_FACTORY_BEFORE, A_FACTORY_READY)),
    (f'["factory","D",{FACTORY}]', FactoryChange("D", "17", A_FACTORY, None)),
    ('["factory","T"]', FactoryChange("T", "", None, None)),
    # At the limits: 64-bit numbers, the first and the last time, 128 characters of four bytes, escapes.
    (
        f'["pipeline","I",[null,"{FOUR_BYTES * 128}","\\n\\"\\\\\\u0001","\\ud83d\\ude80"],'
        f"[null,null,null,{SMALLEST},{LARGEST},{SMALLEST},0],"
        '["1970-01-01T00:00:00+00:00","9999-12-31T23:59:59.999999+00:00"],null,["",[]]]',
        PipelineChange(
            "I",
            FOUR_BYTES * 128,
            None,
            PipelineImage(
                SMALLEST, '\n"\\\x01', FOUR_BYTES, LARGEST, SMALLEST, 0, 0, 253_402_300_799_999_999, ""
            ),
        ),
    ),
    # What is not there: NULL, empty texts, times that are none.
    (
        '["task","U",["READY","","t-1","SELL","READY",""],[null,null,null,null,2,null,null,null,null],'
        '["infinity","0001-01-01T00:00:00+00:00","294276-12-31T23:59:59+00:00"]]',
        TaskChange(
            "U",
            "t-1",
            TaskImage(2, "SELL", "READY", None, 0, 0, 0, None, None, None),
            TaskImage(2, "SELL", "READY", None, 0, 0, 0, None, None, None),
        ),
    ),
    (
        '["pipeline","I",[null,"p","G","PLANNING"],[null,null,null,1,0,0,0],'
        '["-infinity","0044-03-15T12:00:00+00:00 BC"],null,null]',
        PipelineChange("I", "p", None, PipelineImage(1, "G", "PLANNING", 0, 0, 0, None, None)),
    ),
    # Times of a session in another zone, and of a column without one.
    (
        '["pipeline","I",[null,"p","G","PLANNING"],[null,null,null,1,0,0,0],'
        '["2023-11-15T03:58:20+05:45","2023-11-14T22:13:20"],null,null]',
        PipelineChange(
            "I", "p", None,
            PipelineImage(1, "G", "PLANNING", 0, 0, 0, 1_700_000_000_000_000, 1_700_000_000_000_000),
        ),
    ),
    # Numbers with a fraction are rounded as PostgreSQL does.
    (
        '["pipeline","I",[null,"p","G","PLANNING"],[null,null,null,1.00,2.5,-2.5,9007199254740993.00],[null,null],null,null]',
        PipelineChange("I", "p", None, PipelineImage(1, "G", "PLANNING", 3, -3, 9007199254740993, None, None)),
    ),
    # A text that spells the escape of character 0.
    (
        '["pipeline","I",[null,"p","\\\\u0000","PLANNING"],[null,null,null,1,0,0,0],[null,null],null,null]',
        PipelineChange("I", "p", None, PipelineImage(1, "\\u0000", "PLANNING", 0, 0, 0, None, None)),
    ),
    # A pipeline that becomes one for construction, and back; a site without a name and without materials.
    (
        '["pipeline","U",["PLANNING","p","G","PLANNING"],[0,0,0,1,0,0,1],[null,null],null,["S",[["A",1,2]]]]',
        PipelineChange(
            "U", "p",
            PipelineImage(1, "G", "PLANNING", 0, 0, 0, None, None),
            PipelineImage(1, "G", "PLANNING", 0, 0, 1, None, None, "S", (("A", 1, 2),)),
        ),
    ),
    (
        '["pipeline","U",["PLANNING","p","G","PLANNING"],[0,0,0,1,0,0,0],[null,null],["",[]],null]',
        PipelineChange(
            "U", "p",
            PipelineImage(1, "G", "PLANNING", 0, 0, 0, None, None, "", ()),
            PipelineImage(1, "G", "PLANNING", 0, 0, 0, None, None),
        ),
    ),
    # Rows that are told again move no number, and a pipeline that is not COMPLETED leaves the profit rate.
    (
        '["pipeline","R",["FAILED","p","G","FAILED"],[1,2,3,1,1,2,3],[null,null],null,null]',
        PipelineChange("U", "p", PipelineImage(1, "G", "COMPLETED", 1, 2, 3, None, None),
                       PipelineImage(1, "G", "FAILED", 1, 2, 3, None, None), NEITHER),
    ),
    (
        '["pipeline","M",["PLANNING","p","G","FAILED"],[1,2,3,1,1,2,3],[null,null],null,null]',
        PipelineChange("U", "p", PipelineImage(1, "G", "PLANNING", 1, 2, 3, None, None),
                       PipelineImage(1, "G", "FAILED", 1, 2, 3, None, None), ONLY_NEW),
    ),
    (
        '["factory","X",[null,"F","G","p","HIGH"],[7,1],[null,true],null,[1,2],null]',
        FactoryChange("D", "7", FactoryImage(1, "F", "G", "p", 1, 2, "HIGH", True, None), None, NEITHER),
    ),
    ('["task","T"]' + " " * (7999 - 12), TaskChange("T", "", None, None)),
]  # fmt: skip


@pytest.mark.parametrize(("body", "expected"), GOOD, ids=[f"{body[:18]} {n}" for n, (body, _) in enumerate(GOOD)])
def test_what_the_triggers_write(body: str, expected: Change) -> None:
    assert decode_change(body) == decode_change(body.encode()) == expected


def test_an_event_names_its_table() -> None:
    assert [Event(1, 1, 1, change).table for _, change in GOOD[:12:4]] == ["pipeline", "task", "factory"]


@pytest.mark.parametrize(("body", "_"), GOOD, ids=[f"{body[:18]} {n}" for n, (body, _) in enumerate(GOOD)])
def test_a_row_that_is_told_again_moves_no_number(body: str, _: Change) -> None:
    if body[2] in "pt" and '"U"' in body:
        change = decode_change(body.replace('"U"', '"R"'))
        assert increments(Event(1, 1, 1, change)) == []


def task_body(**fields: str) -> str:
    """Return an INSERT of a task whose named fields are this JSON."""
    given = {
        "key": '"t-1"', "player_id": "2", "task_type": '"SELL"', "status": '"READY"', "assigned_ship": "null",
        "retry_count": "0", "total_cost": "0", "total_revenue": "0", "quantity": "null", "ready_at": "null",
        "started_at": "null", "completed_at": "null",
    }  # fmt: skip
    assert fields.keys() <= given.keys()
    row = given | fields
    texts = ",".join(row[name] for name in ("key", "task_type", "status", "assigned_ship"))
    numbers = ",".join(row[name] for name in ("player_id", "retry_count", "total_cost", "total_revenue", "quantity"))
    times = ",".join(row[name] for name in ("ready_at", "started_at", "completed_at"))
    return f'["task","I",[null,null,{texts}],[null,null,null,null,{numbers}],[{times}]]'


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
    "cut short": '["task","T',
    "too short": f'["task","I",{TASK.rpartition(",[")[0]}]',
    "too long": f'["task","I",{TASK},null]',
    "two bodies": '["task","T"]["task","T"]',
    "byte order mark": b'\xef\xbb\xbf["task","T"]',
    "unknown table": '["ship","T"]',
    "table in capitals": '["TASK","T"]',
    "table of another type": '[1,"T"]',
    "table missing": '[null,"T"]',
    "unknown operation": f'["task","Z",{TASK}]',
    "operation in lower case": '["task","t"]',
    "operation missing": f'["task",null,{TASK}]',
    "key of another type": task_body(key="17"),
    "key missing": task_body(key="null"),
    "truncate with a row": f'["task","T",{TASK}]',
    "columns of another table": f'["task","I",{PIPELINE}]',
    "columns as an object": '["task","I",{},{},{}]',
    "columns as text": '["task","I","READY",0,null]',
    "update without the old status": f'["task","U",{TASK}]',
    "a text with the character 0": task_body(status='"\\u0000"'),
    "a key with the character 0": task_body(key='"a\\u0000b"'),
    "a cost of 1e30": task_body(total_cost="1e30"),
    "a cost of 1e999999999": task_body(total_cost="1e999999999"),
    "player missing": task_body(player_id="null"),
    "player as text": task_body(player_id='"2"'),
    "player as bool": task_body(player_id="true"),
    "task type missing": task_body(task_type="null"),
    "status as number": task_body(status="1"),
    "ship as number": task_body(assigned_ship="7"),
    "cost is not a number": task_body(total_cost="NaN"),
    "cost is infinite": task_body(total_cost="1e999"),
    "cost past 64 bits": task_body(total_cost="9223372036854775808"),
    "cost past 64 bits below": task_body(total_cost="-9223372036854775809"),
    "cost past 65 bits": task_body(total_cost="36893488147419103232"),
    "cost of 5,000 digits": task_body(total_cost="9" * 5000),
    "time as a number": task_body(ready_at="1700000000000000"),
    "no time": task_body(ready_at='"2026-13-01T00:00:00+00:00"'),
    "a word for a time": task_body(started_at='"now"'),
    "quantity is not a number": task_body(quantity='"NaN"'),
    "a site without materials": f'["pipeline","I",{PIPELINE[: -len("null")]}["S"]]',
    "materials as an object": f'["pipeline","I",{PIPELINE[: -len("null")]}["S",{{}}]]',
    "a material without a good": f'["pipeline","I",{PIPELINE[: -len("null")]}["S",[[null,1,2]]]]',
    "inputs below zero": f'["factory","I",{FACTORY.replace("0,2", "-1,2")}]',
    "ready as number": f'["factory","I",{FACTORY.replace("false", "0")}]',
    "is_current as number": f'["factory","I",{FACTORY.replace("false],null", "false],1")}]',
    "129 characters": task_body(task_type=f'"{"A" * 129}"'),
    "129 characters of two bytes": task_body(assigned_ship=f'"{"é" * 129}"'),
    "129 escapes": task_body(status='"' + r"\u0041" * 129 + '"'),
    "key of 129 characters": task_body(key=f'"{"k" * 129}"'),
    "key that makes 7,999 bytes": task_body(key=f'"{"k" * 7900}"'),
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
    "deep in the key": task_body(key="[" * 50_000 + "]" * 50_000),
    "deep in the times": '["task","I",[],[],[' + "[" * 50_000 + "]" * 50_000 + "]]",
    "deep past the end": '["task","T",' + "[" * 50_000 + "]" * 50_000 + "]",
    "deep objects": '{"a":' * 50_000,
}


@pytest.mark.parametrize("body", BAD.values(), ids=BAD.keys())
def test_what_is_malformed(body: str | bytes) -> None:
    with pytest.raises(MalformedEvent):
        decode_change(body)


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
    """Replaces one element of a good body, or of one of its groups of columns."""

    body: str
    group: int
    place: int
    by: object

    def do(self) -> str:
        """Return the damaged body."""
        change = json.loads(self.body)
        part = change[self.group] if 0 < self.group < len(change) and isinstance(change[self.group], list) else change
        part[self.place % len(part)] = self.by
        return json.dumps(change, separators=(",", ":"))


BODIES = (
    st.binary()
    | st.text()
    | JSON.map(json.dumps)
    | st.tuples(TABLES, st.sampled_from("IUDT"), st.text(), JSON, JSON).map(json.dumps)
    | st.builds(Damage, st.sampled_from([body for body, _ in GOOD[:12]]), st.sampled_from([0, 2, 3, 4]),
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
    assert decode_payload(f'[1,17,812,"{AT[0]}",{body}]') == Event(17, 812, 1_700_000_000_000_000, expected)


def test_a_payload_at_the_limits() -> None:
    assert decode_payload(f'[1,{LARGEST},{LARGEST},"{LAST}",{TRUNCATED}]').id == LARGEST
    assert decode_payload(f'[1,0,0,"1970-01-01T00:00:00+00:00",{TRUNCATED}]') == Event(
        0, 0, 0, TaskChange("T", "", None, None)
    )


TRUNCATED = '["task","T"]'
LAST = "9999-12-31T23:59:59.999999+00:00"
BAD_PAYLOADS = {
    **{name: body for name, body in BAD.items() if isinstance(body, str)},
    **{f"body: {name}": f'[1,2,3,"{LAST}",{body}]' for name, body in BAD.items() if isinstance(body, str)},
    "a body alone": TRUNCATED,
    "an older version": f'[0,2,3,"{LAST}",{TRUNCATED}]',
    "a newer version": f'[{VERSION + 1},2,3,"{LAST}",{TRUNCATED}]',
    "a newer version of another shape": f'[{VERSION + 1},2,3,"{LAST}",["task","T",9],"more"]',
    "version as text": f'["1",2,3,"{LAST}",{TRUNCATED}]',
    "version missing": f'[null,2,3,"{LAST}",{TRUNCATED}]',
    "version with a fraction": f'[1.5,2,3,"{LAST}",{TRUNCATED}]',
    "without a version": f'[2,3,"{LAST}",{TRUNCATED}]',
    "without a body": f'[1,2,3,"{LAST}"]',
    "body missing": f'[1,2,3,"{LAST}",null]',
    "body as text": f'[1,2,3,"{LAST}","[]"]',
    "something after the body": f'[1,2,3,"{LAST}",{TRUNCATED},5]',
    "an object": f'{{"version":1,"id":2,"xid":3,"at":"{LAST}","change":{TRUNCATED}}}',
    "id below zero": f'[1,-2,3,"{LAST}",{TRUNCATED}]',
    "id past 64 bits": f'[1,9223372036854775808,3,"{LAST}",{TRUNCATED}]',
    "id as text": f'[1,"2",3,"{LAST}",{TRUNCATED}]',
    "id as bool": f'[1,true,3,"{LAST}",{TRUNCATED}]',
    "id missing": f'[1,null,3,"{LAST}",{TRUNCATED}]',
    "xid below zero": f'[1,2,-3,"{LAST}",{TRUNCATED}]',
    "xid missing": f'[1,2,null,"{LAST}",{TRUNCATED}]',
    "before the epoch": f'[1,2,3,"1969-12-31T23:59:59+00:00",{TRUNCATED}]',
    "never": f'[1,2,3,"infinity",{TRUNCATED}]',
    "time as a number": f"[1,2,3,4,{TRUNCATED}]",
    "time missing": f"[1,2,3,null,{TRUNCATED}]",
    "a barrier": "barrier 7",
    "a ping": "ping 7",
    "cut short": f'[1,2,3,"{LAST}",{TRUNCATED}',
    "two payloads": f'[1,2,3,"{LAST}",{TRUNCATED}]' * 2,
    "key of a factory is no number": f'[1,2,3,"{LAST}",["factory","I",{FACTORY.replace("17", "true")}]]',
}


@pytest.mark.parametrize("payload", BAD_PAYLOADS.values(), ids=BAD_PAYLOADS.keys())
def test_a_payload_is_malformed(payload: str) -> None:
    with pytest.raises(MalformedEvent):
        decode_payload(payload)


HEADS = st.lists(st.just(VERSION) | st.integers() | st.just(LAST) | JSON, min_size=3, max_size=5)
PAYLOADS = (
    st.text()
    | JSON.map(json.dumps)
    | st.tuples(HEADS, BODIES.filter(lambda body: isinstance(body, str))).map(
        lambda found: f"{json.dumps(found[0])[:-1]},{found[1]!s}]"
    )
    | BODIES.filter(lambda body: isinstance(body, str)).map(lambda body: f'[1,2,3,"{LAST}",{body!s}]')
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
