"""A ferrite-server on the embedded model, a Prometheus that scrapes it each second, and load.

A library of monitoring_test.py and monitoring_picture.py. Everything listens on free ports of the
loopback and lives in one temporary folder; whatever ends the program, its children end, too.
"""
import collections
import contextlib
import ctypes
import json
import pathlib
import re
import signal
import socket
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator

from check_tools import ROOT, import_yaml, tool

yaml = import_yaml()
# Small, so that a little load fills the queue and the KV cache.
SERVER_FLAGS = ("--scheduler.max_running=8", "--scheduler.max_waiting=8", "--kv_cache.blocks=64",
                "--backend.threads=1", "--server.drain_grace_seconds=0")
# The client's exit code is this plus gRPC's.
STATUS_OFFSET = 10
STATUS_NAMES = {0: "OK", 1: "CANCELLED", 3: "INVALID_ARGUMENT", 4: "DEADLINE_EXCEEDED",
                5: "NOT_FOUND", 8: "RESOURCE_EXHAUSTED", 13: "INTERNAL"}
UNAVAILABLE = 14  # of a client that could not connect in time, on a busy machine: no call
LIBC = ctypes.CDLL(None)
PROMPT = "Once upon a time there was a little girl who lived in a big house with her dog"


class LabError(Exception):
    """What did not come about in time, and what was seen instead."""


def wait_for(what: str, condition: Callable[[], object], seconds: float = 60) -> object:
    """The first true value of the condition; waits for it, not for a duration."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.1)
    raise LabError(f"not within {seconds:.0f} s: {what}")


def _end_with_parent() -> None:
    """Runs in the child: SIGKILL when the parent is gone, however that came."""
    set_parent_death_signal = 1
    LIBC.prctl(set_parent_death_signal, signal.SIGKILL)


@contextlib.contextmanager
def running(command: list[str], log: pathlib.Path) -> Iterator[subprocess.Popen]:
    with log.open("w") as output:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                                 cwd=ROOT, preexec_fn=_end_with_parent)
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(timeout=10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=20) as answer:
        return answer.read().decode()


class Prometheus:
    """Its HTTP API."""

    def __init__(self, port: int):
        self.url = f"http://127.0.0.1:{port}"

    def ready(self) -> bool:
        try:
            return bool(get(self.url + "/-/ready"))
        except OSError:
            return False

    def api(self, path: str, **parameters) -> list | dict:
        """The data of an answer. LabError with Prometheus' own words if it is an error."""
        query = urllib.parse.urlencode(parameters, doseq=True)
        try:
            answer = json.loads(get(f"{self.url}/api/v1/{path}?{query}"))
        except urllib.error.HTTPError as error:
            raise LabError(json.loads(error.read()).get("error", str(error))) from error
        return answer["data"]

    def instant(self, expr: str, at: float) -> list[dict]:
        return self.api("query", query=expr, time=at)["result"]

    def range(self, expr: str, begin: float, end: float, step: float) -> list[dict]:
        return self.api("query_range", query=expr, start=begin, end=end, step=step)["result"]

    def holds(self, expr: str) -> bool:
        """Whether the expression has a value now."""
        return bool(self.instant(expr, time.time()))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def prometheus_config(folder: pathlib.Path, target: str) -> pathlib.Path:
    """deploy/prometheus/prometheus.yml with this target and a second for its intervals."""
    source = ROOT / "deploy/prometheus"
    config = yaml.safe_load((source / "prometheus.yml").read_text(encoding="utf-8"))
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(source / file) for file in config["rule_files"]]
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [target]
    written = folder / "prometheus.yml"
    written.write_text(yaml.safe_dump(config), encoding="utf-8")
    return written


