"""Asks a real Prometheus, which scrapes a server under load, what the autoscalers would ask it.

The queries are those of the adapter's rules and of the ScaledObject; only the namespace is the one of
the lab. With more requests than run, the waiting ones must come above what the autoscalers aim at, and
the cache must be seen in use. Between two requests it is not, so each query counts by its highest value.
"""
import contextlib
import threading

from kubernetes_render import K8S, load, of_kind, render
from monitoring_lab import Lab, LabError, wait_for

OVERLOAD_SECONDS = 120
IN_USE = 0.01
HERE = 'namespace="default"'  # deploy/prometheus/prometheus.yml


class SlowLab(Lab):
    """One request runs, the others wait."""

    flags = ("--scheduler.max_running=1", "--scheduler.max_waiting=16", "--kv_cache.blocks=64",
             "--backend.threads=1", "--server.drain_grace_seconds=0")


def amount(quantity: str) -> float:
    return float(quantity[:-1]) / 1000 if quantity.endswith("m") else float(quantity)


def adapter_queries() -> dict[str, tuple[str, float]]:
    """Query and aim of each metric that the HorizontalPodAutoscaler reads, by its name."""
    rules = load((K8S / "examples/prometheus-adapter-values.yaml").read_text())[0]["rules"]["custom"]
    scaler = of_kind(render(K8S / "overlays/gpu-autoscale"), "HorizontalPodAutoscaler")[0]
    aims = {metric["pods"]["metric"]["name"]: amount(metric["pods"]["target"]["averageValue"])
            for metric in scaler["spec"]["metrics"]}
    queries = {}
    for rule in rules:
        query = rule["metricsQuery"].replace("<<.Series>>", rule["seriesQuery"].partition("{")[0])
        query = query.replace("<<.LabelMatchers>>", HERE).replace("<<.GroupBy>>", "pod")
        queries[f"adapter: {rule['name']['as']}"] = query, aims[rule["name"]["as"]]
    return queries


def keda_queries() -> dict[str, tuple[str, float]]:
    scaler = of_kind(render(K8S / "examples/gpu-keda"), "ScaledObject")[0]
    return {f"KEDA: {trigger['name']}": (
        trigger["metadata"]["query"].replace('namespace="ferrite"', HERE),
        float(trigger["metadata"]["threshold"])) for trigger in scaler["spec"]["triggers"]}


def value_of(lab: Lab, query: str) -> float:
    result = lab.prometheus.api("query", query=query)["result"]
    if len(result) != 1:
        raise LabError(f"{query} has {len(result)} values")
    return float(result[0]["value"][1])


def problems_of(server: str, client: str) -> list[str]:
    queries, stop = adapter_queries() | keda_queries(), threading.Event()

    def overload() -> None:
        while not stop.is_set():
            with contextlib.suppress(LabError):  # one that could not connect on a busy machine
                lab.load.bench(streams=12, count=48, prompt=200, output=300)

    with SlowLab(server, client) as lab:
        wait_for("a scrape", lambda: lab.prometheus.holds("ferrite_requests_waiting"))
        idle = {name: value_of(lab, query) for name, (query, _) in queries.items()}
        loaded = dict.fromkeys(queries, 0.0)

        def all_reached() -> bool:
            for name, (query, _) in queries.items():
                loaded[name] = max(loaded[name], value_of(lab, query))
            return all(loaded[name] > (aim if "waiting" in name else IN_USE)
                       for name, (_, aim) in queries.items())

        clients = threading.Thread(target=overload)
        clients.start()
        try:
            wait_for("the autoscalers want more", all_reached, OVERLOAD_SECONDS)
        finally:
            stop.set()
            clients.join()
    for name, (_, aim) in queries.items():
        print(f"{name}: idle {idle[name]:.2f}, overloaded {loaded[name]:.2f}, aim {aim}")
    return [f"{name}: idle {idle[name]}, overloaded {loaded[name]}" for name in queries
            if not idle[name] < IN_USE < loaded[name]]
