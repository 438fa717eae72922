#!/usr/bin/env python3
"""Checks deploy/prometheus and docs/runbook.md without a server.

promtool checks the configurations and rules and runs their unit tests; every metric and label that
a rule names is in docs/metrics.md; every alert has what it must have, a unit test in which it fires
and one in which it does not, and its section of the runbook, which has no others.

    tests/deploy/monitoring_rules_test.py
"""
import pathlib
import re
import subprocess
import sys
import tempfile

from check_tools import ROOT, import_yaml, tool

sys.path.insert(0, str(ROOT / "deploy/prometheus"))
import promql  # noqa: E402

yaml = import_yaml()
FOLDER = ROOT / "deploy/prometheus"
UNIT_TESTS = ("rules_test.yml", "rules_hours_test.yml")
SECTION_PARTS = ("**Meaning.**", "**Likely causes.**", "**Look at.**", "**Do.**")


def load(path: pathlib.Path) -> dict:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def rules() -> list[dict]:
    return [rule for path in sorted((FOLDER / "rules").glob("*.yml"))
            for group in load(path)["groups"] for rule in group["rules"]]


def promtool(*arguments: str) -> list[str]:
    ran = subprocess.run([tool("promtool"), *arguments], cwd=FOLDER, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    print(f"promtool {' '.join(arguments)}: {'ok' if ran.returncode == 0 else 'FAILED'}")
    return [] if ran.returncode == 0 else [ran.stdout]


def check_configs() -> list[str]:
    """Debian's promtool is built without Kubernetes: there its part is checked here."""
    wrong = promtool("check", "config", "prometheus.yml")
    config = load(FOLDER / "prometheus-kubernetes.yml")
    for job in config["scrape_configs"]:
        for found in job.pop("kubernetes_sd_configs"):
            if set(found) - {"role", "selectors"} or found["role"] != "pod":
                wrong.append(f"prometheus-kubernetes.yml: {found} is no role and selectors of pods")
        job["static_configs"] = [{"targets": ["pod:9400"]}]
    config["rule_files"] = [str(FOLDER / file) for file in config["rule_files"]]
    with tempfile.NamedTemporaryFile("w", suffix=".yml") as copy:
        yaml.safe_dump(config, copy)
        copy.flush()
        return wrong + promtool("check", "config", copy.name)


def check_names() -> list[str]:
    recorded = [rule["record"] for rule in rules() if "record" in rule]
    series = promql.table_series() | promql.recorded_series(recorded)
    wrong = [f"{rule.get('alert') or rule['record']}: {problem}" for rule in rules()
             for problem in promql.problems(rule["expr"], series)]
    print(f"{len(rules())} rules name what docs/metrics.md has: {'FAILED' if wrong else 'ok'}")
    return wrong


def check_alerts() -> list[str]:
    """Each alert says how bad it is, what is the matter, and where its section is."""
    wrong = []
    for rule in rules():
        if "alert" not in rule:
            continue
        name, notes = rule["alert"], rule.get("annotations", {})
        if rule.get("labels", {}).get("severity") not in ("critical", "warning"):
            wrong.append(f"{name}: its severity is neither critical nor warning")
        wrong += [f"{name} has no {key}" for key in ("summary", "description")
                  if not notes.get(key)]
        if notes.get("runbook_url") != f"docs/runbook.md#{name.lower()}":
            wrong.append(f"{name}: runbook_url is {notes.get('runbook_url')}")
    return wrong


def check_unit_tests() -> list[str]:
    fires, silent = set(), set()
    for case in [case for file in UNIT_TESTS for case in load(FOLDER / file)["tests"]]:
        for test in case.get("alert_rule_test", ()):
            (fires if test.get("exp_alerts") else silent).add(test["alertname"])
    alerts = {rule["alert"] for rule in rules() if "alert" in rule}
    print(f"{len(alerts)} alerts: {len(fires)} are tested to fire, {len(silent)} not to")
    return ([f"no unit test in which {name} fires" for name in sorted(alerts - fires)]
            + [f"no unit test in which {name} does not fire" for name in sorted(alerts - silent)])


def check_runbook() -> list[str]:
    sections = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)",
                               (ROOT / "docs/runbook.md").read_text(encoding="utf-8"),
                               re.MULTILINE | re.DOTALL))
    alerts = {rule["alert"] for rule in rules() if "alert" in rule}
    wrong = [f"docs/runbook.md has no section {name}" for name in sorted(alerts - set(sections))]
    wrong += [f"docs/runbook.md: there is no alert {name}"
              for name in sorted(set(sections) - alerts)]
    wrong += [f"docs/runbook.md, {name}: no {part}" for name, text in sections.items()
              for part in SECTION_PARTS if part not in text]
    dashboards = "".join((ROOT / "deploy/grafana" / file).read_text(encoding="utf-8")
                         for file in ("ferrite-overview.json", "ferrite-worker.json"))
    panels = set(re.findall(r'"title": "([^"]+)"', dashboards))
    for name, text in sections.items():
        named = {" ".join(title.split()) for title in re.findall(r"(?<!\*)\*([^*]+)\*(?!\*)", text)}
        wrong += [f"docs/runbook.md, {name}: there is no panel {title}"
                  for title in sorted(named - panels)]
    print(f"docs/runbook.md: {len(sections)} sections for {len(alerts)} alerts")
    return wrong


def main() -> int:
    wrong = check_configs()
    wrong += promtool("test", "rules", *UNIT_TESTS)
    for check in (check_names, check_alerts, check_unit_tests, check_runbook):
        wrong += check()
    print("\n".join(wrong), file=sys.stderr, end="\n" if wrong else "")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
