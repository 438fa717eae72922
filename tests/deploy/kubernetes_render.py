"""What the Kubernetes checks share: where things are, how an overlay is rendered, how to skip.

Needs kubectl (which has Kustomize in it) and PyYAML.
"""
import functools
import pathlib
import shutil
import subprocess
import sys

from check_tools import ROOT, SKIPPED, TOOLS, import_yaml

K8S = ROOT / "deploy" / "k8s"
# Before the machine's own packages, some of which may be too old for the ones there.
sys.path.insert(0, str(TOOLS / "python"))
yaml = import_yaml()


class StrictLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """Refuses a mapping that has a key twice, which YAML forbids and PyYAML lets pass."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.constructor.ConstructorError(
                None, None, f"twice: {sorted(map(str, twice))}", node.start_mark)
        return super().construct_mapping(node, deep)


def load(text: str) -> list[dict]:
    return [document for document in yaml.load_all(text, StrictLoader) if document]


def targets() -> list[pathlib.Path]:
    """Every overlay and every example that can be applied."""
    found = sorted(file.parent for folder in ("overlays", "examples")
                   for file in (K8S / folder).glob("*/kustomization.yaml"))
    if len(found) < 3:
        raise SystemExit(f"no overlays in {K8S}")
    return found


def name_of(target: pathlib.Path) -> str:
    return target.relative_to(K8S).as_posix()


@functools.cache
def render_text(target: pathlib.Path) -> str:
    if shutil.which("kubectl") is None:
        print("skipped: there is no kubectl, whose kustomize renders the overlays")
        sys.exit(SKIPPED)
    done = subprocess.run(["kubectl", "kustomize", str(target)], capture_output=True, text=True,
                          check=False)
    if done.returncode != 0:
        raise SystemExit(f"kubectl kustomize {name_of(target)}: {done.stderr.strip()}")
    if done.stderr.strip():
        raise SystemExit(f"kubectl kustomize {name_of(target)} warns: {done.stderr.strip()}")
    return done.stdout


def render(target: pathlib.Path) -> list[dict]:
    return load(render_text(target))


def of_kind(documents: list[dict], *kinds: str) -> list[dict]:
    return [document for document in documents if document["kind"] in kinds]


def label(document: dict) -> str:
    return f"{document['kind']}/{document['metadata']['name']}"