class Load:
    """Calls of the client, which it counts by RPC and status."""

    def __init__(self, client: str, port: int):
        self._command = [client, "--server", f"127.0.0.1:{port}"]
        self._lock = threading.Lock()
        self.seen: collections.Counter[tuple[str, str]] = collections.Counter()

    def _count(self, rpc: str, status: str, calls: int = 1) -> None:
        with self._lock:
            self.seen[rpc, status] += calls

    def _run(self, *arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run([*self._command, *arguments], stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, timeout=60, check=False)

    def _end(self, rpc: str, code: int) -> None:
        status = 0 if code == 0 else code - STATUS_OFFSET
        if status == UNAVAILABLE:
            return
        if status not in STATUS_NAMES:
            raise LabError(f"the client ended with {code}")
        self._count(rpc, STATUS_NAMES[status])

    def _one(self, rpc: str, *arguments: str) -> None:
        self._end(rpc, self._run(*arguments).returncode)

    def bench(self, streams: int, count: int, prompt: int = 64, output: int = 150) -> None:
        ran = self._run("bench", "--json", f"--concurrency={streams}", f"--count={count}",
                        f"--prompt-tokens={prompt}", f"--output-tokens={output}", "--check=0")
        if not ran.stdout and ran.returncode == STATUS_OFFSET + UNAVAILABLE:
            return
        if not ran.stdout:
            raise LabError(f"bench ended with {ran.returncode}: {ran.stderr}")
        requests = json.loads(ran.stdout)["requests"]
        self._count("GenerateStream", "OK", requests["completed"])
        for error in requests["errors"]:
            if error["status"] != "UNAVAILABLE":
                self._count("GenerateStream", error["status"], error["count"])

    def burst(self) -> None:
        """More streams than run and wait: some are refused."""
        self.bench(streams=40, count=80)

    def generate(self) -> None:
        self._one("Generate", "generate", "--quiet", "--no-stream", "--max-new-tokens=60", PROMPT)

    def stop(self) -> None:
        """Ends by a stop string, not by its length."""
        self._one("Generate", "generate", "--quiet", "--no-stream", "--temperature=0", "--stop=.",
                  PROMPT)

    def embed(self) -> None:
        self._one("Embed", "embed", "--quiet", "The dog ran", "A cat sat")

    def late(self) -> None:
        self._one("Generate", "--timeout=0.02", "generate", "--quiet", "--no-stream",
                  "--ignore-eos", "--max-new-tokens=450", PROMPT)

    def cancelled(self) -> None:
        """Ctrl-C after the first text, which the client answers by cancelling its call.

        If the call has ended meanwhile, the signal ends the client: counted as cancelled, too.
        """
        with subprocess.Popen([*self._command, "generate", "--quiet", "--ignore-eos",
                               "--max-new-tokens=450", PROMPT], stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
            child.stdout.read(1)
            child.send_signal(signal.SIGINT)
            child.stdout.read()
        if child.returncode == -signal.SIGINT:
            self._count("GenerateStream", "CANCELLED")
        else:
            self._end("GenerateStream", child.returncode)

    def refused(self) -> None:
        self._one("GenerateStream", "generate", "--max-new-tokens=100000", PROMPT)
        self._one("GenerateStream", "generate", "--model=another", PROMPT)

    def mixed(self) -> None:
        """One of everything."""
        self.bench(streams=12, count=24)
        for call in (self.generate, self.stop, self.embed, self.late, self.cancelled, self.refused):
            call()


class Lab:
    """Both programs; use it in a `with`. `step` is how often Prometheus scrapes, in seconds."""

    step = 1
    flags = SERVER_FLAGS

    def __init__(self, server: str, client: str):
        self._server, self._client = server, client
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "Lab":
        with self._stack:
            self.folder = pathlib.Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
            port, self.metrics_port = self._start_server()
            self.prometheus = self._start_prometheus()
            self.load = Load(self._client, port)
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *error) -> None:
        self._stack.close()

    def scrape(self) -> str:
        return get(f"http://127.0.0.1:{self.metrics_port}/metrics")

    def _start_server(self) -> tuple[int, int]:
        log = self.folder / "server.log"
        child = self._stack.enter_context(running(
            [self._server, "--config=config/server.yaml", "--server.listen=127.0.0.1:0",
             "--metrics.listen=127.0.0.1:0", *self.flags], log))

        def ports():
            if child.poll() is not None:
                raise LabError(f"the server ended with {child.returncode}:\n{log.read_text()}")
            return re.search(r" ready .*? port=(\d+) metrics_port=(\d+)", log.read_text())

        found = wait_for("the server is ready", ports)
        return int(found[1]), int(found[2])

    def _start_prometheus(self) -> Prometheus:
        """On a free port; on another if somebody takes it first."""
        config = prometheus_config(self.folder, f"127.0.0.1:{self.metrics_port}")
        log = self.folder / "prometheus.log"
        for _ in range(5):
            port = free_port()
            command = [tool("prometheus"), f"--config.file={config}",
                       f"--storage.tsdb.path={self.folder / 'data'}",
                       f"--web.listen-address=127.0.0.1:{port}"]
            child = self._stack.enter_context(running(command, log))
            server = Prometheus(port)
            wait_for("Prometheus is ready", lambda: server.ready() or child.poll() is not None)
            if child.poll() is None:
                return server
        raise LabError(f"Prometheus does not start:\n{log.read_text()}")
