#!/usr/bin/env python3
"""The workloads of gpu_step_bench by transformers: same machine, same shapes, random weights.

Decodes at several batch sizes after a context that is in the cache, greedily, each step feeding the
token of the one before; and one prefill. Eager with the dynamic cache; with --compile also a static
cache and torch.compile. Prints one JSON object.

    benchmarks/cuda/compare_transformers.py --model llama-3.1-8b --compile
"""

import argparse
import gc
import json
import pathlib
import sys
import time

import torch
import transformers

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "scripts"))
from make_random_checkpoint import SHAPES, config_of  # noqa: E402

WARM_UP = 4


def make_model(shape, dtype, attention):
    config = transformers.AutoConfig.for_model(**config_of(shape))
    config._attn_implementation = attention
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("cuda"):  # made there, so that nothing is copied
            model = transformers.AutoModelForCausalLM.from_config(config)
    finally:
        torch.set_default_dtype(previous)
    if model.dtype != dtype:
        sys.exit(f"the model is {model.dtype}, not {dtype}")
    return model.eval()


def tokens(model, batch, count):
    generator = torch.Generator("cuda").manual_seed(1)
    return torch.randint(0, model.config.vocab_size, (batch, count), device="cuda",
                         generator=generator)


def seconds(work):
    torch.cuda.synchronize()
    begin = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - begin


def fill(model, cache, batch, context):
    """Puts `context` tokens of each sequence into the cache, a few sequences' worth at a time."""
    prompt = tokens(model, batch, context)
    chunk = max(1, 8192 // batch)
    for begin in range(0, context, chunk):
        step = prompt[:, begin : begin + chunk]
        positions = torch.arange(begin, begin + step.shape[1], device="cuda")
        output = model(step, past_key_values=cache, use_cache=True, logits_to_keep=1,
                       position_ids=positions[None].expand(batch, -1))
    return output.logits[:, -1].argmax(-1, keepdim=True)


def decode(model, batch, context, steps, compiled):
    """Seconds a step."""
    forward = model
    if compiled:
        cache = transformers.StaticCache(config=model.config,
                                         max_cache_len=context + steps + WARM_UP + 8)
        forward = torch.compile(model, mode="reduce-overhead", fullgraph=True)
    else:
        cache = transformers.DynamicCache(config=model.config)
    token = fill(model, cache, batch, context)

    def run(first, count):
        nonlocal token
        for i in range(first, first + count):
            positions = torch.full((batch, 1), context + i, device="cuda")
            if compiled:
                torch.compiler.cudagraph_mark_step_begin()
            output = forward(token, past_key_values=cache, use_cache=True, logits_to_keep=1,
                             position_ids=positions)
            token = output.logits[:, -1].argmax(-1, keepdim=True).clone()

    run(0, WARM_UP)
    taken = seconds(lambda: run(WARM_UP, steps)) / steps
    if not 0 <= int(token.min()) <= int(token.max()) < model.config.vocab_size:
        sys.exit("the model sampled no token")
    return taken


def prefill(model, length):
    """Seconds of one prompt, best of three."""
    prompt = tokens(model, 1, length)

    def run():
        cache = transformers.DynamicCache(config=model.config)
        model(prompt, past_key_values=cache, use_cache=True, logits_to_keep=1)

    run()
    return min(seconds(run) for _ in range(3))


def measured(work):
    """What `work` returns, or why it failed: one workload too many must not cost the others."""
    try:
        return work()
    except Exception as error:  # noqa: BLE001
        return {"error": f"{type(error).__name__}: {str(error)[:300]}"}
    finally:
        gc.collect()
        torch.cuda.empty_cache()


def decode_case(model, batch, context, steps, compiled):
    taken = decode(model, batch, context, steps, compiled)
    return {"batch": batch, "context": context, "ms": 1e3 * taken,
            "tokens_per_second": batch / taken}


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(SHAPES), default="llama-3.1-8b")
    parser.add_argument("--type", choices=("fp16", "bf16"), default="fp16")
    parser.add_argument("--cases", default="1:192,8:1024,32:1024,128:1024",
                        help="batch:context of each decode")
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--prefill", type=int, default=2048, help="tokens; 0: none")
    parser.add_argument("--attention", default="sdpa", help="transformers' attn_implementation")
    parser.add_argument("--compile", action="store_true",
                        help="also with a static cache and torch.compile, at batch 1")
    options = parser.parse_args()
    cases = [tuple(map(int, case.split(":"))) for case in options.cases.split(",")]
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[options.type]
    torch.manual_seed(1)
    with torch.inference_mode():
        model = make_model(options.model, dtype, options.attention)
        report = {"model": options.model, "type": options.type, "attention": options.attention,
                  "transformers": transformers.__version__, "torch": torch.__version__,
                  "device": torch.cuda.get_device_name(),
                  "parameters": sum(p.numel() for p in model.parameters())}
        if options.prefill > 0:
            taken = measured(lambda: prefill(model, options.prefill))
            report["prefill"] = taken if isinstance(taken, dict) else {
                "tokens": options.prefill, "ms": 1e3 * taken,
                "tokens_per_second": options.prefill / taken}
        report["decode"] = [
            measured(lambda b=batch, c=context: decode_case(model, b, c, options.steps, False))
            for batch, context in cases]
        if options.compile:
            report["decode_compiled"] = [
                measured(lambda b=batch, c=context: decode_case(model, b, c, options.steps, True))
                for batch, context in cases if batch == 1]
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
