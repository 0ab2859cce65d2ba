"""The merge: what happens to dashboards that others made, and that nothing else of them changes."""

import json
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest

from mfg_notify.dashboards import shipped
from mfg_notify.dashboards.merge import Outcome, merge
from mfg_notify.errors import UsageError

Json = dict[str, Any]

ROW = "Manufacturing Overview"
TITLES = ["Active Manufacturing", "Supply Level Transitions", "Manufacturing Profit Rate", "HIGH Supply Markets"]
PROMETHEUS = {"type": "prometheus", "uid": "prometheus"}


def ours() -> Json:
    document: Json = json.loads(shipped.read_dashboard("market-dynamics.json"))
    return document


def panel(number: int, title: str, y: int, *, x: int = 0, w: int = 12, h: int = 8, **more: object) -> Json:
    return {
        "id": number,
        "type": "timeseries",
        "title": title,
        "datasource": {"type": "prometheus", "uid": "prometheus"},
        "gridPos": {"h": h, "w": w, "x": x, "y": y},
        "targets": [{"expr": "up", "refId": "A"}],
        **more,
    }


def row(number: int, title: str, y: int, *inside: Json, collapsed: bool = False) -> Json:
    place = {"h": 1, "w": 24, "x": 0, "y": y}
    return {
        "id": number, "type": "row", "title": title, "collapsed": collapsed, "gridPos": place, "panels": list(inside),
    }  # fmt: skip


def the_games_own() -> Json:
    """Rows that are open, a bottom of 45, the ids of the specification's patterns."""
    rows = ["Market Coverage", "Price Dynamics", "Supply & Demand", "Scanner Performance", "Trading Opportunities"]
    panels = [
        each
        for number, title in enumerate(rows)
        for each in (row(100 + number, title, 9 * number), panel(number + 1, f"About {title}", 9 * number + 1, w=24))
    ]
    return {"uid": "market-dynamics", "title": "Market Dynamics", "schemaVersion": 38, "version": 7, "panels": panels}


def collapsed() -> Json:
    """Rows that are collapsed, one of them with the highest id inside."""
    return {
        "title": "Folded",
        "panels": [
            panel(4, "Above", 0, w=24, h=6),
            row(5, "First", 6, panel(900, "Hidden", 7), collapsed=True),
            row(6, "Second", 7, panel(8, "Hidden too", 8), collapsed=True),
        ],
        "templating": {"list": [{"name": "player_id", "type": "textbox", "current": {"value": "3"}}]},
    }


def an_export() -> Json:
    """Return an export for others: the datasource is an input, panels have no ids."""
    source = {"type": "prometheus", "uid": "${DS_PROM}"}
    return {
        "__inputs": [{"name": "DS_PROM", "type": "datasource", "pluginId": "prometheus", "label": "Prom"}],
        "id": None,
        "title": "Shared",
        "panels": [{"type": "stat", "title": "Up", "datasource": source, "gridPos": {"h": 3, "w": 24, "x": 0, "y": 0}}],
        "templating": {"list": []},
    }


def by_a_variable() -> Json:
    """Which datasource is a variable, named in the old form; and there is a panel of logs."""
    return {
        "title": "Chosen",
        "panels": [
            panel(1, "A", 0, datasource="$source", targets=[{"expr": "up", "datasource": "$source"}]),
            panel(2, "B", 0, x=12, datasource={"type": "loki", "uid": "loki"}, targets=[{"expr": "{a='b'}"}] * 9),
        ],
        "templating": {"list": [{"name": "source", "type": "datasource", "query": "prometheus"}]},
    }


def wrapped() -> Json:
    """As Grafana's HTTP interface gives it."""
    return {"meta": {"slug": "x"}, "dashboard": the_games_own()}


def resource() -> Json:
    """As a resource of Grafana's newer interface, with the classic model inside."""
    return {"apiVersion": "dashboard.grafana.app/v1beta1", "kind": "Dashboard", "metadata": {}, "spec": collapsed()}


def empty() -> Json:
    """Made a moment ago, with null where others leave a key out."""
    return {"title": "New", "panels": [], "templating": {"list": None}}


FOREIGN = pytest.mark.parametrize(
    "foreign",
    [the_games_own, collapsed, an_export, by_a_variable, wrapped, resource, empty],
    ids=lambda it: it.__name__,
)
Make = Callable[[], Json]


def inner(document: Json) -> Json:
    """Return the dashboard itself."""
    found: Json = document.get("dashboard") or document.get("spec") or document
    return found


def added(document: Json) -> list[Json]:
    """Return the row of ours and its panels, found by their titles."""
    return [each for each in inner(document)["panels"] if each["title"] in {ROW, *TITLES}]


def merged(document: Json) -> Outcome:
    return merge(document, ours())


