#!/usr/bin/env python3
"""Writes the dashboards ferrite-overview.json and ferrite-worker.json, whose one source it is.

A panel that names a metric or label that docs/metrics.md does not have fails, and so does a metric
that no panel shows.

    deploy/grafana/generate.py           writes them
    deploy/grafana/generate.py --check   fails if the files are not what it would write
"""
import argparse
import json
import pathlib
import re
import sys

FOLDER = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parent / "prometheus"))

import promql  # noqa: E402
from panels import GREEN, RED, YELLOW, Panel, Query, Row, dashboard  # noqa: E402

SERIES = promql.table_series()
# Label of a series, and the variable that selects its values.
VARIABLES = {"namespace": "namespace", "model": "model", "instance": "instance", "worker": "worker"}
WORKER, EACH_WORKER = "instance, worker", "{{instance}} {{worker}}"
# The calls that make a model compute; the others are cheap.
INFERENCE = 'rpc=~"Generate|GenerateStream|Embed"'
SERVER_FAULT = 'code=~"INTERNAL|UNAVAILABLE|UNKNOWN|DATA_LOSS"'
TOKENS_PER_SECOND = "suffix: tok/s"
# What the alerts of deploy/prometheus/rules call too slow, in seconds.
FIRST_TOKEN_OBJECTIVE, TOKEN_GAP_OBJECTIVE = 2, 0.1


def select(name: str, *matchers: str) -> str:
    """The series of a metric that the dashboard's variables select."""
    if name not in SERIES:
        raise ValueError(f"docs/metrics.md has no metric {name}")
    chosen = [f'{label}=~"${variable}"' for label, variable in VARIABLES.items()
              if label in SERIES[name]]
    return f"{name}{{{', '.join([*chosen, *matchers])}}}"


def rate(name: str, *matchers: str) -> str:
    return f"rate({select(name, *matchers)}[$__rate_interval])"


def by(labels: str, inner: str, how: str = "sum") -> str:
    return f"{how} by ({labels}) ({inner})" if labels else f"{how}({inner})"


def quantile(q: float, metric: str, labels: str = "") -> str:
    grouped = f"le, {labels}" if labels else "le"
    return f"histogram_quantile({q}, {by(grouped, rate(metric + '_bucket'))})"


def quantiles(metric: str) -> tuple[Query, ...]:
    return tuple(Query(quantile(q, metric), f"p{q * 100:.0f}") for q in (0.5, 0.95, 0.99))


def mean(metric: str, labels: str = "") -> str:
    return f"{by(labels, rate(metric + '_sum'))} / {by(labels, rate(metric + '_count'))}"


def heatmap(title: str, description: str, metric: str, unit: str = "s") -> Panel:
    increase = f"increase({select(metric + '_bucket')}[$__rate_interval])"
    return Panel(title, description, (Query(by("le", increase)),), unit, "heatmap")


def lines(title: str, description: str, unit: str, *queries: Query, **more) -> Panel:
    return Panel(title, description, queries, unit, **more)


def stat(title: str, description: str, unit: str, expr: str, **more) -> Panel:
    return Panel(title, description, (Query(expr),), unit, "stat", width=3, height=4, **more)


def failed_ratio() -> str:
    """0 while no call has failed, also where no series of a failure exists yet."""
    calls = by("", rate("ferrite_requests_total", INFERENCE))
    failed = by("", rate("ferrite_requests_total", INFERENCE, SERVER_FAULT))
    return f"({failed} or 0 * {calls}) / {calls}"


def hit_ratio(labels: str = "") -> str:
    hit = by(labels, rate("ferrite_prefix_cache_hit_tokens_total"))
    return f"{hit} / {by(labels, rate('ferrite_prefix_cache_queried_tokens_total'))}"


