#!/usr/bin/env python3
"""Compares cpu_throughput with llama.cpp: same machine, same weights, same threads, one run.

Writes the checkpoint as GGUF in F16 and BF16, checks that llama.cpp continues a prompt as we do,
then measures both in alternation: decode of one stream, decode of several streams together, and
prefill. llama.cpp is given its best of flash attention on and off and of one KV buffer or one a
stream; it is fed fixed tokens, so that its figures hold no sampling (ours do).

    cmake --build --preset cpu --target cpu_throughput
    pip install llama-cpp-python gguf
    benchmarks/compare_llama_cpp.py --threads 2 --json result.json
"""

import argparse
import itertools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import gguf
import llama_cpp
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
FIGURES = ("decode_one_stream", "decode_all_streams", "prefill")
# Where llama.cpp prefers its token by less, rounding may choose another.
GAP = 0.1
# Kept alive here, since llama.cpp keeps only the pointer.
NO_LOG = llama_cpp.llama_log_callback(lambda level, text, user_data: None)


def read_safetensors(path):
    """Yields (name, fp32 array) for each tensor of a file in F32, F16 or BF16."""
    data = np.memmap(path, np.uint8, "r")
    size = int(data[:8].view("<u8")[0])
    for name, entry in json.loads(bytes(data[8 : 8 + size])).items():
        if name == "__metadata__":
            continue
        begin, end = (8 + size + at for at in entry["data_offsets"])
        raw = data[begin:end]
        if entry["dtype"] == "BF16":
            values = (raw.view("<u2").astype("<u4") << 16).view("<f4")
        else:
            values = raw.view({"F32": "<f4", "F16": "<f2"}[entry["dtype"]]).astype("<f4")
        yield name, values.reshape(entry["shape"])


def gguf_name(name):
    """The GGUF name of a Llama tensor."""
    parts = {"input_layernorm": "attn_norm", "q_proj": "attn_q", "k_proj": "attn_k",
             "v_proj": "attn_v", "o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
             "gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down",
             "embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}
    words = name.split(".")
    layer = f"blk.{words[2]}." if words[1] == "layers" else ""
    return f"{layer}{parts[words[-2]]}.{words[-1]}"


def interleaved_rows(weight, heads):
    """q and k as llama.cpp rotates them: row i of a head beside row i + head_dim / 2."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(folder, kind, path):
    """Writes a Llama checkpoint with matrices in `kind` and vectors in F32."""
    config = json.loads((folder / "config.json").read_text())
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    if config["model_type"] != "llama":
        sys.exit(f"{folder}: model_type is {config['model_type']}, not llama")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    special = {token["id"] for token in tokenizer["added_tokens"]}
    vocab = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(vocab)
    writer.add_token_types([gguf.TokenType.CONTROL if i in special else gguf.TokenType.NORMAL
                            for i in range(len(vocab))])
    writer.add_token_merges(tokenizer["model"]["merges"])
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for name, values in read_safetensors(folder / "model.safetensors"):
        part = name.split(".")[-2]
        if part in heads:
            values = interleaved_rows(values, heads[part])
        if values.ndim == 2:
            values = gguf.quants.quantize(values, kind)
            writer.add_tensor(gguf_name(name), values, raw_dtype=kind)
        else:
            writer.add_tensor(gguf_name(name), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_ggufs(model, folder):
    """The checkpoint in F16 and BF16: {name: path}."""
    files = {}
    for kind in (gguf.GGMLQuantizationType.F16, gguf.GGMLQuantizationType.BF16):
        files[kind.name] = pathlib.Path(folder) / f"{kind.name}.gguf"
        write_gguf(model, kind, files[kind.name])
    return files


class LlamaCpp:
    """llama.cpp's low-level interface: one context for `streams` sequences."""

    def __init__(self, path, threads, streams, context, flash, unified):
        llama_cpp.llama_log_set(NO_LOG, None)
        llama_cpp.llama_backend_init()
        self._streams = streams
        self._model = llama_cpp.llama_model_load_from_file(
            str(path).encode(), llama_cpp.llama_model_default_params())
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = streams * context
        params.n_batch = params.n_ubatch = max(512, context)
        params.n_seq_max = streams
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = 1 if flash else 0
        params.kv_unified = unified
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            sys.exit(f"llama.cpp cannot make a context for {path}")
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(
            llama_cpp.llama_model_get_vocab(self._model))
        self._batch = llama_cpp.llama_batch_init(streams * context, 0, 1)

    def close(self):
        llama_cpp.llama_batch_free(self._batch)
        llama_cpp.llama_free(self._context)
        llama_cpp.llama_model_free(self._model)

    def clear(self):
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)

    def decode(self, rows):
        """One step over (token, position, stream, wants logits) rows."""
        batch = self._batch
        batch.n_tokens = len(rows)
        for i, (token, position, stream, logits) in enumerate(rows):
            batch.token[i] = token
            batch.pos[i] = position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = stream
            batch.logits[i] = logits
        if llama_cpp.llama_decode(self._context, batch) != 0:
            sys.exit("llama_decode failed")
        llama_cpp.llama_synchronize(self._context)

    def prefill(self, prompt, stream=0):
        last = len(prompt) - 1
        self.decode([(token, i, stream, i == last) for i, token in enumerate(prompt)])

    def logits(self, row):
        """fp32 logits of a row of the last step."""
        pointer = llama_cpp.llama_get_logits_ith(self._context, row)
        return np.ctypeslib.as_array(pointer, (self._vocab_size,)).copy()

    def greedy(self, prompt, count):
        """`count` greedy tokens, and how far each was ahead of the next best."""
        self.clear()
        self.prefill(prompt)
        tokens, gaps = [], []
        row = len(prompt) - 1
        for i in range(count):
            logits = self.logits(row)
            second, first = np.partition(logits, -2)[-2:]
            tokens.append(int(logits.argmax()))
            gaps.append(float(first - second))
            self.decode([(tokens[-1], len(prompt) + i, 0, True)])
            row = 0
        return tokens, gaps

    def decode_speed(self, prompt, generated, streams):
        """Tokens a second of all streams together, prefill not counted."""
        self.clear()
        for stream in range(streams):
            self.prefill(prompt, stream)
        begin = time.perf_counter()
        for i, token in enumerate(generated):
            self.decode([(token, len(prompt) + i, stream, True) for stream in range(streams)])
        return streams * len(generated) / (time.perf_counter() - begin)

    def prefill_speed(self, tokens):
        self.clear()
        begin = time.perf_counter()
        self.prefill(tokens)
        return len(tokens) / (time.perf_counter() - begin)

    def measure(self, prompt, generated, tokens):
        return {"decode_one_stream": self.decode_speed(prompt, generated, 1),
                "decode_all_streams": self.decode_speed(prompt, generated, self._streams),
                "prefill": self.prefill_speed(tokens)}


