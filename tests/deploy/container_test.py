#!/usr/bin/env python3
"""Checks the Dockerfile, .dockerignore and the reader that scripts/check_container.sh executes them by:

    container_test.py

The Dockerfile must read, keep to the policy below, and find what it copies; and each way of damaging
it has to be noticed. Needs Python's standard library alone. Executing the steps is
scripts/check_container.sh's: it takes as long as a build.
"""
import collections.abc
import pathlib
import re
import sys

from dockerfile import Dockerfile, DockerfileError, Stage, context, expand, is_ignored, parse, read_rules

ROOT = pathlib.Path(__file__).resolve().parents[2]
KEPT_OUT = (".git/config", ".ci/run", "build/cpu/server/ferrite-server", "docs/api.md", "tests/deploy/x.py",
            "models/other/model.safetensors", "scripts/__pycache__/x.pyc", "compile_commands.json")
LABELS = ("title", "description", "licenses", "version", "revision")
Finder = collections.abc.Callable[[Dockerfile, list[str]], collections.abc.Iterator[str]]


def global_values(file: Dockerfile, **given: str) -> dict[str, str]:
    values = {name: value for step in file.arguments for name, value in step.pairs()}
    return values | given


def steps(stage: Stage, name: str) -> list[str]:
    return [step.text for step in stage.steps if step.name == name]


def bases(file: Dockerfile, _rules: list[str]):
    """Base images come by arguments with a fixed tag, and a digest pins each; both variants resolve."""
    names = {stage.name for stage in file.stages}
    for stage in file.stages:
        literal = re.sub(r"\$\{BACKEND\}", "", stage.base)
        if stage.base in names or stage.base == "scratch" or literal != stage.base:
            continue
        found = re.fullmatch(r"\$\{(\w+)_IMAGE\}\$\{(\w+)_DIGEST:\+@\$\{(\w+)_DIGEST\}\}", stage.base)
        if not found or len(set(found.groups())) != 1:
            yield f"the base {stage.base} of {stage.name} is not set by an image's and a digest's argument"
            continue
        tag = global_values(file).get(f"{found[1]}_IMAGE", "")
        if not re.fullmatch(r"[a-z0-9./-]+/[a-z0-9./-]+:[\w.-]+", tag) or tag.endswith(":latest"):
            yield f"{found[1]}_IMAGE is {tag!r}, without a registry or a fixed tag"
        pinned = expand(stage.base, global_values(file, **{f"{found[1]}_DIGEST": "sha256:ab"}))
        if pinned != f"{tag}@sha256:ab":
            yield f"a digest makes {pinned} of the base of {stage.name}"
    for backend in ("cpu", "cuda"):
        for stage in file.stages:
            base = expand(stage.base, global_values(file, BACKEND=backend))
            if "BACKEND" in stage.base and base not in names:
                yield f"with BACKEND={backend} there is no stage {base}"


def runtime(file: Dockerfile, _rules: list[str]):
    """What the manifests of deploy/k8s expect of the image, and that there is nothing else in it."""
    last = file.stages[-1]
    if last.base != "scratch":
        yield f"the image is made on {last.base}, not on scratch"
    if steps(last, "RUN"):
        yield "the last stage runs something, on a root without a shell"
    users = steps(last, "USER")
    if not users or not re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[-1]):
        yield f"USER is {users[-1:]}, not a user's and a group's number other than root's"
    elif users[-1] != "65532:65532":
        yield f"USER is {users[-1]}, but the manifests say 65532"
    if steps(last, "ENTRYPOINT") != ['["/opt/ferrite/bin/ferrite-server"]']:
        yield f"ENTRYPOINT is {steps(last, 'ENTRYPOINT')}, not the server alone"
    if steps(last, "WORKDIR") != ["/opt/ferrite"]:
        yield "the working directory is not that of the bundle, which has models/stories260k"
    environment = {n: v for step in last.steps if step.name == "ENV" for n, v in step.pairs()}
    if "/opt/ferrite/bin" not in environment.get("PATH", "").split(":"):
        yield "ferrite is not in the PATH"
    if "NVIDIA_VISIBLE_DEVICES" in environment:
        yield "NVIDIA_VISIBLE_DEVICES would give GPUs to pods that did not ask for one"
    if {port for text in steps(last, "EXPOSE") for port in text.split()} != {"50051", "9400"}:
        yield "EXPOSE is not the two ports of the manifests"


