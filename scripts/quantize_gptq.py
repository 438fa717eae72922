#!/usr/bin/env python3
"""Quantises a Hugging Face model folder to 4 bits, in the layout of GPTQ checkpoints.

Rounds every weight of the layers' linears to the nearest step; no calibration, so it is for tests
and measurements of speed rather than for the best text. Needs numpy only.

    scripts/quantize_gptq.py --model models/smollm2-135m-instruct --out /tmp/smollm2-gptq \
        --group-size 64

A linear NAME of K inputs and N outputs becomes, as AutoGPTQ and GPTQModel write it,

    NAME.qweight  I32 [K / 8, N]       eight inputs a word, the first in the lowest bits
    NAME.qzeros   I32 [groups, N / 8]  eight outputs a word, the first in the lowest bits
    NAME.scales   F16 [groups, N]
    NAME.g_idx    I32 [K]              the group of each input
    NAME.bias     as it was, if there is one

with weight[n, k] = scales[g, n] * (q[k, n] - zero[g, n]), g = g_idx[k]. Format gptq stores the
words of zero points less 0x11111111 modulo 2^32, so a zero point of 0 borrows from its neighbour
above; format gptq_v2 stores them as they are. Everything else is copied.
"""

import argparse
import concurrent.futures
import json
import pathlib
import re
import shutil
import struct
import sys
import zlib

import numpy as np

BITS = 4
PER_WORD = 32 // BITS
LARGEST = (1 << BITS) - 1
MIDDLE = 1 << (BITS - 1)  # the zero point of symmetric weights
ONES = np.uint32(0x11111111)
ROWS_AT_ONCE = 512  # bounds the memory that float copies take

LINEAR = re.compile(
    r"^((?:.*\.)?layers\.\d+\.(?:self_attn\.[qkvo]_proj|mlp\.(?:gate|up|down)_proj))\.weight$")
FUSED = (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
         ("mlp.gate_proj", "mlp.up_proj"))
DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4",
          "I16": "<i2", "I8": "i1", "U8": "u1", "BOOL": "u1"}
COPIED = ("*.json", "*.txt", "*.model", "*.jinja")
NOT_COPIED = ("config.json", "quantize_config.json", "model.safetensors.index.json")


def to_bf16(values):
    """Rounds float32 to nearest-even bfloat16, as its bits."""
    bits = np.asarray(values, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def to_float32(dtype, array):
    if dtype == "BF16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    if dtype not in ("F16", "F32", "F64"):
        raise ValueError(f"{dtype} is no type of weights")
    return array.astype(np.float32)


def read_safetensors(path):
    """{name: (dtype name, array)}, mapped from the file; bfloat16 as its bits."""
    with open(path, "rb") as file:
        size = struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(size))
    data = np.memmap(path, np.uint8, "r")[8 + size :]
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in DTYPES:
            raise ValueError(f"{path}: {name} is {entry['dtype']}, which is not read")
        first, last = entry["data_offsets"]
        array = data[first:last].view(DTYPES[entry["dtype"]])
        tensors[name] = (entry["dtype"], array.reshape(entry["shape"]))
    return tensors


def write_safetensors(path, tensors):
    """tensors: {name: (dtype name, array)}. Returns the bytes of the tensors."""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, (dtype, array) in tensors.items():
        end = offset + array.nbytes
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for dtype, array in tensors.values():
            np.ascontiguousarray(array, DTYPES[dtype]).tofile(file)
    return offset


def pack(values):
    """[rows, N] of 0..15 -> uint32 [rows / 8, N], the first row in the lowest bits."""
    parts = values.reshape(-1, PER_WORD, values.shape[1])
    words = np.zeros((parts.shape[0], parts.shape[2]), np.uint32)
    for i in range(PER_WORD):
        words |= parts[:, i].astype(np.uint32) << np.uint32(BITS * i)
    return words


