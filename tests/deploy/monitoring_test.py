#!/usr/bin/env python3
"""Asks a real Prometheus, which scrapes a real server under load, everything that deploy/ asks.

Every query of every panel and variable of the dashboards, every recording rule and every alert: an
error fails, and so does an answer without a value where this load gives one. Beside them promtool
lints what is scraped, and the counters are compared with what the client saw.

    tests/deploy/monitoring_test.py build/cpu/server/ferrite-server build/cpu/client/ferrite
"""
import concurrent.futures
import json
import re
import signal
import subprocess
import sys
import threading
import time
from xml.etree import ElementTree

from check_tools import ROOT, tool
from monitoring_lab import Lab, LabError, wait_for, yaml

sys.path.insert(0, str(ROOT / "deploy/prometheus"))
import promql  # noqa: E402

DASHBOARDS = ("ferrite-overview.json", "ferrite-worker.json")
VALUES = {"namespace": "default", "model": "stories260k", "worker": "0", "instance": ".*",
          "__rate_interval": "10s"}
# What has no value here. Whatever has one after all must leave this list.
NO_GPU = "set aside on a GPU only"
MAY_BE_EMPTY = {
    "ferrite-worker.json: GPU memory by kind": NO_GPU,
}
# What the load must have brought about before anything is asked, within two scrapes at least.
CONDITIONS = {
    "seven scrapes": "count_over_time(up[1m]) >= 7",
    "calls refused for the queue":
        'rate(ferrite_admission_rejected_total{reason="queue_requests"}[20s]) > 0',
    "preemptions": "rate(ferrite_preemptions_total[20s]) > 0",
    "requests that wait": "max_over_time(ferrite_requests_waiting[20s]) > 0",
    "embeddings": 'rate(ferrite_requests_finished_total{reason="embedded"}[20s]) > 0',
    "requests that are cancelled": 'rate(ferrite_requests_total{code="CANCELLED"}[20s]) > 0',
    "calls of six codes": "count(count by (code) (rate(ferrite_requests_total[20s]) > 0)) >= 6",
    "steps of three phases":
        "count(rate(ferrite_step_duration_seconds_count[20s]) > 0) >= 3",
    "recorded rules": "namespace_model:ferrite_requests_refused:ratio_rate5m > 0",
}


def substitute(expr: str, values: dict[str, str]) -> str:
    """The expression with Grafana's variables replaced, as Grafana would."""
    return re.sub(r"\$\{?(\w+)\}?", lambda match: values[match[1]], expr)


def has_value(series: list[dict]) -> bool:
    """Whether any value is a number."""
    pairs = (pair for one in series for pair in one.get("values", [one.get("value")]))
    return any(pair[1] != "NaN" for pair in pairs)


class Asker:
    """Asks and keeps what is wrong. Between `begin` and `end` there was load."""

    def __init__(self, lab: Lab, begin: float, end: float):
        self.prometheus, self.begin, self.end = lab.prometheus, begin, end
        self.wrong: list[str] = []
        self.asked = 0
        self.empty: set[str] = set()

    def ask(self, what: str, expr: str, instant: bool = False) -> list[dict]:
        """Notes an error, and an empty answer that MAY_BE_EMPTY does not have."""
        self.asked += 1
        try:
            series = (self.prometheus.instant(expr, self.end) if instant else
                      self.prometheus.range(expr, self.begin, self.end, Lab.step))
        except LabError as error:
            self.wrong.append(f"{what}: {expr}: {error}")
            return []
        if not has_value(series):
            self.empty.add(what)
            if what not in MAY_BE_EMPTY:
                self.wrong.append(f"{what}: no value: {expr}")
        elif what in MAY_BE_EMPTY:
            self.wrong.append(f"{what} has a value: take it out of MAY_BE_EMPTY")
        return series


def ask_panels(asker: Asker, file: str) -> None:
    """Each query, for one model and worker and for all, and the labels of its legend."""
    board = json.loads((ROOT / "deploy/grafana" / file).read_text(encoding="utf-8"))
    everything = {**VALUES, **{name: ".*" for name in ("namespace", "model", "worker")}}
    for panel in board["panels"]:
        for target in panel.get("targets", ()):
            what = f"{file}: {panel['title']}"
            for values in (VALUES, everything):
                expr = substitute(target["expr"], values)
                series = asker.ask(what, expr, target["instant"])
            for label in re.findall(r"{{(\w+)}}", target["legendFormat"]):
                if any(label not in one["metric"] for one in series):
                    asker.wrong.append(f"{what}: its legend names {label}, which a series lacks")
    for variable in board["templating"]["list"]:
        ask_variable(asker, file, variable)


def ask_variable(asker: Asker, file: str, variable: dict) -> None:
    if variable["type"] != "query":
        return
    selector, label = re.fullmatch(r"label_values\((.+), (\w+)\)",
                                   variable["query"]["query"]).groups()
    asker.asked += 1
    found = asker.prometheus.api(f"label/{label}/values",
                                 **{"match[]": substitute(selector, VALUES)})
    if not found or VALUES[label] not in (*found, ".*"):
        asker.wrong.append(f"{file}: variable {variable['name']} has the values {found}")