# ----------------------------------------------------------------------------------------- the first time --


@FOREIGN
def test_the_row_comes_after_all_that_is_there_and_nothing_else_changes(foreign: Make) -> None:
    document = foreign()
    assert merged(document) is Outcome.APPENDED
    new = added(document)
    assert [each["title"] for each in new] == [ROW, *TITLES]
    bottom = max((each["gridPos"]["y"] + each["gridPos"]["h"] for each in inner(foreign())["panels"]), default=0)
    assert [(each["gridPos"]["x"], each["gridPos"]["y"], each["gridPos"]["w"]) for each in new] == [
        (0, bottom, 24), (0, bottom + 1, 4), (4, bottom + 1, 10), (14, bottom + 1, 4), (18, bottom + 1, 6),
    ]  # fmt: skip
    assert inner(document)["panels"][-5:] == new
    dashboard, before = inner(document), inner(foreign())
    names = {"market_job", "manufacturing_job", "player_id"}
    there = before.get("templating", {}).get("list") or []
    assert dashboard["templating"]["list"][: len(there)] == there
    fresh = [each["name"] for each in dashboard["templating"]["list"][len(there) :]]
    assert sorted(fresh) == sorted(names - {each["name"] for each in there})
    del dashboard["panels"][-5:]
    dashboard.pop("templating")
    before.pop("templating", None)
    assert dashboard == before


@FOREIGN
def test_the_second_time_changes_nothing(foreign: Make) -> None:
    document = foreign()
    merged(document)
    once = deepcopy(document)
    assert merged(document) is Outcome.UNCHANGED
    assert document == once


@FOREIGN
def test_ids_are_free_ones(foreign: Make) -> None:
    document = foreign()
    merged(document)
    ids = [each["id"] for each in shipped.every_panel(inner(document)["panels"]) if "id" in each]
    assert len(set(ids)) == len(ids)


def test_on_the_games_own_dashboard_the_row_is_where_the_specification_has_it() -> None:
    document = the_games_own()
    merged(document)
    assert added(document)[0]["gridPos"]["y"] == 45
    assert [each["id"] for each in added(document)] == [105, 106, 107, 108, 109]


def test_our_own_market_dashboard_has_the_row_already() -> None:
    document = ours()
    assert merged(document) is Outcome.UNCHANGED


@pytest.mark.parametrize(
    ("foreign", "expected"),
    [
        (the_games_own, PROMETHEUS),
        (an_export, {"type": "prometheus", "uid": "${DS_PROM}"}),
        (by_a_variable, "$source"),
        (empty, PROMETHEUS),
        (lambda: {"title": "x", "panels": [panel(1, "A", 0, datasource="Prometheus", targets=[])]}, "Prometheus"),
        (lambda: {"title": "x", "panels": [panel(1, "A", 0, datasource=None, targets=[])]}, PROMETHEUS),
        (lambda: {"title": "x", "panels": [panel(1, "A", 0, datasource={"type": "mysql", "uid": "m"})]}, PROMETHEUS),
        (
            lambda: {
                "title": "x",
                "panels": [
                    panel(1, "A", 0, datasource={"uid": "-- Mixed --"}, targets=[
                        {"datasource": {"type": "mysql", "uid": "m"}},
                        {"datasource": {"type": "prometheus", "uid": "p"}},
                    ])
                ],
            },
            {"type": "prometheus", "uid": "p"},
        ),
    ],
    ids=["its own", "input", "variable", "none", "name", "default", "another kind", "mixed"],
)  # fmt: skip
def test_the_row_asks_the_prometheus_that_the_dashboard_asks(foreign: Make, expected: object) -> None:
    document = foreign()
    merged(document)
    _, *panels = added(document)
    assert all(each["datasource"] == expected for each in panels)
    assert all(target["datasource"] == expected for each in panels for target in each["targets"])
    mine = [each for each in document["templating"]["list"] if each["name"] in {"market_job", "manufacturing_job"}]
    assert [each["datasource"] for each in mine] == [expected, expected]


# ------------------------------------------------------------------------------------- an older row of ours --


def with_an_older_row(*, folded: bool = False, rows_below: bool = False) -> Json:
    """Return a dashboard with an old row of ours, which its owner has rearranged and added a panel to."""
    document = the_games_own()
    old = [
        panel(31, TITLES[3], 46, x=0, w=6),
        panel(32, TITLES[0], 46, x=6, w=6),
        panel(33, TITLES[1], 46, x=12, w=6),
        panel(34, TITLES[2], 46, x=18, w=6),
        panel(35, "The owner's own", 54, w=24, h=4),
    ]
    if folded:
        document["panels"].append(row(30, ROW, 45, *old, collapsed=True))
    else:
        document["panels"] += [row(30, ROW, 45), *old]
    if rows_below:
        below = 46 if folded else 58
        document["panels"] += [row(40, "Below", below), panel(41, "Far below", below + 1)]
    return document


