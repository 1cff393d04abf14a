"""Netloom in a cluster of kubelets, as its users install it: CRDs, rights and workloads from docs/examples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from netloom_e2e import crds
from netloom_e2e.agents import NETWORK, announced
from netloom_e2e.images import Image
from netloom_e2e.kubelet_node import KubeletNode
from netloom_e2e.kubelets import KubeletCluster
from netloom_e2e.mesh import device_state
from netloom_e2e.namespaces import wait_for
from netloom_e2e.netloom_image import netloom

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"
NAMESPACE = "kube-system"
AGENTS = f"/apis/apps/v1/namespaces/{NAMESPACE}/daemonsets/netloom-agent"
NODES = "/apis/netloom.dev/v1alpha1/netloomnodes"
NOT_READY = "node.netloom.dev/not-ready"
_SECONDS = 90.0


@dataclass(frozen=True, slots=True)
class Netloom:
    """Netloom wires the pods. `network`: the name of one of the examples, or a manifest."""

    image: Image
    network: str = "tunnel-kubernetes.yaml"
    taints: tuple[str, ...] = (NOT_READY,)

    def install(self, nodes: Sequence[KubeletNode]) -> None:
        """The agents put the plugin on their nodes, which makes these ready."""
        plane = nodes[0].plane
        crds.install(plane)
        self.apply(nodes[0], (EXAMPLES / "in-cluster.yaml").read_text())
        self.apply(nodes[0], self._network())
        wait_for("the agents to be ready", lambda: agents_ready(nodes[0]) == len(nodes), deadline=_SECONDS)

    def apply(self, node: KubeletNode, manifest: str) -> None:
        """A manifest, with this image."""
        text = manifest.replace("image: netloom:latest", f"image: {self.image.name}")
        node.plane.kubectl("apply", "--server-side", "--filename=-", input=text)

    def _network(self) -> str:
        return self.network if "\n" in self.network else (EXAMPLES / self.network).read_text()


def agents_ready(node: KubeletNode) -> int:
    """How many agents are up to date and ready."""
    found: dict[str, Any] = node.plane.client.request("GET", AGENTS)
    status = found.get("status", {})
    if status.get("observedGeneration") != found["metadata"]["generation"]:
        return 0
    return min(int(status.get("updatedNumberScheduled", 0)), int(status.get("numberReady", 0)))


def reroute(bed: KubeletCluster, ways: Iterable[str], device: str, **routing: object) -> None:
    """Edits spec.routing. Returns when all nodes announce these ways, and send to each other by this device."""
    client, wanted = bed.plane.client, dict.fromkeys(ways, True)
    client.request("PATCH", f"{NETWORK}/default", {"spec": {"routing": routing}})
    bed.wait(f"nodes to announce {wanted}", lambda: announced(client) == dict.fromkeys(bed.nodes, wanted))
    used = {name: {device} for name in bed.nodes}
    bed.wait(
        f"ways by {device}",
        lambda: {name: {*device_state(node.machine).values()} for name, node in bed.nodes.items()} == used,
    )


def cluster(
    prefix: str,
    *,
    nodes: int = 3,
    name: str = "",
    network: str = "tunnel-kubernetes.yaml",
    dual_stack: bool = False,
    further: Iterable[Image] = (),
) -> KubeletCluster:
    """A cluster whose nodes Netloom joins. To be made before a namespace is entered: it builds what is missing.

    network: as in Netloom. dual_stack: as in KubeletCluster.
    """
    image = netloom()
    wired, images = Netloom(image, network), [image, *further]
    return KubeletCluster(prefix, nodes=nodes, network=wired, further=images, name=name, dual_stack=dual_stack)
