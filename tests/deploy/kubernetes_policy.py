"""Our own rules for the rendered manifests; `findings` lists what breaks them.

They hold what no schema can: that probes ask for names the server answers to, that the grace period
covers the drain of the very config that is mounted, that selectors, ports and references meet, that a
metric something scales on exists.
"""
import functools
import json
import re

from check_tools import ROOT
from kubernetes_render import K8S, label, load, of_kind

LARGEST_CONFIG_MAP = 1 << 20  # the API server's bound, in bytes
END_SECONDS = 10  # docs/operations.md: beside the two times of the drain
LONGEST_LOAD_SECONDS = 600  # what the startup probe must bear at least
LOWEST_USER = 10000  # below, ids may be those of the node's own users
DRAIN_DEFAULTS = {"drain_grace_seconds": 2.0, "drain_timeout_seconds": 30.0}  # config/server.yaml
DEFAULT_LISTEN = "0.0.0.0:50051"


def pod_of(deployment: dict) -> dict:
    return deployment["spec"]["template"]["spec"]


def server_of(deployment: dict) -> dict:
    return next(c for c in pod_of(deployment)["containers"] if c["name"] == "server")


def containers_of(deployment: dict) -> list[dict]:
    return pod_of(deployment).get("initContainers", []) + pod_of(deployment)["containers"]


def labels_of(deployment: dict) -> dict:
    return deployment["spec"]["template"]["metadata"].get("labels", {})


def names(documents: list[dict], *kinds: str) -> set[str]:
    return {document["metadata"]["name"] for document in of_kind(documents, *kinds)}


def flags_of(deployment: dict) -> dict[str, str]:
    return dict(argument.removeprefix("--").partition("=")[::2]
                for argument in server_of(deployment).get("args", []))


def config_map_of(deployment: dict, documents: list[dict]) -> dict | None:
    """The ConfigMap that holds the file which --config names."""
    folder = flags_of(deployment).get("config", "").rpartition("/")[0]
    for mount in server_of(deployment).get("volumeMounts", []):
        for volume in pod_of(deployment).get("volumes", []):
            if (mount["mountPath"], mount["name"]) == (folder, volume["name"]) and "configMap" in volume:
                wanted = volume["configMap"]["name"]
                return next((m for m in of_kind(documents, "ConfigMap")
                             if m["metadata"]["name"] == wanted), None)
    return None


def config_of(deployment: dict, documents: list[dict]) -> dict:
    found = config_map_of(deployment, documents)
    texts = load(found["data"]["server.yaml"]) if found else []
    return texts[0] if texts else {}


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


def cores(quantity: str) -> float:
    return float(quantity[:-1]) / 1000 if quantity.endswith("m") else float(quantity)


@functools.cache
def known_metrics() -> set[str]:
    return set(re.findall(r"^\| `(ferrite_\w+)` \|", (ROOT / "docs/metrics.md").read_text(), re.M))


@functools.cache
def health_names() -> dict[str, str]:
    """The health services by role, as the server's source names them."""
    source = (ROOT / "server/server.cc").read_text()
    found = dict(re.findall(r'constexpr char k(Liveness|Readiness)\[\] = "([^"]*)";', source))
    if set(found) != {"Liveness", "Readiness"}:
        raise SystemExit("server/server.cc no longer says what the health services are called")
    return found


# --- what a container may do -----------------------------------------------------------------------


def pod_security(deployment: dict, _documents: list[dict]):
    pod = pod_of(deployment)
    security = pod.get("securityContext", {})
    if security.get("runAsNonRoot") is not True:
        yield "runAsNonRoot is not true"
    if security.get("runAsUser", 0) < LOWEST_USER:
        yield f"runAsUser is {security.get('runAsUser')}, below {LOWEST_USER}"
    if security.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "seccompProfile is not RuntimeDefault"
    if pod.get("automountServiceAccountToken") is not False:
        yield "automountServiceAccountToken is not false"
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(field):
            yield f"{field} is set"
    for volume in pod.get("volumes", []):
        if "hostPath" in volume:
            yield f"volume {volume['name']} is a hostPath"


