"""The guard beside a control plane: its manifests applied by kubectl, its processes as its ServiceAccount.

The API server reaches the processes by `url`, so there is no Service and no Deployment; everything else is what
`netloom guard install` gives a cluster. The CRDs of Cilium in `cilium/` are cut down to the fields that matter here.
"""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import yaml

from netloom.webhook.manifests import Installation, render
from netloom.webhook.names import KEPT_POLICY, NAME, Guarded, Scope
from netloom_e2e import crds
from netloom_e2e.client import ApiFailure
from netloom_e2e.cluster import ControlPlane
from netloom_e2e.lab import environment, wait_for
from netloom_e2e.operators import Operator, free_port

CILIUM_CRDS = Path(__file__).parent / "cilium" / "crds"
PAST_THE_GUARD = ("--as=admin", "--as-group=system:masters", "--as-group=netloom:break-glass")
CILIUM_KINDS = ("ciliumnodes.v2.cilium.io", "ciliumpodippools.v2alpha1.cilium.io")
_POLICIES = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies"
_NETLOOM = Path(sys.executable).with_name("netloom")
_numbers = itertools.count(1)


def install_cilium(plane: ControlPlane) -> None:
    """The CRDs of CiliumNode, CiliumPodIPPool and CiliumNodeConfig, served."""
    crds.install(plane, CILIUM_CRDS)


def uninstall_cilium(plane: ControlPlane) -> None:
    """Takes them away with all their objects, if they are there."""
    plane.kubectl("delete", "--ignore-not-found", "--filename", CILIUM_CRDS, *PAST_THE_GUARD)


@dataclass(frozen=True, slots=True)
class Guard(Operator):
    """One guard process. `url`: where it answers AdmissionReviews."""

    url: str = ""

    def ready(self) -> bool:
        """Whether it runs and says that it decides."""
        return self.approves("/readyz")

    def readiness(self) -> str:
        """What it says of itself at /readyz, be it ready or not; "" where it does not answer."""
        try:
            return self.get("/readyz")
        except HTTPError as error:
            return error.read().decode()
        except OSError:
            return ""


class Guards:
    """All guards of one control plane. The API server asks the one at `port`; more of them need ports of their own."""

    def __init__(self, plane: ControlPlane, scope: Scope | None = None) -> None:
        self.scope = scope or Scope()
        self.port = free_port()
        self.url = f"https://127.0.0.1:{self.port}"
        self._plane = plane
        self._started: list[Guard] = []

    @property
    def running(self) -> tuple[Guard, ...]:
        """Those that `kill` has not ended."""
        return tuple(self._started)

    @property
    def manifests(self) -> list[dict[str, Any]]:
        """What is to be installed."""
        return render(Installation(scope=self.scope, url=self.url))

    def install(self) -> None:
        """By kubectl, in the order of the manifests."""
        apply(self._plane, self.manifests)

    def uninstall(self) -> None:
        """Takes the manifests away again, what stands in the way of writes first; the namespaces stay.

        So does what keeps the API server looking at the record: the next guard on this control plane needs that.
        """
        manifests = [
            each
            for each in reversed(self.manifests)
            if each["kind"] != "Namespace" and each["metadata"]["name"] != KEPT_POLICY
        ]
        options = ["--ignore-not-found", "--wait=false", *PAST_THE_GUARD]
        self._plane.kubectl("delete", *options, "-f", "-", input=_text(manifests))

    def start(
        self, *arguments: str, port: int = 0, kubeconfig: Path | None = None, env: Mapping[str, str] | None = None
    ) -> Guard:
        """Starts one and returns at once; as the ServiceAccount, which the manifests have to have brought."""
        name = f"guard-{next(_numbers)}"
        address, port = f"127.0.0.1:{free_port()}", port or self.port
        scope = self.scope
        command: list[str | Path] = [
            _NETLOOM,
            "webhook",
            f"--kubeconfig={kubeconfig or self.kubeconfig()}",
            f"--for={scope.guarded}",
            f"--address=127.0.0.1:{port}",
            f"--http-address={address}",
            f"--namespace={scope.namespace}",
            *([f"--cilium-namespace={scope.cilium_namespace}"] if scope.cilium else ()),
            *(f"--operator-user={user}" for user in scope.operator_users if scope.netloom),
            *(f"--agent-user={user}" for user in scope.agent_users if scope.netloom),
            "--log-format=console",
            *arguments,
        ]
        process = self._plane.folder.spawn(name, command, env={**environment(), **(env or {})})
        guard = Guard(process, address, url=f"https://127.0.0.1:{port}")
        self._started.append(guard)
        return guard

    def kubeconfig(self) -> Path:
        """Of the rendered ServiceAccount: RBAC grants it what the manifests say, and no more."""
        return account_kubeconfig(self._plane, self.scope.namespace, NAME)

    def started(self, operator: Operator) -> Guard:
        """An operator that is the guard at `port` as well."""
        guard = Guard(operator.process, operator.address, url=self.url)
        self._started.append(guard)
        return guard

    def wait_in_force(self, guard: Guard) -> None:
        """Until it is ready, and the API server trusts its certificate and asks it."""
        wait_for("the guard is ready", guard.ready, deadline=30)
        wait_for("the API server asks the guard", self._asked, deadline=30)

    def _asked(self) -> bool:
        """A write of a guarded object, as a dry run; refused for any other reason is as good."""
        try:
            before = self.requests()
            self._plane.client.request("POST", *self._probe())
        except ApiFailure as failure:
            if "failed calling webhook" in str(failure):
                return False
        return self.requests() > before

    def _probe(self) -> tuple[str, dict[str, Any]]:
        if self.scope.cilium:
            # In the mode that is recorded, if there is one: else the policy would answer, and nobody ask the guard.
            meta = {"name": "cilium-config", "namespace": self.scope.cilium_namespace}
            path = f"/api/v1/namespaces/{self.scope.cilium_namespace}/configmaps"
            data = {"ipam": self.record().get("ciliumMode", "cluster-pool")}
            return f"{path}?dryRun=All", {"metadata": meta, "data": data}
        pool = {"apiVersion": "netloom.dev/v1alpha1", "kind": "NetloomIPPool", "metadata": {"name": "probe"}}
        spec = {"ipv4": {"cidrs": ["203.0.113.0/24"], "maskSize": 28}}
        return "/apis/netloom.dev/v1alpha1/netloomippools?dryRun=All", pool | {"spec": spec}

    def record(self) -> dict[str, str]:
        """What the guard wrote down; empty where it did not (yet)."""
        path = f"/api/v1/namespaces/{self.scope.namespace}/configmaps/{NAME}"
        try:
            return dict(self._plane.client.request("GET", path).get("data", {}))
        except ApiFailure as failure:
            if failure.status != HTTPStatus.NOT_FOUND:
                raise
            return {}

    @property
    def pids(self) -> list[int]:
        """Of the guards that were started."""
        return [guard.process.pid for guard in self._started]

    def requests(self) -> float:
        """AdmissionReviews that all guards were asked."""
        return sum(guard.metric("netloom_guard_reviews_total") for guard in self._started)

    def counted(self, *names: str) -> Counter[str]:
        """What all guards have counted, by metric."""
        return Counter({name: int(sum(guard.metric(name) for guard in self._started)) for name in names})

    def kill(self) -> None:
        """Kills all that still run."""
        for guard in self._started:
            guard.kill()
        self._started.clear()


