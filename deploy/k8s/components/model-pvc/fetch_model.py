#!/usr/bin/env python3
"""Fetches a model from the Hugging Face Hub, unless its folder is there already.

    MODEL_REPO=Qwen/Qwen3-8B MODEL_REVISION=main fetch_model.py FOLDER

writes FOLDER/MODEL_REPO/MODEL_REVISION. Pods that share the volume take turns; the folder appears
whole, every file checked against the Hub's hashes, or not at all; what a broken attempt got is gone
on with. HUB_ENDPOINT names another Hub, and HUB_TOKEN_FILE a file with a token. Needs nothing but
Python's standard library.
"""
import contextlib
import fcntl
import fnmatch
import hashlib
import json
import os
import pathlib
import shutil
import socket
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator

# What the server reads of a model's folder.
WANTED = ("*.json", "*.safetensors", "1_Pooling/config.json")
ATTEMPTS, PAUSE_SECONDS, TIMEOUT_SECONDS, CHUNK = 5, 3, 60, 1 << 20


class Refused(Exception):
    """What another attempt would not mend."""


def open_url(url: str, start: int = 0):
    request = urllib.request.Request(url, headers={"User-Agent": "ferrite-fetch-model"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    token = pathlib.Path(os.environ.get("HUB_TOKEN_FILE", "/nonexistent"))
    if token.is_file():
        # Not sent on to where the Hub redirects: those addresses carry their own right to read.
        request.add_unredirected_header("Authorization", f"Bearer {token.read_text().strip()}")
    return urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)


def with_attempts(action):
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return action()
        except (OSError, ValueError) as error:
            code = getattr(error, "code", 0)
            if code in (401, 403, 404):
                raise Refused(f"{error.url}: {error}") from error
            if attempt == ATTEMPTS:
                raise
            print(f"attempt {attempt} of {ATTEMPTS}: {error}", flush=True)
            time.sleep(PAUSE_SECONDS * attempt)


def wanted_files(siblings: list[dict]) -> list[dict]:
    # A pattern's folders count: * does not reach into one, so that no name leads elsewhere.
    chosen = [file for file in siblings if any(
        fnmatch.fnmatchcase(file["rfilename"], pattern) and
        file["rfilename"].count("/") == pattern.count("/") for pattern in WANTED)]
    if not any(file["rfilename"].endswith(".safetensors") for file in chosen):
        raise Refused("the model has no *.safetensors file")
    return chosen


def is_right(path: pathlib.Path, file: dict) -> bool:
    """Large files have a SHA-256, the others the hash that Git gives a blob of them."""
    if not path.is_file() or path.stat().st_size != file["size"]:
        return False
    digest = hashlib.sha256() if file.get("lfs") else hashlib.sha1()
    if not file.get("lfs"):
        digest.update(b"blob %d\0" % file["size"])
    with path.open("rb") as data:
        while block := data.read(CHUNK):
            digest.update(block)
    return digest.hexdigest() == (file["lfs"]["sha256"] if file.get("lfs") else file["blobId"])


def fetch_file(url: str, path: pathlib.Path, file: dict) -> None:
    if is_right(path, file):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    have = path.stat().st_size if path.is_file() else 0
    start = have if have < file["size"] else 0
    with open_url(url, start) as response:
        with path.open("ab" if response.status == 206 else "wb") as out:
            shutil.copyfileobj(response, out, CHUNK)
            out.flush()
            os.fsync(out.fileno())
    if path.stat().st_size < file["size"]:
        raise ValueError(f"{url} broke off after {path.stat().st_size} of {file['size']} bytes")
    if not is_right(path, file):
        path.unlink()
        raise ValueError(f"{url} is not what the Hub's hash says")


@contextlib.contextmanager
def turn(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Waits until no other pod fetches `folder`; yields where to collect its files."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{folder}.lock", "w", encoding="utf-8") as lock:
        part = f"{folder}.part"
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:  # a file system without locks: each pod for itself
            part += f"-{socket.gethostname()}"
        yield pathlib.Path(part)


def fetch(endpoint: str, repo: str, revision: str, folder: pathlib.Path) -> None:
    if folder.is_dir():
        print(f"{folder} is there already", flush=True)
        return
    quoted = urllib.parse.quote(revision, safe="")
    about = f"{endpoint}/api/models/{repo}/revision/{quoted}?blobs=true"
    with turn(folder) as part:
        if folder.is_dir():
            print(f"{folder} is there now", flush=True)
            return
        with with_attempts(lambda: open_url(about)) as response:
            info = json.load(response)
        for file in wanted_files(info["siblings"]):
            name = file["rfilename"]
            print(f"{name}: {file['size']} bytes", flush=True)
            url = f"{endpoint}/{repo}/resolve/{info['sha']}/{urllib.parse.quote(name)}"
            with_attempts(lambda url=url, file=file: fetch_file(url, part / file["rfilename"], file))
        try:
            part.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
            shutil.rmtree(part)  # another pod was quicker
        print(f"{folder} is {repo} at {info['sha']}", flush=True)


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    repo, revision = os.environ["MODEL_REPO"], os.environ.get("MODEL_REVISION", "main")
    endpoint = os.environ.get("HUB_ENDPOINT", "https://huggingface.co").rstrip("/")
    for value in (repo, revision):
        if ".." in value.split("/") or value.startswith("/") or not value:
            print(f"fetch_model.py: {value!r} names no model or revision", file=sys.stderr)
            return 2
    try:
        fetch(endpoint, repo, revision, pathlib.Path(sys.argv[1]) / repo / revision)
    except (Refused, OSError, ValueError) as error:
        print(f"fetch_model.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
