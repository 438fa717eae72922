#!/usr/bin/env python3
"""Writes a checkpoint of a well-known shape with random weights, as a Hugging Face folder.

For measuring a server as it is served without the real weights: matrices are normal with a standard
deviation of 0.02, norms are ones, biases are zeros; the same seed gives the same weights (with torch
and numpy each their own). With --int4 the layers' matrices are in GPTQ's symmetric 4 bits, uniform and
with the same deviation. No token ends a text. The shapes are those of cuda/model_shapes.cc, and
the tokenizer is another model's: what is generated is noise, and ids that it does not know are no
text.

    scripts/make_random_checkpoint.py --shape llama-3.1-8b --out /tmp/llama-8b

With torch and a GPU 16 GB take seconds, with numpy alone minutes.
"""

import argparse
import json
import pathlib
import shutil
import struct
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
SHARD_BYTES = 4 << 30
DEVIATION = 0.02

KEYS = ("model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
        "num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings",
        "tie_word_embeddings")
SHAPES = {
    "llama-3.1-8b": ("llama", 128256, 4096, 14336, 32, 32, 8, 128, 131072, False),
    "llama-3.2-1b": ("llama", 128256, 2048, 8192, 16, 32, 8, 64, 131072, True),
    "qwen3-0.6b": ("qwen3", 151936, 1024, 3072, 28, 16, 8, 128, 40960, True),
    "qwen3-8b": ("qwen3", 151936, 4096, 12288, 36, 32, 8, 128, 40960, False),
    "qwen2.5-7b": ("qwen2", 152064, 3584, 18944, 28, 28, 4, 128, 32768, False),
}
FAMILIES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}


def config_of(shape):
    """What transformers and Ferrite read from config.json."""
    config = dict(zip(KEYS, SHAPES[shape]))
    config.update(architectures=[FAMILIES[config["model_type"]]], hidden_act="silu",
                  bos_token_id=None, eos_token_id=None, initializer_range=DEVIATION)
    if config["model_type"] == "llama":
        factor = 32.0 if config["tie_word_embeddings"] else 8.0
        config.update(attention_bias=False, mlp_bias=False, rms_norm_eps=1e-5, rope_theta=500000.0,
                      rope_scaling={"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0,
                                    "high_freq_factor": 4.0,
                                    "original_max_position_embeddings": 8192})
    else:
        config.update(rms_norm_eps=1e-6, rope_theta=1000000.0, rope_scaling=None,
                      use_sliding_window=False)
        if config["model_type"] == "qwen3":
            config["attention_bias"] = False
        else:  # its head_dim is always hidden_size / num_attention_heads
            del config["head_dim"]
    return config