def glance() -> Row:
    slow_first = ((FIRST_TOKEN_OBJECTIVE, RED),)
    slow_gap = ((TOKEN_GAP_OBJECTIVE, RED),)
    healthy = select("ferrite_worker_healthy")
    return Row("At a glance", (
        stat("Healthy workers", "Share of the workers that serve; the rest has failed or is stuck.",
             "percentunit", f"sum({healthy}) / count({healthy})", base=RED, steps=((1, GREEN),)),
        stat("Requests", "Calls of Generate, GenerateStream and Embed that ended, a second.",
             "reqps", by("", rate("ferrite_requests_total", INFERENCE))),
        stat("Failed", "Share of those calls that failed by the server's fault: INTERNAL, "
             "UNAVAILABLE, UNKNOWN or DATA_LOSS. The objective is 0.1 %.",
             "percentunit", failed_ratio(), steps=((0.001, YELLOW), (0.0144, RED))),
        stat("First token, p95", "95 of 100 requests got their first token within this time.",
             "s", quantile(0.95, "ferrite_time_to_first_token_seconds"), steps=slow_first),
        stat("Between tokens, p95", "95 of 100 gaps between two tokens of a request were shorter.",
             "s", quantile(0.95, "ferrite_inter_token_latency_seconds"), steps=slow_gap),
        stat("Generated", "Tokens generated and handed out, a second.",
             TOKENS_PER_SECOND, by("", rate("ferrite_generation_tokens_total"))),
        stat("Waiting", "Requests that wait for their first step, over all workers.",
             "short", by("", select("ferrite_requests_waiting")), steps=((8, YELLOW), (64, RED))),
        stat("KV cache", "The fullest worker's share of KV blocks in use.", "percentunit",
             by("", select("ferrite_kv_cache_usage_ratio"), "max"),
             steps=((0.8, YELLOW), (0.95, RED)), maximum=1),
    ))


def traffic() -> Row:
    calls = "ferrite_requests_total"
    return Row("Traffic", (
        lines("Requests by RPC", "Calls that ended, a second.", "reqps",
              Query(by("rpc", rate(calls)), "{{rpc}}"), stack=True),
        lines("Requests by status", "Calls that ended, by gRPC status. INVALID_ARGUMENT and "
              "CANCELLED are the clients' doing, RESOURCE_EXHAUSTED is overload.", "reqps",
              Query(by("code", rate(calls)), "{{code}}"), stack=True),
        lines("Failed share", "Generate, GenerateStream and Embed calls that failed by the "
              "server's fault. At 1.44 % a month's error budget of 0.1 % is gone in two days.",
              "percentunit",
              Query(failed_ratio(), "failed"), steps=((0.0144, RED),)),
        lines("Tokens in and out", "Prompt tokens that began to be computed, and tokens generated.",
              TOKENS_PER_SECOND, Query(by("", rate("ferrite_prompt_tokens_total")), "in"),
              Query(by("", rate("ferrite_generation_tokens_total")), "out")),
        lines("Requests finished, by reason", "Each sample and each embedding input is one.",
              "reqps", Query(by("reason", rate("ferrite_requests_finished_total")), "{{reason}}"),
              stack=True),
        lines("Rejections by reason", "Calls refused before any work: the queue's bounds "
              "(queue_requests, queue_tokens), a deadline that cannot be met (late), a client's "
              "limit, a drain, no healthy worker. Slow readers were cancelled later.", "reqps",
              Query(by("reason", rate("ferrite_admission_rejected_total")), "{{reason}}"),
              Query(by("", rate("ferrite_slow_readers_total")), "slow reader"), stack=True),
    ))


def latency() -> Row:
    first, gap = "ferrite_time_to_first_token_seconds", "ferrite_inter_token_latency_seconds"
    whole = "ferrite_request_duration_seconds"
    return Row("Latency", (
        lines("Time to first token", "From a request's arrival to its first token; the objective "
              f"is p95 below {FIRST_TOKEN_OBJECTIVE} s.", "s", *quantiles(first),
              steps=((FIRST_TOKEN_OBJECTIVE, RED),)),
        lines("Between tokens", "Time between two tokens of a request; the objective is p95 below "
              f"{TOKEN_GAP_OBJECTIVE} s.", "s", *quantiles(gap),
              steps=((TOKEN_GAP_OBJECTIVE, RED),)),
        lines("End to end", "From a request's arrival to its end in the worker.", "s",
              *quantiles(whole)),
        heatmap("Time to first token, spread", "Requests in each bucket.", first),
        heatmap("Between tokens, spread", "Gaps in each bucket.", gap),
        heatmap("End to end, spread", "Requests in each bucket.", whole),
    ))