def run_ours(options, repeat=1, bandwidth=False):
    command = [options.binary, "--model", options.model, "--threads", str(options.threads),
               "--compute-type", options.compute_type, "--prompt", str(options.prompt),
               "--new", str(options.new), "--streams", f"1,{options.streams}",
               "--prefill", str(options.prefill), "--repeat", str(repeat)]
    if not bandwidth:
        command.append("--no-bandwidth")
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if result.returncode != 0:
        sys.exit(result.stderr)
    return json.loads(result.stdout)


def our_figures(report):
    return {"decode_one_stream": report["decode"][0]["tokens_per_second"],
            "decode_all_streams": report["decode"][1]["tokens_per_second"],
            "prefill": report["prefill"]["tokens_per_second"]}


def check_text(model, name, prompt, ours):
    """Exits unless llama.cpp chooses our tokens as long as its choice is clear."""
    tokens, gaps = model.greedy(prompt, len(ours))
    for i, (token, gap) in enumerate(zip(tokens, gaps)):
        if token != ours[i]:
            if gap > GAP:
                sys.exit(f"{name}: token {i} is {token} by {gap:.3f} for llama.cpp, {ours[i]} for us")
            print(f"{name}: {i} tokens agree; then llama.cpp takes another by {gap:.3f}")
            return
    print(f"{name}: all {len(ours)} tokens agree")


def best_variants(runs):
    """Of each kind of weights, the settings that are best at some figure."""
    return sorted({max((variant for variant in runs if variant[0] == name),
                       key=lambda variant: medians(runs[variant])[figure])
                   for name in {variant[0] for variant in runs} for figure in FIGURES})


def print_table(ours, theirs):
    print(f"\n{'tokens a second, medians':26}{'ours':>10}", *(f"{name:>16}" for name in theirs))
    for figure in FIGURES:
        cells = (f"{rate[figure]:9.1f} {ours[figure] / rate[figure]:5.2f}x"
                 for rate in theirs.values())
        print(f"{figure:26}{ours[figure]:10.1f}", *(f"{cell:>16}" for cell in cells))


def medians(runs):
    return {figure: statistics.median(run[figure] for run in runs) for figure in FIGURES}


def compare(options, files):
    report = run_ours(options, bandwidth=True)
    prompt = report["decode"][0]["first_prompt_ids"]
    generated = report["decode"][0]["first_output_ids"]
    text = (prompt + generated) * (options.prefill // len(prompt + generated) + 1)
    ours, runs = [], {}
    variants = list(itertools.product(files, (True, False), (False, True)))
    for turn in range(options.repeat):
        for variant in variants:
            name, flash, unified = variant
            label = f"{name} flash={flash:d} unified={unified:d}"
            model = LlamaCpp(files[name], options.threads, options.streams,
                             max(options.prompt + options.new, options.prefill), flash, unified)
            if turn == 0:
                check_text(model, label, prompt, generated)
            ours.append(our_figures(run_ours(options)))
            theirs = model.measure(prompt, generated, text[: options.prefill])
            model.close()
            runs.setdefault(variant, []).append(theirs)
            print(f"{turn + 1}/{options.repeat} {label}: theirs (ours)",
                  *(f"{theirs[figure]:.1f} ({ours[-1][figure]:.1f})" for figure in FIGURES),
                  flush=True)
        variants = best_variants(runs)  # the others have been seen to be slower
    best = {name: {figure: max(medians(measured)[figure] for (n, _, _), measured in runs.items()
                               if n == name) for figure in FIGURES} for name in files}
    print_table(medians(ours), best)
    return {"threads": options.threads, "ours": medians(ours), "llama_cpp": best,
            "llama_cpp_version": llama_cpp.__version__, "memory": report["memory"],
            "compute_type": report["compute_type"],
            "read_bandwidth_bytes_per_second": report["read_bandwidth_bytes_per_second"],
            "our_runs": ours,
            "llama_cpp_runs": [{"weights": n, "flash": f, "unified": u, "runs": measured}
                               for (n, f, u), measured in runs.items()]}


def main():
    parser = argparse.ArgumentParser(description="cpu_throughput against llama.cpp")
    parser.add_argument("--model", type=pathlib.Path, default=ROOT / "models/smollm2-135m-instruct")
    parser.add_argument("--binary", default=ROOT / "build/cpu/benchmarks/cpu_throughput")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--compute-type", default="bf16")
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", type=pathlib.Path, help="where to write all figures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = compare(options, write_ggufs(options.model, folder))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
