"""Owns the merge of our Manufacturing Overview row into a user's own market dashboard.

Works on the dashboard as parsed JSON and changes nothing outside our row. Reads and writes no file.
"""

import json
from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from enum import StrEnum
from typing import Any

from mfg_notify.dashboards.shipped import every_panel
from mfg_notify.errors import UsageError

Json = dict[str, Any]

ROW = "Manufacturing Overview"
VARIABLES = ("market_job", "manufacturing_job", "manufacturing_database", "player_id")
"""Variables of the row's queries. The one of the data source is added if the user's panels query none.

A variable that the user's dashboard already has stays as it is.
"""


class Outcome(StrEnum):
    """What a merge did."""

    APPENDED = "appended"
    REFRESHED = "refreshed"
    UNCHANGED = "unchanged"


def merge(document: Json, ours: Json, datasource_uid: str | None = None) -> Outcome:
    """Append the row of `ours` to a dashboard, or refresh it if it is there. Changes `document` in place.

    It queries the data source of that uid, else the one that most of the user's panels query. A refreshed panel keeps
    its id and its position. Raises UsageError if `document` is no classic dashboard.
    """
    dashboard = _classic(document)
    before = deepcopy(dashboard)
    template = _section(ours["panels"], _find_row(ours["panels"]))
    row = _find_row(dashboard["panels"])
    titles = {panel["title"] for panel in template}
    own = [panel for panel in _section(dashboard["panels"], row) if panel.get("title") in titles]
    if datasource_uid is None:
        datasource = _prometheus_of(dashboard, except_for=own)
    else:
        datasource = {"type": "prometheus", "uid": datasource_uid}
    template = [_with_datasource(panel, datasource) for panel in template]
    if row is None:
        _append(dashboard["panels"], template)
    else:
        _refresh(dashboard["panels"], row, template)
    variables = [each for each in ours["templating"]["list"] if each["name"] in VARIABLES]
    if datasource is None:
        variables += [each for each in ours["templating"]["list"] if each["type"] == "datasource"]
    _add_variables(dashboard, [_with_datasource(each, datasource) for each in variables])
    if dashboard == before:
        return Outcome.UNCHANGED
    return Outcome.APPENDED if row is None else Outcome.REFRESHED


def _classic(document: Json) -> Json:
    """Return the dashboard inside the wrappers that Grafana's various exports and APIs put around it."""
    spec = document.get("spec")
    version = str(document.get("apiVersion", ""))
    if "/v2" in version or "elements" in document or (isinstance(spec, dict) and "elements" in spec):
        raise UsageError(
            "this is a dashboard in Grafana's new schema (v2), which has no rows to append to. Export it again as "
            "the classic model: Export → Export as code → Model: Classic"
        )
    for inner in (document.get("dashboard"), spec):
        if isinstance(inner, dict):
            document = inner
    if "panels" not in document and "rows" in document:
        raise UsageError(
            "this dashboard was saved by a Grafana older than 5. Open and save it in your Grafana, then export it again"
        )
    panels = document.get("panels")
    if "panels" not in document and "title" in document:
        document["panels"] = panels = []
    if not isinstance(panels, list) or not all(isinstance(panel, dict) for panel in panels):
        raise UsageError("this is no Grafana dashboard: it has no list of panels")
    return document


def _find_row(panels: list[Json]) -> Json | None:
    return next((panel for panel in panels if panel.get("type") == "row" and panel.get("title") == ROW), None)


def _section(panels: list[Json], row: Json | None) -> list[Json]:
    """Return a row and its panels: inside the row if it is collapsed, else between it and the next row."""
    if row is None:
        return []
    if row.get("collapsed"):
        return [row, *(row.get("panels") or [])]
    start = next(number for number, panel in enumerate(panels) if panel is row)
    section = [row]
    for panel in panels[start + 1 :]:
        if panel.get("type") == "row":
            break
        section.append(panel)
    return section