def queue_and_cache() -> Row:
    usage = select("ferrite_kv_cache_usage_ratio")
    return Row("Queue and cache", (
        lines("Queue and batch", "Requests that wait for their first step, and those that are in "
              "the steps.", "short",
              Query(by("", select("ferrite_requests_waiting")), "waiting"),
              Query(by("", select("ferrite_requests_running")), "running")),
        lines("Queue wait", "From a request's arrival to its first step.", "s",
              *quantiles("ferrite_request_queue_seconds")),
        heatmap("Queue wait, spread", "Requests in each bucket.", "ferrite_request_queue_seconds"),
        lines("KV cache in use", "Share of the KV cache's blocks that is in use.", "percentunit",
              Query(f"max({usage})", "fullest worker"), Query(f"avg({usage})", "mean"),
              steps=((0.95, RED),), maximum=1),
        lines("Prefix cache hit ratio", "Share of the prompt tokens looked up in the prefix cache "
              "that was found there.", "percentunit", Query(hit_ratio(), "hits"), maximum=1),
        lines("Preemptions", "Requests that gave up their blocks and were computed again: wasted "
              "work.", "ops", Query(by("", rate("ferrite_preemptions_total")), "preemptions")),
    ))


def fleet() -> Row:
    return Row("Fleet", (
        lines("Heartbeat age", "Time since each worker's present step made progress; 0 while it is "
              "idle. The server calls a step stuck after server.stuck_step_seconds.", "s",
              Query(by(WORKER, select("ferrite_worker_heartbeat_age_seconds"), "max"),
                    EACH_WORKER), steps=((30, RED),)),
        lines("Restarts", "Starts of each server within the last hour.", "short",
              Query(f"changes({select('ferrite_start_time_seconds')}[1h])", "{{instance}}"),
              steps=((2, RED),)),
        lines("Up for", "Time since each server became ready.", "s",
              Query(f"time() - {select('ferrite_start_time_seconds')}", "{{instance}}")),
        *info_tables(),
    ))


def info_tables() -> tuple[Panel, Panel]:
    return (
        Panel("Models", "What each worker serves.", (Query(select("ferrite_model_info")),),
              kind="table", width=14, height=6),
        Panel("Builds", "What each server was built from.", (Query(select("ferrite_build_info")),),
              kind="table", width=10, height=6),
    )


def worker_state() -> Row:
    def worst(name: str, how: str) -> str:
        return by("", select(name), how)

    return Row("State", (
        stat("Healthy", "1 if all of the chosen workers serve, 0 if one has failed or is stuck.",
             "short", worst("ferrite_worker_healthy", "min"), base=RED, steps=((1, GREEN),)),
        stat("Heartbeat age", "The longest since a present step made progress.", "s",
             worst("ferrite_worker_heartbeat_age_seconds", "max"),
             steps=((10, YELLOW), (30, RED))),
        stat("Running", "Requests in the steps.", "short",
             worst("ferrite_requests_running", "sum")),
        stat("Waiting", "Requests that wait for their first step.", "short",
             worst("ferrite_requests_waiting", "sum"), steps=((8, YELLOW), (64, RED))),
        stat("KV cache", "The fullest worker's share of blocks in use.", "percentunit",
             worst("ferrite_kv_cache_usage_ratio", "max"), steps=((0.8, YELLOW), (0.95, RED))),
        stat("KV blocks", "Blocks of the KV cache.", "short",
             worst("ferrite_kv_cache_blocks", "sum")),
        stat("Graph steps", "Share of the steps that replayed a CUDA graph; 0 on a CPU.",
             "percentunit", graph_share(), maximum=1),
        stat("Generated", "Tokens generated and handed out, a second.", TOKENS_PER_SECOND,
             by("", rate("ferrite_generation_tokens_total"))),
    ))