def container_security(deployment: dict, _documents: list[dict]):
    for container in containers_of(deployment):
        security, name = container.get("securityContext", {}), container["name"]
        if security.get("allowPrivilegeEscalation") is not False:
            yield f"{name}: allowPrivilegeEscalation is not false"
        if security.get("readOnlyRootFilesystem") is not True:
            yield f"{name}: readOnlyRootFilesystem is not true"
        if security.get("capabilities") != {"drop": ["ALL"]}:
            yield f"{name}: capabilities are not just drop: [ALL]"
        if security.get("privileged") or security.get("runAsNonRoot") is False or \
                security.get("runAsUser", LOWEST_USER) < LOWEST_USER:
            yield f"{name}: undoes the pod's security context"
        if not re.search(r":[^/:]+$|@sha256:", container["image"]) or \
                container["image"].endswith(":latest"):
            yield f"{name}: image {container['image']} has no fixed tag"


def resources(deployment: dict, _documents: list[dict]):
    for container in containers_of(deployment):
        for kind in ("requests", "limits"):
            for resource in ("cpu", "memory"):
                if resource not in container.get("resources", {}).get(kind, {}):
                    yield f"{container['name']}: {kind} has no {resource}"


def mounts(deployment: dict, _documents: list[dict]):
    volumes = {volume["name"]: volume for volume in pod_of(deployment).get("volumes", [])}
    for container in containers_of(deployment):
        for mount in container.get("volumeMounts", []):
            where = f"{container['name']}: {mount['mountPath']}"
            if mount["name"] not in volumes:
                yield f"{where}: there is no volume {mount['name']}"
            elif container["name"] == "server" and not mount.get("readOnly") and \
                    "emptyDir" not in volumes[mount["name"]]:
                yield f"{where}: the server could write to it"
            if "subPath" in mount:
                yield f"{where}: subPath keeps a changed Secret or ConfigMap from arriving"
    used = {mount["name"] for c in containers_of(deployment) for mount in c.get("volumeMounts", [])}
    for name in volumes.keys() - used:
        yield f"volume {name} is mounted nowhere"


# --- its life --------------------------------------------------------------------------------------


def asked_service(probe: dict) -> str | None:
    """The health service that a probe asks for, natively or by the client; None if neither."""
    if "grpc" in probe:
        return probe["grpc"].get("service", "")
    command = probe.get("exec", {}).get("command", [])
    return command[command.index("--service") + 1] if "--service" in command[:-1] else None


def probes(deployment: dict, documents: list[dict]):
    server, services = server_of(deployment), health_names()
    wanted = {"startupProbe": "Liveness", "readinessProbe": "Readiness", "livenessProbe": "Liveness"}
    config, flags = config_of(deployment, documents), flags_of(deployment)
    listen = config.get("server", {}).get("listen", DEFAULT_LISTEN)
    encrypted = "tls.certificate" in flags or config.get("tls", {}).get("certificate")
    for field, role in wanted.items():
        probe = server.get(field)
        if not probe:
            yield f"there is no {field}"
            continue
        if asked_service(probe) != services[role]:
            yield f"{field} asks for {asked_service(probe)!r}, not {services[role]!r}"
        if ("grpc" in probe) == bool(encrypted):
            yield f"{field}: the kubelet's gRPC probe speaks plain text, the server " + \
                ("TLS" if encrypted else "too; no client is needed")
        if "grpc" in probe and probe["grpc"]["port"] != port_of(listen):
            yield f"{field} asks port {probe['grpc']['port']}"
        if probe.get("timeoutSeconds", 1) < 2:
            yield f"{field}: a busy server may take longer than 1 s to answer"
    startup = server.get("startupProbe", {})
    patience = startup.get("periodSeconds", 10) * startup.get("failureThreshold", 3)
    if patience < LONGEST_LOAD_SECONDS:
        yield f"startupProbe kills a server that loads for {patience} s"
    if server.get("livenessProbe", {}).get("failureThreshold", 3) < 3:
        yield "livenessProbe kills at less than 3 failures"


def grace(deployment: dict, documents: list[dict]):
    pod, server = pod_of(deployment), server_of(deployment)
    sleep = server.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    if sleep < 1:
        yield "there is no preStop that waits until Services forget the pod"
    config = config_of(deployment, documents).get("server", {})
    drain = sum(float(config.get(key, default)) for key, default in DRAIN_DEFAULTS.items())
    given = pod.get("terminationGracePeriodSeconds", 30)
    if given < sleep + drain + END_SECONDS:
        yield (f"terminationGracePeriodSeconds is {given}, less than preStop {sleep} + drain {drain}"
               f" + {END_SECONDS}")


