"""`beside_cilium.py --operator FILE --chart FOLDER`: the guard alone beside Cilium, as docs/install.md has it.

On a cluster of two kubelets, Cilium is installed by its own chart, with its own operator, which gives nodes their
CIDRs; its agents, whose data path needs more than namespaces have, are chosen for no node, and what they write of their
nodes is written for them. What stands between the marks of the page is typed. Then the mode is to be changed by `helm
upgrade cilium`, Cilium goes on in all other ways, and the guard is tested, upgraded and taken away. Ends with
`RESULT {json}`.

Both are of the Go module github.com/cilium/cilium: `go build -tags ipam_provider_operator .../operator`, without cgo,
and install/kubernetes/cilium.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from netloom_e2e import bench, binaries, images, kubelets, page
from netloom_e2e.api_objects import objects
from netloom_e2e.bench import Wrong
from netloom_e2e.images import Image, Recipe
from netloom_e2e.kubelets import KubeletCluster
from netloom_e2e.netloom_image import netloom
from netloom_e2e.pod_networks import Bridge

PART = "beside cilium"
SYSTEM = "--namespace kube-system"
UPGRADE = "helm upgrade cilium {chart} " + SYSTEM + " --reuse-values --set {values}"
REFUSAL = "the IPAM mode of a live cluster cannot change"
VALUES = {
    "ipam.mode": "cluster-pool",
    "operator.replicas": 1,
    "nodeSelector.agents": "nowhere",
    "hubble.enabled": "false",
    # The cluster's pods are another plugin's here, and stay.
    "operator.unmanagedPodWatcher.restart": "false",
    "operator.setNodeTaints": "false",
    "operator.setNodeStatus": "false",
}


class Story:
    """The cluster, and what was seen."""

    def __init__(self, bed: KubeletCluster, chart: Path, operator: Image) -> None:
        self.bed = bed
        self.plane = bed.plane
        self._chart = chart
        self._operator = operator
        self._console = bench.console()

    def type(self, text: str, *, refused: str = "") -> str:
        """A line. refused: what is said where it is not to be done. Raises Wrong where it is the other way round."""
        done = page.typed(self.plane, text, check=not refused)
        said = f"{done.stdout}{done.stderr}"
        self._console.print(f"$ {text}\n    {said.strip()[:400]}", markup=False)
        if refused and (not done.returncode or refused not in said):
            raise Wrong(f"`{text}` was to be refused ({refused}):\n{said}")
        return said

    def upgrade_cilium(self, values: str, *, refused: str = "") -> None:
        """By Helm."""
        self.type(UPGRADE.format(chart=self._chart, values=values), refused=refused)

    def install_cilium(self) -> None:
        """Returns when each node has a CIDR, of Cilium's operator."""
        values = VALUES | {"operator.image.override": self._operator.name}
        given = ",".join(f"{name}={value}" for name, value in values.items())
        self.type(f"helm install cilium {self._chart} {SYSTEM} --set {given}")
        self.type(f"kubectl rollout status {SYSTEM} deployment/cilium-operator --timeout=2m")
        for node in self.bed.nodes.values():
            self.joins(node.name, node.machine.address)

    def joins(self, name: str, address: str) -> None:
        """What the agent of a node does, and the operator then."""
        self.bed.wait("its kind", lambda: self.holds() is not None)
        node = {"apiVersion": "cilium.io/v2", "kind": "CiliumNode", "metadata": {"name": name}}
        node["spec"] = {"addresses": [{"type": "InternalIP", "ip": address}], "ipam": {}}
        agent = ("--as=system:serviceaccount:kube-system:cilium", "--as-group=system:masters")
        self.plane.kubectl("create", "--filename=-", *agent, input=json.dumps(node))
        self.bed.wait(f"Cilium to give {name} a CIDR", lambda: (self.holds() or {}).get(name))

    def holds(self) -> dict[str, list[str]] | None:
        """By node. None: there is no such kind yet."""
        listed = self.plane.kubectl("get", "ciliumnodes.cilium.io", "--output=json", check=False)
        if listed.returncode:
            return None
        items = json.loads(listed.stdout)["items"]
        return {each["metadata"]["name"]: each["spec"].get("ipam", {}).get("podCIDRs", []) for each in items}

    def mode(self) -> str:
        """Of cilium-config."""
        path = "/api/v1/namespaces/kube-system/configmaps/cilium-config"
        return str(self.plane.client.request("GET", path)["data"]["ipam"])

    def install_guard(self) -> None:
        """As the page says; its last line is to be refused."""
        *lines, last = (line.text for line in page.commands(PART))
        for line in lines:
            self.type(line)
        self.type(last, refused=REFUSAL)

    def guarded(self) -> None:
        """What is refused, and what goes on."""
        before = self.holds()
        self.upgrade_cilium("ipam.mode=kubernetes", refused=REFUSAL)
        self._see("the mode is as it was", self.mode() == "cluster-pool")
        self.upgrade_cilium("debug.enabled=true")
        self.type(f"kubectl rollout restart {SYSTEM} deployment/cilium-operator")
        self.type(f"kubectl rollout status {SYSTEM} deployment/cilium-operator --timeout=2m")
        self.joins("n9", "172.31.1.99")
        self._see("nodes hold what they held", {**(before or {}), **(self.holds() or {})} == self.holds())
        self.type(f"kubectl delete ciliumnode n1 {SYSTEM}", refused="CiliumNode n1: metadata.name 'n1'")
        said = self.type("helm test netloom-guard --namespace netloom-system --logs")
        self._see("its test passes", "two IPAM modes in cilium-config: refused, as it has to be" in said)
        guard = "helm upgrade netloom-guard chart/netloom --namespace netloom-system --reuse-values"
        self.type(f"{guard} --set guard.resources.requests.cpu=1m --wait")
        self.upgrade_cilium("ipam.mode=kubernetes", refused=REFUSAL)

    def uninstall(self, before: set[str]) -> None:
        """Nothing of the guard is left, and all of Cilium."""
        held = self.holds()
        self.type("helm uninstall netloom-guard --namespace netloom-system")
        self.type("kubectl delete namespace netloom-system")
        left = {each for each in objects(self.plane) - before if "netloom" in each}
        self._see(f"nothing is left of the guard: {left}", not left)
        self._see("nodes hold what they held", held == self.holds())
        self.upgrade_cilium("debug.enabled=false")

    def _see(self, what: str, *conditions: bool) -> None:
        if not all(conditions):
            raise Wrong(f"not so: {what}; {self.holds()}")


