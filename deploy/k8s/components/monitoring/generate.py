#!/usr/bin/env python3
"""Writes prometheus-rule.yaml: the groups of deploy/prometheus/rules as a PrometheusRule.

    deploy/k8s/components/monitoring/generate.py           writes it
    deploy/k8s/components/monitoring/generate.py --check   fails if the file is not what it would write

Needs PyYAML.
"""
import argparse
import pathlib
import sys

import yaml

FOLDER = pathlib.Path(__file__).resolve().parent
RULES = FOLDER.parents[2] / "prometheus" / "rules"
TARGET = FOLDER / "prometheus-rule.yaml"
HEAD = "# Written by generate.py from deploy/prometheus/rules; change those.\n"


class Dumper(yaml.SafeDumper):
    """Shows expressions of several lines as they are."""


def show_string(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


Dumper.add_representer(str, show_string)


def prometheus_rule() -> str:
    files = sorted(RULES.glob("*.y*ml"))
    if not files:
        raise SystemExit(f"generate.py: no rules in {RULES}")
    groups = [group for file in files for group in yaml.safe_load(file.read_text())["groups"]]
    names = [group["name"] for group in groups]
    if len(names) != len(set(names)):
        raise SystemExit(f"generate.py: two groups of the same name: {names}")
    rule = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "ferrite"},
        "spec": {"groups": groups},
    }
    return HEAD + yaml.dump(rule, Dumper=Dumper, sort_keys=False, width=100)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    text = prometheus_rule()
    if parser.parse_args().check:
        if not TARGET.is_file() or TARGET.read_text() != text:
            print(f"{TARGET} is not what generate.py would write", file=sys.stderr)
            return 1
        return 0
    TARGET.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