def ports(deployment: dict, documents: list[dict]):
    declared = {port["name"]: port["containerPort"] for port in server_of(deployment)["ports"]}
    config = config_of(deployment, documents)
    for name, section in (("grpc", "server"), ("metrics", "metrics")):
        address = config.get(section, {}).get("listen", "")
        if not address.startswith("0.0.0.0:") or port_of(address) != declared.get(name):
            yield f"port {name} is {declared.get(name)}, but {section}.listen is {address!r}"


def devices(deployment: dict, documents: list[dict]):
    config, have = config_of(deployment, documents), server_of(deployment).get("resources", {})
    gpus = {kind: int(have.get(kind, {}).get("nvidia.com/gpu", 0)) for kind in ("requests", "limits")}
    workers = len(config.get("workers", [{}]))
    if config.get("backend", {}).get("type") == "cuda":
        if gpus != {"requests": workers, "limits": workers}:
            yield f"{workers} workers, but nvidia.com/gpu is {gpus}"
        if not any(t.get("key") == "nvidia.com/gpu" for t in pod_of(deployment).get("tolerations", [])):
            yield "does not tolerate the taint nvidia.com/gpu"
        if not pod_of(deployment).get("nodeSelector"):
            yield "a GPU is wanted, but there is no nodeSelector"
        return
    if any(gpus.values()):
        yield "a GPU is taken that the config does not use"
    threads = config.get("backend", {}).get("threads", 0)
    limit = cores(str(have.get("limits", {}).get("cpu", "0")))
    if not 1 <= threads <= limit:
        yield f"backend.threads is {threads}, the CPU limit {limit}"


# --- what meets what -------------------------------------------------------------------------------


def named_by(deployment: dict):
    """(kind, name, may be missing) of everything that the pod refers to."""
    for volume in pod_of(deployment).get("volumes", []):
        if "configMap" in volume:
            yield "ConfigMap", volume["configMap"]["name"], volume["configMap"].get("optional", False)
        if "secret" in volume:
            yield "Secret", volume["secret"]["secretName"], volume["secret"].get("optional", False)
        if "persistentVolumeClaim" in volume:
            yield "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"], False
    for container in containers_of(deployment):
        for source in container.get("envFrom", []):
            yield "ConfigMap", source["configMapRef"]["name"], False
    yield "ServiceAccount", pod_of(deployment).get("serviceAccountName", "default"), False


@functools.cache
def documented_secrets() -> set[str]:
    text = (ROOT / "docs/kubernetes.md").read_text()
    return set(re.findall(r"create secret \w+ ([a-z0-9-]+)", text))


def references(deployment: dict, documents: list[dict]):
    for kind, name, optional in named_by(deployment):
        if name in names(documents, kind):
            if kind == "ConfigMap" and not re.search(r"-[a-z0-9]{10}$", name):
                yield f"ConfigMap {name} has no hash: a change of it would not roll out"
        elif kind == "Secret" and name in documented_secrets():
            pass  # not for a repository to hold; the page says how to make it
        elif not optional:
            yield f"there is no {kind} {name}"


def selectors_in(documents: list[dict]):
    for document in documents:
        spec = document.get("spec", {})
        if document["kind"] == "Service":
            yield document, spec.get("selector", {})
        elif document["kind"] in ("PodDisruptionBudget", "PodMonitor", "Deployment", "InferencePool"):
            yield document, spec["selector"].get("matchLabels", {})
        elif document["kind"] == "NetworkPolicy":
            yield document, spec["podSelector"].get("matchLabels", {})


def selectors(deployment: dict, documents: list[dict]):
    labels = labels_of(deployment).items()
    for document, selector in selectors_in(documents):
        if not selector or not selector.items() <= labels:
            yield f"{label(document)} selects {selector}, not this pod"
    for spread in pod_of(deployment).get("topologySpreadConstraints", []):
        if not spread["labelSelector"]["matchLabels"].items() <= labels:
            yield f"the spread over {spread['topologyKey']} is of other pods"
    if len(pod_of(deployment).get("topologySpreadConstraints", [])) < 2:
        yield "is spread over neither zones nor nodes"


def port_names(deployment: dict, documents: list[dict]):
    declared = {port["name"] for port in server_of(deployment)["ports"]}
    numbers = {port["containerPort"] for port in server_of(deployment)["ports"]}
    asked = []
    for document in documents:
        spec = document.get("spec", {})
        if document["kind"] == "Service":
            asked += [(document, port["targetPort"]) for port in spec["ports"]]
        elif document["kind"] == "PodMonitor":
            asked += [(document, end["port"]) for end in spec["podMetricsEndpoints"]]
        elif document["kind"] == "NetworkPolicy":
            asked += [(document, port["port"]) for rule in spec.get("ingress", [])
                      for port in rule.get("ports", [])]
        elif document["kind"] == "InferencePool":
            asked += [(document, port["number"]) for port in spec["targetPorts"]]
    for document, port in asked:
        if port not in declared | numbers:
            yield f"{label(document)} asks for port {port!r}"


