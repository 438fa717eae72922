#!/usr/bin/env python3
"""Checks every #include against the include rule of docs/architecture.md.

A folder may include itself, what it is allowed below, and libraries; engine/ is also kept free of
gRPC, protobuf and CUDA headers. System headers are global, so the linker alone would not notice.
"""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
ALLOWED = {
    "server": {"server", "engine"},
    "engine": {"engine"},
    "cuda": {"cuda", "engine"},
    "cpu": {"cpu", "engine"},
    "client": {"client"},
}
FOLDERS = set(ALLOWED) | {"tests", "benchmarks"}
# Generated from proto/: for the server and the client.
PROTO_USERS = {"server", "client"}
PROTO = re.compile(r"^(ferrite/v1/|google/rpc/|grpc/health/)")
REMOTE = re.compile(r"^(grpc|grpcpp|google/protobuf)/")
METRICS = re.compile(r"^(prometheus/|httplib\.h)")  # the server's alone
CUDA = re.compile(r"^(cuda|cublas|nccl)")
# The one file that knows the backends.
EXCEPTIONS = {"server/backend_factory.cc": {"cpu", "cuda"}}


def problems_of(path: pathlib.Path):
    name = path.relative_to(ROOT).as_posix()
    folder = name.split("/")[0]
    for number, line in enumerate(path.read_text().splitlines(), 1):
        match = re.match(r'\s*#\s*include\s+[<"]([^>"]+)[>"]', line)
        if not match:
            continue
        header = match.group(1)
        target = header.split("/")[0]
        bad = None
        if PROTO.match(header):
            bad = folder not in PROTO_USERS
        elif target in FOLDERS and (ROOT / header).exists():
            bad = target not in ALLOWED[folder] | EXCEPTIONS.get(name, set())
        elif REMOTE.match(header):
            bad = folder not in PROTO_USERS
        elif METRICS.match(header):
            bad = folder != "server"
        elif CUDA.match(header):
            bad = folder != "cuda"
        if bad:
            yield f"{name}:{number}: {folder}/ may not include {header}"


def main():
    files = [
        path
        for folder in ALLOWED
        for path in sorted((ROOT / folder).rglob("*"))
        if path.suffix in {".h", ".cc", ".cu", ".cuh"}
    ]
    problems = [problem for path in files for problem in problems_of(path)]
    print("\n".join(problems) or f"{len(files)} files keep the include rule")
    return 1 if problems or len(files) < 20 else 0


if __name__ == "__main__":
    sys.exit(main())
