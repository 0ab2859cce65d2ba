"""Owns the variables of the dashboards: data source, jobs, databases, players, and filters by other labels."""

from grafana_foundation_sdk.builders.dashboard import DatasourceVariable, QueryVariable
from grafana_foundation_sdk.models.dashboard import VariableOption, VariableRefresh, VariableSort

from mfg_notify.dashboards.panels import DATASOURCE, DATASOURCE_VARIABLE, PROVISIONED
from mfg_notify.dashboards.selectors import Scope

EVERYTHING = VariableOption(selected=True, text=["All"], value=["$__all"])
BUILD_INFO = "mfg_notify_build_info"
"""The metric that every exporter has, whatever it knows."""


def datasource_variable() -> DatasourceVariable:
    """Return the variable of the data source that all panels query. Its default is the one that compose.yaml makes."""
    variable = DatasourceVariable(DATASOURCE_VARIABLE).label("Data source").type("prometheus")
    return variable.current(VariableOption(selected=True, text=PROVISIONED, value=PROVISIONED))


def job_variable(name: str, label: str, metric: str) -> QueryVariable:
    """Return a variable for one of the jobs that export a metric. A sum over two jobs would count the game twice."""
    return _variable(name, label, f"label_values({metric}, job)").multi(False).sort(VariableSort.ALPHABETICAL_ASC)


def database_variable(name: str, job: str) -> QueryVariable:
    """Return a variable for one of the exporters' databases; two games never add up. Empty if the label is not used."""
    query = f'label_values({BUILD_INFO}{{job=~"${job}"}}, database)'
    return _variable(name, "Database", query).multi(False).sort(VariableSort.ALPHABETICAL_ASC)


def player_variable(job: str, database: str) -> QueryVariable:
    """Return the variable of the players: one or several. Its default is the newest, who has the highest id.

    A player is shown by id and agent, because an agent has a new id after each reset of the universe. There is no All:
    Grafana would make it the default. Players of the whole time range are there, so that one can look back although no
    exporter is active.
    """
    named = f'label_join({Scope(job, database, {}).agents(ever=True)}, "player", " ", "player_id", "agent_symbol")'
    variable = _variable("player_id", "Player", f"query_result({named})").multi(True)
    variable = variable.regex('/player="(?<text>[^"]*)".*player_id="(?<value>[^"]*)"/')
    # Without a current value Grafana selects the first one.
    return variable.sort(VariableSort.NUMERICAL_DESC)


def narrowing_variable(name: str, label: str, selector: str, of_label: str) -> QueryVariable:
    """Return a variable of the values of a label: one, several or all. Its default is all."""
    variable = _variable(name, label, f"label_values({selector}, {of_label})").multi(True).include_all(True)
    return variable.all_value(".*").current(EVERYTHING).sort(VariableSort.ALPHABETICAL_ASC)


def _variable(name: str, label: str, query: str) -> QueryVariable:
    variable = QueryVariable(name).label(label).datasource(DATASOURCE).definition(query)
    return variable.query({"query": query, "refId": f"variable {name}"}).refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
