"""Grafana's JSON for the kinds of panels that generate.py uses.

Sizes are in Grafana's grid of 24 columns. A library of generate.py.
"""
import dataclasses

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
GREEN, YELLOW, RED = "green", "orange", "red"


@dataclasses.dataclass(frozen=True)
class Query:
    """PromQL, and the name of its series, in which {{label}} stands for a label's value."""

    expr: str
    legend: str = ""


@dataclasses.dataclass(frozen=True)
class Panel:
    """What generate.py says of a panel. `steps` are thresholds: a value, the colour from it on."""

    title: str
    description: str
    queries: tuple[Query, ...]
    unit: str = "short"
    kind: str = "timeseries"  # or stat, heatmap, table
    steps: tuple[tuple[float, str], ...] = ()
    base: str = GREEN  # the colour below the first threshold
    width: int = 8
    height: int = 8
    stack: bool = False
    maximum: float | None = None
    hidden: tuple[str, ...] = ()  # columns of a table


@dataclasses.dataclass(frozen=True)
class Row:
    title: str
    panels: tuple[Panel, ...]


def _field_config(panel: Panel) -> dict:
    steps = [{"color": panel.base, "value": None}]
    steps += [{"color": color, "value": value} for value, color in panel.steps]
    defaults = {
        "unit": panel.unit,
        "min": 0,
        "thresholds": {"mode": "absolute", "steps": steps},
        "color": {"mode": "thresholds" if panel.kind == "stat" else "palette-classic"},
    }
    if panel.maximum is not None:
        defaults["max"] = panel.maximum
    if panel.kind == "timeseries":
        defaults["custom"] = {
            "drawStyle": "line",
            "lineWidth": 1,
            "fillOpacity": 30 if panel.stack else 10,
            "showPoints": "never",
            "spanNulls": False,
            "stacking": {"mode": "normal" if panel.stack else "none", "group": "A"},
            "thresholdsStyle": {"mode": "dashed" if panel.steps else "off"},
        }
    return {"defaults": defaults, "overrides": []}


def _options(panel: Panel) -> dict:
    if panel.kind == "stat":
        return {
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "colorMode": "value",
            "graphMode": "area",
            "textMode": "auto",
        }
    if panel.kind == "heatmap":
        return {
            "calculate": False,
            "cellGap": 1,
            "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64, "reverse": False},
            "rowsFrame": {"layout": "le"},
            "yAxis": {"unit": panel.unit, "axisPlacement": "left"},
            "tooltip": {"show": True, "yHistogram": True},
            "legend": {"show": True},
        }
    if panel.kind == "table":
        return {"showHeader": True, "cellHeight": "sm"}
    return {
        "legend": {"displayMode": "table", "placement": "bottom", "calcs": ["mean", "max"]},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }


def _target(panel: Panel, query: Query, index: int) -> dict:
    instant = panel.kind == "table"
    formats = {"heatmap": "heatmap", "table": "table"}
    return {
        "refId": chr(ord("A") + index),
        "datasource": DATASOURCE,
        "editorMode": "code",
        "expr": query.expr,
        "legendFormat": "{{le}}" if panel.kind == "heatmap" else query.legend,
        "format": formats.get(panel.kind, "time_series"),
        "instant": instant,
        "range": not instant,
    }


def _panel_json(panel: Panel, number: int, x: int, y: int) -> dict:
    made = {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": DATASOURCE,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": panel.height},
        "targets": [_target(panel, query, i) for i, query in enumerate(panel.queries)],
        "fieldConfig": _field_config(panel),
        "options": _options(panel),
    }
    if panel.kind == "table":
        hidden = {name: True for name in ("Time", "Value", "__name__", "job", *panel.hidden)}
        made["transformations"] = [{"id": "organize", "options": {"excludeByName": hidden}}]
    return made


def _variable(name: str, label: str, query: str) -> dict:
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": "variable"},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
        "options": [],
        "hide": 0,
    }


def _layout(rows: tuple[Row, ...]) -> list[dict]:
    """Rows from top to bottom, panels from left to right; one that does not fit begins a line."""
    made, y = [], 0
    for row in rows:
        number = len(made) + 1
        position = {"x": 0, "y": y, "w": 24, "h": 1}
        made.append({"id": number, "type": "row", "title": row.title, "gridPos": position,
                     "collapsed": False, "panels": []})
        x, y, line = 0, y + 1, 0
        for panel in row.panels:
            if x + panel.width > 24:
                x, y, line = 0, y + line, 0
            made.append(_panel_json(panel, len(made) + 1, x, y))
            x, line = x + panel.width, max(line, panel.height)
        y += line
    return made


def dashboard(uid: str, title: str, description: str, variables: list[tuple[str, str, str]],
              rows: tuple[Row, ...]) -> dict:
    """A dashboard that Grafana 10 and later import. `variables` are name, label and query."""
    source = {"name": "datasource", "label": "Data source", "type": "datasource",
              "query": "prometheus", "refresh": 1, "hide": 0, "current": {}, "options": []}
    return {
        "uid": uid,
        "title": title,
        "description": description,
        "tags": ["ferrite"],
        "schemaVersion": 38,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "time": {"from": "now-1h", "to": "now"},
        "refresh": "30s",
        "timezone": "",
        "links": [{"type": "dashboards", "title": "Ferrite", "tags": ["ferrite"],
                   "asDropdown": False, "includeVars": True, "keepTime": True}],
        "annotations": {"list": []},
        "templating": {"list": [source] + [_variable(*variable) for variable in variables]},
        "panels": _layout(rows),
    }
