"""Journal rows and payloads: what anyone may have written who knows the channel, or a trigger of another version.

Each is an event or malformed and nothing else. What is an event can be counted, stored, shown and printed.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import msgspec
from hypothesis import strategies as st
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text
from tests.fuzz.mutation import mutated
from tests.fuzz.target import Check, Target
from tests.samples import gains_only

from mfg_notify.core.board import build_game, describe_change
from mfg_notify.core.capped_totals import CappedTotals, limited
from mfg_notify.core.counters import Arrival, Settlement, settle
from mfg_notify.core.events import Event, decode_change, decode_payload
from mfg_notify.core.ledger import Fold, Ledger, Snapshot, Totals
from mfg_notify.core.live_state import LiveRows, RecentActivity
from mfg_notify.core.tuning import Tuning
from mfg_notify.core.visibility import Visibility
from mfg_notify.diagnosis.tail.output import format_json, format_line
from mfg_notify.errors import MalformedEvent
from mfg_notify.exposition import OPENMETRICS, TEXT, Page
from mfg_notify.postgres import journal

_READ_TEXT: Callable[[str], Iterable[Family]] = read_text
_READ_OPENMETRICS: Callable[[str], Iterable[Family]] = read_openmetrics
NOW = 1_700_000_000
"""Epoch seconds of the ledger's clock."""
BIGINT = range(-(2**63), 2**63)

# Few words, so that events concern the same rows and labels.
_WORDS = st.sampled_from(["P-1", "IRON", "PLANNING", "EXECUTING", "COMPLETED", "ASSIGNED", "READY", "HIGH"]).map(
    json.dumps
)
_NULL = st.just("null")
_CREDITS = st.one_of(
    st.integers(0, 3), st.integers(BIGINT.start, BIGINT.stop - 1), st.sampled_from([BIGINT.start, BIGINT.stop - 1])
).map(str)
_ODD_NUMBERS = st.integers().map(str) | st.sampled_from(
    ["1.5", "-2.50", "1e3", "9.3e18", "1E-400", "1e400", "1e99999999", "-0.0", str(2**63), str(-(2**63) - 1)]
)
_TIMES = st.one_of(
    st.datetimes(timezones=st.timezones()).map(lambda time: json.dumps(time.isoformat())),
    st.sampled_from(
        ['"9999-12-31T23:59:59.999999+00:00"', '"9999-12-31T23:59:59.999999-15:59"', '"1970-01-01T00:00:00+00:00"']
    ),
)
_ODD_TIMES = st.sampled_from(
    [
        *('"infinity"', '"-infinity"', '"0001-01-01T00:00:00+00:00"', '"294276-12-31T23:59:59+00:00"'),
        *('"0044-03-15T12:00:00+00:00 BC"', '"2023-11-14T22:13:20-15:59:59"', '"2023-11-14T22:13:20"', '"2023-11-14"'),
    ]
)


def _array(*parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.tuples(*parts).map(lambda texts: f"[{','.join(texts)}]")


def _bodies(
    text: st.SearchStrategy[str], number: st.SearchStrategy[str], time: st.SearchStrategy[str]
) -> st.SearchStrategy[str]:
    """Return bodies of all tables with these columns as JSON. A null among them may be where none is allowed."""
    operations = st.sampled_from(['"I"', '"U"', '"U"', '"D"', '"R"'])
    maybe_text, maybe_number, maybe_time = text | _NULL, number | _NULL, time | _NULL
    flags, counts = st.sampled_from(["true", "false", "null"]), st.integers(0, 9).map(str)
    inputs = _array(counts, counts) | _NULL
    numbers = _array(*3 * [maybe_number], number, *3 * [maybe_number])
    groups = {
        "pipeline": (_array(maybe_text, text, text, text), numbers, _array(*2 * [maybe_time])),
        "task": (_array(maybe_text, maybe_text, text, text, text, maybe_text), numbers, _array(*3 * [maybe_time])),
        "factory": (
            *(_array(maybe_text, text, text, maybe_text, maybe_text), _array(number, number), _array(flags, flags)),
            *(flags, inputs, inputs),
        ),
    }
    changes = [_array(st.just(f'"{table}"'), operations, *columns) for table, columns in groups.items()]
    return st.one_of(*changes, st.sampled_from(sorted(groups)).map(lambda table: f'["{table}","T"]'))


_VALID = _bodies(_WORDS, _CREDITS, _TIMES)
_UNUSUAL = _bodies(
    _WORDS | (st.text(max_size=8) | st.just("\0")).map(json.dumps), _CREDITS | _ODD_NUMBERS, _TIMES | _ODD_TIMES
)
_PIECES = st.sampled_from(["[", "]", "null", ",", '"', "\\", "\\u0000", "\\ud800", "1e9", "-", "{}", "true", "\x00"])
_PIECES |= st.text(max_size=3)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
).map(json.dumps)
_DEEP = st.sampled_from(["[", '["task","I",', '["task","T",', '{"a":']).map(lambda bracket: bracket * 5000)


@dataclass(frozen=True)
class Written:
    """What was written about one event. `whole` replaces the payload that is made of the others."""

    xid: int
    time: str
    body: str
    whole: str | None

    def payload(self, number: int) -> str:
        """Return it as it is notified."""
        return f"[1,{number},{self.xid},{self.time},{self.body}]" if self.whole is None else self.whole