@pytest.mark.parametrize("rows_below", [False, True])
@pytest.mark.parametrize("folded", [False, True])
def test_an_older_row_is_refreshed_where_it_is(*, folded: bool, rows_below: bool) -> None:
    document, before = (with_an_older_row(folded=folded, rows_below=rows_below) for _ in range(2))
    assert merged(document) is Outcome.REFRESHED
    old, new = (list(shipped.every_panel(each["panels"])) for each in (before, document))
    assert [(each["id"], each["title"], each["gridPos"]) for each in new] == [
        (each["id"], each["title"], each["gridPos"]) for each in old
    ]
    fresh = {each["title"]: each for each in ours()["panels"]}
    for each, was in zip(new, old, strict=True):
        if each["title"] in TITLES:
            assert each == fresh[each["title"]] | {"id": was["id"], "gridPos": was["gridPos"]}
        elif each["title"] != ROW:
            assert each == was
    assert merged(document) is Outcome.UNCHANGED


@pytest.mark.parametrize("folded", [False, True])
def test_a_panel_that_is_missing_from_the_row_comes_below_the_others(*, folded: bool) -> None:
    document = with_an_older_row(folded=folded, rows_below=True)
    inside = document["panels"][-3]["panels"] if folded else document["panels"]
    inside.remove(next(each for each in inside if each["title"] == TITLES[2]))
    assert merged(document) is Outcome.REFRESHED
    everything = list(shipped.every_panel(document["panels"]))
    [late] = [each for each in everything if each["title"] == TITLES[2]]
    assert late["gridPos"] == {"h": 8, "w": 4, "x": 14, "y": 58}
    assert late["id"] == 105
    assert late in (document["panels"][-3]["panels"] if folded else document["panels"])
    # What is below an open row makes room; a collapsed row takes no more than it did.
    below = {each["title"]: each["gridPos"]["y"] for each in everything if "elow" in each["title"]}
    assert below == ({"Below": 46, "Far below": 47} if folded else {"Below": 66, "Far below": 67})
    if not folded:
        assert document["panels"].index(late) + 1 == [each["title"] for each in document["panels"]].index("Below")
    assert merged(document) is Outcome.UNCHANGED


def test_a_row_without_any_of_its_panels_gets_them_all() -> None:
    document = the_games_own()
    document["panels"].append(row(30, ROW, 45))
    assert merged(document) is Outcome.REFRESHED
    assert [(each["title"], each["gridPos"]["y"]) for each in added(document)] == [
        (ROW, 45), *((title, 46) for title in TITLES),
    ]  # fmt: skip


def test_an_older_panel_without_an_id_gets_a_free_one() -> None:
    document = with_an_older_row()
    del next(each for each in document["panels"] if each["title"] == TITLES[0])["id"]
    merged(document)
    assert [each["id"] for each in added(document)] == [30, 31, 105, 33, 34]


def test_the_datasource_is_not_that_of_our_own_older_panels() -> None:
    document = with_an_older_row()
    theirs = [each for each in document["panels"] if each["title"].startswith("About")]
    for each, uid in zip(theirs, ["other", "other", "other", "loki", "loki"], strict=True):
        each["datasource"] = {"type": "loki" if uid == "loki" else "prometheus", "uid": uid}
    merged(document)
    assert {each["datasource"]["uid"] for each in added(document)[1:]} == {"other"}


def test_panels_of_the_same_title_elsewhere_are_not_ours() -> None:
    document = the_games_own()
    document["panels"][1]["title"] = TITLES[0]
    before = deepcopy(document["panels"][1])
    assert merged(document) is Outcome.APPENDED
    assert document["panels"][1] == before


# ----------------------------------------------------------------------------------------- what is refused --


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"apiVersion": "dashboard.grafana.app/v2beta1", "kind": "Dashboard", "spec": {"title": "x"}}, "new schema"),
        ({"elements": {}, "layout": {}, "title": "x"}, "new schema"),
        ({"spec": {"elements": {}, "layout": {}, "title": "x"}}, "new schema"),
        ({"title": "x", "rows": [{"panels": []}]}, "older than 5"),
        ({"title": "x", "panels": {"1": {}}}, "no list of panels"),
        ({"title": "x", "panels": [1]}, "no list of panels"),
        ({"compilerOptions": {}}, "no list of panels"),
    ],
)
def test_what_is_no_classic_dashboard_is_refused_and_left_alone(document: Json, words: str) -> None:
    before = deepcopy(document)
    with pytest.raises(UsageError, match=words):
        merged(document)
    assert document == before