def services(_deployment: dict, documents: list[dict]):
    headless = [s for s in of_kind(documents, "Service") if s["spec"].get("clusterIP") == "None"]
    if len(headless) != 1 or len(of_kind(documents, "Service")) != 2:
        yield "is not behind one headless Service and one with an address"
    policies = {kind for p in of_kind(documents, "NetworkPolicy") for kind in p["spec"]["policyTypes"]}
    if policies != {"Ingress", "Egress"}:
        yield f"network policies bound only {sorted(policies)}"
    for budget in of_kind(documents, "PodDisruptionBudget"):
        if budget["spec"].get("maxUnavailable") in (None, 0, "0%"):
            yield "the disruption budget lets no node drain"
    if not of_kind(documents, "PodDisruptionBudget"):
        yield "has no PodDisruptionBudget"


# --- scaling and metrics ---------------------------------------------------------------------------


def autoscaling(deployment: dict, documents: list[dict]):
    scalers = of_kind(documents, "HorizontalPodAutoscaler", "ScaledObject")
    if len(scalers) > 1:
        yield "two autoscalers fight over it"
    for scaler in scalers:
        target = scaler["spec"]["scaleTargetRef"]
        if (target.get("kind", "Deployment"), target["name"]) != ("Deployment",
                                                                  deployment["metadata"]["name"]):
            yield f"{label(scaler)} scales {target}"
        if "replicas" in deployment["spec"]:
            yield f"replicas is set, against {label(scaler)}"
        if any(metric["type"] == "Resource" for metric in scaler["spec"].get("metrics", [])):
            yield f"{label(scaler)} scales on CPU or memory, which say nothing of a GPU's load"


@functools.cache
def adapter_metrics() -> set[str]:
    values = load((K8S / "examples/prometheus-adapter-values.yaml").read_text())[0]
    return {rule["name"]["as"] for rule in values["rules"]["custom"]}


def metrics(_deployment: dict, documents: list[dict]):
    scaled = of_kind(documents, "HorizontalPodAutoscaler", "ScaledObject", "PrometheusRule")
    texts = {label(d): json.dumps(d["spec"]) for d in scaled}
    texts |= {label(m): "".join(m["data"].values()) for m in of_kind(documents, "ConfigMap")
              if "endpoint-picker" in m["metadata"]["name"]}
    known = known_metrics()
    for owner, text in texts.items():
        # Not the middle of a recorded series' name, such as namespace_model:ferrite_...:rate5m.
        for used in set(re.findall(r"(?<![\w:.])ferrite_\w+\b(?!:)", text)):
            if re.sub(r"_(bucket|sum|count)$", "", used) not in known:
                yield f"{owner} uses {used}, which docs/metrics.md does not have"
    for scaler in of_kind(documents, "HorizontalPodAutoscaler"):
        for metric in scaler["spec"]["metrics"]:
            if metric["type"] == "Pods" and metric["pods"]["metric"]["name"] not in adapter_metrics():
                yield f"{label(scaler)}: the adapter does not serve {metric['pods']['metric']['name']}"


def whole(documents: list[dict]):
    """What concerns no deployment alone."""
    spaces = names(documents, "Namespace")
    for document in documents:
        if document["kind"] == "Namespace":
            continue
        if document["metadata"].get("namespace") not in spaces:
            yield f"{label(document)} is in no namespace that is made here"
        size = len(json.dumps(document.get("data", {})))
        if document["kind"] == "ConfigMap" and size > LARGEST_CONFIG_MAP:
            yield f"{label(document)} has {size} bytes"
    if len({label(document) for document in documents}) != len(documents):
        yield "two objects have the same kind and name"


RULES = (pod_security, container_security, resources, mounts, probes, grace, ports, devices,
         references, selectors, port_names, services, autoscaling, metrics)


def findings(documents: list[dict]) -> list[str]:
    deployments = of_kind(documents, "Deployment")
    found = list(whole(documents)) if deployments else ["there is no Deployment"]
    for deployment in deployments:
        for rule in RULES:
            found += [f"{label(deployment)}: {rule.__name__}: {finding}"
                      for finding in rule(deployment, documents)]
    return found
