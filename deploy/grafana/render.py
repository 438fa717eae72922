#!/usr/bin/env python3
"""Draws panels of the dashboards from a Prometheus, without a Grafana.

It asks what the panels ask (the queries are those of the dashboards' JSON), over a time and in
steps that are given, and draws the answers.

    deploy/grafana/render.py --prometheus http://localhost:9090 --minutes 60 --out overview.svg \\
        --panel "Requests by status" --panel "Time to first token"

Without --panel it draws all of the overview that are lines or heatmaps. --var model=NAME chooses,
as the variables of the dashboard do; by default everything.
"""
import argparse
import json
import math
import pathlib
import re
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable

from svg import Drawing, Series, format_value, picture

FOLDER = pathlib.Path(__file__).resolve().parent
DASHBOARDS = ("ferrite-overview.json", "ferrite-worker.json")
# Of a range query: its result, as Prometheus' HTTP API has it.
Ask = Callable[[str], list[dict]]


def substitute(expr: str, values: dict[str, str]) -> str:
    """The expression with Grafana's variables replaced, as Grafana would; everything by default."""
    return re.sub(r"\$\{?(\w+)\}?", lambda match: values.get(match[1], ".*"), expr)


def panels(file: str) -> list[dict]:
    board = json.loads((FOLDER / file).read_text(encoding="utf-8"))
    return [panel for panel in board["panels"] if panel["type"] in ("timeseries", "heatmap")]


def find_panel(title: str) -> dict:
    """The first of this title, on the overview or else on the worker's dashboard."""
    for file in DASHBOARDS:
        for panel in panels(file):
            if panel["title"] == title:
                return panel
    raise KeyError(f"no dashboard has a panel {title!r} of lines or a heatmap")


def _points(answer: dict, begin: float) -> tuple[tuple[float, float], ...]:
    return tuple((at - begin, float(value)) for at, value in answer["values"])


def _legend(template: str, labels: dict[str, str]) -> str:
    return re.sub(r"{{(\w+)}}", lambda match: labels.get(match[1], ""), template)


def _buckets(answers: list[dict], begin: float, unit: str) -> tuple[Series, ...]:
    """Prometheus' buckets hold all that is below, too: here each without the one before it."""
    made, below = [], {}
    for answer in sorted(answers, key=lambda one: float(one["metric"]["le"])):
        points = dict(_points(answer, begin))
        own = tuple((at, max(0.0, value - below.get(at, 0))) for at, value in points.items())
        bound = float(answer["metric"]["le"])
        name = "∞" if math.isinf(bound) else format_value(bound, unit)
        made.append(Series(name, own))
        below = points
    filled = [i for i, series in enumerate(made) if any(value > 0 for _, value in series.points)]
    return tuple(made[filled[0] : filled[-1] + 1]) if filled else ()


def drawing(panel: dict, ask: Ask, begin: float, values: dict[str, str]) -> Drawing:
    """Asks what the panel asks."""
    defaults = panel["fieldConfig"]["defaults"]
    steps = [step["value"] for step in defaults["thresholds"]["steps"] if step["value"] is not None]
    found = []
    for target in panel["targets"]:
        answers = ask(substitute(target["expr"], values))
        if panel["type"] == "heatmap":
            found += _buckets(answers, begin, defaults["unit"])
        else:
            found += [Series(_legend(target["legendFormat"], answer["metric"]),
                             _points(answer, begin)) for answer in answers]
    return Drawing(panel["title"], defaults["unit"], panel["type"], tuple(found),
                   max(steps, default=None), defaults.get("max"))


def asker(url: str, begin: float, end: float, step: float) -> Ask:
    def ask(expr: str) -> list[dict]:
        query = urllib.parse.urlencode({"query": expr, "start": begin, "end": end, "step": step})
        with urllib.request.urlopen(f"{url}/api/v1/query_range?{query}", timeout=60) as answer:
            return json.load(answer)["data"]["result"]

    return ask


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prometheus", required=True, metavar="URL")
    parser.add_argument("--minutes", type=float, default=60, help="until now")
    parser.add_argument("--points", type=int, default=240, help="at most so many of each series")
    parser.add_argument("--rate-interval", default="1m", help="Grafana's $__rate_interval")
    parser.add_argument("--panel", action="append", metavar="TITLE")
    parser.add_argument("--var", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--out", type=pathlib.Path, required=True, metavar="FILE.svg")
    return parser.parse_args()


def main() -> int:
    given = arguments()
    seconds = given.minutes * 60
    end = time.time()
    begin = end - seconds
    values = dict(pair.split("=", 1) for pair in given.var)
    values["__rate_interval"] = given.rate_interval
    titles = given.panel or [panel["title"] for panel in panels(DASHBOARDS[0])]
    ask = asker(given.prometheus.rstrip("/"), begin, end, max(1, seconds / given.points))
    drawings = [drawing(find_panel(title), ask, begin, values) for title in titles]
    until = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(end))
    title = f"Ferrite, {given.minutes:g} minutes until {until}"
    given.out.write_text(picture(drawings, seconds, (), title, "Panels: " + "; ".join(titles)),
                         encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