def account_kubeconfig(plane: ControlPlane, namespace: str, name: str, *, node: str = "", host: str = "") -> Path:
    """With a token of a ServiceAccount that is there.

    node: the token is that of a pod on this Node, as a kubelet asks for it; a Pod is made that it is bound to. host:
    another address of the API server, as seen from a network namespace.
    """
    path = plane.state / "kubeconfigs" / f"{name}.{namespace}{f'@{node}' if node else ''}.token.yaml"
    account = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
    bound = {"boundObjectRef": _pod(plane, namespace, name, node)} if node else {}
    answer = plane.client.request("POST", account, {"spec": {"expirationSeconds": 36000, **bound}})
    config = yaml.safe_load(plane.kubeconfig(host=host).read_text())
    config["users"][0]["user"] = {"token": answer["status"]["token"]}
    path.touch(mode=0o600)
    path.write_text(yaml.safe_dump(config))
    return path


def _pod(plane: ControlPlane, namespace: str, account: str, node: str) -> dict[str, str]:
    """A Pod of a ServiceAccount on a Node; made, if it is not there."""
    path, name = f"/api/v1/namespaces/{namespace}/pods", f"{account}-{node}"
    spec = {"serviceAccountName": account, "nodeName": node, "hostNetwork": True}
    body = {"metadata": {"name": name}, "spec": spec | {"containers": [{"name": "c", "image": "none"}]}}
    try:
        uid = plane.client.request("POST", path, {"apiVersion": "v1", "kind": "Pod", **body})["metadata"]["uid"]
    except ApiFailure as failure:
        if failure.status != HTTPStatus.CONFLICT:
            raise
        uid = plane.client.request("GET", f"{path}/{name}")["metadata"]["uid"]
    return {"kind": "Pod", "apiVersion": "v1", "name": name, "uid": uid}


def apply(plane: ControlPlane, manifests: list[dict[str, Any]], *options: str) -> str:
    """What kubectl says of each object."""
    return plane.kubectl("apply", "--server-side", *options, "-f", "-", input=_text(manifests)).stdout


def _text(manifests: list[dict[str, Any]]) -> str:
    return yaml.safe_dump_all(manifests)


def type_warnings(plane: ControlPlane) -> dict[str, list[str]]:
    """What the API server finds wrong with the types in the policies, by policy; waits until it has looked."""
    found: dict[str, list[str]] = {}

    def looked() -> bool:
        for policy in plane.client.request("GET", _POLICIES)["items"]:
            status = policy.get("status", {})
            if status.get("observedGeneration") != policy["metadata"]["generation"]:
                return False
            warnings = status.get("typeChecking", {}).get("expressionWarnings", [])
            found[policy["metadata"]["name"]] = [f"{each['fieldRef']}: {each['warning']}" for each in warnings]
        return True

    wait_for("the types in the policies are checked", looked, deadline=30)
    return found


@contextmanager
def guarding(plane: ControlPlane, guarded: Guarded = "all", **scope: Any) -> Iterator[Guards]:
    """Manifests applied and one guard that the API server asks; at the end, everything gone again."""
    guards = Guards(plane, Scope(guarded=guarded, **scope))
    guards.install()
    try:
        guards.wait_in_force(guards.start())
        yield guards
    finally:
        guards.kill()
        guards.uninstall()
