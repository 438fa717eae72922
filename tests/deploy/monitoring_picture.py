#!/usr/bin/env python3
"""Makes the picture of docs/dashboard.md, and its table, from a real run.

Starts a server on the embedded model and a Prometheus, runs the client in four phases of 30 s, asks
Prometheus what the dashboards' panels ask, and writes docs/dashboard.svg and the figures between
the marks of docs/dashboard.md. Both come from the same answers.

    tests/deploy/monitoring_picture.py build/cpu/server/ferrite-server build/cpu/client/ferrite
"""
import concurrent.futures
import math
import re
import sys
import threading
import time

from check_tools import ROOT
from monitoring_lab import Lab, wait_for

sys.path.insert(0, str(ROOT / "deploy/grafana"))
from render import drawing, find_panel  # noqa: E402
from svg import Drawing, Series, format_value, picture  # noqa: E402

PANELS = ("Requests by status", "Requests finished, by reason", "Rejections by reason",
          "Tokens in and out", "Time to first token", "Between tokens",
          "Time to first token, spread", "Queue and batch", "Queue wait",
          "KV cache in use", "Preemptions", "Step time by phase, p95",
          "Batch size", "Graph against eager steps", "Heartbeat age")
PHASE_SECONDS = 30
RATE_SECONDS = 10
PHASES = ("2 streams", "8 streams", "40 streams", "mixed")
FIGURES = re.compile(r"(<!-- figures -->\n).*(<!-- end of figures -->)", re.DOTALL)


def calls_of(load, phase: str):
    """What two clients repeat in a phase."""
    if phase == "mixed":
        return load.generate, load.embed, load.stop, load.late, load.cancelled, load.refused
    streams = int(phase.split()[0])
    return (lambda: load.bench(streams // 2, 2 * streams),)


def run_phase(lab: Lab, phase: str) -> None:
    end = time.monotonic() + PHASE_SECONDS
    stop = threading.Event()

    def repeat():
        while not stop.is_set():
            for call in calls_of(lab.load, phase):
                call()

    with concurrent.futures.ThreadPoolExecutor() as pool:
        jobs = [pool.submit(repeat) for _ in range(2)]
        while time.monotonic() < end and not any(job.done() for job in jobs):
            time.sleep(0.05)
        stop.set()
        for job in jobs:
            job.result()


def mean(series: Series, begin: float, end: float) -> float:
    values = [value for at, value in series.points if begin <= at < end and not math.isnan(value)]
    return sum(values) / len(values) if values else math.nan


def table(drawings: list[Drawing], bounds: list[float]) -> str:
    """The mean of each series in each phase, without the first seconds, which look back into the
    phase before."""
    made = ["| panel | series | " + " | ".join(PHASES) + " | greatest |",
            "|---|---|" + "--:|" * (len(PHASES) + 1)]
    for panel in drawings:
        unit = "short" if panel.kind == "heatmap" else panel.unit
        for series in panel.series:
            name = f"≤ {series.name}" if panel.kind == "heatmap" else series.name
            means = [mean(series, begin + RATE_SECONDS, end)
                     for begin, end in zip(bounds, bounds[1:])]
            top = max((v for _, v in series.points if not math.isnan(v)), default=math.nan)
            cells = ["–" if math.isnan(value) else format_value(value, unit)
                     for value in (*means, top)]
            made.append(f"| {panel.title} | {name} | " + " | ".join(cells) + " |")
    return "\n".join(made) + "\n"


def main() -> int:
    if len(sys.argv) != 3:
        print("usage: monitoring_picture.py SERVER CLIENT", file=sys.stderr)
        return 2
    with Lab(*sys.argv[1:]) as lab:
        wait_for("the first scrapes", lambda: lab.prometheus.holds("count_over_time(up[1m]) >= 3"))
        starts = [time.time()]
        for phase in PHASES:
            run_phase(lab, phase)
            starts.append(time.time())
            print(f"{phase}: {starts[-1] - starts[-2]:.0f} s", flush=True)
        begin, end = starts[0], starts[-1]
        values = {"model": "stories260k", "__rate_interval": f"{RATE_SECONDS}s"}
        drawings = [drawing(find_panel(title),
                            lambda expr: lab.prometheus.range(expr, begin, end, Lab.step),
                            begin, values) for title in PANELS]
    bounds = [start - begin for start in starts]
    svg = picture(drawings, end - begin, tuple(bounds[1:-1]),
                  "Ferrite on the embedded model, two CPU cores: " + ", then ".join(PHASES),
                  "Its figures are the table of docs/dashboard.md.")
    (ROOT / "docs/dashboard.svg").write_text(svg, encoding="utf-8")
    page = ROOT / "docs/dashboard.md"
    text = FIGURES.sub(lambda match: match[1] + table(drawings, bounds) + match[2],
                       page.read_text(encoding="utf-8"))
    page.write_text(text, encoding="utf-8")
    print(f"docs/dashboard.svg: {len(svg.encode())} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