def run(operator: Path, chart: Path) -> dict[str, Any]:
    """What RESULT says. Raises Wrong where something was not as it is to be."""
    list(page.commands(PART))
    content = {"Containerfile": images.SOURCES / "cilium-operator.Containerfile", "cilium-operator-generic": operator}
    cilium = images.built(Recipe("cilium-operator", content))
    guard = replace(netloom(), aliases=(page.IMAGE,))
    kubelets.prepare()
    binaries.helm()
    bed = KubeletCluster(f"nlb{os.getpid() % 10000}", nodes=2, network=Bridge(), further=[guard, cilium])
    with bed:
        story = Story(bed, chart, cilium)
        story.install_cilium()
        before = objects(bed.plane)
        began = time.monotonic()
        story.install_guard()
        seconds = round(time.monotonic() - began, 1)
        story.guarded()
        story.uninstall(before)
        return {"held": story.holds(), "mode": story.mode(), "install_s": seconds}


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description="The guard alone beside Cilium, as docs/install.md says.")
    parser.add_argument("--operator", type=Path, required=True, help="cilium-operator-generic, a static program")
    parser.add_argument("--chart", type=Path, required=True, help="Cilium's chart")
    options = parser.parse_args()
    return bench.conclude("beside-cilium", lambda: run(options.operator.resolve(), options.chart.resolve()))


if __name__ == "__main__":
    sys.exit(main())
