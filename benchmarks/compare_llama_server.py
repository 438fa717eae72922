#!/usr/bin/env python3
"""Compares ferrite-server with llama.cpp's llama-server: same weights, threads and machine, one run.

Each serves a growing number of clients in closed loops, every one of which sends a random prompt and
waits for all of its answer; the two servers take turns, the other one stopped meanwhile. Ours is
driven by `ferrite bench`, which reads every token as it comes; theirs by HTTP requests that wait for
the whole answer, which costs their client less. llama-server gets its best of weights in F16 and BF16
and of flash attention on and off, found at --probe clients.

    pip download --no-deps --no-binary :all: llama-cpp-python    # its vendor/llama.cpp has the source
    cmake -B llama-build -DCMAKE_BUILD_TYPE=Release -DLLAMA_CURL=OFF vendor/llama.cpp
    cmake --build llama-build --target llama-server
    pip install llama-cpp-python gguf
    benchmarks/compare_llama_server.py --llama-server llama-build/bin/llama-server --threads 2
"""

import argparse
import contextlib
import http.client
import itertools
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

from compare_llama_cpp import ROOT, write_ggufs

START_SECONDS = 120


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Stopped:
    """A server that runs only while it is measured."""

    def __init__(self, command, ready):
        self._process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL,
                                         stderr=subprocess.DEVNULL)
        begin = time.monotonic()
        while not ready():
            if self._process.poll() is not None or time.monotonic() - begin > START_SECONDS:
                self.close()
                sys.exit(f"{command[0]} did not start")
            time.sleep(0.1)
        self._process.send_signal(signal.SIGSTOP)

    @contextlib.contextmanager
    def running(self):
        self._process.send_signal(signal.SIGCONT)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGSTOP)

    def close(self):
        self._process.kill()
        self._process.wait()


class Ours:
    def __init__(self, options):
        self._options = options
        self._port = free_port()
        self._server = Stopped(
            [str(options.build / "server/ferrite-server"), f"--model.path={options.model}",
             f"--server.listen=127.0.0.1:{self._port}", f"--backend.threads={options.threads}",
             f"--scheduler.max_running={max(options.clients)}", "--kv_cache.memory_mb=2048"],
            lambda: self._run("health").returncode == 0)

    def _run(self, *arguments):
        return subprocess.run([str(self._options.build / "client/ferrite"), "--server",
                               f"127.0.0.1:{self._port}", *arguments], capture_output=True,
                              text=True)

    def measure(self, clients, count):
        with self._server.running():
            result = self._run("bench", "--json", "--concurrency", str(clients), "--count",
                               str(count), "--prompt-tokens", str(self._options.prompt),
                               "--output-tokens", str(self._options.new), "--check", "0")
        if result.returncode != 0:
            sys.exit(f"ferrite bench failed: {result.stderr}")
        return json.loads(result.stdout)["output_tokens_per_second"]

    def close(self):
        self._server.close()


class Theirs:
    def __init__(self, options, path, flash):
        self._options = options
        self._port = free_port()
        self._random = random.Random(1)
        most = max(options.clients)
        # Each of its slots has room for whole blocks of 256 tokens.
        context = most * -(-(options.prompt + options.new) // 256) * 256
        self._server = Stopped(
            [str(options.llama_server), "--model", str(path), "--host", "127.0.0.1", "--port",
             str(self._port), "--threads", str(options.threads), "--threads-batch",
             str(options.threads), "--parallel", str(most), "--ctx-size", str(context),
             "--flash-attn", flash, "--no-warmup"], self._is_ready)

    def _is_ready(self):
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=1)
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except OSError:
            return False

    def _complete(self, connection, prompt):
        body = json.dumps({"prompt": prompt, "n_predict": self._options.new, "ignore_eos": True,
                           "temperature": 0, "cache_prompt": False})
        connection.request("POST", "/completion", body, {"Content-Type": "application/json"})
        answer = json.loads(connection.getresponse().read())
        if answer.get("tokens_predicted") != self._options.new:
            raise RuntimeError(f"llama-server answered {str(answer)[:300]}")

    def measure(self, clients, count):
        prompts = [[self._random.randrange(100, self._options.vocab)
                    for _ in range(self._options.prompt)] for _ in range(count)]
        numbers = iter(range(count))
        lock = threading.Lock()
        failures = []

        def client():
            connection = http.client.HTTPConnection("127.0.0.1", self._port)
            while True:
                with lock:
                    number = next(numbers, None)
                if number is None or failures:
                    return
                try:
                    self._complete(connection, prompts[number])
                except Exception as error:  # told below, on the main thread
                    failures.append(error)

        with self._server.running():
            begin = time.perf_counter()
            threads = [threading.Thread(target=client) for _ in range(clients)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            seconds = time.perf_counter() - begin
        if failures:
            sys.exit(f"llama-server failed: {failures[0]}")
        return count * self._options.new / seconds

    def close(self):
        self._server.close()


def best_variant(options, files):
    rates = {}
    for name, flash in itertools.product(files, ("on", "off")):
        theirs = Theirs(options, files[name], flash)
        rates[name, flash] = theirs.measure(options.probe, 2 * options.probe)
        theirs.close()
        print(f"llama-server {name}, flash attention {flash}: {rates[name, flash]:.1f} tokens/s at "
              f"{options.probe} clients", flush=True)
    return max(rates, key=rates.get)


def compare(options, files):
    name, flash = best_variant(options, files)
    ours, theirs = Ours(options), Theirs(options, files[name], flash)
    rows = []
    print(f"{'clients':>8}{'ours':>10}{'theirs':>10}{'ratio':>8}   tokens/s, medians of "
          f"{options.repeat}; theirs: {name}, flash attention {flash}")
    try:
        for clients in options.clients:
            count = max(4, 2 * clients)
            runs = [(ours.measure(clients, count), theirs.measure(clients, count))
                    for _ in range(options.repeat)]
            mine, other = (sorted(column)[len(runs) // 2] for column in zip(*runs))
            rows.append({"clients": clients, "ours": mine, "theirs": other, "runs": runs})
            print(f"{clients:8}{mine:10.1f}{other:10.1f}{mine / other:8.2f}", flush=True)
    finally:
        ours.close()
        theirs.close()
    return {"threads": options.threads, "weights": name, "flash_attention": flash, "rows": rows}


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-server", type=pathlib.Path, required=True)
    parser.add_argument("--model", type=pathlib.Path, default=ROOT / "models/smollm2-135m-instruct")
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build/cpu")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--clients", default="1,2,4,8,16,32",
                        type=lambda text: [int(part) for part in text.split(",")])
    parser.add_argument("--probe", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", type=pathlib.Path, help="where to write all figures")
    options = parser.parse_args()
    options.vocab = json.loads((options.model / "config.json").read_text())["vocab_size"]
    with tempfile.TemporaryDirectory() as folder:
        report = compare(options, write_ggufs(options.model, folder))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