_WRITTEN = st.builds(
    Written,
    st.integers(0, 2**63 - 1),
    _TIMES,
    _VALID | _VALID | _UNUSUAL | mutated(_VALID, _PIECES) | _JSON | st.text() | _DEEP,
    st.none() | st.none() | mutated(_VALID.map(lambda body: f'[1,7,8,"2023-11-14T22:13:20Z",{body}]'), _PIECES),
)
Input = tuple[int, list[Written], bytes]


def _decoded(written: Written, number: int) -> Event | None:
    try:
        event = decode_payload(written.payload(number))
    except MalformedEvent:
        return None
    assert "\0" not in "".join(_texts(event))
    # A fold decodes the same change from the journal's row.
    if written.whole is None:
        assert decode_change(written.body) == decode_change(written.body.encode()) == event.change
    return event


def _texts(event: Event) -> Iterator[str]:
    yield event.change.key
    for image in filter(None, (event.change.old, event.change.new)):
        yield from (value for value in msgspec.structs.astuple(image) if isinstance(value, str))


def _check_bytes(body: bytes | str) -> None:
    with suppress(MalformedEvent):
        decode_change(body)


def _new_ledger() -> Ledger:
    """Return a ledger that leads, is in step, and has read that there are no rows."""
    ledger = Ledger(lambda: float(NOW), 0, Tuning())
    ledger.lead()
    for generation in (1, 2, 3):
        number = _fold(ledger, generation, [])
        if generation == 1:
            ledger.resync(Totals(1, CappedTotals(), RecentActivity()))
        if generation == 2:
            ledger.begin_reconciliation()
            ledger.reconcile(Snapshot(LiveRows(), Visibility(next_xid=0, in_progress=frozenset())))
        ledger.receive_barrier(number)
    assert ledger.finish_reconciliation() == {}
    return ledger


def _fold(ledger: Ledger, generation: int, events: list[Event], *, drained: bool = True) -> int:
    number = ledger.begin_fold()
    outcome = ledger.settle(
        Fold(number, generation, events, settle(events), malformed=0, drained=drained, xid=0, xmin=0, last_id=0)
    )
    assert outcome.unconfirmed == 0
    return number


def _check(given: Input) -> None:
    first, messages, junk = given
    _check_bytes(junk)
    for written in messages:
        _check_bytes(written.body)
    # Ids rise, as those of one row do, and are in the payload itself if it was damaged.
    decoded = [_decoded(written, first + n) for n, written in enumerate(messages)]
    events = list({event.id: event for event in sorted(filter(None, decoded), key=lambda event: event.id)}.values())
    ledger = _new_ledger()
    for event in events:
        assert ledger.announce(event) is Arrival.COUNTED
        assert ledger.announce(event) is Arrival.DUPLICATE
    pages = _pages(ledger)
    _check_stored(settle(events))
    # Two folds settle exactly what was announced.
    half = len(events) // 2
    _fold(ledger, 4, events[:half], drained=False)
    _fold(ledger, 5, events[half:])
    assert _pages(ledger) == pages
    _check_shown(ledger, events)


def _pages(ledger: Ledger) -> tuple[str, str]:
    """Return the game's part of the page in both formats, which prometheus_client's own parsers read alike."""
    page = Page(ledger.view, ledger.now)
    text, openmetrics = page.render_game(TEXT).decode(), page.render_game(OPENMETRICS).decode()
    read = [
        sorted((sample.name, sorted(sample.labels.items()), sample.value) for family in families
               for sample in family.samples)
        for families in (_READ_TEXT(gains_only(text)), _READ_OPENMETRICS(gains_only(openmetrics) + "# EOF\n"))
    ]  # fmt: skip
    assert read[0] == read[1]
    return text, openmetrics


def _check_stored(settlement: Settlement) -> None:
    """Assert that the columns of the tables can hold what a fold writes."""
    for key, n in settlement.increments.items():
        assert limited(n) in BIGINT
        assert "\0" not in "".join(key[1])
        assert journal._from_json(key[0], journal._to_json(key)) == key
    for done in settlement.completions.values():
        assert done.completed_at in BIGINT
        assert limited(done.profit or 0) in BIGINT
    for (_, player_id, _), at in settlement.last_seen.items():
        assert player_id in BIGINT
        assert at in BIGINT


def _check_shown(ledger: Ledger, events: list[Event]) -> None:
    view = ledger.view()
    assert view is not None
    msgspec.json.encode(build_game(view, ledger.now()))
    assert len(msgspec.json.encode([describe_change(event) for event in ledger.last_changes()])) < 50 * 8192
    for event in events:
        line = format_json(event)
        assert "\n" not in line
        assert json.loads(line)["id"] == event.id
        assert format_line(event).plain.isprintable()


@contextmanager
def _open() -> Iterator[Check]:
    yield _check


TARGET = Target(
    "events",
    st.tuples(
        st.integers(0, 2**62), st.lists(_WRITTEN, min_size=1, max_size=8), st.binary(max_size=40)
    ),
    _open,
    short=200,
    slice=600,
)  # fmt: skip