def ask_rules(asker: Asker) -> None:
    """A recording rule has values with its labels; an alert's selectors find series.

    Whether alerts fire is for their unit tests; here most do not, and have no value.
    """
    groups = asker.prometheus.api("rules")["groups"]
    for rule in (rule for group in groups for rule in group["rules"]):
        name, expr = rule["name"], rule["query"]
        if rule["health"] != "ok":
            asker.wrong.append(f"rule {name}: {rule['health']} {rule.get('lastError', '')}")
        if rule["type"] == "recording":
            asker.ask(name, expr, instant=True)
            labels = set(promql.recorded_series([name])[name])
            for one in asker.ask(name, name, instant=True):
                if set(one["metric"]) - {"__name__"} != labels:
                    asker.wrong.append(f"rule {name}: its series has the labels {one['metric']}")
            continue
        asker.asked += 1
        try:
            asker.prometheus.instant(expr, asker.end)
        except LabError as error:
            asker.wrong.append(f"alert {name}: {error}")
        for selector in promql.names(expr).selectors:
            asker.ask(f"alert {name}", selector.text, instant=True)


def draw(lab: Lab) -> list[str]:
    """render.py draws every panel that it can, as the well-formed SVG that it should be."""
    out = lab.folder / "panels.svg"
    ran = subprocess.run(
        [sys.executable, str(ROOT / "deploy/grafana/render.py"),
         f"--prometheus={lab.prometheus.url}", "--minutes=1", "--rate-interval=10s",
         "--var=model=stories260k", f"--out={out}"],
        text=True, capture_output=True, check=False)
    if ran.returncode:
        return [f"render.py: {ran.stderr}"]
    svg = ElementTree.parse(out).getroot()
    panels, paths = len(svg.findall("{*}g")), len(svg.findall(".//{*}path[@d]"))
    print(f"render.py: {panels} panels, {paths} lines and shades")
    return [] if panels >= 20 and paths >= panels else ["render.py drew too little"]


def lint(text: str) -> list[str]:
    ran = subprocess.run([tool("promtool"), "check", "metrics"], input=text, text=True,
                         capture_output=True, check=False)
    said = (ran.stdout + ran.stderr).strip()
    print(f"promtool check metrics: {len(text.splitlines())} lines, {said or 'clean'}")
    return [said or "promtool check metrics failed"] if ran.returncode or said else []


def compare_counters(lab: Lab, text: str) -> list[str]:
    """The server counts each status as often as the client saw it.

    A call that the client left (cancelled, or late) may have ended otherwise before the server
    knew, or not have reached it: by so many calls the counts of its RPC may differ.
    """
    gone = ("CANCELLED", "DEADLINE_EXCEEDED")
    seen = lab.load.seen
    counted = {(rpc, code): int(float(value)) for rpc, code, value in
               re.findall(r'ferrite_requests_total{[^}]*rpc="(\w+)",code="(\w+)"} (\S+)', text)}
    wrong = []
    for (rpc, code), calls in sorted(seen.items()):
        server = counted.get((rpc, code), 0)
        left = sum(seen[rpc, other] for other in gone)
        print(f"{rpc} {code}: the client saw {calls}, the server counted {server}")
        if code not in gone and not calls <= server <= calls + left:
            wrong.append(f"{rpc} {code}: the client saw {calls}, the server counted {server}")
    return wrong


def make_load(lab: Lab) -> None:
    """Until every condition holds; says which did not."""
    stop = threading.Event()

    def repeat(*calls):
        while not stop.is_set():
            for call in calls:
                call()

    load = lab.load
    with concurrent.futures.ThreadPoolExecutor() as pool:
        jobs = [pool.submit(repeat, load.burst), pool.submit(repeat, load.mixed)]
        try:
            for what, expr in CONDITIONS.items():
                def holds(expr=expr):
                    for job in jobs:
                        if job.done():
                            job.result()  # raises what ended it
                    return lab.prometheus.holds(expr)
                wait_for(what, holds)
        finally:
            stop.set()
        for job in jobs:
            job.result()


def run(lab: Lab) -> list[str]:
    begin = time.time()
    make_load(lab)
    end = time.time()
    print(f"{sum(lab.load.seen.values())} calls in {end - begin:.1f} s")
    wait_for("a scrape after the load", lambda: lab.prometheus.holds(f"timestamp(up) > {end}"))
    text = lab.scrape()
    asker = Asker(lab, begin, end)
    for file in DASHBOARDS:
        ask_panels(asker, file)
    ask_rules(asker)
    print(f"{asker.asked} queries in {time.time() - end:.1f} s; without a value, as they may be: "
          f"{', '.join(sorted(asker.empty & set(MAY_BE_EMPTY)))}")
    return asker.wrong + draw(lab) + lint(text) + compare_counters(lab, text)


def main() -> int:
    if len(sys.argv) != 3:
        print("usage: monitoring_test.py SERVER CLIENT", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that children are ended
    for name in ("prometheus", "promtool"):
        tool(name)  # or the test is skipped
    try:
        with Lab(*sys.argv[1:]) as lab:
            wrong = run(lab)
    except LabError as error:
        wrong = [str(error)]
    print("\n".join(dict.fromkeys(wrong)), file=sys.stderr, end="\n" if wrong else "")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
