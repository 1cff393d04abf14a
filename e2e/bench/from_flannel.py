"""`from_flannel.py --flanneld FILE --plugin FILE`: the way from flannel to Netloom, as docs/install.md has it.

What stands between the marks of that page is typed, in its order, on a cluster of three kubelets that flannel wires:
lines with `$` once, lines with `#` on every node. All the while every pod of flannel's sends every other 1,000 packets
a second until they are made anew, and those that came for them afterwards; pods that come in the middle are pinged by
all. Ends with `RESULT {json}`: packets lost, and who did not reach whom; the exit status is 0 only if none.

flanneld and flannel's CNI plugin are given (static builds of github.com/flannel-io/flannel and .../cni-plugin).
flanneld runs as a process on each node, with the arguments of its manifest; a DaemonSet of its name stands for it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from netloom_e2e import bench, binaries, images, kubelets, page
from netloom_e2e.bench import Wrong
from netloom_e2e.everyone import FLOW_SECONDS
from netloom_e2e.flow import Flows, Report
from netloom_e2e.kubelet_node import KubeletNode
from netloom_e2e.kubelets import CLUSTER_CIDRS, KubeletCluster
from netloom_e2e.machines import Pod
from netloom_e2e.netloom_image import netloom
from netloom_e2e.processes import Process

PART = "from flannel"
ANEW = "kubectl rollout restart"
"""How the step begins by which pods of flannel's go."""
GONE = "kubectl delete namespace kube-flannel"

FLANNEL = """
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: flannel}
rules:
  - {apiGroups: [""], resources: [pods], verbs: [get]}
  - {apiGroups: [""], resources: [nodes], verbs: [get, list, watch]}
  - {apiGroups: [""], resources: [nodes/status], verbs: [patch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: flannel}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: flannel}
subjects: [{kind: User, name: flannel}]
---
apiVersion: v1
kind: Namespace
metadata: {name: kube-flannel}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: kube-flannel-ds, namespace: kube-flannel}
spec:
  selector: {matchLabels: {app: flannel}}
  template:
    metadata: {labels: {app: flannel}}
    spec:
      hostNetwork: true
      tolerations: [{operator: Exists}]
      containers: [{name: stands-for-it, image: "${pause}", imagePullPolicy: Never}]
"""
CONFLIST = {
    "name": "cbr0",
    "cniVersion": "0.3.1",
    "plugins": [
        {"type": "flannel", "delegate": {"hairpinMode": True, "isDefaultGateway": True}},
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ],
}
PODS = """
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: NAME}
spec:
  selector: {matchLabels: {app: NAME}}
  template:
    metadata: {labels: {app: NAME}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: pause, image: "${pause}", imagePullPolicy: Never}]
"""


class Flannel:
    """What wires the pods in the beginning."""

    taints = ()

    def __init__(self, flanneld: Path, plugin: Path) -> None:
        self._flanneld = flanneld
        self._plugin = plugin
        self._processes: list[Process] = []

    def install(self, nodes: Sequence[KubeletNode]) -> None:
        """As its manifest does."""
        plane = nodes[0].plane
        plane.kubectl("apply", "--filename=-", input=FLANNEL.replace("${pause}", images.pause().name))
        network = {"Network": CLUSTER_CIDRS[0], "EnableNFTables": False, "Backend": {"Type": "vxlan"}}
        (plane.state / "net-conf.json").write_text(json.dumps(network))
        flags = [
            "--ip-masq",
            "--kube-subnet-mgr",
            f"--kubeconfig-file={plane.kubeconfig('flannel')}",
            f"--net-config-path={plane.state / 'net-conf.json'}",
        ]
        for node in nodes:
            node.pod_cidrs()
            shutil.copy2(self._plugin, node.root / "opt/cni/bin/flannel")
            command = [*node.enter, "env", f"NODE_NAME={node.name}", str(self._flanneld), *flags]
            self._processes.append(plane.folder.spawn(f"{node.name}-flanneld", command))
            node.configure_network(CONFLIST, "10-flannel.conflist")

    def stop(self, nodes: Sequence[KubeletNode]) -> None:
        """As when its DaemonSet is deleted."""
        for node in nodes:
            node.run("pkill", "-x", "flanneld")
        for process in self._processes:
            process.popen.wait(30)


