"""Checks the shipped dashboards against the specification, the catalogue, the builders and our own conventions.

The tables of panels were copied from the specification by hand.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from mfg_notify.core.catalogue import CATALOGUE, EXPORTER_METRICS, SELF_PREFIX, Kind
from mfg_notify.dashboards import selectors, shipped
from mfg_notify.dashboards.document import documents
from mfg_notify.postgres.installation import TRIGGERS

Json = dict[str, Any]

FOLDER = Path(__file__).parents[2] / "grafana" / "dashboards"
DOCUMENTS: dict[str, Json] = {name: json.loads(shipped.read_dashboard(name)) for name in shipped.NAMES}
MANUFACTURING, MARKET = (DOCUMENTS[name] for name in shipped.NAMES)

SPECIFIED = [
    (MANUFACTURING, "Pipeline Overview", 0, [
        ("Active Pipelines", "stat", 0, 4),
        ("Pipeline Completion Rate", "gauge", 4, 4),
        ("Avg Pipeline Duration", "stat", 8, 4),
        ("Pipeline Status Over Time", "timeseries", 12, 12),
    ]),
    (MANUFACTURING, "Task Execution", 9, [
        ("Task Queue Depth", "bargauge", 0, 8),
        ("Task Completion Rate", "timeseries", 8, 8),
        ("Task Duration Percentiles", "timeseries", 16, 8),
    ]),
    (MANUFACTURING, "Factory Supply Monitoring", 18, [
        ("Factory Supply Status", "table", 0, 12),
        ("Supply Level Distribution", "piechart", 12, 6),
        ("Ready for Collection", "stat", 18, 6),
    ]),
    (MANUFACTURING, "Ship Utilization", 27, [
        ("Ship Utilization", "gauge", 0, 6),
        ("Ships by Assignment", "piechart", 6, 6),
        ("Task Time Distribution", "timeseries", 12, 12),
    ]),
    (MANUFACTURING, "Economics", 36, [
        ("Profit Rate", "stat", 0, 6),
        ("Revenue vs Costs", "timeseries", 6, 10),
        ("Profit Margin by Product", "table", 16, 8),
    ]),
    (MARKET, "Manufacturing Overview", 48, [
        ("Active Manufacturing", "stat", 0, 4),
        ("Supply Level Transitions", "timeseries", 4, 10),
        ("Manufacturing Profit Rate", "stat", 14, 4),
        ("HIGH Supply Markets", "timeseries", 18, 6),
    ]),
]  # fmt: skip

DECLARED: dict[str, tuple[Kind, set[str]]] = {
    **{metric.full_name: (metric.kind, set(metric.labels)) for metric in (*CATALOGUE, *selectors.DAEMON_METRICS)},
    **{SELF_PREFIX + metric.name: (metric.kind, set(metric.labels)) for metric in EXPORTER_METRICS},
    "process_start_time_seconds": (Kind.GAUGE, set()),
    "up": (Kind.GAUGE, set()),
}
SAMPLES: dict[str, tuple[Kind, set[str]]] = {}
for full_name, (kind, labels) in DECLARED.items():
    if kind is Kind.HISTOGRAM:
        SAMPLES |= {f"{full_name}_{part}": (kind, labels) for part in ("sum", "count")}
        SAMPLES[f"{full_name}_bucket"] = (kind, labels | {"le"})
    else:
        SAMPLES[full_name] = (kind, labels)

SELECTOR = re.compile(r"(?P<name>[a-z_]+)\{(?P<matchers>[^}]*)\}")
MATCHER = re.compile(r'(\w+)(?:=~|!~|!=|=)"')

EACH = pytest.mark.parametrize("document", DOCUMENTS.values(), ids=DOCUMENTS)
QUERIES = list(shipped.shipped_queries())
EACH_QUERY = pytest.mark.parametrize("query", QUERIES, ids=lambda query: f"{query.dashboard}: {query.place}")
PANELS = [
    pytest.param(panel, id=f"{name}: {panel['title']}")
    for name, document in DOCUMENTS.items()
    for panel in shipped.every_panel(document["panels"])
    if panel["type"] != "row"
]
EACH_PANEL = pytest.mark.parametrize("panel", PANELS)


def texts(tree: object) -> Iterator[str]:
    """Yield every string in parsed JSON."""
    if isinstance(tree, dict):
        for value in tree.values():
            yield from texts(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from texts(value)
    elif isinstance(tree, str):
        yield tree


# ------------------------------------------------------------------------------------- the specification --


@pytest.mark.parametrize(("document", "title", "y", "panels"), [pytest.param(*row, id=row[1]) for row in SPECIFIED])
def test_a_row_of_the_specification(
    document: Json, title: str, y: int, panels: list[tuple[str, str, int, int]]
) -> None:
    [start] = [
        number for number, panel in enumerate(document["panels"]) if (panel["type"], panel["title"]) == ("row", title)
    ]
    row, *inside = document["panels"][start : start + 1 + len(panels)]
    assert row["gridPos"] == {"h": 1, "w": 24, "x": 0, "y": y}
    assert row["collapsed"] is False
    places = [(panel["title"], panel["type"], panel["gridPos"]) for panel in inside]
    assert places == [(name, kind, {"h": 8, "w": w, "x": x, "y": y + 1}) for name, kind, x, w in panels]


def test_the_specification_has_16_panels_and_4_more() -> None:
    assert [sum(len(row[3]) for row in SPECIFIED if row[0] is document) for document in (MANUFACTURING, MARKET)] == [
        16,
        4,
    ]


def test_the_metadata_of_the_specification() -> None:
    assert MANUFACTURING["title"] == "SpaceTraders - Manufacturing Pipeline"
    assert MANUFACTURING["uid"] == "manufacturing-pipeline"
    assert MANUFACTURING["tags"] == ["spacetraders", "manufacturing", "production"]
    assert MANUFACTURING["time"] == {"from": "now-6h", "to": "now"}
    assert MANUFACTURING["refresh"] == "30s"
    assert MARKET["uid"] == "market-dynamics"


def test_the_overview_is_the_last_row_of_the_market_dashboard() -> None:
    rows = [panel["title"] for panel in MARKET["panels"] if panel["type"] == "row"]
    assert rows[-2:] == ["Trading Opportunities", "Manufacturing Overview"]


def test_every_metric_of_the_specification_is_shown_somewhere() -> None:
    queried = {re.sub(r"_(bucket|sum|count)$", "", name) for query in QUERIES for name in SAMPLES if name in query.expr}
    # This percentage cannot be summed over players, so the panel divides the two numbers behind it instead.
    missing = {metric.full_name for metric in CATALOGUE} - queried
    assert missing == {"spacetraders_daemon_manufacturing_ship_utilization_percent"}


# --------------------------------------------------------------------------------------------- the files --


def test_the_files_are_what_the_builders_make() -> None:
    assert {file.name: file.read_text(encoding="utf-8") for file in FOLDER.iterdir()} == documents()


@EACH
def test_the_model_of_the_sdk_knows_every_key(document: Json) -> None:
    again = json.loads(json.dumps(Dashboard.from_json(document), cls=JSONEncoder))
    assert list(lost(document, again)) == []


def lost(before: object, after: object, path: str = "") -> Iterator[str]:
    """Yield the paths whose values differ or are missing in the second document."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key, value in before.items():
            if key in after:
                yield from lost(value, after[key], f"{path}/{key}")
            else:
                yield f"{path}/{key}"
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for number, (old, new) in enumerate(zip(before, after, strict=True)):
            yield from lost(old, new, f"{path}/{number}")
    elif before != after:
        yield path


