#!/usr/bin/env python3
"""Builds the image's root from the Dockerfile, starts its server as an engine would, has its client
make a story, and prints sizes. Also makes the relocatable tarball, and does the same with that on a
clean root without any package of ours. Run it by scripts/check_container.sh, which see.
"""
import argparse
import contextlib
import ctypes
import json
import os
import pathlib
import re
import subprocess
import sys
import threading
import urllib.request

import container_roots as roots
from container_build import Builder, Image, Settings
from dockerfile import DockerfileError, parse, read_rules

ROOT = pathlib.Path(__file__).resolve().parents[2]
AIMS = {"cpu": 120e6, "cuda": 1e9}  # bytes
PR_SET_NO_NEW_PRIVS, PR_CAPBSET_DROP = 38, 24


def enter(image: Image):
    """Does what a pod's securityContext asks for, between fork and exec."""
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = (int(part) for part in image.user.split(":"))

    def inside() -> None:
        os.chroot(image.root)
        os.chdir(image.folder)
        for capability in range(64):
            libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
        os.setgroups([])
        os.setgid(group)
        os.setuid(user)
        if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
            raise OSError("no_new_privs was refused")
    return inside


def start(image: Image, words: list[str], **options) -> subprocess.Popen:
    return subprocess.Popen(words, preexec_fn=enter(image), env=image.environment, text=True,
                            stdin=subprocess.DEVNULL, **options)


def client(image: Image, program: list[str], *words: str) -> str:
    process = start(image, [*program, *words], stdout=subprocess.PIPE)
    output, _ = process.communicate(timeout=60)
    if process.returncode:
        raise SystemExit(f"check_container: exit status {process.returncode} of {words}")
    return output


def ready_line(server: subprocess.Popen) -> dict[str, object]:
    """Waits until the server is ready; what its log line says. Later lines go to stdout."""
    for line in server.stderr:
        print("   ", line, end="")
        if '"ready"' in line:
            threading.Thread(target=lambda: [print("   ", rest, end="") for rest in server.stderr]).start()
            return json.loads(line)
    raise SystemExit("check_container: the server did not become ready")


def demo(image: Image, entrypoint: list[str], program: list[str]) -> None:
    """The server with its defaults, the client's health, info and a story, metrics, and a drain."""
    server = start(image, [*entrypoint, "--server.listen=127.0.0.1:0", "--metrics.listen=127.0.0.1:0",
                           "--server.drain_grace_seconds=0", "--log.format=json"], stderr=subprocess.PIPE)
    try:
        ready = ready_line(server)
        status = pathlib.Path(f"/proc/{server.pid}/status").read_text()
        print("   ", " ".join(re.findall(r"^(?:Uid|Gid|CapEff|CapBnd|NoNewPrivs):.*$", status, re.MULTILINE)))
        to = ["--server", f"127.0.0.1:{ready['port']}"]
        print("   ", client(image, program, *to, "health").strip())
        story = client(image, program, *to, "generate", "--echo-prompt", "--temperature", "0.8",
                       "--seed", "7", "--max-new-tokens", "60", "Once upon a time")
        print("   ", " ".join(story.split()))
        scrape(ready["metrics_port"])
        if not story.startswith("Once upon a time") or len(story.split()) < 20:
            raise SystemExit("check_container: that is no story")
        server.terminate()
        if server.wait(timeout=30):
            raise SystemExit(f"check_container: the server ended with {server.returncode}")
    finally:
        server.kill()


def scrape(port: object) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        if b"ferrite_" not in answer.read():
            raise SystemExit("check_container: no metrics")


@contextlib.contextmanager
def read_only(image: Image, parent: pathlib.Path):
    """The image's root as a pod with readOnlyRootFilesystem sees it."""
    view = parent / "view"
    view.mkdir()
    roots.run("mount", "--bind", image.root, view)
    seen = Image(view, image.environment, image.labels, image.folder, image.user)
    try:
        with roots.mounted(view, {}, network=False):
            roots.run("mount", "-o", "remount,bind,ro", view)
            if not os.statvfs(view).f_flag & os.ST_RDONLY:
                raise SystemExit("check_container: the root can be written to")
            yield seen
    finally:
        roots.run("umount", "--lazy", view)
        view.rmdir()


