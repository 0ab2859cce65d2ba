"""Owns the step from a built dashboard to its JSON.

Adds what the SDK leaves out: the ids of panels, the refIds of queries, and the `current` value of each variable.
Removes the `placement` of links and annotations: newer versions of Grafana hide those `inControlsMenu` in a menu.
"""

import json
from string import ascii_uppercase

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from mfg_notify.dashboards.manufacturing import manufacturing_dashboard
from mfg_notify.dashboards.market import market_dashboard
from mfg_notify.dashboards.shipped import every_panel


def documents() -> dict[str, str]:
    """Build all dashboards: file name → JSON."""
    return {
        "manufacturing.json": render(manufacturing_dashboard()),
        "market-dynamics.json": render(market_dashboard()),
    }


def render(built: Dashboard) -> str:
    """Return the JSON of a dashboard."""
    document = json.loads(json.dumps(built, cls=JSONEncoder), object_hook=_without_placement)
    for number, panel in enumerate(every_panel(document["panels"]), start=1):
        panel["id"] = number
        for letter, target in zip(ascii_uppercase, panel.get("targets", ()), strict=False):
            target["refId"] = letter
    for variable in document["templating"]["list"]:
        variable.setdefault("current", {})
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _without_placement(part: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in part.items() if (key, value) != ("placement", "inControlsMenu")}