def _append(panels: list[Json], template: list[Json]) -> None:
    _place(template, _bottom(panels) - template[0]["gridPos"]["y"], _free_ids(panels))
    panels.extend(template)


def _refresh(panels: list[Json], row: Json, template: list[Json]) -> None:
    section = _section(panels, row)
    ids = _free_ids(panels)
    known = {panel.get("title"): panel for panel in reversed(section[1:])}
    missing = []
    for new in template[1:]:
        old = known.get(new["title"])
        if old is None:
            missing.append(new)
            continue
        unchanged = {"id": old.get("id") or next(ids), "gridPos": old.get("gridPos", new["gridPos"])}
        old.clear()
        old.update(new | unchanged)
    if not missing:
        return
    # Missing panels go below the rest of the row. Everything further down moves down by their height.
    bottom = _bottom(section)
    _place(missing, bottom - min(panel["gridPos"]["y"] for panel in missing), ids)
    if row.get("collapsed"):
        row["panels"] = section[1:] + missing
        return
    height = _bottom(missing) - bottom
    for panel in panels:
        # A panel that was written by hand may have no position.
        if (place := panel.get("gridPos")) and place.get("y", 0) >= bottom:
            place["y"] = place.get("y", 0) + height
    end = next(number for number, panel in enumerate(panels) if panel is section[-1]) + 1
    panels[end:end] = missing


def _place(panels: list[Json], down: int, ids: Iterator[int]) -> None:
    for panel in panels:
        panel["id"] = next(ids)
        panel["gridPos"]["y"] += down


def _bottom(panels: list[Json]) -> int:
    places = [panel["gridPos"] for panel in panels if isinstance(panel.get("gridPos"), dict)]
    return max((place.get("y", 0) + place.get("h", 0) for place in places), default=0)


def _free_ids(panels: list[Json]) -> Iterator[int]:
    taken = [panel["id"] for panel in every_panel(panels) if isinstance(panel.get("id"), int)]
    number = max(taken, default=0)
    while True:
        number += 1
        yield number


def _add_variables(dashboard: Json, ours: list[Json]) -> None:
    existing = _variables(dashboard)
    names = {variable.get("name") for variable in existing}
    missing = [each for each in ours if each["name"] not in names]
    if missing:
        dashboard["templating"] = (dashboard.get("templating") or {}) | {"list": existing + missing}


def _variables(dashboard: Json) -> list[Json]:
    return (dashboard.get("templating") or {}).get("list") or []


def _prometheus_of(dashboard: Json, except_for: list[Json]) -> object | None:
    """Return the Prometheus datasource that most of the user's panels refer to, in the form of their reference."""
    known = {
        f"${{{each.get('name')}}}" for each in dashboard.get("__inputs") or [] if each.get("pluginId") == "prometheus"
    } | {
        form
        for each in _variables(dashboard)
        if each.get("type") == "datasource" and each.get("query") == "prometheus"
        for form in (f"${{{each.get('name')}}}", f"${each.get('name')}")
    }
    used: Counter[str] = Counter()
    for panel in every_panel(dashboard["panels"]):
        if any(panel is own for own in except_for):
            continue
        for datasource in (panel.get("datasource"), *(each.get("datasource") for each in panel.get("targets") or [])):
            named = datasource.get("uid") if isinstance(datasource, dict) else datasource
            # The oldest form is a name. Newer types have names such as grafana-azureprometheus-datasource.
            kind = datasource.get("type") if isinstance(datasource, dict) else None
            if isinstance(named, str) and ("prometheus" in (kind or named).lower() or named in known):
                used[json.dumps(datasource)] += 1
    return json.loads(used.most_common(1)[0][0]) if used else None


def _with_datasource(part: Json, datasource: object | None) -> Json:
    """Return a copy of a panel or variable that queries this datasource."""
    part = deepcopy(part)
    if datasource is not None:
        for holder in (part, *part.get("targets", [])):
            if "datasource" in holder:
                holder["datasource"] = deepcopy(datasource)
    return part
