"""A change of any value reaches what it is for: by pods that are made anew, or in an object that is followed live.

There is no ConfigMap that pods read once, so nothing has to be restarted by hand.
"""

from pathlib import Path
from typing import Any

import pytest
import yaml

from netloom_e2e.chart import CI, Manifest
from netloom_e2e.chart_changes import Values, and_, changed, defaults, of, texts, without

pytestmark = pytest.mark.usefixtures("helm_binary")

OF_HELM = {
    "cleanup.enabled": "whether a Job runs before `helm uninstall`",
    "cleanup.timeoutSeconds": "how long that Job may take",
    "cleanup.withoutCluster": "whether `helm template` shows that Job",
    "cni.besideOthers": "looks at the cluster at the time of `helm install`",
    "crds.upgrade": "looks at the cluster's definitions",
    "image.checkSeconds": "how long a Job before an upgrade may take",
    "image.checkUpgrades": "looks at what image the cluster runs",
    "prometheus.serviceMonitor.trustCRDsExist": "looks at the cluster's kinds",
    "test.wait": "how long `helm test` may take",
}
"""Values that Helm goes by itself, when it is called; no pod is told of them."""

BESIDE: list[tuple[Values, dict[str, Any]]] = [
    (
        {},
        {
            "enableIPv4Masquerade": False,
            "guard.url": "https://127.0.0.1:9443",
            "image.repository": "registry.example/netloom",
            "ipam.mode": "multi-pool",
            "routingMode": "native",
            "operator.affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
            "operator.podDisruptionBudget.enabled": False,
            "operator.priorityClassName": "",
            "operator.prometheus.enabled": True,
            "operator.resources": {"requests": {"cpu": "1m"}},
            "operator.tolerations": [],
            "operator.updateStrategy": {"rollingUpdate": {"maxUnavailable": 2}},
            "prometheus.enabled": True,
            "resources": {"requests": {"cpu": "1m"}},
            "terminationGracePeriodSeconds": 3,
            "tolerations": [],
        },
    ),
    ({"ipam": {"mode": "multi-pool"}}, {"ipam.multiPool.defaultPool": "blue"}),
    (
        {"agent": {"enabled": False}},
        {
            "guard.affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
            "guard.priorityClassName": "",
            "guard.resources": {"requests": {"cpu": "1m"}},
            "guard.tolerations": [],
        },
    ),
    (
        {"guard": {"tls": {"secretName": "own", "caBundle": "Q0E="}}},
        {"guard.tls.secretName": "other", "guard.tls.injectCaFrom": "a/b"},
    ),
    (
        {"prometheus": {"enabled": True, "serviceMonitor": {"enabled": True}}},
        {"prometheus.serviceMonitor.interval": "10s"},
    ),
    (
        {"dashboards": {"enabled": True}},
        {"dashboards.label": "board", "dashboards.labelValue": "yes", "dashboards.namespace": "boards"},
    ),
]
"""Values that no file in chart/netloom/ci has, or that cannot be left out there: beside what, and another for each."""

TOGETHER = {
    "full": {
        *("autoDirectNodeRoutes", "guard.tls.injectCaFrom", "guard.tls.secretName", "ipam.mode", "routingMode"),
        *("operator.prometheus.enabled", "prometheus.enabled"),
    },
    "guard-url": {"guard.url"},
    "pools": {"ipam.mode", "routingMode"},
}
"""Values that cannot be left out of those files alone: what is left would contradict itself (see test_chart.py)."""

LIVE = {
    "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding", "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding", "ValidatingWebhookConfiguration", "Service", "PodDisruptionBudget",
    "NetloomNetwork", "NetloomIPPool", "ServiceMonitor", "PrometheusRule",
}  # fmt: skip
"""Kinds whose objects somebody follows who runs."""


def reaches(old: Manifest | None, new: Manifest | None) -> bool:
    """Whether the difference is told to somebody by itself."""
    kind = (old or new or {})["kind"]
    if kind in LIVE or (old is None) != (new is None):
        return True
    if kind in ("DaemonSet", "Deployment"):
        return True  # their pods are made anew, or there are more or fewer of them, or those are exchanged otherwise
    return kind == "ConfigMap" and (new or {})["metadata"]["name"] == "netloom-dashboard"  # by Grafana's sidecar


def test_every_value_reaches_pods_or_what_is_followed_live(tmp_path: Path) -> None:
    variants: dict[str, Values] = {}
    known = defaults()
    for file in sorted(CI.glob("*.yaml")):
        case = file.stem.removesuffix("-values")
        values = variants[case] = yaml.safe_load(file.read_text())
        for name, default in known.items():
            if of(values, name, default) != default and name not in {*TOGETHER.get(case, set()), "image.repository"}:
                variants[f"{case} {name}"] = without(values, name)
    for number, (values, changes) in enumerate(BESIDE):
        given = variants[f"beside-{number}"] = and_(values, "image.repository", "netloom")
        variants |= {f"beside-{number} {name}": and_(given, name, value) for name, value in changes.items()}
    found = texts(variants, tmp_path)
    ignored, seen = [], set()
    for title, manifests in found.items():
        case, _, name = title.partition(" ")
        seen.add(name)
        if name and name not in OF_HELM and not any(reaches(*pair) for pair in changed(found[case], manifests)):
            ignored.append(title)
    assert ignored == [], "\n".join(ignored)
    assert known.keys() - seen - OF_HELM.keys() == set(), (
        "another value for each has to be in one of the files, or here"
    )
