"""Builds an image's root from a Dockerfile without a container engine: each instruction in turn, on
clean roots made by debootstrap (container_roots.py) instead of the base images.

Only the stages that the last one needs are built, as engines do.
"""
import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import time

import container_roots as roots
from dockerfile import Dockerfile, DockerfileError, Stage, Step, context, expand

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PROXIES = ("http_proxy", "https_proxy", "no_proxy")
TOOLKIT = pathlib.Path("/usr/local/cuda")


@dataclasses.dataclass
class Image:
    """A root, and what an image's config says beside it."""
    root: pathlib.Path
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    labels: dict[str, str] = dataclasses.field(default_factory=dict)
    folder: str = "/"
    user: str = "0:0"
    ports: list[str] = dataclasses.field(default_factory=list)
    entrypoint: list[str] = dataclasses.field(default_factory=list)
    mounts: dict[pathlib.Path, str] = dataclasses.field(default_factory=dict)  # only while it is built


@dataclasses.dataclass
class Settings:
    """What is built, from where, with which build arguments."""
    source: pathlib.Path
    rules: list[str]
    work: pathlib.Path
    base: pathlib.Path  # the archive of a clean root
    arguments: dict[str, str]
    ccache: pathlib.Path | None


class Builder:
    """Builds stages, each once."""

    def __init__(self, file: Dockerfile, settings: Settings):
        self.settings, self.stages = settings, {stage.name: stage for stage in file.stages}
        self.images: dict[str, Image] = {}
        self.globals: dict[str, str] = {}
        for step in file.arguments:
            self.globals |= {n: settings.arguments.get(n, v) for n, v in step.pairs()}
        if unknown := set(settings.arguments) - set(self.globals) - self.declared(file):
            raise DockerfileError(f"no ARG takes {sorted(unknown)}")

    @staticmethod
    def declared(file: Dockerfile) -> set[str]:
        return {n for s in file.stages for step in s.steps if step.name == "ARG" for n, _ in step.pairs()}

    def build(self, name: str) -> Image:
        if name not in self.images:
            stage = self.stages[name]
            image = self.start(stage)
            print(f"== {name}: FROM {expand(stage.base, self.globals)}", flush=True)
            self.execute(stage, image)
            self.images[name] = image
        return self.images[name]

    def start(self, stage: Stage) -> Image:
        """The root that a stage begins with: another stage's, an empty one, or a clean one."""
        base, root = expand(stage.base, self.globals), self.settings.work / "roots" / stage.name
        if base in self.stages:
            parent = self.build(base)
            root.parent.mkdir(parents=True, exist_ok=True)
            roots.run("cp", "--archive", "--one-file-system", parent.root, root)
            image = dataclasses.replace(parent, root=root)
            for field in ("environment", "labels", "ports", "mounts"):
                setattr(image, field, getattr(parent, field).copy())
            return image
        if base == "scratch":
            root.mkdir(parents=True)
            return Image(root)
        roots.unpack(self.settings.base, root)
        image = Image(root, {"PATH": PATH})
        name = " ".join(roots.release())
        print(f"   a clean root of {name} stands in for {base}", flush=True)
        if "nvidia/cuda" in base:
            add_toolkit(image)
        return image

    def execute(self, stage: Stage, image: Image) -> None:
        arguments: dict[str, str] = {}
        folders = dict(image.mounts)
        if self.settings.ccache:
            folders[self.settings.ccache] = "/var/cache/ccache:rw"
        runs = any(step.name == "RUN" for step in stage.steps)
        for step in stage.steps:
            text = " ".join(step.text.split())
            print(f"   {stage.name}, line {step.line}: {step.name} {text}", flush=True)
            begin = time.monotonic()
            if step.name == "RUN":
                with roots.mounted(image.root, folders, network=True):
                    self.run_step(step, image, arguments)
            else:
                self.apply(step, image, arguments)
            if time.monotonic() - begin >= 1:
                print(f"   {time.monotonic() - begin:.0f} s", flush=True)
        if runs:
            print(f"   {roots.size_of(image.root) / 1e6:.0f} MB", flush=True)

    def apply(self, step: Step, image: Image, arguments: dict[str, str]) -> None:
        """Every instruction but RUN."""
        known = image.environment | arguments
        if step.name == "ARG":
            for name, value in step.pairs():
                default = expand(value, known) or self.globals.get(name, "")
                arguments[name] = self.settings.arguments.get(name, default)
        elif step.name == "ENV":
            image.environment |= {n: expand(v, known) for n, v in step.pairs()}
        elif step.name == "LABEL":
            image.labels |= {n: expand(v, known) for n, v in step.pairs()}
        elif step.name == "WORKDIR":
            image.folder = os.path.join(image.folder, expand(step.text, known))
            (image.root / image.folder.lstrip("/")).mkdir(parents=True, exist_ok=True)
        elif step.name == "USER":
            image.user = expand(step.text, known)
        elif step.name == "EXPOSE":
            image.ports += expand(step.text, known).split()
        elif step.name == "ENTRYPOINT":
            image.entrypoint = json.loads(step.text)
        elif step.name == "COPY":
            self.copy(step, image, known)
        else:
            raise DockerfileError(f"line {step.line}: {step.name} is not executed here")

    def copy(self, step: Step, image: Image, known: dict[str, str]) -> None:
        *sources, to = [expand(word, known) for word in step.words()]
        folder = to.endswith("/") or to == "." or len(sources) > 1
        target = image.root / os.path.join(image.folder, to).lstrip("/")
        if "from" in step.flags:
            origin = self.build(expand(step.flags["from"], known)).root
            for source in sources:
                path = origin / source.lstrip("/")
                copy_tree(path, target / path.name if folder and path.is_file() else target)
            return
        files = context(self.settings.source, self.settings.rules)
        for source in sources:
            inside = pathlib.PurePosixPath(source)
            chosen = [f for f in files if f == inside or inside in f.parents]
            if not chosen:
                raise DockerfileError(f"line {step.line}: the context has no {source}")
            for file in chosen:
                below = file.relative_to(inside) if file != inside else pathlib.PurePosixPath(file.name)
                path = target if file == inside and not folder else target / below
                path.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(self.settings.source / file, path, follow_symlinks=False)

    def run_step(self, step: Step, image: Image, arguments: dict[str, str]) -> None:
        """As an engine would: by /bin/sh -c, with the environment and the arguments."""
        proxies = {n: v for n, v in os.environ.items() if n.lower() in PROXIES}
        environment = {"HOME": "/root", **proxies, **image.environment, **arguments}
        if self.settings.ccache and "cmake" in step.text:
            print("   (beside the Dockerfile: ccache)", flush=True)
            command(image, "apt-get install -y -q --no-install-recommends ccache >/dev/null", environment)
            environment |= {"CCACHE_DIR": "/var/cache/ccache", "CCACHE_NOHASHDIR": "1",
                            "CMAKE_CUDA_COMPILER_LAUNCHER": "ccache"}
        command(image, step.text, environment)


