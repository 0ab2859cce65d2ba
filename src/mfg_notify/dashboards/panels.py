"""Owns how panels look: one function per panel type, with the conventions that all panels of the type share.

`manufacturing`, `exporter_health` and `market` decide which panels there are and what they query.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    dashboard,
    gauge,
    piechart,
    prometheus,
    stat,
    statetimeline,
    table,
    timeseries,
)
from grafana_foundation_sdk.models import common as styles
from grafana_foundation_sdk.models import piechart as pie_styles
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataTransformerConfig,
    DynamicConfigValue,
    FieldColorModeId,
    GridPos,
    Threshold,
    ThresholdsMode,
    ValueMap,
    ValueMapping,
    ValueMappingResult,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from mfg_notify.dashboards.shipped import MARK

DATASOURCE_VARIABLE = "datasource"
DATASOURCE = styles.DataSourceRef(type_val="prometheus", uid=f"${{{DATASOURCE_VARIABLE}}}")
PROVISIONED = "prometheus"
"""The uid of the data source that compose.yaml provisions."""

GREEN, YELLOW, ORANGE, RED, BLUE, PURPLE, GREY = "green", "yellow", "orange", "red", "blue", "purple", "#8e8e99"
LEVEL_COLOURS = {
    "SCARCE": RED, "LIMITED": ORANGE, "MODERATE": YELLOW, "HIGH": "light-green", "ABUNDANT": GREEN, "UNKNOWN": GREY,
}  # fmt: skip
STATUS_COLOURS = {
    "PLANNING": BLUE, "EXECUTING": YELLOW, "COMPLETED": GREEN, "FAILED": RED, "CANCELLED": GREY,
}  # fmt: skip
TASK_COLOURS = {
    "ACQUIRE_DELIVER": BLUE, "COLLECT_SELL": GREEN, "STORAGE_ACQUIRE_DELIVER": PURPLE, "LIQUIDATE": RED,
    "DELIVER_TO_CONSTRUCTION": ORANGE, "ACQUIRE": "light-blue", "DELIVER": "dark-blue", "COLLECT": "light-green",
    "SELL": "dark-green",
}  # fmt: skip
"""The types that bots have today, and older ones. Others get colours by name."""
COLD_TO_HOT = ("#3274d9", "#37a2b8", GREEN, "#a0c520", YELLOW, ORANGE, RED)
ACTIVITY_COLOURS = {
    "WEAK": BLUE, "GROWING": YELLOW, "STRONG": GREEN, "RESTRICTED": RED, "UNKNOWN": GREY,
}  # fmt: skip

CREDITS = "count:cr"
CREDITS_PER_HOUR = "count:cr/h"
PER_MINUTE = "count:/min"
PER_HOUR = "count:/h"
COUNT = "short"
TEXT = "string"
SECONDS = "s"
PERCENT = "percent"
"""0 to 100."""

NO_GAME = "Unknown: no exporter is active, or it has seen no game"
NO_SITES = "No construction site, or no exporter is active"
NO_MARKETS = "No market data: it comes from the daemon's own metrics, or from the exporter with --collect-market"

Steps = tuple[tuple[float | None, str], ...]
"""Thresholds: the values from which a colour applies. The first value is None."""

AnyPanel = TypeVar(
    "AnyPanel",
    stat.Panel,
    gauge.Panel,
    bargauge.Panel,
    piechart.Panel,
    table.Panel,
    timeseries.Panel,
    statetimeline.Panel,
)


Panel = (
    stat.Panel | gauge.Panel | bargauge.Panel | piechart.Panel | table.Panel | timeseries.Panel | statetimeline.Panel
)


@dataclass(frozen=True, slots=True)
class Frame:
    """What every panel has: its texts, its place on the 24 columns, its unit and its thresholds."""

    title: str
    description: str
    no_value: str
    """Shown while the panel is empty; says why."""
    at: tuple[int, int, int, int]
    """x, y, width and height."""
    unit: str = COUNT
    steps: Steps = ((None, GREEN),)
    decimals: int | None = None


def query(expr: str, legend: str = "__auto") -> prometheus.Dataquery:
    """Return a query over the time range."""
    return prometheus.Dataquery().datasource(DATASOURCE).expr(expr).legend_format(legend).range()


def now(expr: str, legend: str = "__auto", *, rows: bool = False) -> prometheus.Dataquery:
    """Return a query at the end of the time range; `rows` for a table with one row per series.

    Everything that says how things are needs it: over a range, the last value of an exporter that died hours ago is
    still the last value.
    """
    made = prometheus.Dataquery().datasource(DATASOURCE).expr(expr).legend_format(legend)
    return (made.format(PromQueryFormat.TABLE) if rows else made).instant()


def of_most(expr: str, label: str, over_range: str, number: int = 10) -> str:
    """Return an expression with the series of the most frequent values of a label only, so that a legend can be read.

    `over_range` measures them over the whole time range; otherwise each moment would choose its own.
    """
    return f"{expr} and on ({label}) topk({number}, {over_range})"


def started(start_time: str) -> str:
    """Return an expression that has a value when a process starts, however long it was absent before."""
    # changes() needs an earlier sample within the interval, which a long absence does not leave.
    return f"changes({start_time}[$__rate_interval]) > 0 or {start_time} unless {start_time} offset $__rate_interval"


def single(frame: Frame, *queries: prometheus.Dataquery, named: bool = False) -> stat.Panel:
    """Return one number as it is now, with its name if `named`."""
    panel = _framed(stat.Panel(), frame, queries)
    if named:
        panel = panel.text_mode(styles.BigValueTextMode.VALUE_AND_NAME)
    return (
        panel.reduce_options(_last())
        .color_mode(styles.BigValueColorMode.VALUE)
        .graph_mode(styles.BigValueGraphMode.NONE)
        .color_scheme(_by(FieldColorModeId.THRESHOLDS))
    )


def dial(frame: Frame, *queries: prometheus.Dataquery) -> gauge.Panel:
    """Return a percentage as a gauge from 0 to 100."""
    panel = _framed(gauge.Panel(), frame, queries).min(0).max(100)
    return panel.reduce_options(_last()).show_threshold_markers(True).color_scheme(_by(FieldColorModeId.THRESHOLDS))


def bars(frame: Frame, *queries: prometheus.Dataquery) -> bargauge.Panel:
    """Return one horizontal bar per series."""
    panel = _framed(bargauge.Panel(), frame, queries).min(0).reduce_options(_last())
    return (
        panel.orientation(styles.VizOrientation.HORIZONTAL)
        .display_mode(styles.BarGaugeDisplayMode.BASIC)
        .value_mode(styles.BarGaugeValueMode.COLOR)
        # Beside the bar, or in large letters, a long name is cut where it differs from the others.
        .name_placement(styles.BarGaugeNamePlacement.TOP)
        .text(common.VizTextDisplayOptions().title_size(13).value_size(16))
        .show_unfilled(True)
        .color_scheme(_by(FieldColorModeId.PALETTE_CLASSIC_BY_NAME))
    )


def pie(frame: Frame, *queries: prometheus.Dataquery) -> piechart.Panel:
    """Return a pie chart of shares of a whole."""
    legend = (
        piechart.PieChartLegendOptions()
        .display_mode(styles.LegendDisplayMode.TABLE)
        .placement(styles.LegendPlacement.RIGHT)
        .show_legend(True)
        .values([pie_styles.PieChartLegendValues.VALUE])
    )
    panel = _framed(piechart.Panel(), frame, queries).reduce_options(_last()).legend(legend)
    return panel.pie_type(pie_styles.PieChartType.DONUT).display_labels([pie_styles.PieChartLabels.PERCENT])


def lines(
    frame: Frame,
    *queries: prometheus.Dataquery,
    legend: tuple[str, ...] = ("lastNotNull", "mean"),
    stack: styles.StackingMode = styles.StackingMode.NONE,
) -> timeseries.Panel:
    """Return one line per series over time, or stacked areas. A series keeps its colour, which follows its name.

    The legend is a table with these calculations, or a list of names if there are none.
    """
    stacked = stack is not styles.StackingMode.NONE
    panel = _framed(timeseries.Panel(), frame, queries)
    return (
        panel.color_scheme(_by(FieldColorModeId.PALETTE_CLASSIC_BY_NAME))
        .line_width(1)
        .fill_opacity(45 if stacked else 8)
        .stacking(common.StackingConfig().mode(stack).group("A"))
        .show_points(styles.VisibilityMode.AUTO)
        .axis_soft_min(0)
        .tooltip(common.VizTooltipOptions().mode(styles.TooltipDisplayMode.MULTI).sort(styles.SortOrder.DESCENDING))
        .legend(_names(*legend))
    )


def events(frame: Frame, *queries: prometheus.Dataquery) -> timeseries.Panel:
    """Return stacked bars: how often something happened in each interval of a minute or more."""
    panel = lines(frame, *queries, stack=styles.StackingMode.NORMAL).legend(_names())
    return panel.draw_style(styles.GraphDrawStyle.BARS).fill_opacity(80).interval("1m")


def grid(frame: Frame, *queries: prometheus.Dataquery) -> table.Panel:
    """Return a table."""
    return _framed(table.Panel(), frame, queries).cell_height(styles.TableCellHeight.SM)


def states(frame: Frame, *queries: prometheus.Dataquery) -> statetimeline.Panel:
    """Return one band per series, coloured by its state."""
    panel = _framed(statetimeline.Panel(), frame, queries)
    return (
        panel.show_value(styles.VisibilityMode.NEVER)
        .merge_values(True)
        .row_height(0.85)
        .fill_opacity(85)
        .line_width(0)
        .color_scheme(_by(FieldColorModeId.THRESHOLDS))
        .tooltip(common.VizTooltipOptions().mode(styles.TooltipDisplayMode.SINGLE))
        .legend(_names())
    )


def paint(panel: AnyPanel, colours: Mapping[str, str]) -> AnyPanel:
    """Give series a fixed colour by name."""
    for name, colour in colours.items():
        panel = panel.override_by_name(name, _properties({"color": fixed(colour)}))
    return panel


def fixed(colour: str) -> dict[str, str]:
    """Return the property `color` for one fixed colour."""
    return {"mode": "fixed", "fixedColor": colour}


def thresholds(steps: Steps) -> dict[str, object]:
    """Return the property `thresholds`."""
    return {"mode": "absolute", "steps": [{"value": value, "color": colour} for value, colour in steps]}


def restyle(panel: AnyPanel, pattern: str, properties: Mapping[str, object]) -> AnyPanel:
    """Override properties of the series whose name matches a regular expression."""
    return panel.override_by_regexp(pattern, _properties(properties))


def columns(
    panel: table.Panel,
    titles: Mapping[str, str],
    cells: Mapping[str, Mapping[str, object]],
    sort: tuple[str, bool],
) -> table.Panel:
    """Lay out a table with one row per object: its columns in this order, with these titles, without the time.

    `titles` maps a field to its title. `cells` maps a title to other properties of the column. `sort` is the title of
    a column and whether it descends.
    """
    order = {field: number for number, field in enumerate(titles)}
    arranged = {"excludeByName": {"Time": True}, "indexByName": order, "renameByName": dict(titles)}
    panel = (
        panel.with_transformation(DataTransformerConfig(id_val="merge", options={}))
        .with_transformation(DataTransformerConfig(id_val="organize", options=arranged))
        .sort_by([common.TableSortByFieldState().display_name(sort[0]).desc(sort[1])])
    )
    for title, properties in cells.items():
        panel = panel.override_by_name(title, _properties(properties))
    return panel


def value_mappings(meanings: Mapping[str, tuple[str, str]]) -> list[ValueMapping]:
    """Return the mapping from values to a text and a colour."""
    options = {
        value: ValueMappingResult(text=text, color=colour, index=index)
        for index, (value, (text, colour)) in enumerate(meanings.items())
    }
    return [ValueMap(options=options)]


def empty_dashboard(title: str, uid: str, purpose: str, tags: list[str]) -> dashboard.Dashboard:
    """Return a dashboard without panels, with the settings that all dashboards share."""
    return (
        dashboard.Dashboard(title)
        .uid(uid)
        .description(f"{purpose} {MARK}")
        .tags(tags)
        .time("now-6h", "now")
        .refresh("30s")
        .tooltip(DashboardCursorSync.CROSSHAIR)
    )


def with_rows(made: dashboard.Dashboard, *rows: tuple[str, int, Iterable[Panel]]) -> dashboard.Dashboard:
    """Add open rows, each given by its title, its y and its panels."""
    for title, y, panels in rows:
        made = made.with_row(row(title, y))
        for panel in panels:
            made = made.with_panel(panel)
    return made


def row(title: str, y: int) -> dashboard.Row:
    """Return the header of a row."""
    return dashboard.Row(title).grid_pos(GridPos(h=1, w=24, x=0, y=y))


def link(title: str, url: str) -> dashboard.DashboardLink:
    """Return a link to another dashboard that keeps the time range. The URL carries the variables."""
    return (
        dashboard.DashboardLink(title)
        .type(DashboardLinkType.LINK)
        .url(url)
        .icon("dashboard")
        .keep_time(True)
        .tooltip(title)
    )


def annotation(name: str, expr: str, colour: str, text: str) -> dashboard.AnnotationQuery:
    """Return an annotation at every time at which an expression has a value."""
    made = dashboard.AnnotationQuery().name(name).datasource(DATASOURCE).enable(True).icon_color(colour)
    return made.expr(expr).title_format(name).text_format(text)


def _framed(panel: AnyPanel, frame: Frame, queries: Iterable[prometheus.Dataquery]) -> AnyPanel:
    x, y, width, height = frame.at
    panel = (
        panel.title(frame.title)
        .description(frame.description)
        .datasource(DATASOURCE)
        .grid_pos(GridPos(h=height, w=width, x=x, y=y))
        .unit(frame.unit)
        .no_value(frame.no_value)
        .thresholds(
            dashboard.ThresholdsConfig()
            .mode(ThresholdsMode.ABSOLUTE)
            .steps([Threshold(value=value, color=colour) for value, colour in frame.steps])
        )
    )
    if frame.decimals is not None:
        panel = panel.decimals(frame.decimals)
    for each in queries:
        panel = panel.with_target(each)
    return panel


def _last() -> common.ReduceDataOptions:
    return common.ReduceDataOptions().calcs(["lastNotNull"])


def _names(*calculations: str) -> common.VizLegendOptions:
    mode = styles.LegendDisplayMode.TABLE if calculations else styles.LegendDisplayMode.LIST
    legend = common.VizLegendOptions().display_mode(mode)
    return legend.placement(styles.LegendPlacement.BOTTOM).show_legend(True).calcs(list(calculations))


def _by(mode: FieldColorModeId) -> dashboard.FieldColor:
    return dashboard.FieldColor().mode(mode)


def _properties(properties: Mapping[str, object]) -> list[DynamicConfigValue]:
    return [DynamicConfigValue(id_val=key, value=value) for key, value in properties.items()]
