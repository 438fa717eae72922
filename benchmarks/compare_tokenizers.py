#!/usr/bin/env python3
"""Encoding speed on one thread against the reference library, in alternation.

    pip install tokenizers
    benchmarks/compare_tokenizers.py --binary build/cpu/benchmarks/tokenizer_speed \
        --tokenizers build/cpu/fixtures/tokenizer

Takes 10 MB of mixed text, from the corpus of the parity tests, cut into documents of some KB. Prints
one JSON object: MB/s of both (best of the rounds), and how many times as fast ours is. Fails if the
two do not count the same tokens.
"""

import argparse
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"

import tokenizers  # noqa: E402

BYTES = 10_000_000


def documents(corpus):
    """Strings of the corpus in random order, joined to 2 to 8 KB."""
    rng = random.Random(10)
    result, total = [], 0
    while total < BYTES:
        wanted, parts, size = rng.randrange(2000, 8000), [], 0
        while size < wanted:
            parts.append(rng.choice(corpus))
            size += len(parts[-1].encode()) + 1
        result.append(" ".join(parts))
        total += len(result[-1].encode())
    return result


def reference(tokenizer, texts):
    """(seconds, tokens, sum of ids)"""
    encoded = []
    start = time.perf_counter()
    for text in texts:
        encoded.append(tokenizer.encode(text, add_special_tokens=False))
    seconds = time.perf_counter() - start
    ids = [encoding.ids for encoding in encoded]
    return seconds, sum(map(len, ids)), sum(map(sum, ids))


def main():
    """Runs both and prints the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--binary", required=True)
    parser.add_argument("--tokenizers", type=pathlib.Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    texts = documents(json.loads((args.tokenizers / "corpus.json").read_text(encoding="utf-8")))
    size = sum(len(text.encode()) for text in texts)
    result = {}
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(texts, file)
        file.flush()
        for name in ("qwen3", "smollm2", "tinyllama"):
            folder = args.tokenizers / name
            start = time.perf_counter()
            theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
            their_load = time.perf_counter() - start
            our_best, their_best, our_load = 0.0, 0.0, float("inf")
            for _ in range(args.rounds):
                command = [args.binary, "--model", folder, "--texts", file.name]
                ours = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
                seconds, tokens, id_sum = reference(theirs, texts)
                if (ours["tokens"], ours["id_sum"]) != (tokens, id_sum):
                    sys.exit(f"{name}: {ours['tokens']} tokens, the reference has {tokens}")
                our_best = max(our_best, ours["megabytes_per_second"])
                our_load = min(our_load, ours["load_seconds"])
                their_best = max(their_best, size / seconds / 1e6)
            result[name] = {
                "ferrite_mb_per_second": round(our_best, 2),
                "reference_mb_per_second": round(their_best, 2),
                "ratio": round(our_best / their_best, 2),
                "ferrite_load_seconds": round(our_load, 3),
                "reference_load_seconds": round(their_load, 3),
            }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