def test_lost_keys_are_found() -> None:
    assert list(lost({"a": [{"b": 1, "c": 2}]}, {"a": [{"b": 1}]})) == ["/a/0/c"]
    assert list(lost({"a": [1]}, {"a": []})) == ["/a"]


@EACH
def test_ids_are_unique(document: Json) -> None:
    ids = [panel["id"] for panel in shipped.every_panel(document["panels"])]
    assert sorted(ids) == list(range(1, len(ids) + 1))


@EACH
def test_panels_neither_overlap_nor_leave_gaps(document: Json) -> None:
    for panels in (document["panels"], *(panel["panels"] for panel in document["panels"] if panel.get("panels"))):
        places = [panel["gridPos"] for panel in panels]
        for one, other in combinations(places, 2):
            apart = (
                one["x"] + one["w"] <= other["x"]
                or other["x"] + other["w"] <= one["x"]
                or one["y"] + one["h"] <= other["y"]
                or other["y"] + other["h"] <= one["y"]
            )
            assert apart, (one, other)
        assert all(place["x"] + place["w"] <= 24 for place in places)
        assert sum(place["w"] * place["h"] for place in places) == 24 * (
            max(place["y"] + place["h"] for place in places) - min(place["y"] for place in places)
        )
    tops = [panel["gridPos"]["y"] for panel in document["panels"]]
    assert all(one <= other for one, other in pairwise(tops))


