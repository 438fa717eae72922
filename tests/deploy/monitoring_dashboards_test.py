#!/usr/bin/env python3
"""Checks that the dashboards are what Grafana takes, and that they are fit to be read.

Grafana's own types (its Foundation SDK) read them and write them again: what is lost or changed on
the way is no field of Grafana's. Beside that: no two panels overlap or share an id, every panel
says what it shows in which unit, and all of them ask the data source that the variable names.

    tests/deploy/monitoring_dashboards_test.py
"""
import itertools
import json
import sys
from collections.abc import Iterator

from check_tools import ROOT, TOOLS, import_yaml, skip

FOLDER = ROOT / "deploy/grafana"
DASHBOARDS = ("ferrite-overview.json", "ferrite-worker.json")
VARIABLES = ["datasource", "namespace", "model", "instance", "worker"]
yaml = import_yaml()
sys.path.insert(0, str(TOOLS / "python"))
try:
    from grafana_foundation_sdk.cog import encoder, plugins
    from grafana_foundation_sdk.models.dashboard import Dashboard
except ImportError:
    skip("there is no grafana-foundation-sdk")


def changed(ours, theirs, path: str = "") -> Iterator[str]:
    """Where what Grafana's types wrote differs from what they read; what they add does not."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key, value in ours.items():
            if key in theirs:
                yield from changed(value, theirs[key], f"{path}.{key}")
            else:
                yield f"{path}.{key} is no field of Grafana's"
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for i, (one, other) in enumerate(zip(ours, theirs)):
            yield from changed(one, other, f"{path}[{i}]")
    elif ours != theirs:
        yield f"{path} is {ours!r}, which Grafana's types make {theirs!r}"


def overlap(one: dict, other: dict) -> bool:
    a, b = one["gridPos"], other["gridPos"]
    return (a["x"] < b["x"] + b["w"] and b["x"] < a["x"] + a["w"]
            and a["y"] < b["y"] + b["h"] and b["y"] < a["y"] + a["h"])


def check_layout(panels: list[dict]) -> Iterator[str]:
    ids = [panel["id"] for panel in panels]
    if len(ids) != len(set(ids)):
        yield "two panels have the same id"
    for one, other in itertools.combinations(panels, 2):
        if overlap(one, other):
            yield f"{one['title']} and {other['title']} overlap"
    for panel in panels:
        if panel["gridPos"]["x"] + panel["gridPos"]["w"] > 24:
            yield f"{panel['title']} is wider than the page"


def check_panel(panel: dict) -> Iterator[str]:
    title = panel["title"]
    if not panel["description"].endswith("."):
        yield f"{title} has no description"
    if not panel["fieldConfig"]["defaults"]["unit"]:
        yield f"{title} has no unit"
    for asked in (panel, *panel["targets"]):
        if asked["datasource"]["uid"] != "${datasource}":
            yield f"{title} does not ask the variable's data source"


def check(board: dict) -> Iterator[str]:
    written = json.loads(encoder.JSONEncoder().encode(Dashboard.from_json(board)))
    yield from changed(board, written)
    yield from check_layout(board["panels"])
    for panel in board["panels"]:
        if panel["type"] != "row":
            yield from check_panel(panel)
    names = [variable["name"] for variable in board["templating"]["list"]]
    if names != VARIABLES:
        yield f"its variables are {names}"


def check_provisioning() -> Iterator[str]:
    """The files name what they must; Grafana has no schema for them."""
    folder = FOLDER / "provisioning"
    source = yaml.safe_load((folder / "datasources/prometheus.yml").read_text(encoding="utf-8"))
    if source["apiVersion"] != 1 or source["datasources"][0]["type"] != "prometheus":
        yield "datasources/prometheus.yml has no data source of type prometheus"
    provider = yaml.safe_load((folder / "dashboards/ferrite.yml").read_text(encoding="utf-8"))
    if provider["apiVersion"] != 1 or not provider["providers"][0]["options"]["path"]:
        yield "dashboards/ferrite.yml has no provider with a path"


def main() -> int:
    plugins.register_default_plugins()
    wrong = list(check_provisioning())
    uids = set()
    for file in DASHBOARDS:
        board = json.loads((FOLDER / file).read_text(encoding="utf-8"))
        found = [f"{file}: {problem}" for problem in check(board)]
        uids.add(board["uid"])
        wrong += found
        print(f"{file}: {len(board['panels'])} panels and rows: {'FAILED' if found else 'ok'}")
    if len(uids) != len(DASHBOARDS):
        wrong.append("two dashboards have the same uid")
    print("\n".join(wrong), file=sys.stderr, end="\n" if wrong else "")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
