"""Dashboards of users: merged in place with their own panels as they were, or refused in one line and left alone."""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import strategies as st
from tests.fuzz.mutation import mutated
from tests.fuzz.target import Check, Target

from mfg_notify.dashboards import files, shipped
from mfg_notify.dashboards.merge import ROW, VARIABLES, Outcome
from mfg_notify.errors import UsageError

Json = dict[str, Any]

_OURS: Json = json.loads(shipped.read_dashboard("market-dynamics.json"))
_TITLES = [panel["title"] for panel in _OURS["panels"] if panel["type"] != "row"]

_WORDS = st.sampled_from([ROW, *_TITLES[:3], "row", "prometheus", "${DS}", "$source", "market_job", "x", "\ud800"])
_SCALARS = (
    st.sampled_from([None, math.nan, math.inf])
    | st.booleans()
    | st.integers(-5, 5)
    | st.integers()
    | st.floats()
    | _WORDS
    | st.text(max_size=4)
)
_KEYS = st.sampled_from(
    [
        *("panels", "title", "type", "collapsed", "gridPos", "id", "y", "h", "templating", "list", "name", "targets"),
        *("datasource", "uid", "dashboard", "spec", "apiVersion", "rows", "elements", "__inputs", "pluginId", "query"),
    ]
)
_ANY = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_KEYS | st.text(max_size=3), inner, max_size=5),
    max_leaves=15,
)


def _mostly(usual: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Return values of the usual kind, and one in eight of any kind."""
    return st.integers(0, 7).flatmap(lambda n: _ANY if n == 7 else usual)


_PLACES = _mostly(
    st.fixed_dictionaries({"x": st.integers(0, 23), "y": st.integers(0, 60), "w": st.just(6), "h": st.integers(1, 9)})
)
_SOURCES = st.sampled_from(
    [None, "Prometheus", "$source", {"type": "prometheus", "uid": "p"}, {"type": "loki", "uid": "l"}, {"uid": "${DS}"}]
)
_PANELS = st.fixed_dictionaries(
    {"title": _mostly(_WORDS), "type": st.sampled_from(["timeseries", "row", "stat"])},
    optional={
        "id": _mostly(st.integers(1, 300)),
        "gridPos": _PLACES,
        "datasource": _mostly(_SOURCES),
        "targets": _mostly(st.lists(_mostly(st.fixed_dictionaries({"datasource": _SOURCES})), max_size=3)),
    },
)
_ROWS = st.fixed_dictionaries(
    {"title": st.sampled_from([ROW, ROW, "Market"]), "type": st.just("row")},
    optional={
        "collapsed": _mostly(st.booleans()),
        "panels": _mostly(st.lists(_PANELS, max_size=4)),
        "gridPos": _PLACES,
        "id": st.integers(1, 300),
    },
)
_VARIABLES = st.fixed_dictionaries({"name": _WORDS}, optional={"type": st.just("datasource"), "query": _WORDS})
_DASHBOARDS = st.fixed_dictionaries(
    {"title": st.text(max_size=5), "panels": _mostly(st.lists(_mostly(_PANELS | _ROWS), max_size=9))},
    optional={
        "templating": _mostly(st.fixed_dictionaries({"list": _mostly(st.lists(_mostly(_VARIABLES), max_size=3))})),
        "__inputs": _mostly(st.lists(st.just({"name": "DS", "pluginId": "prometheus"}), max_size=1)),
        "version": _SCALARS,
    },
)
_DOCUMENTS = st.one_of(
    _DASHBOARDS,
    _DASHBOARDS,
    _DASHBOARDS.map(lambda inner: {"meta": {}, "dashboard": inner}),
    _DASHBOARDS.map(lambda inner: {"apiVersion": "dashboard.grafana.app/v1beta1", "spec": inner}),
    st.just(_OURS),
    _ANY,
)
_WRITERS: st.SearchStrategy[Callable[[Any], str]] = st.sampled_from(
    [
        json.dumps,
        partial(json.dumps, indent=2),
        partial(json.dumps, separators=(",", ":")),
        partial(json.dumps, indent="\t", ensure_ascii=False),
    ]
)
_TEXTS = st.tuples(_WRITERS, _DOCUMENTS).map(lambda drawn: drawn[0](drawn[1]))
_DEEP = st.sampled_from([300, 2000, 100_000]).map(lambda depth: f'{{"panels": {"[" * depth}{"]" * depth}}}')
_DEEP_PANELS = st.sampled_from([200, 2000]).map(
    lambda depth: '{"title": "x", "panels": [' + '{"panels": [' * depth + "]}" * depth + "]}"
)
_PIECES = st.sampled_from(
    ["{", "}", "[", "]", ",", ":", '"', "null", "NaN", "-Infinity", "1e400", "\\ud800", "é", "\ufeff", "9" * 5000]
)


def _check(folder: Path, text: str) -> None:
    file = folder / "dashboard.json"
    given = text.encode(errors="surrogatepass")
    file.write_bytes(given)
    refusal, outcome = "", Outcome.UNCHANGED
    try:
        outcome = files.merge_file(file)
    except UsageError as error:
        refusal = str(error)
    merged = file.read_bytes()
    assert list(folder.iterdir()) == [file]
    if refusal:
        assert refusal.startswith(str(file))
        assert "\n" not in refusal
        assert merged == given
        return
    if outcome is Outcome.UNCHANGED:
        assert merged == given
    before = _inner(json.loads(given.decode("utf-8-sig")))
    # Grafana reads neither NaN nor Infinity.
    after = _inner(json.loads(merged.decode("utf-8-sig"), parse_constant=_refuse))
    assert _others(after) == _others(before)
    assert _own_panels(after) == _own_panels(before)
    assert [panel for panel in after["panels"] if panel.get("title") == ROW and panel.get("type") == "row"]
    assert files.merge_file(file) is Outcome.UNCHANGED
    assert file.read_bytes() == merged


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def _inner(document: Json) -> Json:
    """Return the dashboard inside its wrappers."""
    for name in ("dashboard", "spec"):
        if isinstance(document.get(name), dict):
            document = document[name]
    return document


def _others(dashboard: Json) -> Json:
    """Return everything but the panels and our variables."""
    others = {name: value for name, value in dashboard.items() if name not in ("panels", "templating")}
    variables = (dashboard.get("templating") or {}).get("list") or []
    return others | {"variables": [each for each in variables if each.get("name") not in _OUR_VARIABLES]}


_OUR_VARIABLES = (*VARIABLES, "datasource")


def _own_panels(dashboard: Json) -> list[str]:
    """Return the user's panels in their order, without the height at which they are; ours have our titles."""
    found = []
    for panel in shipped.every_panel(dashboard.get("panels") or []):
        if panel.get("title") not in (ROW, *_TITLES):
            place = panel.get("gridPos")
            if isinstance(place, dict):
                place = {name: value for name, value in place.items() if name != "y"}
            inside = panel.get("panels")
            rest = {name: value for name, value in panel.items() if name not in ("gridPos", "panels")}
            found.append(json.dumps([rest, place, len(inside) if isinstance(inside, list) else inside]))
    return found


@contextmanager
def _open() -> Iterator[Check]:
    with TemporaryDirectory() as folder:
        yield partial(_check, Path(folder))


TARGET = Target(
    "dashboards",
    _TEXTS | mutated(_TEXTS, _PIECES) | _DEEP | _DEEP_PANELS | st.text(max_size=20),
    _open,
    short=150,
    slice=1500,
)
