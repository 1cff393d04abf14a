"""A release of the chart that lives on a control plane without kubelets: its pods run here, as processes."""

from __future__ import annotations

import datetime as dt
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from netloom.runtime.yaml_documents import documents
from netloom.webhook import certificates
from netloom.webhook.names import CA_SECRET, NAME, NAMESPACE
from netloom_e2e.allocations import Cluster
from netloom_e2e.chart import CHART, SOME_IMAGE
from netloom_e2e.chart_pods import Hooks, words
from netloom_e2e.client import ApiFailure
from netloom_e2e.cluster import ControlPlane
from netloom_e2e.guard import Guard, account_kubeconfig
from netloom_e2e.lab import environment, wait_for
from netloom_e2e.mesh import NETLOOM
from netloom_e2e.operators import free_port
from netloom_e2e.rights import Account

AGENT, OPERATOR, GUARD = (Account(NAMESPACE, f"netloom-{role}") for role in ("agent", "operator", "guard"))
BREAK_GLASS = ("system:masters", "netloom:break-glass")


def _lives(manifest: dict[str, Any] | None) -> bool:
    """Whether it is there while the release is not being deleted."""
    return manifest is not None and "delete" not in manifest["metadata"].get("annotations", {}).get("helm.sh/hook", "")


@dataclass
class Release:
    """A release, and its pods in the network of this machine: each listens where nobody else does."""

    plane: ControlPlane
    folder: Path
    rights: list[dict[str, Any]] = field(default_factory=list)
    """All manifests that there were, but for those of its end."""
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self.cluster = Cluster(self.plane)
        # Whoever does here what breaks things gets past the guard, whose refusals are tested elsewhere.
        self.client = self.cluster.client = self.plane.client_of("admin", BREAK_GLASS)
        self.hooks = Hooks(self.plane, NAMESPACE, self.folder)
        # API servers reach the guard by its Service, for which there is no kube-proxy here. A name that is an address
        # of the loopback stands for that; the port is what webhooks are called at.
        self.address = f"127.88.{os.getpid() // 250 % 250}.{os.getpid() % 250 + 1}"

    def helm(self, verb: str, *arguments: str | Path) -> None:
        with self.hooks.served():
            done = self.plane.helm(verb, "netloom", *arguments, f"--namespace={NAMESPACE}", check=False, timeout=240)
        assert done.returncode == 0, (done.stderr, self.hooks.ran)
        for part in ("manifest", "hooks"):
            text = self.plane.helm("get", part, "netloom", f"--namespace={NAMESPACE}").stdout
            self.rights += filter(_lives, documents(text))

    def put(self, verb: str, *values: str) -> None:
        """Installs or upgrades it."""
        self.helm(verb, CHART, *(f"--set={each}" for each in (f"image.repository={SOME_IMAGE}", *values)))
        service = {
            "spec": {"type": "ExternalName", "externalName": self.address, "clusterIP": None, "clusterIPs": None}
        }
        self.client.request("PATCH", f"/api/v1/namespaces/{NAMESPACE}/services/{NAME}", service)

    def pod(self, kind: str, name: str) -> dict[str, Any]:
        found = self.client.request("GET", f"/apis/apps/v1/namespaces/{NAMESPACE}/{kind}/{name}")
        return dict(found["spec"]["template"]["spec"])

    def start(self, account: Account, *listens: str) -> Guard:
        """A pod of the Deployment of that name; `listens`: options that say where, as on this machine."""
        http = f"127.0.0.1:{free_port()}"
        kubeconfig = account_kubeconfig(self.plane, *account)
        command = [*words(self.pod("deployments", account.name), {}), *listens, f"--http-address={http}"]
        name = f"{account.name}-{next(self._numbers)}"
        env = environment() | {"POD_NAMESPACE": NAMESPACE, "POD_NAME": name}
        process = self.plane.folder.spawn(name, [NETLOOM, *command, f"--kubeconfig={kubeconfig}"], env=env)
        return Guard(process, http)

    def operator(self) -> Guard:
        """Which is the guard as well."""
        return self._ready(self.start(OPERATOR, f"--webhook-address={self.address}:443"))

    def guard(self) -> Guard:
        """The guard alone."""
        return self._ready(self.start(GUARD, f"--address={self.address}:443"))

    def _ready(self, guard: Guard) -> Guard:
        wait_for("the guard is ready", guard.ready, deadline=60)
        return guard

    def record(self) -> dict[str, str]:
        """The guard's; empty where it is not there."""
        try:
            return dict(self.client.request("GET", f"/api/v1/namespaces/{NAMESPACE}/configmaps/{NAME}").get("data", {}))
        except ApiFailure:
            return {}

    def counted(self, namespace: str = "default") -> set[str]:
        """Who raised the count of an Event."""
        events = self.client.request("GET", f"/api/v1/namespaces/{namespace}/events")["items"]
        return {event["source"]["component"] for event in events if event.get("count", 0) > 1}

    def meddle_with_the_record(self, key: str) -> None:
        """Somebody writes the guard's record, twice, and then deletes it."""
        path = f"/api/v1/namespaces/{NAMESPACE}/configmaps/{NAME}"
        wait_for("the record is there", lambda: self.record().get(key), deadline=20)
        mode = self.record()[key]
        for _ in range(2):
            self.client.request("PATCH", path, {"data": {key: "crd"}})
            wait_for("it is put right", lambda: self.record().get(key) == mode, deadline=20)
        wait_for("its Event is counted", lambda: self.counted(NAMESPACE), deadline=30)
        self.client.request("DELETE", path)
        wait_for("the record is there again", lambda: self.record().get(key), deadline=20)

    def end_the_authority(self) -> None:
        """While no guard runs, its CA expires."""
        expired = certificates.dump([certificates.new_ca(dt.datetime.now(dt.UTC) - dt.timedelta(days=4000))])
        secret = f"/api/v1/namespaces/{NAMESPACE}/secrets/{CA_SECRET}"
        old = self.client.request("GET", secret)
        self.client.request("PUT", secret, old | {"data": expired})