class Migration:
    """The cluster, and what was seen."""

    def __init__(self, bed: KubeletCluster, flannel: Flannel) -> None:
        self.bed = bed
        self.flannel = flannel
        self.console = bench.console()
        self.unreached: list[str] = []
        self.flows: list[Report] = []

    def run(self) -> None:
        """All of it."""
        bed = self.bed
        bed.apply(PODS.replace("NAME", "old"))
        lines = list(page.commands(PART))
        cut = next(number for number, line in enumerate(lines) if line.text.startswith(ANEW))
        late = next(number for number, line in enumerate(lines) if line.text.startswith("helm install")) + 2
        with self._counted("until flannel's pods are made anew"):
            self._type(lines[:late])
            bed.apply(PODS.replace("NAME", "late"))
            self._look("pods of both")
            self._type(lines[late:cut], look=True)
        self._type(lines[cut : cut + 3])
        self._look("all made anew")
        with self._counted("afterwards"):
            self._type(lines[cut + 3 :])
        self._look("the end")

    def _pods(self) -> dict[str, Pod]:
        """All of the DaemonSets, once they are what they are to be."""
        bed = self.bed
        found = bed.plane.client.request("GET", "/api/v1/namespaces/default/pods")["items"]
        return {each["metadata"]["name"]: bed.pod(each["metadata"]["name"]) for each in found}

    def _ready(self) -> None:
        for name in ("old", "late"):
            self.bed.plane.kubectl("rollout", "status", f"daemonset/{name}", "--timeout=120s", timeout=150, check=False)

    def _look(self, when: str) -> None:
        """Who does not reach whom."""
        self._ready()
        pods = self._pods()
        lost = [
            f"{when}: {near} -> {far}"
            for (near, source), (far, target) in itertools.permutations(pods.items(), 2)
            if source.ping(target.address).lost
        ]
        self.unreached += lost
        self.console.print(f"    {len(pods) * (len(pods) - 1)} pairs of pods, {len(lost)} do not reach each other")

    def _type(self, lines: Sequence[page.Command], *, look: bool = False) -> None:
        for line in lines:
            began = time.monotonic()
            if line.everywhere:
                for node in self.bed.nodes.values():
                    node.run("sh", "-ec", line.text)
            else:
                page.typed(self.bed.plane, line.text)
            if line.text == GONE:
                self.flannel.stop([*self.bed.nodes.values()])
            sign = "#" if line.everywhere else "$"
            self.console.print(f"{time.monotonic() - began:5.1f} s  {sign} {line.text}", markup=False)
            if look:
                self._look(line.text)

    def _counted(self, what: str) -> _Counted:
        self._ready()
        return _Counted(self, what, self._pods())


class _Counted:
    """Flows between these pods while a block lasts."""

    def __init__(self, migration: Migration, what: str, pods: dict[str, Pod]) -> None:
        self._migration = migration
        self._what = what
        self._flows = Flows(pods, deadline=FLOW_SECONDS)

    def __enter__(self) -> None:
        self._flows.__enter__()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                counted = self._flows.stop()
                self._migration.flows.append(counted)
                self._migration.console.print(f"{self._what}: {counted}", markup=False)
        finally:
            self._flows.__exit__(None, None, None)


def run(flanneld: Path, plugin: Path) -> dict[str, Any]:
    """What RESULT says. Raises Wrong where a packet was lost, or somebody was not reached."""
    list(page.commands(PART))
    image = replace(netloom(), aliases=(page.IMAGE,))
    kubelets.prepare()
    binaries.helm()
    flannel = Flannel(flanneld, plugin)
    bed = KubeletCluster(f"nlf{os.getpid() % 10000}", network=flannel, further=[image])
    with bed:
        migration = Migration(bed, flannel)
        migration.run()
    found = {
        "sent": [each.sent for each in migration.flows],
        "lost": [each.lost for each in migration.flows],
        "unreached": len(migration.unreached),
    }
    if migration.unreached or not all(each.lossless for each in migration.flows):
        raise Wrong("\n".join([json.dumps(found), *migration.unreached, *map(str, migration.flows)]))
    return found


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description="From flannel to Netloom, as docs/install.md says.")
    parser.add_argument("--flanneld", type=Path, required=True)
    parser.add_argument("--plugin", type=Path, required=True, help="flannel's CNI plugin")
    options = parser.parse_args()
    return bench.conclude("from-flannel", lambda: run(options.flanneld.resolve(), options.plugin.resolve()))


if __name__ == "__main__":
    sys.exit(main())
