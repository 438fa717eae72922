#!/usr/bin/env python3
"""Converts a llama2.c checkpoint and its tokenizer to a Hugging Face model folder.

Reads the legacy (version 0) checkpoint layout, seven little-endian int32 followed by float32
tensors, and the matching tokenizer file of scored pieces. Writes config.json,
generation_config.json, model.safetensors (fp32) and tokenizer.json. Needs numpy only.

    scripts/convert_llama2c.py --checkpoint stories260K.bin --tokenizer tok512.bin \
        --out models/stories260k

What changes on the way:
  * The rows of the query and key projections are permuted: llama2.c rotates the pairs
    (2i, 2i + 1) of a head, Hugging Face the pairs (i, i + head_dim / 2).
  * A classifier tied to the embedding is not written a second time.
  * Pieces spell a space as U+2581, and the scores become an ordered list of merges.
"""

import argparse
import json
import pathlib
import struct

import numpy as np

UNK, BOS, EOS = 0, 1, 2
SPECIAL_PIECES = {UNK: "<unk>", BOS: "<s>", EOS: "</s>"}
FIRST_BYTE = 3
NUM_BYTES = 256
SPACE = "\u2581"


def read_checkpoint(path):
    """Returns (shape: dict of int, tensors: dict of Hugging Face name to float32 array)."""
    raw = path.read_bytes()
    names = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len")
    shape = dict(zip(names, struct.unpack_from("<7i", raw)))
    shape["tied"] = shape["vocab_size"] > 0
    shape["vocab_size"] = abs(shape["vocab_size"])
    values = np.frombuffer(raw, dtype="<f4", offset=7 * 4)
    position = 0

    def take(*dims):
        nonlocal position
        count = int(np.prod(dims))
        if position + count > values.size:
            raise ValueError(f"{path}: {values.size} values, but the header asks for more")
        position += count
        return values[position - count : position].reshape(dims)

    dim, hidden, layers = shape["dim"], shape["hidden_dim"], shape["n_layers"]
    head_dim = dim // shape["n_heads"]
    kv_dim = head_dim * shape["n_kv_heads"]
    tensors = {"model.embed_tokens.weight": take(shape["vocab_size"], dim)}
    stacked = {
        "input_layernorm": take(layers, dim),
        "self_attn.q_proj": take(layers, dim, dim),
        "self_attn.k_proj": take(layers, kv_dim, dim),
        "self_attn.v_proj": take(layers, kv_dim, dim),
        "self_attn.o_proj": take(layers, dim, dim),
        "post_attention_layernorm": take(layers, dim),
        "mlp.gate_proj": take(layers, hidden, dim),
        "mlp.down_proj": take(layers, dim, hidden),
        "mlp.up_proj": take(layers, hidden, dim),
    }
    tensors["model.norm.weight"] = take(dim)
    take(2, shape["seq_len"], head_dim // 2)  # RoPE tables, which follow from theta
    if not shape["tied"]:
        tensors["lm_head.weight"] = take(shape["vocab_size"], dim)
    if position != values.size:
        raise ValueError(f"{path}: {values.size - position} values are left over")

    for name, tensor in stacked.items():
        for layer in range(layers):
            weight = tensor[layer]
            if name in ("self_attn.q_proj", "self_attn.k_proj"):
                weight = interleaved_to_half_split(weight, head_dim)
            tensors[f"model.layers.{layer}.{name}.weight"] = weight
    return shape, tensors


def interleaved_to_half_split(weight, head_dim):
    """Moves row 2i of every head to i, and row 2i + 1 to i + head_dim / 2."""
    rows, columns = weight.shape
    pairs = weight.reshape(rows // head_dim, head_dim // 2, 2, columns)
    return pairs.transpose(0, 2, 1, 3).reshape(rows, columns)


def write_safetensors(path, tensors):
    """Writes float32 tensors, the header padded so that the data starts 8-byte aligned."""
    header = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in sorted(tensors):
        size = tensors[name].size * 4
        header[name] = {
            "dtype": "F32",
            "shape": list(tensors[name].shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)))
        file.write(encoded)
        for name in sorted(tensors):
            file.write(np.ascontiguousarray(tensors[name], dtype="<f4").tobytes())


def read_pieces(path, vocab_size):
    """Returns [(piece as Hugging Face spells it, score)] by id."""
    raw = path.read_bytes()
    offset = 4  # the longest piece's length, which we do not need
    pieces = []
    for token_id in range(vocab_size):
        score, length = struct.unpack_from("<fi", raw, offset)
        offset += 8
        piece = raw[offset : offset + length].decode("utf-8").replace(" ", SPACE)
        offset += length
        pieces.append((SPECIAL_PIECES.get(token_id, piece), score))
    if offset != len(raw):
        raise ValueError(f"{path}: {len(raw) - offset} bytes are left over")
    if len({piece for piece, _ in pieces}) != vocab_size:
        raise ValueError(f"{path}: a piece occurs twice")
    return pieces


def derive_merges(pieces):
    """Every pair of pieces that joins to a piece, the joined piece's best score first.

    llama2.c merges the adjacent pair whose result scores highest, the leftmost of equals; a rank
    by falling score picks the same pair. The splits of one piece share its score, so their order
    among themselves is free, and is that of the ids.
    """
    first_text_id = FIRST_BYTE + NUM_BYTES
    ids = {piece: i for i, (piece, _) in enumerate(pieces) if i >= first_text_id}
    merges = []
    for piece, merged_id in ids.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in ids and right in ids:
                score = pieces[merged_id][1]
                merges.append((-score, merged_id, ids[left], ids[right], f"{left} {right}"))
    return [merge[-1] for merge in sorted(merges)]


def tokenizer_json(pieces):
    """The whole of tokenizer.json, in the shape that Llama tokenizers have."""
    bos = SPECIAL_PIECES[BOS]
    template = [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    second = [{"SpecialToken": {"id": bos, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": token_id,
                "content": content,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for token_id, content in SPECIAL_PIECES.items()
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": SPACE},
                {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": template,
            "pair": template + second,
            "special_tokens": {bos: {"id": bos, "ids": [BOS], "tokens": [bos]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": SPECIAL_PIECES[UNK],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {piece: token_id for token_id, (piece, _) in enumerate(pieces)},
            "merges": derive_merges(pieces),
        },
    }


def model_config(shape):
    """config.json; epsilon and theta are constants of the C program."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": BOS,
        "eos_token_id": [BOS, EOS],
        "hidden_act": "silu",
        "hidden_size": shape["dim"],
        "initializer_range": 0.02,
        "intermediate_size": shape["hidden_dim"],
        "max_position_embeddings": shape["seq_len"],
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": shape["n_heads"],
        "num_hidden_layers": shape["n_layers"],
        "num_key_value_heads": shape["n_kv_heads"],
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "tie_word_embeddings": shape["tied"],
        "torch_dtype": "float32",
        "use_cache": True,
        "vocab_size": shape["vocab_size"],
    }


def write_json(path, value):
    """Writes indented JSON with a final newline."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def main():
    """Parses the arguments and writes the folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=pathlib.Path, required=True)
    parser.add_argument("--tokenizer", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args()

    shape, tensors = read_checkpoint(args.checkpoint)
    pieces = read_pieces(args.tokenizer, shape["vocab_size"])
    args.out.mkdir(parents=True, exist_ok=True)
    write_safetensors(args.out / "model.safetensors", tensors)
    write_json(args.out / "config.json", model_config(shape))
    # Stories end with BOS: the training text separates them so.
    write_json(
        args.out / "generation_config.json", {"bos_token_id": BOS, "eos_token_id": [BOS, EOS]}
    )
    write_json(args.out / "tokenizer.json", tokenizer_json(pieces))


if __name__ == "__main__":
    main()