def test_only_the_exporters_health_is_collapsed() -> None:
    rows = [panel for document in DOCUMENTS.values() for panel in document["panels"] if panel["type"] == "row"]
    assert [row["title"] for row in rows if row["collapsed"]] == ["Exporter Health"]
    assert all(bool(row["panels"]) is row["collapsed"] for row in rows)


# --------------------------------------------------------------------------------------- the conventions --


@EACH
def test_a_dashboard_is_complete(document: Json) -> None:
    assert document["description"].endswith(shipped.MARK)
    assert document["graphTooltip"] == 1, "panels share the crosshair"
    [link] = document["links"]
    assert link["keepTime"]
    assert "player_id:queryparam" in link["url"]
    other = MARKET if document is MANUFACTURING else MANUFACTURING
    assert link["url"].startswith(f"/d/{other['uid']}?")
    assert {each["name"] for each in document["annotations"]["list"]} == (
        {"Exporter restarted", "Events lost"} if document is MANUFACTURING else {"Daemon restarted"}
    )


@EACH
def test_every_datasource_is_that_of_the_variable(document: Json) -> None:
    found = Counter(json.dumps(each, sort_keys=True) for each in datasources(document))
    assert list(found) == ['{"type": "prometheus", "uid": "${datasource}"}']
    first = document["templating"]["list"][0]
    assert (first["name"], first["type"], first["query"]) == ("datasource", "datasource", "prometheus")
    assert first["current"]["value"] == provisioned_uid()


def provisioned_source() -> Json:
    """Return the data source that compose.yaml provisions."""
    [source] = yaml.safe_load((FOLDER.parent / "provisioning" / "datasources" / "prometheus.yaml").read_text())[
        "datasources"
    ]
    return cast(Json, source)


def provisioned_uid() -> str:
    """Return its uid."""
    return str(provisioned_source()["uid"])


def test_an_exemplar_leads_to_its_row_on_the_board() -> None:
    links = {link["name"]: link["url"] for link in provisioned_source()["jsonData"]["exemplarTraceIdDestinations"]}
    labels = {metric.exemplar_label for metric in CATALOGUE if metric.kind is Kind.HISTOGRAM}
    base = "$MFG_NOTIFY_BOARD_URL/#"
    assert links == {label: f"{base}/{label.removesuffix('_id')}/$${{__value.raw}}" for label in labels}
    panels = (panel for document in DOCUMENTS.values() for panel in shipped.every_panel(document["panels"]))
    asked = [each["expr"] for panel in panels for each in panel.get("targets", []) if each.get("exemplar")]
    assert asked
    assert all("_bucket{" in expr for expr in asked)