def labels(file: Dockerfile, _rules: list[str]):
    """The labels are there, and the version is the build's."""
    last = file.stages[-1]
    found = {name for step in last.steps if step.name == "LABEL" for name, _ in step.pairs()}
    for label in LABELS:
        if f"org.opencontainers.image.{label}" not in found:
            yield f"there is no label {label}"
    version = re.search(r"project\(ferrite VERSION ([\d.]+)", (ROOT / "CMakeLists.txt").read_text())[1]
    given = {n: v for step in last.steps if step.name == "ARG" for n, v in step.pairs()}
    if given.get("VERSION") != version:
        yield f"VERSION is {given.get('VERSION')}, but CMakeLists.txt says {version}"


def copies(file: Dockerfile, rules: list[str]):
    """Every source of a COPY is in the context, and every --from an earlier stage."""
    files, earlier = context(ROOT, rules), set()
    for stage in file.stages:
        for step in (step for step in stage.steps if step.name == "COPY"):
            origin = step.flags.get("from")
            if origin is not None and origin not in earlier:
                yield f"line {step.line}: --from={origin} is no earlier stage"
            for source in step.words()[:-1] if origin is None else ():
                inside = pathlib.PurePosixPath(source)
                if not any(inside == f or inside in f.parents for f in files):
                    yield f"line {step.line}: the context has no {source}"
        earlier.add(stage.name)


def driven_by_scripts(file: Dockerfile, _rules: list[str]):
    """The image is made as everything else is: set up, configured by a preset, bundled."""
    every = "\n".join(step.text for stage in file.stages for step in stage.steps if step.name == "RUN")
    for word in ("scripts/setup.sh", "scripts/setup.sh --runtime", "cmake --preset", "scripts/bundle.sh",
                 "scripts/image_root.sh"):
        if not re.search(rf"(?m)(^|\s){re.escape(word)}(\s|$)", every):
            yield f"no step runs {word}"
    if re.search(r"apt(-get)? ", every):
        yield "a step calls apt itself, not scripts/setup.sh"


def context_is_small(_file: Dockerfile, rules: list[str]):
    """Neither history nor builds nor models nor tests get into the context."""
    for path in KEPT_OUT:
        if not is_ignored(rules, pathlib.PurePosixPath(path)):
            yield f".dockerignore lets {path} in"
    size = sum((ROOT / file).stat().st_size for file in context(ROOT, rules))
    if size > 20e6:
        yield f"the context has {size / 1e6:.0f} MB"


RULES: tuple[Finder, ...] = (bases, runtime, labels, copies, driven_by_scripts, context_is_small)


def findings(text: str, ignore: str) -> list[str]:
    try:
        file, rules = parse(text), read_rules(ignore)
        return [finding for rule in RULES for finding in rule(file, rules)]
    except DockerfileError as error:
        return [str(error)]


