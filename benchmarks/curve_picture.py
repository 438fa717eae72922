#!/usr/bin/env python3
"""Draws what serve_curve.py measured: throughput and latency over the number of clients.

Each NAME=REPORT is a colour; the kind of the picture is that of its file's name. Needs matplotlib.

    benchmarks/curve_picture.py --out docs/curve-gpu.svg fp16=curve/report.json \\
        int4=curve-int4/report.json
"""

import argparse
import json
import pathlib

import matplotlib

matplotlib.use("Agg")
# Text stays text, and the same figures give the same file.
matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "ferrite", "font.size": 9})
from matplotlib import pyplot  # noqa: E402

LATENCIES = (("inter-token p50", "-", "inter_token_ms", "p50"),
             ("inter-token p99", "--", "inter_token_ms", "p99"),
             ("first token p50", ":", "time_to_first_token_ms", "p50"))


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=pathlib.Path)
    parser.add_argument("reports", nargs="+", metavar="NAME=REPORT")
    options = parser.parse_args()
    figure, (rates, latencies) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    rates.set_title("output tokens/s")
    latencies.set_title("milliseconds")
    latencies.set_yscale("log")
    for i, (name, _, path) in enumerate(report.partition("=") for report in options.reports):
        points = json.loads(pathlib.Path(path).read_text())["server"]
        clients = [point["settings"]["concurrency"] for point in points]
        rates.plot(clients, [point["output_tokens_per_second"] for point in points],
                   f"C{i}o-", label=name)
        for label, style, field, share in LATENCIES:
            latencies.plot(clients, [point[field][share] for point in points], f"C{i}{style}",
                           label=f"{name}: {label}")
    for axes in (rates, latencies):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.set_xlabel("clients")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(options.out, metadata={"Date": None} if options.out.suffix == ".svg" else None)


if __name__ == "__main__":
    main()
