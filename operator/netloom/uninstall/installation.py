"""What an installation consists of, by name: names are fixed, as there is one network in a cluster."""

from collections.abc import Iterable
from typing import NamedTuple

from netloom.api.v1alpha1 import LEDGERS, NETLOOM_NODES, NETWORKS, POOLS, PREFILTERS
from netloom.runtime.wire import MetaOnly
from netloom.webhook.names import CA_SECRET, KEPT_POLICY, NAME, Scope
from netloom.webhook.policies import policies

AGENT, OPERATOR = "netloom-agent", "netloom-operator"
PARTS = ("netloom-crds", "netloom-test", "netloom-test-guard", "netloom-uninstall")
"""What hooks of the chart make for themselves."""
HOOKS = "/apis/admissionregistration.k8s.io/v1"
RBAC = "/apis/rbac.authorization.k8s.io/v1"
APPS = "/apis/apps/v1"
NETWORK_KINDS = tuple(each.read_as(MetaOnly) for each in (NETWORKS, NETLOOM_NODES, LEDGERS, POOLS, PREFILTERS))
"""The network first: an operator that still runs somewhere gives no node anything without it."""
NAME_LABEL = "app.kubernetes.io/name"


class Thing(NamedTuple):
    """An object. base: URL path of its API group's version."""

    base: str
    plural: str
    name: str
    namespace: str = ""

    @property
    def path(self) -> str:
        """Its URL path."""
        inside = f"/namespaces/{self.namespace}" if self.namespace else ""
        return f"{self.base}{inside}/{self.plural}/{self.name}"

    def __str__(self) -> str:
        return f"{self.plural}/{f'{self.namespace}/' if self.namespace else ''}{self.name}"


def refusing() -> list[Thing]:
    """What stands between users and writes, the webhooks first: of these a write may be refused that nobody answers."""
    bound = dict.fromkeys(each["metadata"]["name"] for each in policies(Scope("all")))
    bound.pop(KEPT_POLICY)
    return [Thing(HOOKS, "validatingwebhookconfigurations", NAME), *_policies(bound)]


def kept() -> list[Thing]:
    """What has the API server look at the record (see `webhook.policies`): after the record, so that what the server
    saw of it last is that there is none. Who installs a guard again would else be held to what was in use before."""
    return _policies([KEPT_POLICY])


def _policies(of: Iterable[str]) -> list[Thing]:
    plurals = ("validatingadmissionpolicybindings", "validatingadmissionpolicies")
    return [Thing(HOOKS, plural, name) for plural in plurals for name in of]


def deciding(namespace: str) -> list[Thing]:
    """Who runs, but for agents: the guard, and the operator, which is one. And the right of a guard that runs
    elsewhere to write down again what goes next."""
    found = [Thing(APPS, "deployments", name, namespace) for name in (OPERATOR, NAME)]
    return [*found, Thing(RBAC, "rolebindings", NAME, namespace)]


def recorded(namespace: str) -> list[Thing]:
    """What guards wrote."""
    return [Thing("/api/v1", "configmaps", NAME, namespace), Thing("/api/v1", "secrets", CA_SECRET, namespace)]


def agents(namespace: str) -> Thing:
    """Their DaemonSet."""
    return Thing(APPS, "daemonsets", AGENT, namespace)


def rest(namespace: str, cilium_namespace: str) -> list[Thing]:
    """What has no life of its own: rights, accounts, Services. Helm takes it away by itself; so this is for manifests,
    and for a release whose record went with its namespace."""
    found = [
        Thing(RBAC, plural, name)
        for name in (f"{AGENT}-pods", AGENT, f"{OPERATOR}-pods", OPERATOR, NAME, *PARTS)
        for plural in ("clusterrolebindings", "clusterroles")
    ]
    elsewhere = {f"{NAME}-cilium": cilium_namespace, "netloom-test-guard": cilium_namespace}
    elsewhere |= {f"{OPERATOR}-default": "default"}
    found += [
        Thing(RBAC, plural, name, there) for name, there in elsewhere.items() for plural in ("rolebindings", "roles")
    ]
    for name in (AGENT, OPERATOR, NAME, *PARTS):
        found += [Thing(RBAC, plural, name, namespace) for plural in ("rolebindings", "roles")]
        found.append(Thing("/api/v1", "serviceaccounts", name, namespace))
        found.append(Thing("/api/v1", "services", name, namespace))
    pair = [Thing("/apis/policy/v1", "poddisruptionbudgets", name, namespace) for name in (OPERATOR, NAME)]
    bound = {f"{AGENT}-pods": namespace, f"{OPERATOR}-pods": namespace, f"{OPERATOR}-default-pods": "default"}
    return [*found, *(Thing(RBAC, "rolebindings", name, there) for name, there in bound.items()), *pair]
