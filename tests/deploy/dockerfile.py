"""Reads a Dockerfile and a .dockerignore: the parts of both that ours use, and nothing else.

An instruction, a flag or a form that is not known here is an error, so that whoever runs or checks a
file by this module has not passed over a part of it. Substitution follows the reference,
https://docs.docker.com/reference/dockerfile/#environment-replacement.
"""
import dataclasses
import fnmatch
import functools
import json
import pathlib
import re
import shlex

INSTRUCTIONS = ("FROM", "ARG", "ENV", "RUN", "COPY", "WORKDIR", "USER", "LABEL", "EXPOSE", "ENTRYPOINT")
FLAGS = {"COPY": ("from",)}


class DockerfileError(Exception):
    """What is wrong, with the line."""


@dataclasses.dataclass
class Step:
    """One instruction, with its arguments as they stand in the file."""
    line: int
    name: str
    text: str
    flags: dict[str, str] = dataclasses.field(default_factory=dict)

    def words(self) -> list[str]:
        """The arguments of a COPY, or those of an instruction in JSON form."""
        return json.loads(self.text) if self.text.startswith("[") else self.text.split()

    def pairs(self) -> list[tuple[str, str]]:
        """NAME=VALUE of an ARG, ENV or LABEL; an ARG may have no value, which is then ""."""
        split = shlex.shlex(self.text, posix=True, punctuation_chars=False)
        split.whitespace_split, split.commenters = True, ""
        return [(name, value) for name, _, value in (word.partition("=") for word in split)]


@dataclasses.dataclass
class Stage:
    """FROM and what follows it."""
    base: str
    name: str
    line: int
    steps: list[Step]


@dataclasses.dataclass
class Dockerfile:
    """The arguments before the first FROM, and the stages."""
    arguments: list[Step]
    stages: list[Stage]


def logical_lines(text: str):
    """Lines with their continuations joined, and the number of the first of them."""
    joined, start = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("#") or (not line.strip() and joined):
            continue
        start = start if joined else number
        if line.rstrip().endswith("\\"):
            joined += line.rstrip()[:-1]
            continue
        if (joined + line).strip():
            yield start, (joined + line).strip()
        joined = ""
    if joined:
        raise DockerfileError(f"line {start}: the file ends within an instruction")


def read_step(line: int, text: str) -> Step:
    name, _, rest = text.partition(" ")
    name, rest, flags = name.upper(), rest.strip(), {}
    if name not in INSTRUCTIONS:
        raise DockerfileError(f"line {line}: the instruction {name} is not known")
    if name == "RUN" and "<<" in rest:
        raise DockerfileError(f"line {line}: here-documents are not known")
    while found := re.match(r"--([a-z]+)(?:=(\S+))?\s+", rest):
        if found[1] not in FLAGS.get(name, ()):
            raise DockerfileError(f"line {line}: the flag --{found[1]} of {name} is not known")
        flags[found[1]] = found[2] or ""
        rest = rest[found.end():]
    if not rest:
        raise DockerfileError(f"line {line}: {name} has no arguments")
    if name == "ENTRYPOINT" and not rest.startswith("["):
        raise DockerfileError(f"line {line}: ENTRYPOINT is not a JSON list, and would need a shell")
    return Step(line, name, rest, flags)


def parse(text: str) -> Dockerfile:
    """Splits a Dockerfile into stages. Raises DockerfileError."""
    file = Dockerfile([], [])
    for line, content in logical_lines(text):
        step = read_step(line, content)
        if step.name == "FROM":
            words = step.text.split()
            if len(words) != 3 or words[1].upper() != "AS":
                raise DockerfileError(f"line {line}: not of the form FROM IMAGE AS NAME")
            file.stages.append(Stage(words[0], words[2], line, []))
        elif file.stages:
            file.stages[-1].steps.append(step)
        elif step.name == "ARG":
            file.arguments.append(step)
        else:
            raise DockerfileError(f"line {line}: {step.name} before the first FROM")
    if not file.stages:
        raise DockerfileError("there is no FROM")
    return file


def closing(text: str, start: int) -> int:
    """Where the brace ends that begins before start."""
    depth = 1
    for position in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return position
    raise DockerfileError(f"a brace does not end in {text}")


def expand(text: str, values: dict[str, str]) -> str:
    """Replaces $NAME, ${NAME}, ${NAME:-WORD} and ${NAME:+WORD}; an unknown name is an error."""
    result, position = "", 0
    while found := re.compile(r"\$(\{)?([A-Za-z_]\w*)").search(text, position):
        result += text[position:found.start()]
        position = found.end()
        form, name = "", found[2]
        if found[1]:
            end = closing(text, position)
            form, position = text[position:end], end + 1
        if name not in values:
            raise DockerfileError(f"{name} of {text} is not set")
        if form[:2] not in ("", ":-", ":+"):
            raise DockerfileError(f"the form {form} of {text} is not known")
        value = values[name]
        word = expand(form[2:], values) if form else value
        result += word if not form or bool(value) == (form[:2] == ":+") else \
            (value if form[:2] == ":-" else "")
    return result + text[position:]


def matches(pattern: str, path: pathlib.PurePosixPath) -> bool:
    """Whether a line of .dockerignore names the path or a folder above it."""
    wanted = pattern.strip("/").split("/")
    return any(match_parts(wanted, list(path.parts[:n])) for n in range(1, len(path.parts) + 1))


def match_parts(wanted: list[str], parts: list[str]) -> bool:
    if not wanted or not parts:
        return not parts and all(part == "**" for part in wanted)
    if wanted[0] == "**":
        return match_parts(wanted[1:], parts) or match_parts(wanted, parts[1:])
    return fnmatch.fnmatchcase(parts[0], wanted[0]) and match_parts(wanted[1:], parts[1:])


def is_ignored(rules: list[str], path: pathlib.PurePosixPath) -> bool:
    """Whether the rules of a .dockerignore keep a path out of the context: the last match decides."""
    ignored = False
    for rule in rules:
        if matches(rule.removeprefix("!"), path):
            ignored = not rule.startswith("!")
    return ignored


def read_rules(text: str) -> list[str]:
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def context(root: pathlib.Path, rules: list[str]) -> list[pathlib.PurePosixPath]:
    """The files below root, relative to it, that the rules let into the context. Looks once."""
    return _context(root, tuple(rules))


@functools.cache
def _context(root: pathlib.Path, rules: tuple[str, ...]) -> list[pathlib.PurePosixPath]:
    found: list[pathlib.PurePosixPath] = []
    tops = {rule.removeprefix("!").strip("/").split("/")[0] for rule in rules if rule.startswith("!")}
    for top in sorted(root.iterdir()):
        if top.name in (".git", "build"):
            continue  # too much to walk through; container_test.py checks that rules keep them out
        # With a first rule `*` nothing else can come in: no need to walk through build folders.
        if rules[:1] == ("*",) and not any(fnmatch.fnmatchcase(top.name, t) for t in tops):
            continue
        for path in [top] if top.is_file() else sorted(top.rglob("*")):
            relative = pathlib.PurePosixPath(path.relative_to(root))
            if (path.is_file() or path.is_symlink()) and not is_ignored(rules, relative):
                found.append(relative)
    return found