def datasources(tree: object) -> Iterator[object]:
    """Yield every datasource in parsed JSON."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            if key == "datasource":
                yield value
            else:
                yield from datasources(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from datasources(value)


@EACH
def test_every_variable_is_defined_and_used(document: Json) -> None:
    defined = {variable["name"] for variable in document["templating"]["list"]}
    used = {name for text in texts(document) for name in re.findall(r"\$\{?(\w+)", text) if not name.startswith("__")}
    assert used == defined


@EACH
def test_the_variables(document: Json) -> None:
    for variable in document["templating"]["list"][1:]:
        assert variable["label"]
        assert "current" in variable
        assert variable["refresh"] == 2, "the values follow the time range"
        # A sum over two jobs would count the game twice, and one over two databases would add two games up.
        assert variable["multi"] is not variable["name"].endswith(("job", "database"))
        # Where there is All, it is the default.
        assert variable["includeAll"] is (variable["multi"] and variable["name"] != "player_id")
    [player] = [each for each in document["templating"]["list"] if each["name"] == "player_id"]
    assert (player["sort"], player["current"]) == (4, {}), "the highest id comes first and is selected"


@EACH_PANEL
def test_a_panel_explains_itself(panel: Json) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    assert len(panel["description"]) > 20
    assert panel["description"][-1] == "."
    assert len(defaults["noValue"]) > 10
    assert defaults["unit"]
    assert panel["targets"]


@EACH_PANEL
def test_a_single_number_has_thresholds_or_mappings(panel: Json) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    if panel["type"] in {"stat", "gauge"} and "duration" not in panel["title"].lower():
        assert len(defaults["thresholds"]["steps"]) > 1 or defaults.get("mappings")
    if panel["type"] == "gauge":
        assert (defaults["unit"], defaults["min"], defaults["max"]) == ("percent", 0, 100)


@EACH_PANEL
def test_the_queries_of_a_panel_have_ids_formats_and_legends(panel: Json) -> None:
    targets = panel["targets"]
    assert [target["refId"] for target in targets] == [chr(ord("A") + number) for number in range(len(targets))]
    if panel["type"] == "table":
        assert {(target["format"], target["instant"]) for target in targets} == {("table", True)}
    elif panel["type"] in {"timeseries", "bargauge", "piechart", "state-timeline"}:
        legends = [target["legendFormat"] for target in targets]
        assert all(legend and legend != "__auto" for legend in legends)
    if panel["type"] in {"timeseries", "state-timeline"}:
        assert not any(target["instant"] for target in targets)
    else:
        assert all(target["instant"] for target in targets), "now means now"
    for target in targets:
        if re.search(r"\$__range\](?! @ end\(\))", target["expr"]):
            assert target["instant"], "a query over the whole range is instant"


@EACH_PANEL
def test_the_columns_of_a_table_exist(panel: Json) -> None:
    if panel["type"] != "table":
        return
    [layout] = [each["options"] for each in panel["transformations"] if each["id"] == "organize"]
    labels = {label for target in panel["targets"] for label in grouping(target["expr"])}
    values = {f"Value #{each['refId']}" for each in panel["targets"]} if len(panel["targets"]) > 1 else {"Value"}
    assert set(layout["renameByName"]) == labels | values
    titles = set(layout["renameByName"].values())
    assert {each["matcher"]["options"] for each in panel["fieldConfig"]["overrides"]} <= titles
    assert {each["displayName"] for each in panel["options"]["sortBy"]} <= titles


@EACH_PANEL
def test_player_ids_are_shown_as_text(panel: Json) -> None:
    if panel["type"] == "table" and "player_id" in panel["transformations"][1]["options"]["renameByName"]:
        [player] = [
            each["properties"] for each in panel["fieldConfig"]["overrides"] if each["matcher"]["options"] == "Player"
        ]
        assert {"id": "unit", "value": "string"} in player


# ------------------------------------------------------------------------------------------- the queries --


@EACH_QUERY
def test_a_query_uses_declared_metrics_and_labels(query: shipped.Query) -> None:
    selected = list(SELECTOR.finditer(query.expr))
    for match in selected:
        _, labels = SAMPLES[match["name"]]
        matched = MATCHER.findall(match["matchers"])
        assert set(matched) <= labels | {"job", "database"}
        assert len(matched) == len(set(matched))
    known = {label for match in selected for label in SAMPLES[match["name"]][1]}
    bare = SELECTOR.sub("", query.expr)
    if query.label is not None:
        known |= {"job", "database"}
        if not selected:
            assert bare in SAMPLES
            bare = ""
    assert "spacetraders" not in bare
    assert "mfg_notify" not in bare
    assert grouping(query.expr) <= known
    assert query.label is None or query.label in known


@EACH_QUERY
def test_a_query_selects_one_job_and_the_selected_players(query: shipped.Query) -> None:
    if query.label == "job":
        return
    for match in SELECTOR.finditer(query.expr):
        assert re.search(r'job=~"\$(manufacturing_|market_)?job"', match["matchers"])
        assert (query.label == "database") or re.search(
            r'database=~"\$(manufacturing_)?database\|?"', match["matchers"]
        )
        has_player = "player_id" in SAMPLES[match["name"]][1] and query.label != "player_id"
        assert ('player_id=~"$player_id"' in match["matchers"]) is has_player


@EACH_QUERY
def test_rates_are_of_counters_over_grafanas_window(query: shipped.Query) -> None:
    assert set(re.findall(r"\[([^\]]*)\]", query.expr)) <= {"$__rate_interval", "$__range", "$__range:$__interval", "."}
    for function, name in re.findall(r"(\w+)\(([a-z_]+)\{[^}]*\}\[", query.expr):
        assert (function in {"changes", "deriv", "last_over_time"}) is (SAMPLES[name][0] is Kind.GAUGE)
        # Losses are negative, so the sum of profits may fall.
        assert not name.endswith("profit_credits_sum")
    for name in re.findall(r"(\w+)\{[^}]*\}(?!\[)", query.expr):
        is_gauge = SAMPLES[name][0] is Kind.GAUGE
        assert is_gauge or query.label is not None or "cost_total" in name, "a counter needs rate() or increase()"


@EACH_QUERY
def test_a_histogram_is_summed_by_le(query: shipped.Query) -> None:
    for inside in re.findall(r"histogram_quantile\([\d.]+, (\w+ by \([^)]*\))", query.expr):
        assert re.fullmatch(r"sum by \((le|le, task_type)\)", inside)
    assert ("histogram_quantile" in query.expr) <= ("_bucket{" in query.expr)


@EACH_PANEL
def test_a_legend_names_labels_of_the_result(panel: Json) -> None:
    for target in panel["targets"]:
        assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= grouping(target["expr"])


def grouping(expr: str) -> set[str]:
    """Return the labels that an expression groups by."""
    lists = re.findall(r"\bby \(([^)]*)\)", expr)
    return {label.strip() for labels in lists for label in labels.split(",")}


def test_the_trigger_panel_expects_the_number_of_triggers() -> None:
    [panel] = [each for each in shipped.every_panel(MANUFACTURING["panels"]) if each["title"] == "Triggers"]
    assert panel["fieldConfig"]["defaults"]["thresholds"]["steps"][-1] == {"value": TRIGGERS, "color": "green"}


def test_all_queries_are_listed() -> None:
    places = {query.place for query in QUERIES if query.dashboard == "manufacturing.json"}
    assert {"Active Pipelines", "Event Delay", "variable player_id", "annotation Events lost"} <= places
    assert len(QUERIES) == sum(
        len(panel.get("targets", ()))
        for document in DOCUMENTS.values()
        for panel in shipped.every_panel(document["panels"])
    ) + sum(
        len(document[part]["list"]) for document in DOCUMENTS.values() for part in ("templating", "annotations")
    ) - len(DOCUMENTS), "the variable of the data source has no query"
    assert [(query.expr, query.label) for query in QUERIES if query.place == "variable job"] == [
        ("mfg_notify_build_info", "job")
    ]


# ----------------------------------------------------------------------------------------- the selectors --


def test_a_selector_of_an_undeclared_metric_is_an_error() -> None:
    scope = selectors.Scope("job", "database", {"player_id": "player_id"})
    running, duration = CATALOGUE[0], CATALOGUE[3]
    assert scope.of(running, product_good="FOOD") == (
        'spacetraders_daemon_manufacturing_pipeline_running_total{job=~"$job", database=~"$database", '
        'player_id=~"$player_id", product_good="FOOD"}'
    )
    with pytest.raises(ValueError, match="no label status"):
        scope.of(running, status="COMPLETED")
    with pytest.raises(ValueError, match="part 'bucket'"):
        scope.of(running, "bucket")
    with pytest.raises(ValueError, match="part ''"):
        scope.of(duration)
    with pytest.raises(ValueError, match="no metric nonsense"):
        scope.own("nonsense")
