"""Netloom in a cluster of kubelets, as its users install it: by manifests from docs/examples, or by its chart."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from netloom_e2e import binaries, crds
from netloom_e2e.agents import NETWORK, announced
from netloom_e2e.chart import CHART
from netloom_e2e.cluster import ControlPlane
from netloom_e2e.images import Image
from netloom_e2e.kubelet_node import KubeletNode
from netloom_e2e.kubelets import KubeletCluster
from netloom_e2e.mesh import device_state
from netloom_e2e.namespaces import wait_for
from netloom_e2e.netloom_image import netloom
from netloom_e2e.pod_networks import PodNetwork

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"
NAMESPACE = "kube-system"
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


@dataclass(frozen=True, slots=True)
class Release:
    """Netloom wires the pods, installed by Helm, with the guard. values: of its chart, beside the image. namespace: one
    that is there."""

    image: Image
    values: Mapping[str, Any]
    chart: Path = CHART
    taints: tuple[str, ...] = (NOT_READY,)
    namespace: str = NAMESPACE

    def install(self, nodes: Sequence[KubeletNode]) -> None:
        """Returns when all of it is ready, by what Helm waits for."""
        self.put(nodes[0].plane, "install", {}, "--wait")
        assert agents_ready(nodes[0], self.namespace) == len(nodes)

    def put(
        self,
        plane: ControlPlane,
        verb: str,
        changes: Mapping[str, Any],
        *options: str,
        image: Image | None = None,
        chart: Path | None = None,
    ) -> None:
        """Install or upgrade the release; changes: of the values, None: without that one. Raises HelmError.

        image, chart: others than those that it was installed with.
        """
        repository, _, tag = (image or self.image).name.rpartition(":")
        values = {**self.values, "image": {"repository": repository, "tag": tag}, **changes}
        text = json.dumps({name: value for name, value in values.items() if value is not None})
        self.helm(plane, verb, chart or self.chart, "--values=-", *options, input=text)

    def helm(
        self, plane: ControlPlane, verb: str, *arguments: str | Path, check: bool = True, input: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """A verb on the release. Raises HelmError where `check` is set."""
        named = (verb, "netloom", *arguments, f"--namespace={self.namespace}")
        return plane.helm(*named, check=check, input=input, timeout=2 * _SECONDS)


def agents_ready(node: KubeletNode, namespace: str = NAMESPACE) -> int:
    """How many agents are up to date and ready."""
    path = f"/apis/apps/v1/namespaces/{namespace}/daemonsets/netloom-agent"
    found: dict[str, Any] = node.plane.client.request("GET", path)
    status = found.get("status", {})
    if status.get("observedGeneration") != found["metadata"]["generation"]:
        return 0
    return min(int(status.get("updatedNumberScheduled", 0)), int(status.get("numberReady", 0)))


def reroute(bed: KubeletCluster, ways: Iterable[str], device: str, **routing: object) -> None:
    """Edits spec.routing. Returns when that is done, see `rerouted`."""
    bed.plane.client.request("PATCH", f"{NETWORK}/default", {"spec": {"routing": routing}})
    rerouted(bed, ways, device)


def rerouted(bed: KubeletCluster, ways: Iterable[str], device: str) -> None:
    """Returns when all nodes announce these ways, and send to each other by this device."""
    client, wanted = bed.plane.client, dict.fromkeys(ways, True)
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
    values: Mapping[str, Any] | None = None,
    chart: Path = CHART,
    dual_stack: bool = False,
    further: Iterable[Image] = (),
) -> KubeletCluster:
    """A cluster whose nodes Netloom joins. To be made before a namespace is entered: it builds what is missing.

    network: as in Netloom. values: installed by its chart instead, with these; chart: by another one. dual_stack: as in
    KubeletCluster.
    """
    image = netloom()
    wired: PodNetwork = Netloom(image, network) if values is None else Release(image, values, chart)
    images = [image, *further]
    if values is not None:
        binaries.helm()
    return KubeletCluster(prefix, nodes=nodes, network=wired, further=images, name=name, dual_stack=dual_stack)
