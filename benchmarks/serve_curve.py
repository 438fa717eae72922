#!/usr/bin/env python3
"""Throughput and latency of a server from one client to many, beside its engine alone.

Starts ferrite-server, runs `ferrite bench` over a sweep of closed loops, stops it, and runs the same
sweep by engine_load, which has no gRPC. Prints a table with the share of the engine's throughput that
the server reaches, and what of the server's metrics tells about its GPU; writes the reports (JSON)
and the picture (SVG) into a folder. What comes after "--" is for the server and engine_load.

    benchmarks/serve_curve.py --clients 1,4,16,32,64,128,256 --prompt-tokens 1000 \\
      --output-tokens 1000 --out curve -- --backend.type=cuda --model.path=FOLDER \\
      --scheduler.max_running=256 --scheduler.max_step_tokens=2048 --scheduler.max_context=8192

--mix takes lengths like those of ShareGPT's conversations instead: log-normal, 200 and 190 tokens in
the mean, at most 1,000 each. --prefix N measures the prefix cache: 64 clients with N tokens in common,
with the cache and without.
"""

import argparse
import contextlib
import json
import pathlib
import random
import re
import subprocess
import sys
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
START_SECONDS = 120
METRICS = re.compile(r"^(ferrite_(?:gpu_memory_bytes|steps_total|preemptions_total)\b.*)$", re.M)


def program(options, name):
    """A program of a build folder or of a bundle."""
    for folder in ("bin", "server", "client", "benchmarks"):
        path = options.build / folder / name
        if path.exists():
            return str(path)
    sys.exit(f"{name} is neither in {options.build}/bin nor built in {options.build}")


@contextlib.contextmanager
def server(options, *flags):
    """Yields the ports of a server and of its metrics."""
    command = [program(options, "ferrite-server"), "--server.listen=127.0.0.1:0",
               "--metrics.listen=127.0.0.1:0", "--log.format=json", "--log.access=false",
               *options.flags, *flags]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        begin = time.monotonic()
        for line in process.stderr:
            event = json.loads(line) if line.startswith("{") else {}
            if event.get("event") == "ready":
                print(f"ready after {event['seconds']:.2f} s on {event['device']} in "
                      f"{event['compute_type']}, {event['kv_blocks']} KV blocks", flush=True)
                break
            if event.get("event") == "start_failed" or time.monotonic() - begin > START_SECONDS:
                sys.exit(f"the server did not start: {line}")
        else:
            sys.exit("the server did not start")
        yield event["port"], event["metrics_port"]
    finally:
        process.terminate()
        process.wait(60)
        process.stderr.close()


def run(command):
    """The JSON that a benchmark prints; its complaints go to the terminal."""
    result = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if not result.stdout:
        sys.exit(f"{command[0]} failed with {result.returncode}")
    return json.loads(result.stdout)


def bench(options, port, *arguments):
    return run([program(options, "ferrite"), "--server", f"127.0.0.1:{port}", "bench", "--json",
                "--threads", str(options.threads), "--check", str(options.check), *arguments])


def lengths(options):
    return ["--prompt-tokens", str(options.prompt_tokens),
            "--output-tokens", str(options.output_tokens)]


def write_mix(path):
    """Lengths of 2,000 conversations; the same every time."""
    draw = random.Random(1)
    with open(path, "w") as file:
        for _ in range(2000):
            prompt, output = (max(4, min(1000, round(draw.lognormvariate(mu, 1.0))))
                              for mu in (4.8, 4.75))
            file.write(json.dumps({"prompt_tokens": prompt, "output_tokens": output}) + "\n")
    return path


def scrape(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as page:
        return METRICS.findall(page.read().decode())


def row(point, alone):
    first, inter = point["time_to_first_token_ms"], point["inter_token_ms"]
    rate = point["output_tokens_per_second"]
    cells = [f"{point['settings']['concurrency']:7}", f"{rate:10.0f}"]
    if alone:
        cells += [f"{alone['output_tokens_per_second']:10.0f}",
                  f"{rate / alone['output_tokens_per_second']:7.2f}"]
    cells += [f"{value:9.2f}" for value in (first["p50"], first["p99"], inter["p50"], inter["p99"])]
    cells += [f"{inter['p99'] / inter['p50']:9.2f}", f"{point['requests']['failed']:6}",
              f"{point['check']['different_from_solo']}/{point['check']['compared']:<4}"]
    return " ".join(cells)


def head(alone):
    names = ["clients", "  tokens/s", *(["engine's/s", "  share"] if alone else []), " TTFT p50",
             " TTFT p99", "inter p50", "inter p99", "p99 / p50", "failed", "other ids"]
    return " ".join(names)


def curve(options):
    work = (["--dataset", str(write_mix(options.out / "mix.jsonl"))] if options.mix
            else lengths(options))
    points, alone = [], []
    with server(options) as (port, metrics_port):
        for clients in options.clients:  # one by one, so that what was measured is kept
            count = str(max(options.least, options.per_client * clients))
            report = bench(options, port, "--sweep-concurrency", str(clients), "--count", count,
                           "--plot", str(options.out / "last.svg"), *work)
            points += report["sweep"]
            print(f"{clients} clients: {points[-1]['output_tokens_per_second']:.0f} tokens/s",
                  flush=True)
        metrics = scrape(metrics_port)
    if not options.mix and not options.no_engine:
        for clients in options.clients:
            count = str(max(options.least, options.per_client * clients))
            alone += run([program(options, "engine_load"), *options.flags, "--", "--json",
                          "--sweep-concurrency", str(clients), "--count", count, *work])["sweep"]
    print(head(alone))
    for i, point in enumerate(points):
        print(row(point, alone[i] if alone else None))
    print("\n".join(metrics))
    return {"server": points, "engine": alone, "metrics": metrics}


def prefix(options):
    report = {}
    work = ["--concurrency", "64", "--count", str(64 * options.per_client), *lengths(options)]
    shared = [*work, "--shared-prefix-tokens", str(options.prefix)]
    for name in ("true", "false"):
        with server(options, f"--kv_cache.prefix_caching={name}") as (port, _):
            report[f"shared, cache {name}"] = bench(options, port, *shared)
            report[f"nothing shared, cache {name}"] = bench(options, port, *work)
    print("                               ", head(False))
    for name, point in report.items():
        print(f"{name:32}", row(point, None))
    return report


def parse():
    arguments = sys.argv[1:]
    divider = arguments.index("--") if "--" in arguments else len(arguments)
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build/cpu",
                        help="a build folder or a bundle")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("curve"))
    parser.add_argument("--clients", default="1,4,16,32,64,128,256",
                        type=lambda text: [int(part) for part in text.split(",")])
    parser.add_argument("--prompt-tokens", default="1000")
    parser.add_argument("--output-tokens", default="1000")
    parser.add_argument("--per-client", type=int, default=2, help="requests of each client")
    parser.add_argument("--least", type=int, default=4, help="requests at least")
    parser.add_argument("--threads", type=int, default=4, help="of the load generator")
    parser.add_argument("--check", type=int, default=2, help="requests sent again alone")
    parser.add_argument("--mix", action="store_true")
    parser.add_argument("--no-engine", action="store_true", help="do not run the engine alone")
    parser.add_argument("--prefix", type=int)
    options = parser.parse_args(arguments[:divider])
    options.flags = arguments[divider + 1 :]
    options.build = options.build.resolve()
    options.out = options.out.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    return options


def main():
    options = parse()
    report = prefix(options) if options.prefix else curve(options)
    (options.out / "report.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