def pack_zeros(zeros, checkpoint_format):
    """[groups, N] of 0..15 -> int32 [groups, N / 8]."""
    words = np.ascontiguousarray(pack(np.ascontiguousarray(zeros.T)).T)
    if checkpoint_format == "gptq":
        words = words - ONES  # of unsigned words: modulo 2^32
    return words.view(np.int32)


def input_groups(inputs, group_size, permutation=None):
    """int32 [inputs], the group of each; a permutation makes them those of an act-order file."""
    size = inputs if group_size == -1 else group_size
    groups = (np.arange(inputs) // size).astype(np.int32)
    return groups if permutation is None else groups[permutation]


def round_to_nearest(weight, g_idx, sym):
    """weight [N, K] -> (q uint8 [K, N], zeros uint8 [groups, N], scales fp16 [groups, N])."""
    order = np.argsort(g_idx, kind="stable")
    outputs, inputs = weight.shape
    groups = int(g_idx.max()) + 1
    grouped = weight[:, order].reshape(outputs, groups, inputs // groups)
    low = np.minimum(grouped.min(-1), 0)
    high = np.maximum(grouped.max(-1), 0)
    span = 2 * np.maximum(-low, high) if sym else high - low
    scales = (span / LARGEST).astype(np.float16)
    scales[scales == 0] = 1  # all of the group is (nearly) zero
    steps = scales.astype(np.float32)
    zeros = np.full(scales.shape, MIDDLE) if sym else np.clip(np.rint(-low / steps), 0, LARGEST)
    rounded = np.rint(grouped / steps[..., None]) + zeros[..., None]
    q = np.empty((outputs, inputs), np.uint8)
    q[:, order] = np.clip(rounded, 0, LARGEST).reshape(outputs, inputs)
    return q.T, zeros.astype(np.uint8).T, scales.T


def quantize_linear(name, dtype, weight, g_idx, options):
    """{name: (dtype, array)} of the tensors that replace NAME.weight [N, K]."""
    groups = int(g_idx.max()) + 1
    outputs, inputs = weight.shape
    q = np.empty((inputs, outputs), np.uint8)
    zeros = np.empty((groups, outputs), np.uint8)
    scales = np.empty((groups, outputs), np.float16)
    for begin in range(0, outputs, ROWS_AT_ONCE):
        rows = slice(begin, begin + ROWS_AT_ONCE)
        q[:, rows], zeros[:, rows], scales[:, rows] = round_to_nearest(
            to_float32(dtype, weight[rows]), g_idx, options.sym)
    return {
        name + ".qweight": ("I32", pack(q).view(np.int32)),
        name + ".qzeros": ("I32", pack_zeros(zeros, options.format)),
        name + ".scales": ("F16", scales),
        name + ".g_idx": ("I32", g_idx),
    }


def permutation_of(name, inputs, options):
    """Linears that are commonly fused share one, unless they are to have theirs apart."""
    if not options.act_order:
        return None
    if not options.g_idx_apart:
        for parts in FUSED:
            for part in parts[1:]:
                name = name.replace(part, parts[0])
    return np.random.default_rng([options.seed, zlib.crc32(name.encode())]).permutation(inputs)


def check_sizes(name, weight, group_size):
    if weight.ndim != 2:
        sys.exit(f"{name} has {weight.ndim} dimensions, not 2")
    outputs, inputs = weight.shape
    size = inputs if group_size == -1 else group_size
    for count, what, factor in ((inputs, "inputs", PER_WORD), (outputs, "outputs", PER_WORD),
                                (inputs, "inputs", size)):
        if count % factor:
            sys.exit(f"{name} has {count} {what}, which is no multiple of {factor}; "
                     "--skip leaves it as it is")


def quantize_shard(tensors, options):
    """The tensors of one file with its linears quantised, and how many those were."""

    def convert(item):
        name, (dtype, array) = item
        match = LINEAR.match(name)
        if not match or any(re.search(skipped, match[1]) for skipped in options.skip):
            return {name: (dtype, array)}
        check_sizes(name, array, options.group_size)
        inputs = array.shape[1]
        g_idx = input_groups(inputs, options.group_size,
                             permutation_of(match[1], inputs, options))
        return quantize_linear(match[1], dtype, array, g_idx, options)

    converted = {}
    with concurrent.futures.ThreadPoolExecutor(options.threads) as pool:
        for part in pool.map(convert, tensors.items()):
            converted.update(part)
    return converted, sum(name.endswith(".qweight") for name in converted)


def read_config(options):
    config = json.loads((options.model / "config.json").read_text())
    if "quantization_config" in config or (options.model / "quantize_config.json").exists():
        sys.exit(f"{options.model} is quantised already")
    return config


def write_configs(config, options):
    quantization = {
        "bits": BITS,
        "group_size": options.group_size,
        "sym": options.sym,
        "desc_act": options.act_order,
        "quant_method": "gptq",
        "checkpoint_format": options.format,
    }
    if options.quantize_config_file:
        (options.out / "quantize_config.json").write_text(json.dumps(quantization, indent=2) + "\n")
    else:
        config["quantization_config"] = quantization
    (options.out / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def prepare_folder(options):
    files = sorted(options.model.glob("*.safetensors"))
    if not files:
        sys.exit(f"there is no *.safetensors in {options.model}")
    options.out.mkdir(parents=True, exist_ok=True)
    if options.out.samefile(options.model):
        sys.exit("--out is the model's own folder")
    for old in ("*.safetensors", "*.safetensors.index.json", "config.json",
                "quantize_config.json"):
        for path in options.out.glob(old):
            path.unlink()
    for pattern in COPIED:
        for path in options.model.glob(pattern):
            if path.name not in NOT_COPIED:
                shutil.copyfile(path, options.out / path.name)
    return files


def quantize_folder(options):
    config = read_config(options)
    files = prepare_folder(options)
    total, linears, index = 0, 0, {}
    for path in files:
        tensors, count = quantize_shard(read_safetensors(path), options)
        total += write_safetensors(options.out / path.name, tensors)
        linears += count
        index.update((name, path.name) for name in tensors)
    if len(files) > 1:
        (options.out / "model.safetensors.index.json").write_text(
            json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=1) + "\n")
    if linears == 0:
        sys.exit(f"{options.model} has no linear to quantise")
    write_configs(config, options)  # last, so that an unfinished folder is no model
    print(f"{options.out}: {linears} linears quantised, {total / 1e6:.1f} MB in all")


def parse(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=pathlib.Path, help="a model's folder")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="a folder, made if absent")
    parser.add_argument("--group-size", type=int, choices=(32, 64, 128, -1), default=128,
                        help="inputs that share a scale; -1: all of them")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--sym", action="store_true", default=True,
                      help="every zero point is 8 (the default)")
    kind.add_argument("--asym", action="store_false", dest="sym",
                      help="a zero point for every group")
    parser.add_argument("--act-order", action="store_true",
                        help="groups of a random permutation of the inputs instead of neighbours")
    parser.add_argument("--g-idx-apart", action="store_true",
                        help="with --act-order: another permutation for each of q, k, v, gate, up")
    parser.add_argument("--format", choices=("gptq", "gptq_v2"), default="gptq")
    parser.add_argument("--skip", metavar="PATTERN", action="append", default=[],
                        help="a regular expression of linears left as they are; may be repeated")
    parser.add_argument("--quantize-config-file", action="store_true",
                        help="write quantize_config.json rather than a key of config.json")
    parser.add_argument("--seed", type=int, default=1, help="of the permutations")
    parser.add_argument("--threads", type=int, default=4)
    options = parser.parse_args(arguments)
    if options.g_idx_apart and not options.act_order:
        parser.error("--g-idx-apart needs --act-order")
    return options


if __name__ == "__main__":
    quantize_folder(parse())
