"""Runs the probes of rendered manifests against a server, from before its start to its end.

The server gets the config and the arguments of the manifest, but for what only a pod has: ports,
paths of Secrets, a GPU's model. A native gRPC probe is asked by the client, as the kubelet would ask;
an exec probe is run as it stands.
"""
import contextlib
import json
import pathlib
import signal
import subprocess
import time
from collections.abc import Iterator

import kubernetes_policy
from check_tools import ROOT, tool

TLS_FOLDER = "/etc/ferrite-tls"
READY_SECONDS = 30
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
# What each probe says at each stage, in the order of PROBES.
STAGES = {"before": (False, False, False), "ready": (True, True, True), "drain": (True, False, True)}


def make_certificates(folder: pathlib.Path, name: str) -> None:
    """tls.crt and tls.key for `name`, and the ca.crt that they go back to."""
    openssl = tool("openssl")
    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    extensions = folder / "extensions"
    extensions.write_text(f"subjectAltName=DNS:{name}\n")
    for command in (
        ["req", "-x509", *new_key, "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=ca", "-days", "2"],
        ["req", *new_key, "-keyout", "tls.key", "-out", "tls.csr", "-subj", "/CN=ferrite"],
        ["x509", "-req", "-in", "tls.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial",
         "-days", "2", "-out", "tls.crt", "-extfile", str(extensions)],
    ):
        subprocess.run([openssl, *command], cwd=folder, check=True, capture_output=True)


def probe_command(probe: dict, client: str, port: int, folder: pathlib.Path) -> list[str]:
    here = [f"--server=localhost:{port}"]
    if "grpc" in probe:
        return [client, *here, f"--timeout={probe['timeoutSeconds']}", "health", "--service",
                probe["grpc"]["service"]]
    program, *arguments = probe["exec"]["command"]
    if program != "ferrite":
        raise SystemExit(f"a probe runs {program}")
    return [client] + [here[0] if a.startswith("--server=") else a.replace(TLS_FOLDER, str(folder))
                       for a in arguments]


def answers(container: dict, client: str, port: int, folder: pathlib.Path) -> tuple[bool, ...]:
    return tuple(subprocess.run(probe_command(container[name], client, port, folder), check=False,
                                capture_output=True, timeout=30).returncode == 0 for name in PROBES)


@contextlib.contextmanager
def started(server: str, arguments: list[str], folder: pathlib.Path) -> Iterator[tuple]:
    """The process and its port, once it is ready."""
    log = folder / "log"
    with log.open("w") as stderr:
        process = subprocess.Popen([server, *arguments], stderr=stderr, cwd=ROOT)
    try:
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline and process.poll() is None:
            for line in log.read_text().splitlines():
                if line.startswith("{") and line.endswith("}") and \
                        (event := json.loads(line))["event"] == "ready":
                    yield process, event["port"]
                    return
            time.sleep(0.05)
        raise SystemExit(f"{' '.join(arguments)}: not ready: {log.read_text()}")
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def local_arguments(arguments: list[str], folder: pathlib.Path) -> list[str]:
    """The server's arguments without what only a pod has."""
    pods_own = ("--model.", "--auth.")
    kept = [a.replace(TLS_FOLDER, str(folder)) for a in arguments if not a.startswith(pods_own)]
    return kept + ["--server.listen=127.0.0.1:0", "--metrics.listen=127.0.0.1:0", "--backend.type=cpu",
                   "--backend.threads=1", "--server.drain_grace_seconds=3"]


def problems_of(deployment: dict, arguments: list[str], server: str, client: str,
                folder: pathlib.Path) -> list[str]:
    container = kubernetes_policy.server_of(deployment)
    if "exec" in container["livenessProbe"]:
        asked = [a for a in container["livenessProbe"]["exec"]["command"] if "--server-name=" in a]
        make_certificates(folder, asked[0].partition("=")[2])
    seen = {}
    with started(server, local_arguments(arguments, folder), folder) as (process, port):
        seen["ready"] = answers(container, client, port, folder)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        seen["drain"] = answers(container, client, port, folder)
        code = process.wait(timeout=30)
    seen["before"] = answers(container, client, port, folder)  # nothing listens, as before a start
    problems = [f"{stage}: {dict(zip(PROBES, seen[stage]))}, not {wanted}"
                for stage, wanted in STAGES.items() if seen[stage] != wanted]
    return problems + ([f"the server ended with {code}"] if code != 0 else [])
