"""What a change of one of the chart's values changes in the cluster, for many changes in one run of Helm.

Each change is an alias of the chart below a chart of its own: Helm renders a hundred of them in some seconds.
"""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from functools import reduce
from pathlib import Path
from typing import Any

import yaml

from netloom_e2e import chart_values
from netloom_e2e.chart import CHART, MONITORING, Manifest, helm
from netloom_e2e.chart_values import Value

Values = Mapping[str, Any]


def defaults() -> dict[str, Any]:
    """All values that the chart knows, by names such as `operator.replicas`."""
    return dict(_named(chart_values.read((CHART / "values.yaml").read_text()), ""))


def _named(values: tuple[Value, ...], path: str) -> Iterator[tuple[str, Any]]:
    for each in values:
        if each.below:
            yield from _named(each.below, f"{path}{each.name}.")
        else:
            yield f"{path}{each.name}", each.default


def of(values: Values, name: str, default: object) -> Any:
    """The value of that name, or the default."""
    at: Any = values
    for key in name.split("."):
        if not isinstance(at, Mapping) or key not in at:
            return default
        at = at[key]
    return at


def without(values: Values, name: str) -> Values:
    """The same, but one of them is left out."""
    found = copy.deepcopy(dict(values))
    *path, last = name.split(".")
    del reduce(lambda at, key: at[key], path, found)[last]
    return found


def and_(values: Values, name: str, value: object) -> Values:
    """The same, and one of them is another."""
    key, _, rest = name.partition(".")
    return {**values, key: and_(values.get(key, {}), rest, value) if rest else value}


def texts(variants: Mapping[str, Values], folder: Path) -> dict[str, frozenset[str]]:
    """Of each variant of the values, by its name, the manifests as texts. Raises ChartError."""
    above = folder / "above"
    shutil.copytree(CHART, above / "charts" / "netloom", ignore=shutil.ignore_patterns("ci", "crds"))
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["version"]
    aliases = {f"v{number}": name for number, name in enumerate(variants)}
    parts = [{"name": "netloom", "version": version, "alias": alias} for alias in aliases]
    chart = {"apiVersion": "v2", "name": "above", "version": "0.0.0", "dependencies": parts}
    (above / "Chart.yaml").write_text(json.dumps(chart))
    (above / "values.yaml").write_text(json.dumps({alias: variants[name] for alias, name in aliases.items()}))
    found: dict[str, set[str]] = {name: set() for name in variants}
    text = helm("template", "netloom", above, "--namespace=netloom-system", f"--api-versions={MONITORING}")
    for part in re.split(r"^---$", text, flags=re.MULTILINE):
        if source := re.match(r"\s*# Source: above/charts/(\w+)/\S*\n", part):
            found[aliases[source[1]]].add(part[source.end() :])
    return {name: frozenset(parts) for name, parts in found.items()}


def changed(before: frozenset[str], after: frozenset[str]) -> Iterator[tuple[Manifest | None, Manifest | None]]:
    """The objects that are different, as they were and as they are; None: there was or is none."""
    old, new = ({_key(each): each for each in map(_parsed, one - other) if each} for one, other in _both(before, after))
    for key in sorted(old.keys() | new.keys()):
        yield old.get(key), new.get(key)


def _both(before: frozenset[str], after: frozenset[str]) -> Iterator[tuple[frozenset[str], frozenset[str]]]:
    yield before, after
    yield after, before


def _parsed(text: str) -> Manifest | None:
    found: Manifest | None = yaml.load(text, Loader=yaml.CSafeLoader)
    return found


def _key(manifest: Manifest) -> tuple[str, str, str]:
    return manifest["kind"], manifest["metadata"].get("namespace", ""), manifest["metadata"]["name"]
