#!/usr/bin/env python3
"""Where the time of one step goes: a Markdown table of its kernels.

Runs gpu_step_bench under Nsight Compute with the graphs off, profiles one step, and groups its
kernels by name and by what they read. Each kernel runs alone, so that the sum is more than a step
takes when kernels overlap; the clocks are left as they are. The share of the floor is the bytes read
and written, at the read bandwidth that the benchmark measures in the same process, against the
kernel's time. `--csv` reads what an earlier run left.

    benchmarks/cuda/step_table.py --bench build/cuda/benchmarks/cuda/gpu_step_bench \\
        --model llama-3.1-8b --batch 1 --context 192
"""

import argparse
import collections
import csv
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

METRICS = ("gpu__time_duration.sum", "dram__bytes_read.sum", "dram__bytes_write.sum")
# As ncu's versions spell them.
NANOSECONDS = {"ns": 1, "nsecond": 1, "us": 1e3, "usecond": 1e3, "ms": 1e6, "msecond": 1e6}
BYTES = {"byte": 1, "Kbyte": 1e3, "Mbyte": 1e6, "Gbyte": 1e9}
# Kernels that read within so much of each other are one line.
SAME_BYTES = 0.2


class Kernel:
    def __init__(self, name):
        self.name = name
        self.us = 0.0
        self.read = 0.0
        self.written = 0.0


def short_name(name):
    """A kernel's name less its namespaces, return type, parameters and template arguments."""
    name = re.sub(r"\(anonymous namespace\)::|<unnamed>::|unnamed>::|ferrite::|^void ", "", name)
    base = re.split(r"[(<]", name, maxsplit=1)[0]
    return base.split("::")[-1].strip() or name


def read_kernels(path):
    """Kernels in the order in which they ran, from ncu's CSV: one row a kernel and metric."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    begin = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if begin is None:
        sys.exit(f"{path}: no table of ncu's in it; its last lines:\n" + "\n".join(lines[-20:]))
    kernels = {}
    for row in csv.DictReader(lines[begin:]):
        metric = row.get("Metric Name")
        if metric not in METRICS:
            continue
        kernel = kernels.setdefault(int(row["ID"]), Kernel(short_name(row["Kernel Name"])))
        value, unit = float(row["Metric Value"].replace(",", "")), row["Metric Unit"]
        if metric == METRICS[0]:
            kernel.us = value * NANOSECONDS[unit] / 1e3
        elif metric == METRICS[1]:
            kernel.read = value * BYTES[unit]
        else:
            kernel.written = value * BYTES[unit]
    return [kernels[i] for i in sorted(kernels)]


def groups_of(kernels):
    """Lists of kernels of the same name that read about the same."""
    by_name = collections.OrderedDict()
    for kernel in kernels:
        by_name.setdefault(kernel.name, []).append(kernel)
    groups = []
    for same_name in by_name.values():
        same_name.sort(key=lambda kernel: kernel.read)
        group = [same_name[0]]
        for kernel in same_name[1:]:
            # Small reads are noise of the cache, not another shape.
            if kernel.read > 1e6 and kernel.read > group[0].read * (1 + SAME_BYTES):
                groups.append(group)
                group = []
            group.append(kernel)
        groups.append(group)
    return groups


def label(group, products):
    """The product whose weights the kernels of a group read, if there is one."""
    mean = sum(kernel.read for kernel in group) / len(group)
    for name, size in products.items():
        if abs(mean - size) < SAME_BYTES / 2 * size:
            return f"{group[0].name} ({name})"
    return group[0].name


def table(kernels, report):
    bandwidth = report["read_tb_per_second"] * 1e6  # bytes a microsecond
    rows = []
    for group in groups_of(kernels):
        us = sum(kernel.us for kernel in group)
        moved = sum(kernel.read + kernel.written for kernel in group)
        rows.append((us, label(group, report["products"]), len(group), moved))
    rows.sort(reverse=True)
    total_us = sum(row[0] for row in rows)
    total_moved = sum(row[3] for row in rows)
    lines = ["| kernel | count | µs each | µs | % | MB | share of its floor |",
             "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"]
    for us, name, count, moved in rows:
        lines.append(f"| {name} | {count} | {us / count:.2f} | {us:.1f} | {100 * us / total_us:.1f} | "
                     f"{moved / 1e6:.1f} | {moved / bandwidth / us:.2f} |")
    lines.append(f"| all, one after another | {len(kernels)} | | {total_us:.1f} | 100 | "
                 f"{total_moved / 1e6:.1f} | {total_moved / bandwidth / total_us:.2f} |")
    return "\n".join(lines)


def profile(options, log):
    """Runs the benchmark under ncu; returns its report."""
    bench = [options.bench, "--no-graphs", "--profile", options.step, "--model", options.model,
             "--type", options.type, "--batch", str(options.batch), "--context",
             str(options.context), "--prefill", str(options.prefill), *options.more.split()]
    command = [options.ncu, "--clock-control", "none", "--cache-control", "none",
               "--profile-from-start", "off", "--csv", "--print-units", "base",
               "--metrics", ",".join(METRICS), "--log-file", str(log), *bench]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        return json.loads(result.stdout)
    except json.JSONDecodeError:
        tail = log.read_text(errors="replace")[-2000:] if log.exists() else ""
        sys.exit(f"{' '.join(command)}\nended with {result.returncode}:\n{result.stdout[-2000:]}\n"
                 f"{result.stderr[-2000:]}\n{tail}")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", default="build/cuda/benchmarks/cuda/gpu_step_bench")
    parser.add_argument("--ncu", default="ncu")
    parser.add_argument("--model", default="llama-3.1-8b")
    parser.add_argument("--type", default="fp16")
    parser.add_argument("--step", choices=("decode", "prefill"), default="decode")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--context", type=int, default=192)
    parser.add_argument("--prefill", type=int, default=2048, help="tokens of the prefill step")
    parser.add_argument("--more", default="", metavar="FLAGS",
                        help="of gpu_step_bench, such as --more='--int4 128' or --more=--deterministic")
    parser.add_argument("--keep", type=pathlib.Path, help="a folder for ncu's CSV and the report")
    parser.add_argument("--csv", type=pathlib.Path, help="a folder that --keep filled")
    options = parser.parse_args()
    if options.csv:
        report = json.loads((options.csv / "report.json").read_text())
        kernels = read_kernels(options.csv / "ncu.csv")
    else:
        with tempfile.TemporaryDirectory() as folder:
            keep = options.keep or pathlib.Path(folder)
            os.makedirs(keep, exist_ok=True)
            report = profile(options, keep / "ncu.csv")
            (keep / "report.json").write_text(json.dumps(report, indent=1) + "\n")
            kernels = read_kernels(keep / "ncu.csv")
    if not kernels:
        sys.exit("no kernel was profiled")
    what = (f"decode, batch {options.batch}, context {options.context}"
            if options.step == "decode" else f"prefill of {options.prefill} tokens")
    print(f"{report['model']}, {report['type']}, {what}; "
          f"read bandwidth {report['read_tb_per_second']:.2f} TB/s\n")
    print(table(kernels, report))


if __name__ == "__main__":
    main()
