"""Validates manifests strictly against schemas: an unknown field is an error.

Kubernetes' own kinds: the schemas in the PyPI package kubernetes-validate, for the oldest version
that has every field we use and the newest one there. The Prometheus operator's and KEDA's kinds: the
models that cloudcoil-models-* made of their CRDs. InferencePool and HTTPRoute, whose CRDs no package
carries: kubernetes_schemas/KIND.json, the fields that we use, written by hand.
"""
import copy
import json
import pathlib

from check_tools import skip
from kubernetes_render import label

try:
    import jsonschema
    import kubernetes_validate
    import pydantic
    from cloudcoil.models.keda import v1alpha1 as keda
    from cloudcoil.models.prometheus_operator import v1 as operator
except ImportError as error:
    skip(f"there is no Python package {error.name}")

OLDEST = "1.32"
CRDS = {
    ("monitoring.coreos.com/v1", "PodMonitor"): operator.PodMonitor,
    ("monitoring.coreos.com/v1", "PrometheusRule"): operator.PrometheusRule,
    ("keda.sh/v1alpha1", "ScaledObject"): keda.ScaledObject,
}
BY_HAND = {file.stem: json.loads(file.read_text())
           for file in pathlib.Path(__file__).with_name("kubernetes_schemas").glob("*.json")}


def versions() -> list[str]:
    newest = ".".join(kubernetes_validate.latest_version().split(".")[:2])
    return [OLDEST, newest]


def crd_problems(model: type[pydantic.BaseModel], document: dict) -> list[str]:
    try:
        model.model_validate(document, extra="forbid", by_alias=True, by_name=False)
        return []
    except pydantic.ValidationError as error:
        return [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]


def kubernetes_problems(document: dict) -> list[str]:
    problems = []
    for version in versions():
        try:
            kubernetes_validate.validate(document, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            where = ".".join(map(str, error.path))
            problems.append(f"Kubernetes {version}: {where}: {error.message}")
        except kubernetes_validate.SchemaNotFoundError:
            problems.append(f"Kubernetes {version} has no {document['kind']} in "
                            f"{document['apiVersion']}, and no schema of it is known here")
    return problems


def problems_of(document: dict) -> list[str]:
    if model := CRDS.get((document["apiVersion"], document["kind"])):
        found = crd_problems(model, document)
    elif schema := BY_HAND.get(document["kind"]):
        found = [f"{error.json_path}: {error.message}"
                 for error in jsonschema.Draft202012Validator(schema).iter_errors(document)]
    else:
        found = kubernetes_problems(document)
    return [f"{label(document)}: {problem}" for problem in found]


def misses(documents: list[dict]) -> list[str]:
    """Damages each document in two ways; returns which damage the validation does not see."""
    unseen = []
    for document in documents:
        unknown, wrong = copy.deepcopy(document), copy.deepcopy(document)
        unknown["spec" if "spec" in document else "metadata"]["noSuchField"] = 1
        if field := next((f for f in ("spec", "data") if f in document), None):
            wrong[field] = ["not", "a", "mapping"]
        else:
            wrong["metadata"]["labels"] = ["not", "a", "mapping"]
        unseen += [f"{label(document)}: {what}" for what, broken in
                   (("an unknown field", unknown), ("a wrong type", wrong))
                   if not problems_of(broken)]
    return unseen