def graph_share(labels: str = "") -> str:
    replayed = by(labels, rate("ferrite_steps_total", 'mode="graph"'))
    return f"{replayed} / {by(labels, rate('ferrite_steps_total'))}"


def worker_steps() -> Row:
    step, batch, each = "ferrite_step_duration_seconds", "ferrite_step_tokens", EACH_WORKER
    return Row("Steps", (
        lines("Step time", "What a step keeps the device for.", "s", *quantiles(step)),
        lines("Step time by phase, p95", "decode (one token a sequence), prefill (prompts alone) "
              "or mixed.", "s", Query(quantile(0.95, step, "phase"), "{{phase}}")),
        heatmap("Step time, spread", "Steps in each bucket.", step),
        lines("Batch size", "Tokens computed in a step.", "suffix: tok",
              Query(mean(batch), "mean"), *quantiles(batch)),
        heatmap("Batch size, spread", "Steps in each bucket of tokens.", batch, "short"),
        lines("Device busy", "Share of the time that steps kept each worker's device.",
              "percentunit", Query(by(WORKER, rate(step + "_sum")), each)),
        lines("Graph against eager steps", "Steps a second that replayed a CUDA graph, and those "
              "that launched their kernels one by one.", "ops",
              Query(by("mode", rate("ferrite_steps_total")), "{{mode}}"), stack=True, width=12),
        lines("Graph steps by worker", "Share of each worker's steps that replayed a CUDA graph; 0 "
              "on a CPU.", "percentunit", Query(graph_share(WORKER), each), maximum=1, width=12),
    ))


def worker_memory() -> Row:
    each = EACH_WORKER
    usage = select("ferrite_kv_cache_usage_ratio")
    return Row("Memory", (
        lines("KV cache in use", "Share of each worker's KV blocks in use.", "percentunit",
              Query(usage, each), steps=((0.95, RED),), maximum=1),
        lines("KV blocks in use", "Blocks in use, and those there are.", "short",
              Query(f"sum({usage} * {select('ferrite_kv_cache_blocks')})", "in use"),
              Query(by("", select("ferrite_kv_cache_blocks")), "all")),
        lines("GPU memory by kind", "What the workers set aside at their start, by use. Nothing on "
              "a CPU.", "bytes",
              Query(by("kind", select("ferrite_gpu_memory_bytes")), "{{kind}}"), stack=True),
        lines("Prefix cache", "Prompt tokens looked up in the prefix cache, and those found there.",
              TOKENS_PER_SECOND,
              Query(by("", rate("ferrite_prefix_cache_queried_tokens_total")), "looked up"),
              Query(by("", rate("ferrite_prefix_cache_hit_tokens_total")), "found")),
        lines("Prefix cache hit ratio", "By worker: requests go to the worker with the least to "
              "do, not to the one that has their prefix.", "percentunit",
              Query(hit_ratio(WORKER), each), maximum=1),
        lines("Preemptions", "Requests that gave up their blocks to older ones.", "ops",
              Query(by(WORKER, rate("ferrite_preemptions_total")), each)),
    ))


