"""Writes what in the chart has its source elsewhere: `make chart`. A test says where that was forgotten.

crds/                   crds/ of this tree
files/rights.yaml       docs/examples/rbac.yaml
files/known.yaml        values.yaml, and the features of the roles
templates/guard.yaml    what `netloom guard install` prints (netloom_e2e.chart_guard)
values.schema.json      values.yaml and its comments (netloom_e2e.chart_values, chart_shapes)
docs/chart.md           its table of values
docs/examples/in-cluster.yaml   the chart with chart/netloom/ci/in-cluster-values.yaml
e2e/tests/chart/        the chart with the other values in chart/netloom/ci, for reviewers to see what changed
"""

from __future__ import annotations

from pathlib import Path

from netloom.cli.printing import as_yaml
from netloom.roles import agent, operator
from netloom.runtime.yaml_documents import documents
from netloom_e2e import chart_guard, chart_shapes, chart_values, crds
from netloom_e2e.chart import CHART, CI, ROOT, template

EXAMPLES = ROOT / "docs" / "examples"
GOLDEN = ROOT / "e2e" / "tests" / "chart"
_IN_CLUSTER = "in-cluster-values.yaml"
GUIDE = ROOT / "docs" / "chart.md"
_ROLES = {
    ("ClusterRole", "netloom-operator"): "operator",
    ("Role", "netloom-operator"): "operatorInNamespace",
    ("Role", "netloom-operator-default"): "operatorInDefault",
    ("ClusterRole", "netloom-agent"): "agent",
    ("Role", "netloom-agent"): "agentInNamespace",
}
_HEAD = """\
# Netloom as pods of the cluster whose network it makes, with no more rights than it uses, for where Helm is not: what
# the chart renders with chart/netloom/ci/in-cluster-values.yaml (`make chart` writes it). To be applied in this order:
#
#     kubectl apply -f crds/ -f docs/examples/in-cluster.yaml
#     kubectl apply -f docs/examples/tunnel-kubernetes.yaml         # or another network
#
# `netloom:latest` stands for the image that `make image` makes, or for where yours is. There is no guard in it.
"""


def sources() -> dict[Path, str]:
    """The files that follow from the tree, and what has to be in them; Helm is needed for those of `renderings`."""
    found = {CHART / "crds" / file.name: file.read_text() for file in sorted(crds.FOLDER.glob("*.yaml"))}
    found[CHART / "files" / "rights.yaml"] = _rights()
    found[CHART / "templates" / "guard.yaml"] = chart_guard.template()
    values = chart_values.read((CHART / "values.yaml").read_text())
    [foreign] = documents((CHART / "files" / "cilium.yaml").read_text())
    names = [*foreign["otherwise"], *foreign["not"]]
    found[CHART / "values.schema.json"] = chart_values.schema(values, names, chart_shapes.definitions())
    found[CHART / "files" / "known.yaml"] = _known(values)
    found[GUIDE] = chart_values.with_table(GUIDE.read_text(), values)
    return found


def renderings() -> dict[Path, str]:
    """The files that are what the chart renders."""
    found = {EXAMPLES / "in-cluster.yaml": _HEAD + _rendered(CI / _IN_CLUSTER, "kube-system")}
    for values in sorted(CI.glob("*.yaml")):
        if values.name != _IN_CLUSTER:
            found[GOLDEN / values.name.replace("-values", "")] = _golden(_rendered(values, "netloom-system"))
    return found


def _rendered(values: Path, namespace: str) -> str:
    return template(values, namespace=namespace, options=("--skip-tests",))


def _golden(text: str) -> str:
    """Without what the guard's manifests and the dashboard say at length: these have tests of their own."""
    manifests = [each for each in documents(text) if each]
    for each in manifests:
        if each["apiVersion"].startswith("admissionregistration"):
            each.pop("spec", None)
            each["webhooks"] = [hook["name"] for hook in each.pop("webhooks", [])]
        elif each["metadata"]["name"] == "netloom-dashboard":
            each["data"] = sorted(each["data"])
    return as_yaml(manifests)


def _known(values: tuple[chart_values.Value, ...]) -> str:
    features = {
        role: [each.name for each in of] for role, of in (("agent", agent.FEATURES), ("operator", operator.FEATURES))
    }
    return "# Of values.yaml and the roles, by `make chart`.\n" + as_yaml(
        [{"required": [*chart_values.required(values)], "features": features}]
    )


def _rights() -> str:
    found = {
        (each["kind"], each["metadata"]["name"]): each.get("rules")
        for each in documents((EXAMPLES / "rbac.yaml").read_text())
    }
    rights = {name: found[role] for role, name in _ROLES.items()}
    return "# Of docs/examples/rbac.yaml, by `make chart`.\n" + as_yaml([rights])


def main() -> None:
    """Writes what differs."""
    for files in (sources, renderings):
        for path, text in files().items():
            if not path.exists() or path.read_text() != text:
                path.parent.mkdir(exist_ok=True)
                path.write_text(text)
                print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