def int4_tensors(name, outputs, inputs, group_size):
    """What GPTQ keeps of a matrix [outputs, inputs]."""
    groups = inputs // group_size
    yield name + ".qweight", (inputs // 8, outputs), "words"
    yield name + ".qzeros", (groups, outputs // 8), "zero points"
    yield name + ".scales", (groups, outputs), "scales"
    yield name + ".g_idx", (inputs,), ("groups", group_size)


def tensors_of(config):
    """(name, shape, kind) of every tensor; kind is matrix, ones, zeros or one of 4-bit weights."""
    quantization = config.get("quantization_config")
    for name, shape, kind in plain_tensors_of(config):
        if quantization and kind == "matrix" and ".layers." in name:
            yield from int4_tensors(name.removesuffix(".weight"), *shape,
                                    quantization["group_size"])
        else:
            yield name, shape, kind


def plain_tensors_of(config):
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim", hidden // heads)
    outputs = {"q": heads * head_dim, "k": config["num_key_value_heads"] * head_dim}
    outputs["v"] = outputs["k"]
    yield "model.embed_tokens.weight", (config["vocab_size"], hidden), "matrix"
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        yield prefix + "input_layernorm.weight", (hidden,), "ones"
        for name, rows in outputs.items():
            yield f"{prefix}self_attn.{name}_proj.weight", (rows, hidden), "matrix"
            if config["model_type"] == "qwen2":
                yield f"{prefix}self_attn.{name}_proj.bias", (rows,), "zeros"
        if config["model_type"] == "qwen3":
            yield prefix + "self_attn.q_norm.weight", (head_dim,), "ones"
            yield prefix + "self_attn.k_norm.weight", (head_dim,), "ones"
        yield prefix + "self_attn.o_proj.weight", (hidden, outputs["q"]), "matrix"
        yield prefix + "post_attention_layernorm.weight", (hidden,), "ones"
        yield prefix + "mlp.gate_proj.weight", (inner, hidden), "matrix"
        yield prefix + "mlp.up_proj.weight", (inner, hidden), "matrix"
        yield prefix + "mlp.down_proj.weight", (hidden, inner), "matrix"
    yield "model.norm.weight", (hidden,), "ones"
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", (config["vocab_size"], hidden), "matrix"


def elements(shape):
    count = 1
    for size in shape:
        count *= size
    return count


# Uniform 0 to 15 has a deviation of sqrt((16^2 - 1) / 12); 8 is subtracted, and zero points are
# stored less one.
INT4_SCALE = DEVIATION / ((16 * 16 - 1) / 12) ** 0.5
INT4_ZEROS = 0x77777777


def type_of(kind, dtype):
    """The name of a tensor's type, and its bytes an element."""
    if kind == "scales":
        return "F16", 2
    return (dtype, 2) if kind in ("matrix", "ones", "zeros") else ("I32", 4)


def int4_array(shape, kind):
    """A tensor of 4-bit weights that is not random."""
    import numpy
    if kind == "scales":
        return numpy.full(shape, INT4_SCALE, numpy.float16)
    if kind == "zero points":
        return numpy.full(shape, INT4_ZEROS, numpy.int32)
    return (numpy.arange(shape[0]) // kind[1]).astype(numpy.int32)


class TorchSource:
    """Random tensors as arrays of 16-bit or 32-bit words, made on the GPU if there is one."""

    def __init__(self, dtype, seed):
        import torch
        self._torch = torch
        self._dtype = {"F16": torch.float16, "BF16": torch.bfloat16}[dtype]
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._generator = torch.Generator(self._device).manual_seed(seed)

    def make(self, shape, kind):
        if kind == "words":
            return self._torch.randint(-2**31, 2**31, shape, dtype=self._torch.int32,
                                       device=self._device, generator=self._generator).cpu().numpy()
        if kind not in ("matrix", "ones", "zeros"):
            return int4_array(shape, kind)
        values = self._torch.empty(shape, dtype=self._dtype, device=self._device)
        if kind == "matrix":
            values.normal_(0.0, DEVIATION, generator=self._generator)
        else:
            values.fill_(1.0 if kind == "ones" else 0.0)
        return values.view(self._torch.int16).cpu().numpy()


class NumpySource:
    """The same with numpy, row by row so that it needs little memory at a time."""

    def __init__(self, dtype, seed):
        import numpy
        self._numpy = numpy
        self._dtype = dtype
        self._random = numpy.random.default_rng(seed)

    def make(self, shape, kind):
        numpy = self._numpy
        if kind == "words":
            return self._random.integers(-2**31, 2**31, shape, numpy.int32)
        if kind not in ("matrix", "ones", "zeros"):
            return int4_array(shape, kind)
        if kind != "matrix":
            return self._narrow(numpy.full(shape, kind == "ones", numpy.float32))
        words = numpy.empty(shape, numpy.uint16)
        for begin in range(0, shape[0], 1024):
            rows = words[begin : begin + 1024]
            rows[:] = self._narrow(
                self._random.standard_normal(rows.shape, numpy.float32) * DEVIATION)
        return words

    def _narrow(self, values):
        if self._dtype == "F16":
            return values.astype(self._numpy.float16).view(self._numpy.uint16)
        bits = values.astype(self._numpy.float32).view(self._numpy.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(self._numpy.uint16)


def make_source(dtype, seed):
    try:
        return TorchSource(dtype, seed)
    except ImportError:
        return NumpySource(dtype, seed)


def shards_of(tensors):
    """Lists of tensors, each of about SHARD_BYTES at most."""
    shards, size = [[]], 0
    for tensor in tensors:
        bytes_ = type_of(tensor[2], "")[1] * elements(tensor[1])
        if shards[-1] and size + bytes_ > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += bytes_
    return shards


def write_shard(path, tensors, dtype, source):
    """One file as huggingface/safetensors describes the format."""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, shape, kind in tensors:
        type_name, size = type_of(kind, dtype)
        end = offset + size * elements(shape)
        header[name] = {"dtype": type_name, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, shape, kind in tensors:
            source.make(shape, kind).tofile(file)
    return offset


def write_weights(out, config, dtype, seed):
    source = make_source(dtype, seed)
    shards = shards_of(tensors_of(config))
    total, index = 0, {}
    for i, tensors in enumerate(shards):
        name = ("model.safetensors" if len(shards) == 1
                else f"model-{i + 1:05}-of-{len(shards):05}.safetensors")
        total += write_shard(out / name, tensors, dtype, source)
        index.update((tensor[0], name) for tensor in tensors)
        print(f"{out / name}: {total / 1e9:.2f} GB so far", flush=True)
    if len(shards) > 1:
        (out / "model.safetensors.index.json").write_text(
            json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=1) + "\n")


def default_tokenizer():
    real = ROOT / "models" / "smollm2-135m-instruct"
    return real if (real / "tokenizer.json").exists() else ROOT / "models" / "stories260k"


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", required=True, choices=sorted(SHAPES))
    parser.add_argument("--out", required=True, type=pathlib.Path, help="a folder, made if absent")
    parser.add_argument("--tokenizer", type=pathlib.Path, default=default_tokenizer(),
                        help="a model's folder to take the tokenizer from")
    parser.add_argument("--dtype", choices=("fp16", "bf16"), default="bf16")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--int4", type=int, metavar="GROUP",
                        help="the layers' matrices in 4 bits, with a scale for so many inputs")
    parser.add_argument("--layers", type=int, help="fewer than the shape has, for a quick try")
    options = parser.parse_args()
    config = config_of(options.shape)
    if options.layers is not None:
        if not 1 <= options.layers <= config["num_hidden_layers"]:
            sys.exit(f"--layers is {options.layers}; {options.shape} has "
                     f"{config['num_hidden_layers']}")
        config["num_hidden_layers"] = options.layers
    if options.int4 is not None:
        config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "sym": True,
                                         "group_size": options.int4, "desc_act": False}
        if not 8 <= options.int4 or any(
                shape[1] % options.int4 for name, shape, kind in plain_tensors_of(config)
                if kind == "matrix" and ".layers." in name):
            sys.exit(f"--int4 is {options.int4}; the inputs of {options.shape}'s matrices must be "
                     "multiples of it")
    config["torch_dtype"] = {"fp16": "float16", "bf16": "bfloat16"}[options.dtype]
    options.out.mkdir(parents=True, exist_ok=True)
    for old in options.out.glob("model*.safetensors*"):
        old.unlink()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (options.tokenizer / name).exists():
            shutil.copy(options.tokenizer / name, options.out / name)
        elif name == "tokenizer.json":
            sys.exit(f"there is no {options.tokenizer / name}")
    (options.out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (options.out / "generation_config.json").write_text('{\n  "do_sample": false\n}\n')
    write_weights(options.out, config, {"fp16": "F16", "bf16": "BF16"}[options.dtype], options.seed)


if __name__ == "__main__":
    main()
