#!/usr/bin/env python3
"""Checks docs/api.md against the contract.

Each message of proto/ferrite/v1 has a heading of its own there, and its section names each of its
fields; enum values, methods and services occur. A table's first column names fields that exist.
"""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROTOS = ("inference.proto", "control.proto")


def read_contract():
    """Fields by message; and the other names: enum values, methods."""
    messages, others = {}, set()
    for name in PROTOS:
        text = (ROOT / "proto" / "ferrite" / "v1" / name).read_text()
        scopes = []  # kind and name of each open brace
        for line in re.sub(r"//.*", "", text).splitlines():
            opened = re.match(r"\s*(message|enum|service|oneof)\s+(\w+)\s*\{", line)
            field = re.match(r"\s*(?:optional\s+|repeated\s+)?[\w.<>, ]+?\s+(\w+)\s*=\s*\d+;", line)
            value = re.match(r"\s*([A-Z_0-9]+)\s*=\s*\d+;", line)
            method = re.match(r"\s*rpc\s+(\w+)", line)
            if opened:
                scopes.append(opened.groups())
                if opened[1] == "message":
                    messages[opened[2]] = []
            elif method:
                others.add(method[1])
            elif scopes and scopes[-1][0] == "enum" and value:
                others.add(value[1])
            elif scopes and field:
                owner = [scope[1] for scope in scopes if scope[0] == "message"][-1]
                messages[owner].append(field[1])
            for _ in range(line.count("}")):
                scopes.pop()
    return messages, others


def read_sections(text):
    """The text below each heading up to the next one, by the name in the heading."""
    parts = re.split(r"^#+ (.*)$", text, flags=re.M)
    return {title.strip("` "): body for title, body in zip(parts[1::2], parts[2::2])}


def main():
    messages, others = read_contract()
    text = (ROOT / "docs" / "api.md").read_text()
    sections = read_sections(text)
    problems = []
    for message, fields in messages.items():
        if message not in sections:
            problems.append(f"docs/api.md has no heading `{message}`")
            continue
        section = sections[message]
        for field in fields:
            if f"`{field}`" not in section:
                problems.append(f"docs/api.md: the section `{message}` does not name `{field}`")
        for row in re.findall(r"^\| (`[^|]*) \|", section, flags=re.M):
            for named in re.findall(r"`(\w+)`", row):
                if named not in fields:
                    problems.append(f"docs/api.md: `{message}` has no field `{named}`")
    for name in sorted(others):
        if not re.search(rf"\b{name}\b", text):
            problems.append(f"docs/api.md does not name {name}")
    count = sum(map(len, messages.values()))
    print("\n".join(problems) or f"{count} fields of {len(messages)} messages are documented")
    return 1 if problems or count < 100 else 0


if __name__ == "__main__":
    sys.exit(main())