def worker_requests() -> Row:
    each = EACH_WORKER

    def p95(metric: str) -> Query:
        return Query(quantile(0.95, metric, WORKER), each)

    def of(metric: str) -> Query:
        return Query(by(WORKER, select(metric)), each)

    return Row("Requests by worker", (
        lines("Running", "Requests in the steps.", "short", of("ferrite_requests_running")),
        lines("Waiting", "Requests that wait for their first step.", "short",
              of("ferrite_requests_waiting")),
        lines("Queue wait, p95", "From arrival to the first step.", "s",
              p95("ferrite_request_queue_seconds")),
        lines("Time to first token, p95", "From arrival to the first token.", "s",
              p95("ferrite_time_to_first_token_seconds"), steps=((FIRST_TOKEN_OBJECTIVE, RED),)),
        lines("Between tokens, p95", "Between two tokens of a request.", "s",
              p95("ferrite_inter_token_latency_seconds"), steps=((TOKEN_GAP_OBJECTIVE, RED),)),
        lines("End to end, p95", "From arrival to the end in the worker.", "s",
              p95("ferrite_request_duration_seconds")),
        heatmap("Prompt length", "Prompts in each bucket of tokens.",
                "ferrite_request_prompt_tokens", "short"),
        heatmap("Output length", "Requests in each bucket of generated tokens.",
                "ferrite_request_generation_tokens", "short"),
        lines("Lengths, mean", "Tokens of a prompt, and generated by a request.", "suffix: tok",
              Query(mean("ferrite_request_prompt_tokens"), "prompt"),
              Query(mean("ferrite_request_generation_tokens"), "output")),
    ))


def variables() -> list[tuple[str, str, str]]:
    """Each chooses among the values that the variables before it leave."""
    chosen, made = [], []
    for label, title in (("namespace", "Namespace"), ("model", "Model"), ("instance", "Instance"),
                         ("worker", "Worker")):
        matchers = ", ".join(f'{name}=~"${name}"' for name in chosen)
        series = f"ferrite_model_info{{{matchers}}}" if chosen else "ferrite_model_info"
        made.append((label, title, f"label_values({series}, {label})"))
        chosen.append(label)
    return made


def dashboards() -> dict[str, dict]:
    overview = (glance(), traffic(), latency(), queue_and_cache(), fleet())
    worker = (worker_state(), worker_steps(), worker_memory(), worker_requests(),
              Row("What runs", info_tables()))
    return {
        "ferrite-overview.json": dashboard(
            "ferrite-overview", "Ferrite / Overview",
            "What clients get: traffic, latency, queue, cache.", variables(), overview),
        "ferrite-worker.json": dashboard(
            "ferrite-worker", "Ferrite / Worker",
            "What the workers do: steps, batches, memory.", variables(), worker),
    }


def queries(made: dict) -> list[tuple[str, str, str]]:
    """Title, PromQL and legend of every query of a dashboard's panels."""
    return [(panel["title"], target["expr"], target["legendFormat"])
            for panel in made["panels"] for target in panel.get("targets", ())]


def problems(made: dict[str, dict]) -> list[str]:
    """Panels that name what does not exist, and metrics that no panel shows."""
    wrong, shown = [], set()
    for file, board in made.items():
        for panel, expr, legend in queries(board):
            found = promql.problems(expr, SERIES)
            if not found:
                names = {selector.name for selector in promql.names(expr).selectors}
                shown |= {re.sub("_(bucket|sum|count)$", "", name) for name in names}
                labels = frozenset().union(*(SERIES.get(name, frozenset()) for name in names))
                found = [f"its legend names {label}, which is no label of its metrics"
                         for label in re.findall(r"{{(\w+)}}", legend) if label not in labels]
            wrong += [f'{file}, panel "{panel}": {problem}' for problem in found]
    all_metrics = {re.sub("_(bucket|sum|count)$", "", name) for name in SERIES}
    hidden = sorted(name for name in all_metrics - shown if name.startswith("ferrite_"))
    return wrong + [f"no panel shows {name}" for name in hidden]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the files")
    check = parser.parse_args().check
    try:
        made = dashboards()
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    wrong = problems(made)
    for file, board in made.items():
        text = json.dumps(board, indent=2) + "\n"
        path = FOLDER / file
        if not check and not wrong:
            path.write_text(text, encoding="utf-8")
        elif check and (not path.exists() or path.read_text(encoding="utf-8") != text):
            wrong.append(f"{path} is not what deploy/grafana/generate.py writes: run it")
        print(f"{file}: {len(queries(board))} queries in {len(board['panels'])} panels and rows")
    print("\n".join(wrong), file=sys.stderr, end="\n" if wrong else "")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
