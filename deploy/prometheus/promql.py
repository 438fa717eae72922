"""What a PromQL expression names, checked against the table of metrics.

docs/metrics.md is the table: a test holds it equal to what the server exports. This is no parser of
PromQL (promtool is); it reads the names of metrics and labels out of an expression and says which
of them do not exist. A library of generate.py and of the checks in tests/deploy.
"""
import dataclasses
import pathlib
import re
from collections.abc import Iterable, Mapping

ROOT = pathlib.Path(__file__).resolve().parents[2]

# What Prometheus adds to every series by the scrape configurations of this folder.
TARGET_LABELS = frozenset({"namespace", "job", "instance", "pod"})
# Series of Prometheus itself.
OWN_SERIES = {"up": TARGET_LABELS}

TOKEN = re.compile(
    r"""(?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')"""
    r"|(?P<variable>\$\{?\w+(?::\w+)?\}?)|(?P<number>\d[\w.]*)|(?P<name>[A-Za-z_:][\w:]*)"
    r"|(?P<operator>=~|!~|!=|>=|<=|==|[-+*/%^<>=(){}\[\],:@])|(?P<space>\s+)"
)
KEYWORDS = frozenset("and or unless bool offset atan2 inf nan start end".split())
GROUPING = frozenset("by without on ignoring group_left group_right".split())
AGGREGATORS = frozenset(
    "sum min max avg group stddev stdvar count count_values bottomk topk quantile".split()
)


@dataclasses.dataclass(frozen=True)
class Selector:
    """One `name{label="value"}` of an expression."""

    name: str
    labels: tuple[str, ...]
    text: str


@dataclasses.dataclass
class Names:
    """Everything that an expression names."""

    selectors: list[Selector] = dataclasses.field(default_factory=list)
    grouping: list[str] = dataclasses.field(default_factory=list)


def _tokens(expression: str) -> list[tuple[str, str]]:
    tokens, position = [], 0
    while position < len(expression):
        match = TOKEN.match(expression, position)
        if match is None:
            raise ValueError(f"cannot read {expression[position:]!r} in {expression!r}")
        if match.lastgroup != "space":
            tokens.append((match.lastgroup, match.group()))
        position = match.end()
    return tokens + [("end", "")]


def _selector(tokens: list[tuple[str, str]], begin: int) -> tuple[Selector, int]:
    """The selector that begins at this name, and where it ends."""
    end = begin + 1
    labels = []
    if tokens[end][1] == "{":
        while tokens[end][1] != "}":
            end += 1
            if tokens[end][0] == "name":
                labels.append(tokens[end][1])
            if tokens[end][0] == "end":
                raise ValueError(f"{tokens[begin][1]}: a brace is not closed")
        end += 1
    text = "".join(token for _, token in tokens[begin:end])
    return Selector(tokens[begin][1], tuple(labels), text), end


def names(expression: str) -> Names:
    """The selectors of an expression, and the labels that it groups or matches by."""
    found = Names()
    tokens = _tokens(expression)
    i = 0
    while tokens[i][0] != "end":
        kind, token = tokens[i]
        called = tokens[i + 1][1] == "("
        if kind == "name" and token in GROUPING and called:
            close = next(j for j in range(i, len(tokens)) if tokens[j][1] == ")")
            found.grouping += [name for kind, name in tokens[i + 2 : close] if kind == "name"]
            i = close
        elif kind == "name" and not called and token not in KEYWORDS | AGGREGATORS | GROUPING:
            selector, i = _selector(tokens, i)
            found.selectors.append(selector)
            continue
        i += 1
    return found


def table_series(page: pathlib.Path = ROOT / "docs/metrics.md") -> dict[str, frozenset[str]]:
    """Every series that the server exports, with its labels, by the table of docs/metrics.md."""
    series = {}
    for line in page.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) != 7 or not cells[1].startswith("`"):
            continue
        name, kind = cells[1].strip("`"), cells[2]
        labels = frozenset(filter(None, cells[4].split(", "))) | TARGET_LABELS
        if kind == "histogram":
            series[f"{name}_bucket"] = labels | {"le"}
            series[f"{name}_sum"] = series[f"{name}_count"] = labels
        else:
            series[name] = labels
    if not series:
        raise ValueError(f"{page} has no table of metrics")
    return series


def recorded_series(rules: Iterable[str]) -> dict[str, frozenset[str]]:
    """Series of recording rules: their names begin with their labels, as a_b:metric:operation."""
    return {rule: frozenset(rule.split(":")[0].split("_")) for rule in rules}


def problems(expression: str, series: Mapping[str, frozenset[str]]) -> list[str]:
    """What the expression names that does not exist; empty if all is well."""
    known = {**OWN_SERIES, **series}
    try:
        found = names(expression)
    except ValueError as error:
        return [str(error)]
    wrong = []
    for selector in found.selectors:
        if selector.name not in known:
            wrong.append(f"no metric is called {selector.name}")
            continue
        for label in set(selector.labels) - known[selector.name]:
            wrong.append(f"{selector.name} has no label {label}")
    labels = frozenset().union(*(known.get(s.name, frozenset()) for s in found.selectors))
    wrong += [f"none of its metrics has the label {name}" for name in set(found.grouping) - labels]
    return sorted(wrong) if found.selectors else ["it names no metric"]
