"""Ways to damage a rendered manifest, and what kubernetes_policy must say of each.

A rule that finds nothing in a sound manifest proves nothing; here each has to find something.
"""
import collections.abc
import copy

from kubernetes_policy import config_map_of, findings, labels_of, pod_of, server_of
from kubernetes_render import of_kind


def deployment(documents: list[dict]) -> dict:
    return of_kind(documents, "Deployment")[0]


def pod(documents: list[dict]) -> dict:
    return pod_of(deployment(documents))


def server(documents: list[dict]) -> dict:
    return server_of(deployment(documents))


def spec(documents: list[dict], kind: str) -> dict:
    return of_kind(documents, kind)[0]["spec"]


def edit_config(documents: list[dict], old: str, new: str) -> None:
    data = config_map_of(deployment(documents), documents)["data"]
    if old not in data["server.yaml"]:
        raise SystemExit(f"server.yaml has no {old!r} to damage")
    data["server.yaml"] = data["server.yaml"].replace(old, new)


def drop_object(documents: list[dict], kind: str) -> None:
    documents.remove(of_kind(documents, kind)[0])


Damage = tuple[str, str, collections.abc.Callable[[list[dict]], object]]
ANY: list[Damage] = [
    ("no runAsNonRoot", "runAsNonRoot", lambda d: pod(d)["securityContext"].pop("runAsNonRoot")),
    ("user 0", "runAsUser", lambda d: pod(d)["securityContext"].update(runAsUser=0)),
    ("no seccomp", "seccompProfile", lambda d: pod(d)["securityContext"].pop("seccompProfile")),
    ("a token", "automount", lambda d: pod(d).pop("automountServiceAccountToken")),
    ("the node's network", "hostNetwork", lambda d: pod(d).update(hostNetwork=True)),
    ("a writable root", "readOnlyRoot",
     lambda d: server(d)["securityContext"].update(readOnlyRootFilesystem=False)),
    ("a capability", "capabilities",
     lambda d: server(d)["securityContext"]["capabilities"].update(add=["NET_RAW"])),
    ("escalation", "allowPrivilegeEscalation",
     lambda d: server(d)["securityContext"].pop("allowPrivilegeEscalation")),
    ("root in a container", "undoes", lambda d: server(d)["securityContext"].update(runAsUser=0)),
    ("no tag", "fixed tag", lambda d: server(d).update(image="registry.example.com:5000/ferrite")),
    ("no memory limit", "limits has no memory", lambda d: server(d)["resources"]["limits"].pop("memory")),
    ("a writable config", "could write", lambda d: [m.pop("readOnly", 0) for m in server(d)["volumeMounts"]]),
    ("a lost volume", "there is no volume", lambda d: pod(d).update(volumes=[])),
    ("a subPath", "subPath", lambda d: server(d)["volumeMounts"][0].update(subPath="x")),
    ("no readiness", "no readinessProbe", lambda d: server(d).pop("readinessProbe")),
    ("liveness by readiness", "livenessProbe asks for",
     lambda d: server(d).update(livenessProbe=server(d)["readinessProbe"])),
    ("readiness by liveness", "readinessProbe asks for",
     lambda d: server(d).update(readinessProbe=server(d)["livenessProbe"])),
    ("an impatient start", "loads for", lambda d: server(d)["startupProbe"].update(failureThreshold=3)),
    ("a hasty kill", "less than 3", lambda d: server(d)["livenessProbe"].update(failureThreshold=1)),
    ("no preStop", "preStop", lambda d: server(d).pop("lifecycle")),
    ("a short grace", "terminationGrace", lambda d: pod(d).update(terminationGracePeriodSeconds=30)),
    ("a longer drain", "terminationGrace",
     lambda d: edit_config(d, "drain_grace_seconds: 5", "drain_grace_seconds: 500")),
    ("a drain by default", "terminationGrace",
     lambda d: (edit_config(d, "drain_timeout_seconds", "#"),
                pod(d).update(terminationGracePeriodSeconds=46))),
    ("another port", "port grpc", lambda d: edit_config(d, "0.0.0.0:50051", "0.0.0.0:50052")),
    ("no metrics", "port metrics", lambda d: edit_config(d, "0.0.0.0:9400", "")),
    ("a lost config", "no ConfigMap", lambda d: drop_object(d, "ConfigMap")),
    ("no account", "no ServiceAccount", lambda d: drop_object(d, "ServiceAccount")),
    ("an unknown Secret", "no Secret", lambda d: pod(d)["volumes"].append(
        {"name": "s", "secret": {"secretName": "ferrite-unheard-of"}})),
    ("other labels", "selects", lambda d: labels_of(deployment(d)).pop("app.kubernetes.io/component")),
    ("a Service of others", "Service/", lambda d: spec(d, "Service")["selector"].update(app="other")),
    ("a Service to nowhere", "asks for port",
     lambda d: spec(d, "Service")["ports"][0].update(targetPort="http")),
    ("a policy for no port", "asks for port",
     lambda d: spec(d, "NetworkPolicy")["ingress"][0]["ports"][0].update(port="http")),
    ("no spread", "spread over neither", lambda d: pod(d).pop("topologySpreadConstraints")),
    ("no budget", "PodDisruptionBudget", lambda d: drop_object(d, "PodDisruptionBudget")),
    ("a stubborn budget", "no node drain",
     lambda d: spec(d, "PodDisruptionBudget").update(maxUnavailable=0)),
    ("one Service", "headless", lambda d: drop_object(d, "Service")),
    ("open egress", "network policies", lambda d: [
        p["spec"].update(policyTypes=["Ingress"]) for p in of_kind(d, "NetworkPolicy")]),
    ("a lost namespace", "no namespace", lambda d: drop_object(d, "Namespace")),
]
CPU: list[Damage] = [
    ("too many threads", "backend.threads", lambda d: edit_config(d, "threads: 2", "threads: 8")),
    ("a thread for each core", "backend.threads", lambda d: edit_config(d, "threads: 2", "threads: 0")),
    ("a needless GPU", "does not use", lambda d: [
        server(d)["resources"][kind].update({"nvidia.com/gpu": "1"}) for kind in ("requests", "limits")]),
]
GPU: list[Damage] = [
    ("no GPU", "nvidia.com/gpu is", lambda d: server(d)["resources"]["limits"].pop("nvidia.com/gpu")),
    ("more workers than GPUs", "2 workers",
     lambda d: edit_config(d, "backend:", "workers: [{devices: [0]}, {devices: [1]}]\nbackend:")),
    ("no toleration", "tolerate", lambda d: pod(d).pop("tolerations")),
    ("no node selector", "nodeSelector", lambda d: pod(d).pop("nodeSelector")),
    ("no claim", "PersistentVolumeClaim", lambda d: drop_object(d, "PersistentVolumeClaim")),
    ("an init container as root", "fetch-model", lambda d: pod(d)["initContainers"][0].pop("securityContext")),
    ("an invented alert", "docs/metrics.md", lambda d: spec(d, "PrometheusRule")["groups"][0]["rules"]
     .append({"alert": "A", "expr": "ferrite_unheard_of_total > 0"})),
    ("a monitor of no port", "asks for port",
     lambda d: spec(d, "PodMonitor")["podMetricsEndpoints"][0].update(port="http")),
]
AUTOSCALE: list[Damage] = [
    ("a fixed number", "replicas is set", lambda d: deployment(d)["spec"].update(replicas=2)),
    ("another target", "scales", lambda d: spec(d, "HorizontalPodAutoscaler")["scaleTargetRef"]
     .update(name="other")),
    ("an invented metric", "docs/metrics.md", lambda d: spec(d, "HorizontalPodAutoscaler")["metrics"][0]
     ["pods"]["metric"].update(name="ferrite_queue")),
    ("a metric of the adapter's not", "adapter", lambda d: spec(d, "HorizontalPodAutoscaler")["metrics"][0]
     ["pods"]["metric"].update(name="ferrite_requests_running")),
    ("scaling on CPU", "GPU's load", lambda d: spec(d, "HorizontalPodAutoscaler")["metrics"].append(
        {"type": "Resource", "resource": {"name": "cpu"}})),
]
OF_TARGET = {"overlays/cpu-demo": ANY + CPU, "overlays/gpu": ANY + GPU,
             "overlays/gpu-autoscale": ANY + GPU + AUTOSCALE}


def unnoticed(target: str, documents: list[dict]) -> tuple[int, list[str]]:
    """How many damages were tried, and those that the rules did not see."""
    missed = []
    for name, expected, damage in OF_TARGET.get(target, []):
        broken = copy.deepcopy(documents)
        damage(broken)
        if not any(expected in finding for finding in findings(broken)):
            missed.append(f"{target}: {name}: nothing about {expected!r}")
    return len(OF_TARGET.get(target, [])), missed
