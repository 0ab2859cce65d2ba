"""Owns the dashboards as shipped: reads the generated JSON and lists its queries."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

MARK = "Made by mfg-notify."
"""The last sentence of the description of every dashboard of ours, by which we recognise an older version."""
NAMES = ("manufacturing.json", "market-dynamics.json")
OWN = "mfg-notify"
"""What makes the uids and titles of `own_uids` ours alone."""
INPUT = "DS_PROMETHEUS"
GRAFANA_MINIMUM = "10.0.0"
_INPUT = {
    "name": INPUT,
    "label": "Prometheus",
    "description": "The Prometheus that scrapes mfg-notify",
    "type": "datasource",
    "pluginId": "prometheus",
    "pluginName": "Prometheus",
}
_VARIABLE_QUERY = re.compile(r"label_values\((?P<expr>.+), *(?P<label>\w+)\)|query_result\((?P<result>.+)\)")
_VALUE = re.compile(r'(\w+)="\(\?<value>')
"""In the regular expression of a variable: the label whose values it takes from a result."""


@dataclass(frozen=True, slots=True)
class Query:
    """One query of a dashboard, with its variables not yet replaced.

    `place` is a panel's title, `variable NAME` or `annotation NAME`. `label` is set for a variable: its values are the
    values of that label in the series of `expr`. `interval` is the panel's minimum interval, if it has one.
    """

    dashboard: str
    place: str
    expr: str
    instant: bool
    label: str | None = None
    interval: str | None = None


@dataclass(frozen=True, slots=True)
class Form:
    """How a dashboard is written."""

    own_uids: bool = False
    """Its uid and title are none that the game's own dashboards have, and its links lead to ours."""
    datasource_uid: str | None = None
    """The default of the variable of the data source, in place of the one that compose.yaml provisions."""
    inputs: bool = False
    """It asks for the data source when it is imported, as dashboards of grafana.com do."""


AS_SHIPPED = Form()


def read_dashboard(name: str, form: Form = AS_SHIPPED) -> str:
    """Return the JSON of a dashboard by its file name, in a form."""
    text = _folder().joinpath(name).read_text(encoding="utf-8")
    if form == AS_SHIPPED:
        return text
    document = json.loads(text.replace('"/d/', f'"/d/{OWN}-') if form.own_uids else text)
    if form.own_uids:
        document |= {"uid": f"{OWN}-{document['uid']}", "title": f"{document['title']} ({OWN})"}
    [datasource] = [each for each in document["templating"]["list"] if each["type"] == "datasource"]
    if uid := f"${{{INPUT}}}" if form.inputs else form.datasource_uid:
        datasource["current"] |= {"text": uid, "value": uid}
    if form.inputs:
        # Grafana replaces the name of the input everywhere in the document by the uid of what was chosen.
        document = {"__inputs": [_INPUT], "__elements": {}, "__requires": list(_requirements(document)), **document}
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _requirements(document: dict[str, Any]) -> Iterator[dict[str, str]]:
    yield {"type": "grafana", "id": "grafana", "name": "Grafana", "version": GRAFANA_MINIMUM}
    yield {"type": "datasource", "id": "prometheus", "name": "Prometheus", "version": "1.0.0"}
    for kind in sorted({panel["type"] for panel in every_panel(document["panels"])} - {"row"}):
        yield {"type": "panel", "id": kind, "name": kind, "version": ""}


def shipped_queries() -> Iterator[Query]:
    """Yield every query of every dashboard: those of panels, variables and annotations."""
    for name in NAMES:
        yield from queries_of(name, json.loads(read_dashboard(name)))


def queries_of(name: str, document: dict[str, Any]) -> Iterator[Query]:
    """Yield the queries of a dashboard of ours."""
    for panel in every_panel(document["panels"]):
        for target in panel.get("targets", ()):
            instant = bool(target.get("instant"))
            yield Query(name, panel["title"], target["expr"], instant, interval=panel.get("interval"))
    for variable in document["templating"]["list"]:
        if variable["type"] != "query":
            continue
        query = _VARIABLE_QUERY.fullmatch(variable["query"]["query"])
        if query is None:
            raise ValueError(f"{name}: variable {variable['name']} is neither label_values() nor query_result()")
        label = query["label"] or _VALUE.findall(variable["regex"])[0]
        yield Query(name, f"variable {variable['name']}", query["expr"] or query["result"], True, label)
    for annotation in document["annotations"]["list"]:
        yield Query(name, f"annotation {annotation['name']}", annotation["expr"], False)


def every_panel(panels: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield all rows and panels, including panels inside collapsed rows."""
    for panel in panels:
        yield panel
        yield from every_panel(panel.get("panels") or [])


def _folder() -> Traversable:
    # A wheel carries the files next to this module; a checkout has them in its top folder.
    packaged = files(__package__).joinpath("json")
    return packaged if packaged.is_dir() else Path(__file__).parents[3] / "grafana" / "dashboards"
