#!/usr/bin/env python3
"""Checks the Kubernetes manifests: renders every overlay and example of deploy/k8s, and then

    kubernetes_test.py policy              our own rules (kubernetes_policy.py)
    kubernetes_test.py schema              Kubernetes' schemas and those of CRDs (kubernetes_schema.py)
    kubernetes_test.py checkov             Checkov's policies for Kubernetes
    kubernetes_test.py config --server P   every mounted server.yaml, by P --check-config
    kubernetes_test.py probes --server P --client C
                                           the probes of a plain and a TLS overlay, run against P
    kubernetes_test.py scaling --server P --client C
                                           the autoscalers' queries, asked of a Prometheus

Each also damages what it has rendered and fails if that is not noticed. Exits with 77, and a line
that says why, where a tool is missing: kubectl, or what scripts/get_check_tools.sh gets.
"""
import argparse
import copy
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import kubernetes_policy
from check_tools import SKIPPED, TOOLS, skip
from kubernetes_render import K8S, label, load, name_of, of_kind, render, render_text, targets

# Checkov wants images by digest. Whoever deploys sets the image (docs/kubernetes.md), by digest if
# they like; the one here is an example's.
NOT_OURS_TO_SAY = ["CKV_K8S_43"]


def stale_rule() -> list[str]:
    """The PrometheusRule, if deploy/prometheus/rules has changed since it was generated."""
    script = K8S / "components/monitoring/generate.py"
    done = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True,
                          check=False, env={**os.environ, "PYTHONPATH": str(TOOLS / "python")})
    return [] if done.returncode == 0 else [done.stderr.strip()]


def check_policy() -> list[str]:
    from kubernetes_damage import unnoticed

    problems = stale_rule()
    for file in sorted(K8S.rglob("*.yaml")):
        load(file.read_text())  # keys that stand twice
    for target in targets():
        name, documents = name_of(target), render(target)
        found = kubernetes_policy.findings(documents)
        tried, missed = unnoticed(name, documents)
        print(f"{name}: {len(documents)} objects, {len(found)} findings; "
              f"{tried - len(missed)} of {tried} damages noticed")
        problems += [f"{name}: {finding}" for finding in found] + missed
    return problems


def check_schema() -> list[str]:
    import kubernetes_schema

    print(f"Kubernetes versions {', '.join(kubernetes_schema.versions())}")
    problems, seen = [], set()
    for target in targets():
        name, documents = name_of(target), []
        for document in render(target):  # overlays have much in common: each object once
            if (text := json.dumps(document)) not in seen:
                seen.add(text)
                documents.append(document)
        found = [problem for document in documents for problem in kubernetes_schema.problems_of(document)]
        missed = kubernetes_schema.misses(documents)
        print(f"{name}: {len(documents)} objects not seen yet, {len(found)} problems; "
              f"{2 * len(documents) - len(missed)} of {2 * len(documents)} damages noticed")
        problems += [f"{name}: {text}" for text in found] + [f"{name}: not noticed: {text}"
                                                             for text in missed]
    return problems