# What is done to the Dockerfile (old, new), and a word of what must be said.
DAMAGES = (
    ("USER 65532:65532", "USER ferrite", "USER is"),
    ("USER 65532:65532", "USER 0:0", "USER is"),
    ("USER 65532:65532", "USER 1000:1000", "manifests say 65532"),
    ("USER 65532:65532\n", "", "USER is"),
    ("USER 65532:65532", "HEALTHCHECK CMD ferrite health", "HEALTHCHECK is not known"),
    ("USER 65532:65532", "VOLUME /models", "VOLUME is not known"),
    ("cuda:13.0.1-devel-ubuntu24.04", "cuda:latest", "without a registry or a fixed tag"),
    ("library/ubuntu:24.04", "library/ubuntu", "without a registry or a fixed tag"),
    ("docker.io/library/debian:", "debian:", "without a registry or a fixed tag"),
    ("${DEBIAN_IMAGE}${DEBIAN_DIGEST:+@${DEBIAN_DIGEST}}", "docker.io/library/debian:bookworm-slim",
     "not set by an image's"),
    ("${DEBIAN_DIGEST:+@${DEBIAN_DIGEST}}", "${CUDA_DIGEST:+@${CUDA_DIGEST}}", "not set by an image's"),
    ("ARG CUDA_DIGEST=\n", "", "CUDA_DIGEST"),
    ("AS slim-cpu", "AS small-cpu", "there is no stage slim-cpu"),
    ("FROM scratch AS runtime", "FROM slim-cpu AS runtime", "not on scratch"),
    ("FROM scratch AS runtime", "FROM scratch", "not of the form"),
    ("COPY . .", "COPY src .", "the context has no src"),
    ("COPY . .", "COPY tests/deploy .", "the context has no tests/deploy"),
    ("COPY . .", "COPY --chown=1:1 . .", "--chown"),
    ("COPY . .", "ADD . .", "ADD is not known"),
    ("--from=build ", "--from=builder ", "no earlier stage"),
    ("--from=collect ", "--from=runtime ", "no earlier stage"),
    ('ENTRYPOINT ["/opt/ferrite/bin/ferrite-server"]', "ENTRYPOINT ferrite-server", "not a JSON list"),
    ('bin/ferrite-server"]', 'bin/ferrite-server", "--log.format=json"]', "not the server alone"),
    ("WORKDIR /opt/ferrite", "WORKDIR /", "working directory"),
    ("PATH=/opt/ferrite/bin", "PATH=/usr/bin", "not in the PATH"),
    ("ENV PATH", "ENV NVIDIA_VISIBLE_DEVICES=all PATH", "did not ask"),
    ("EXPOSE 50051 9400", "EXPOSE 50051", "two ports"),
    ("ARG VERSION=0.1.0", "ARG VERSION=9.9.9", "CMakeLists.txt says"),
    ("image.licenses", "image.license", "no label licenses"),
    ("RUN scripts/setup.sh --runtime", "RUN apt-get install -y libgomp1", "setup.sh --runtime"),
    ("RUN scripts/setup.sh\n", "RUN scripts/setup.sh && apt-get install -y vim\n", "calls apt itself"),
    ("RUN scripts/image_root.sh", "RUN <<END scripts/image_root.sh", "here-documents"),
    ('--out /opt/ferrite\n', '--out /opt/ferrite \\\n', "no earlier stage"),
)
# The same for .dockerignore.
IGNORE_DAMAGES = (
    ("*\n!CMakeLists.txt", "!CMakeLists.txt", "lets .git/config in"),
    ("!server\n", "!server\n!build\n", "lets build/cpu"),
    ("!server\n", "!server\n!.git\n", "lets .git/config in"),
    ("!models/stories260k", "!models", "lets models/other"),
    ("**/__pycache__\n**/*.pyc\n", "", "lets scripts/__pycache__"),
    ("!scripts\n", "", "the context has no scripts/setup.sh"),
)


def unnoticed(text: str, ignore: str) -> list[str]:
    """The damages that no rule speaks of."""
    missed = []
    for old, new, word in DAMAGES:
        if old not in text:
            missed.append(f"the Dockerfile has no {old!r} to damage")
        said = findings(text.replace(old, new, 1), ignore)
        if not any(word in finding for finding in said):
            missed.append(f"{old!r} made {new!r} was not noticed: {said}")
    for old, new, word in IGNORE_DAMAGES:
        if old not in ignore:
            missed.append(f".dockerignore has no {old!r} to damage")
        said = findings(text, ignore.replace(old, new, 1))
        if not any(word in finding for finding in said):
            missed.append(f".dockerignore: {old!r} made {new!r} was not noticed: {said}")
    return missed


def reader() -> list[str]:
    """The forms of substitution, against the reference's own examples."""
    values = {"foo": "bar", "empty": ""}
    cases = {"$foo": "bar", "${foo}s": "bars", "${empty:-x}": "x", "${foo:-x}": "bar", "${foo:+x}": "x",
             "a${empty:+x}b": "ab", "${foo:+@${foo}}": "@bar"}
    return [f"{text} is read as {expand(text, values)!r}" for text, wanted in cases.items()
            if expand(text, values) != wanted]


def main() -> int:
    text, ignore = (ROOT / "Dockerfile").read_text(), (ROOT / ".dockerignore").read_text()
    problems = reader() + findings(text, ignore)
    missed = unnoticed(text, ignore)
    total = len(DAMAGES) + len(IGNORE_DAMAGES)
    print(f"Dockerfile: {len(parse(text).stages)} stages, {len(context(ROOT, read_rules(ignore)))} files of "
          f"context, {len(problems)} findings; {total - len(missed)} of {total} damages noticed")
    for problem in problems + missed:
        print(f"container_test: {problem}", file=sys.stderr)
    return 1 if problems or missed else 0


if __name__ == "__main__":
    sys.exit(main())