def print_sizes(image: Image, backend: str, collect: Image) -> bool:
    """Prints what the image is made of; whether it is within the aim."""
    files = [(f.stat().st_size, f"/{f.relative_to(image.root)}") for f in image.root.rglob("*")
             if f.is_file() and not f.is_symlink()]
    total = sum(size for size, _ in files)
    print(f"== sizes: {total / 1e6:.1f} MB in {len(files)} files; "
          f"the aim is below {AIMS[backend] / 1e6:.0f} MB")
    for size, name in sorted(files, reverse=True)[:12]:
        print(f"   {size / 1e6:8.1f} MB  {name}")
    packages = image.root / "var/lib/dpkg/status.d"
    print(f"   {len(list(packages.iterdir()))} packages have a part in it")
    apt = [collect.root / folder for folder in ("var/lib/apt/lists", "var/cache/apt")]
    rest = roots.size_of(collect.root) - sum(roots.size_of(f) for f in [collect.root / "image", *apt])
    print(f"   on the whole slim base it would be {rest / 1e6:.0f} MB")
    return total < AIMS[backend]


def check_tarball(build: Image, backend: str, settings: Settings) -> None:
    """bundle.sh --tar, unpacked on a clean root at a path of its own, runs there."""
    print("== tarball", flush=True)
    name = f"ferrite-{backend}"
    with roots.mounted(build.root, build.mounts, network=False):
        roots.run("chroot", build.root, "/src/scripts/bundle.sh", "--preset", backend,
                  "--libraries", "all", "--out", "/tmp/bundle", "--tar", f"/tmp/{name}.tar.gz",
                  env={"PATH": build.environment["PATH"]})
    clean = settings.work / "roots/clean"
    roots.unpack(settings.base, clean)
    place = clean / "srv/some where"
    place.mkdir(parents=True)
    roots.run("tar", "--extract", "--file", build.root / f"tmp/{name}.tar.gz", "--directory", place)
    folder = f"/srv/some where/{name}"
    image = Image(clean, {"PATH": "/usr/bin:/bin"}, {}, folder, "65532:65532")
    with read_only(image, settings.work) as seen:
        demo(seen, [f"{folder}/run", "ferrite-server"], [f"{folder}/run", "ferrite"])


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--arch", default="", help="CUDA_ARCHITECTURES, such as 90-real")
    parser.add_argument("--jobs", default="", help="compilers at a time; default: one for each core")
    parser.add_argument("--ccache", type=pathlib.Path, help="a folder for ccache")
    parser.add_argument("--cache", type=pathlib.Path, default=ROOT / "build/container",
                        help="where the clean root is kept; default: build/container")
    parser.add_argument("--work", type=pathlib.Path, required=True, help="an empty folder")
    return parser.parse_args()


def main() -> int:
    options = read_arguments()
    base = options.cache.resolve() / f"{'-'.join(roots.release())}.tar"
    if not base.exists():
        print("== a clean root, by debootstrap", flush=True)
        roots.make_base(base, options.work)
    if options.ccache:
        options.ccache.mkdir(parents=True, exist_ok=True)
    arguments = {"BACKEND": options.backend, "CUDA_ARCHITECTURES": options.arch, "JOBS": options.jobs}
    rules = read_rules((ROOT / ".dockerignore").read_text())
    settings = Settings(ROOT, rules, options.work, base, arguments, options.ccache)
    file = parse((ROOT / "Dockerfile").read_text())
    builder = Builder(file, settings)
    image = builder.build(file.stages[-1].name)
    print(f"== the image: user {image.user} in {image.folder}, ports {image.ports}, {image.environment}, "
          f"{image.entrypoint}\n   {image.labels}")
    with read_only(image, options.work) as seen:
        demo(seen, image.entrypoint, ["ferrite"])
    fits = print_sizes(image, options.backend, builder.images["collect"])
    check_tarball(builder.images["build"], options.backend, settings)
    print("== passed" if fits else "== everything ran, but the image is too large")
    return 0 if fits else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (DockerfileError, subprocess.CalledProcessError) as error:
        sys.exit(f"check_container: {error}")