def run_checkov(files: list[pathlib.Path]) -> dict:
    code = "import sys; from checkov.main import Checkov; sys.exit(Checkov().run())"
    command = [sys.executable, "-W", "ignore", "-c", code, "--framework", "kubernetes", "--output", "json",
               "--quiet", "--compact", "--skip-download", "--skip-check", ",".join(NOT_OURS_TO_SAY)]
    for file in files:
        command += ["--file", str(file)]
    environment = {**os.environ, "PYTHONPATH": str(TOOLS / "checkov"), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode not in (0, 1) or not done.stdout.startswith("{"):
        raise SystemExit(f"checkov: {done.stdout[-500:]}{done.stderr[-2000:]}")
    return json.loads(done.stdout)


def failed_of(report: dict, file: pathlib.Path) -> list[str]:
    return [f"{check['check_id']} {check['check_name']}: {check['resource']}"
            for check in report["results"]["failed_checks"]
            if pathlib.Path(check["file_abs_path"]).name == file.name]


def check_checkov() -> list[str]:
    if not (TOOLS / "checkov" / "checkov").is_dir():
        skip("there is no Checkov")
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        for target in targets():
            file = pathlib.Path(folder, name_of(target).replace("/", "-") + ".yaml")
            file.write_text(render_text(target))
            files[name_of(target)] = file
        damaged = pathlib.Path(folder, "damaged.yaml")
        deployment = copy.deepcopy(of_kind(render(targets()[0]), "Deployment")[0])
        kubernetes_policy.pod_of(deployment)["securityContext"] = {"runAsNonRoot": False}
        kubernetes_policy.server_of(deployment).pop("livenessProbe")
        damaged.write_text(json.dumps(deployment))
        report = run_checkov([*files.values(), damaged])
        summary = report["summary"]
        print(f"checkov {summary['checkov_version']}: {summary['passed']} passed, without "
              f"{', '.join(NOT_OURS_TO_SAY)}; {len(failed_of(report, damaged))} failed in a damaged one")
        problems = [f"{name}: {text}" for name, file in files.items() for text in failed_of(report, file)]
        seen = " ".join(failed_of(report, damaged))
        problems += [f"checkov did not notice {check}" for check in ("CKV_K8S_8 ", "CKV_K8S_23 ")
                     if check not in seen]
        if summary["passed"] < 50 * len(files):
            problems.append(f"only {summary['passed']} checks passed: is everything read?")
    return problems


def expanded(argument: str, environment: dict[str, str]) -> str:
    for name, value in environment.items():
        argument = argument.replace(f"$({name})", value)
    return argument


def server_command(deployment: dict, documents: list[dict], config: pathlib.Path) -> list[str]:
    """The container's arguments as the kubelet would give them, with the config where we put it."""
    container, environment = kubernetes_policy.server_of(deployment), {}
    for source in container.get("envFrom", []):
        for document in of_kind(documents, "ConfigMap"):
            if document["metadata"]["name"] == source["configMapRef"]["name"]:
                environment |= document["data"]
    arguments = [expanded(argument, environment) for argument in container["args"]]
    if any("$(" in argument for argument in arguments):
        raise SystemExit(f"{label(deployment)}: a variable of {arguments} is not set")
    return [f"--config={config}" if a.startswith("--config=") else a for a in arguments]


def need_built(program: str, what: str) -> None:
    if not os.access(program, os.X_OK):
        print(f"skipped: {program or what} is not built")
        sys.exit(SKIPPED)


def check_config(server: str) -> list[str]:
    need_built(server, "the server")
    problems = []
    for target in targets():
        documents = render(target)
        for deployment in of_kind(documents, "Deployment"):
            text = kubernetes_policy.config_map_of(deployment, documents)["data"]["server.yaml"]
            for what, content in (("", text), ("damaged ", text + "no_such_key: 1\n")):
                with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
                    file.write(content)
                    file.flush()
                    command = server_command(deployment, documents, pathlib.Path(file.name))
                    done = subprocess.run([server, "--check-config", *command], capture_output=True,
                                          text=True, check=False, timeout=60)
                print(f"{name_of(target)}: {what}exit {done.returncode}")
                if done.returncode != (2 if what else 0):
                    problems.append(f"{name_of(target)}: {what}{' '.join(command)}: exit "
                                    f"{done.returncode}: {done.stdout}{done.stderr}")
    return problems


def check_probes(server: str, client: str) -> list[str]:
    import kubernetes_probes

    need_built(server, "the server")
    need_built(client, "the client")
    problems = []
    for name in ("overlays/cpu-demo", "examples/gpu-secure"):
        documents = render(K8S / name)
        deployment = of_kind(documents, "Deployment")[0]
        with tempfile.TemporaryDirectory() as folder:
            config = pathlib.Path(folder, "server.yaml")
            config.write_text(kubernetes_policy.config_map_of(deployment, documents)["data"]["server.yaml"])
            found = kubernetes_probes.problems_of(
                deployment, server_command(deployment, documents, config), server, client,
                pathlib.Path(folder))
        print(f"{name}: before the start, ready and draining: {len(found)} problems")
        problems += [f"{name}: {problem}" for problem in found]
    return problems


def check_scaling(server: str, client: str) -> list[str]:
    import kubernetes_scaling

    need_built(server, "the server")
    need_built(client, "the client")
    return kubernetes_scaling.problems_of(server, client)


def main() -> int:
    parser = argparse.ArgumentParser(description="Checks the Kubernetes manifests")
    parser.add_argument("check", choices=["policy", "schema", "checkov", "config", "probes", "scaling"])
    parser.add_argument("--server", default="", help="the ferrite-server to run")
    parser.add_argument("--client", default="", help="the client, ferrite")
    given = parser.parse_args()
    checks = {"policy": check_policy, "schema": check_schema, "checkov": check_checkov,
              "config": lambda: check_config(given.server),
              "probes": lambda: check_probes(given.server, given.client),
              "scaling": lambda: check_scaling(given.server, given.client)}
    problems = checks[given.check]()
    print("\n".join(problems) or "all well")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
