#!/usr/bin/env python3
"""Draws what serve_curve.py measured: throughput and latency over the number of clients, as SVG.

    benchmarks/curve_picture.py --out docs/curve-gpu.svg fp16=curve-fp16/report.json \\
        int4=curve-int4/report.json

Each NAME=REPORT is a colour. Clients lie at equal distances, latencies on a logarithmic axis.
"""

import argparse
import json
import math
import pathlib
from html import escape

WIDTH, HEIGHT = 460, 330  # of a panel
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 54, 44
COLORS = ("#3274d9", "#e0752d", "#37872d", "#8f3bb8")
DASHES = ("", "5 3", "2 3")


def text(x, y, words, anchor="start", size=11):
    return (f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}">'
            f"{escape(words)}</text>")


def panel(left, title, clients, lines, logarithmic):
    """`lines`: (name, colour, dashes, {clients: value})."""
    values = [value for *_, points in lines for value in points.values()]
    if logarithmic:
        low, high = (f(math.log10(v)) for f, v in ((math.floor, min(values)),
                                                   (math.ceil, max(values))))
        ticks = [10.0**power for power in range(low, high + 1)]
    else:
        step = 10 ** math.floor(math.log10(max(values)))
        step = step / 2 if max(values) < 3 * step else step
        low, high = 0, math.ceil(max(values) / step)
        ticks = [step * i for i in range(high + 1)]

    def x_of(count):
        width = WIDTH - LEFT - RIGHT
        return left + LEFT + width * clients.index(count) / max(1, len(clients) - 1)

    def y_of(value):
        part = (math.log10(value) - low) / (high - low) if logarithmic else value / ticks[-1]
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - part)

    made = [text(left + LEFT, 18, title, size=13)]
    for tick in ticks:
        made += [f'<line x1="{left + LEFT}" x2="{left + WIDTH - RIGHT}" y1="{y_of(tick):.1f}" '
                 f'y2="{y_of(tick):.1f}" stroke="#ddd"/>',
                 text(left + LEFT - 6, y_of(tick) + 4, f"{tick:,.0f}", "end")]
    made += [text(x_of(count), HEIGHT - BOTTOM + 16, str(count), "middle") for count in clients]
    made.append(text(left + LEFT + (WIDTH - LEFT - RIGHT) / 2, HEIGHT - 8, "clients", "middle"))
    for i, (name, color, dashes, points) in enumerate(lines):
        path = " ".join(f"{x_of(count):.1f},{y_of(value):.1f}" for count, value in points.items())
        stroke = f'stroke="{color}" stroke-width="2" stroke-dasharray="{dashes}"'
        made.append(f'<polyline points="{path}" fill="none" {stroke}/>')
        at = left + LEFT + i % 3 * 130
        made += [f'<line x1="{at}" x2="{at + 22}" y1="{30 + i // 3 * 14}" y2="{30 + i // 3 * 14}" '
                 f"{stroke}/>", text(at + 26, 34 + i // 3 * 14, name, size=10)]
    return made


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=pathlib.Path)
    parser.add_argument("reports", nargs="+", metavar="NAME=REPORT")
    options = parser.parse_args()
    rates, latencies, clients = [], [], set()
    for i, given in enumerate(options.reports):
        name, _, path = given.partition("=")
        points = {point["settings"]["concurrency"]: point
                  for point in json.loads(pathlib.Path(path).read_text())["server"]}
        clients |= points.keys()
        color = COLORS[i % len(COLORS)]
        rates.append((name, color, "", {count: point["output_tokens_per_second"]
                                        for count, point in points.items()}))
        for dashes, label, field, share in ((DASHES[0], "inter-token p50", "inter_token_ms", "p50"),
                                            (DASHES[1], "inter-token p99", "inter_token_ms", "p99"),
                                            (DASHES[2], "first token p50", "time_to_first_token_ms",
                                             "p50")):
            latencies.append((f"{name}: {label}", color, dashes,
                              {count: point[field][share] for count, point in points.items()}))
    clients = sorted(clients)
    made = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * WIDTH}" height="{HEIGHT}" '
            f'font-family="sans-serif"><rect width="100%" height="100%" fill="white"/>',
            *panel(0, "output tokens/s", clients, rates, False),
            *panel(WIDTH, "milliseconds", clients, latencies, True), "</svg>"]
    options.out.write_text("\n".join(made) + "\n")


if __name__ == "__main__":
    main()