def command(image: Image, text: str, environment: dict[str, str]) -> None:
    inside = f'cd "{image.folder}" && exec /bin/sh -c "$0"'
    words = ["chroot", f"--userspec={image.user}", image.root, "/bin/sh", "-c", inside, text]
    done = subprocess.run(words, env=environment, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise SystemExit(f"check_container: exit status {done.returncode} of RUN {text}")


def copy_tree(source: pathlib.Path, target: pathlib.Path) -> None:
    """What COPY does: a folder's contents into the target, a file as the target."""
    if not source.exists():
        raise DockerfileError(f"COPY: there is no {source}")
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        target.mkdir(exist_ok=True)
        roots.run("cp", "--archive", f"{source}/.", target)
    else:
        roots.run("cp", "--archive", source, target)


def add_toolkit(image: Image) -> None:
    """The host's CUDA toolkit, read-only, and the PATH that the base image sets."""
    real = TOOLKIT.resolve()
    if not (real / "bin/nvcc").exists():
        raise SystemExit(f"the CUDA variant needs a toolkit in {TOOLKIT}")
    print("   with the host's CUDA toolkit, read-only", flush=True)
    image.mounts[real] = str(real)
    if real != TOOLKIT:
        (image.root / TOOLKIT.relative_to("/")).symlink_to(real)
    image.environment["PATH"] = f"{TOOLKIT}/bin:{PATH}"
