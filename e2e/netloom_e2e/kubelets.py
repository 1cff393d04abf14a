"""A whole cluster on this machine: nodes with real kubelets and containerd, Services, DNS; its pods' network is chosen.

    kubelets.prepare()                              # builds what is missing; nothing can be built later
    with KubeletCluster("nlc1") as cluster:         # the calling thread is in the switch's namespace meanwhile
        cluster.apply(MANIFEST)
        pod = cluster.pod("a")                      # waits until it is Ready
        pod.ping(cluster.pod("b").address)          # programs of the machine, in the pod's network namespace

The network between the nodes is a lab (see `netloom_e2e.lab`), so cables can be pulled and hosts put outside.
"""

from __future__ import annotations

import os
import shutil
import string
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from netloom_e2e import binaries, images
from netloom_e2e.binaries import BinariesError
from netloom_e2e.client import ApiFailure, Client
from netloom_e2e.cluster import ControlPlane
from netloom_e2e.components import ControllerManager
from netloom_e2e.image_store import image_store
from netloom_e2e.images import Image
from netloom_e2e.kubelet_node import KubeletNode
from netloom_e2e.lab import Lab, Pod, run, wait_for
from netloom_e2e.life import Started
from netloom_e2e.pod_networks import Bridge, Nobody, PodNetwork

MANIFESTS = Path(__file__).parent.parent / "manifests"
CLUSTER_CIDRS = ("10.244.0.0/16",)
CLUSTER_CIDRS6 = ("fd00:10:244::/48",)
SERVICE_CIDRS = "10.96.0.0/12,fd00:10:96::/112"
"""Of a cluster with both families."""
_READY_SECONDS = 90.0
_LOOPBACK = "127.0.0.1"
_PROGRAMS = ("containerd", "ctr", "runc", "iptables", "unshare", "nsenter")


def prepare() -> None:
    """Builds what a cluster takes and is missing: to be called before a namespace is entered. Raises BinariesError."""
    if missing := [program for program in _PROGRAMS if not shutil.which(program)]:
        raise BinariesError(f"{', '.join(missing)}: not there; run `e2e/setup cluster`")
    binaries.prepare()
    for program in ("kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy"):
        binaries.find(program)
    binaries.cni_plugins()
    images.prepare()


class KubeletCluster(Started):
    """prefix: of the namespaces; at most 8 characters, unique on the machine.
    name: of the state folder, where it is to be found again (see `netloom_e2e.processes`).
    further: images that pods ask for beside those of the cluster itself.
    dual_stack: nodes, pods and Services have an IPv6 address as well.
    apiserver_flags: beside its own.
    """

    def __init__(
        self,
        prefix: str,
        *,
        nodes: int = 3,
        network: PodNetwork | None = None,
        cluster_cidrs: Sequence[str] = CLUSTER_CIDRS,
        further: Iterable[Image] = (),
        name: str = "",
        dual_stack: bool = False,
        apiserver_flags: Sequence[str] = (),
    ) -> None:
        self.lab = Lab(prefix, dual_stack=dual_stack)
        self.network = network or Bridge()
        self.nodes: dict[str, KubeletNode] = {}
        self.seconds: dict[str, float] = {}
        """How long each part of the start took."""
        self._names = [f"n{number}" for number in range(1, nodes + 1)]
        self._cluster_cidrs = (*cluster_cidrs, *(CLUSTER_CIDRS6 if dual_stack else ()))
        self._images = {"pause": images.pause(), "agnhost": images.agnhost(), "coredns": images.coredns()}
        self._store = image_store([*self._images.values(), *further])
        self.plane = ControlPlane(
            name,
            bind=Lab.address,
            controller_manager=ControllerManager(cluster_cidrs=self._cluster_cidrs),
            apiserver_flags=[
                "--enable-admission-plugins=NodeRestriction",
                # Its machine is no node, and no kube-proxy leads it to Services: webhooks are asked at their endpoints.
                "--enable-aggregator-routing",
                *([f"--service-cluster-ip-range={SERVICE_CIDRS}"] if dual_stack else ()),
                *apiserver_flags,
            ],
        )
        self._entered = ExitStack()

    # Life

    def start(self) -> None:
        """Returns when all nodes are Ready, and with it the cluster's DNS. With Nobody, when nodes are registered."""
        began = time.monotonic()
        try:
            self.lab.__enter__()
            for name in self._names:
                self.lab.add_node(name)
            self._entered.enter_context(self.lab.switch.entered())
            self.plane.open()
            self.lab.hand_over(self.plane.state)
            # Beside each other: the machines get their images while etcd and the API server start.
            with ThreadPoolExecutor(len(self._names)) as threads:
                booting = [threads.submit(self._boot, name) for name in self._names]
                self.plane.start()
                self.plane.start_scheduler()
                self._took("control plane", began)
                for name, boot in zip(self._names, booting, strict=True):
                    self.nodes[name] = boot.result()
                self._took("images", began)
                list(threads.map(self._register, self.nodes.values()))
            self._took("nodes", began)
            self.network.install(list(self.nodes.values()))
            wired = not isinstance(self.network, Nobody)
            if wired:
                self.wait_nodes_ready()
                self._took("network", began)
            self.apply((MANIFESTS / "coredns.yaml").read_text())
            if wired:
                self.wait_ready()
                self._took("ready", began)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Ends everything and removes what it made. May be called twice."""
        try:
            self.plane.stop()
        finally:
            self._entered.close()
            self.lab.sweep()
            self.nodes.clear()

    def detach(self) -> Path:
        """Leaves it running when this process ends; `processes.destroy` of its state folder takes it away.

        A kubeconfig for the machine, whose kubectl finds the API server at a port of the loopback.
        """
        self._entered.close()
        kubeconfig = self.plane.kubeconfig(host=_LOOPBACK)
        port = str(self.plane.port)
        command = [sys.executable, "-m", "netloom_e2e.host_port", self.lab.switch.name, Lab.address, port]
        relay = self.plane.folder.spawn("host-port", command)
        client = Client.from_kubeconfig(kubeconfig)

        def answers() -> bool:
            if relay.status is not None:
                raise RuntimeError(f"{relay.name} ended:\n{relay.tail()}")
            with suppress(OSError):
                return bool(client.request("GET", "/readyz"))
            return False

        wait_for("the API server at a port of this machine", answers, deadline=_READY_SECONDS)
        self.plane.detach()
        return kubeconfig

    def add_node(self) -> KubeletNode:
        """One more node; returns when it is registered."""
        name = f"n{len(self.nodes) + 1}"
        self.lab.add_node(name)
        node = self.nodes[name] = self._boot(name)
        self._register(node)
        return node

    def remove_node(self, name: str) -> None:
        """As when a machine is taken away: it is switched off, and its Node deleted."""
        node = self.nodes.pop(name)
        node.power_off()
        self.lab.remove_node(name)
        self.plane.client.request("DELETE", f"/api/v1/nodes/{name}")
        shutil.rmtree(node.folder)

    def reboot(self, name: str) -> None:
        """Pull a node's plug and switch it on again: its disk is as it was, and nothing else. Returns at once."""
        node = self.nodes[name]
        node.power_off()
        self.lab.reset_node(name)
        node.boot()
        node.start_kubelet()
        node.start_proxy()

    def wait_ready(self) -> None:
        """Until all nodes and the pods of kube-system are Ready. Raises AssertionError with what is not, and why."""
        self.wait_nodes_ready()
        self.wait("the cluster's DNS", self._has_dns)

    def wait_nodes_ready(self) -> None:
        """Until all nodes are. Raises AssertionError."""
        self.wait("all nodes to be Ready", lambda: all(self.is_ready(name) for name in self.nodes))

    def _has_dns(self) -> bool:
        """Not before its pods exist, that is: there may be none at all yet."""
        pods = self._get("/api/v1/namespaces/kube-system/pods")
        named = [pod for pod in pods if pod["metadata"].get("labels", {}).get("k8s-app") == "kube-dns"]
        return bool(named) and all(map(_is_ready, pods))

    # Objects

    def image(self, name: str) -> str:
        """What a pod has to ask for: `agnhost`, `pause`, `coredns`."""
        return self._images[name].name

    def apply(self, manifest: str, **values: str) -> None:
        """Manifests in YAML, with `${agnhost}` and the like replaced by images and by values."""
        names = {name: image.name for name, image in self._images.items()}
        text = string.Template(manifest).safe_substitute(names | values)
        self.plane.kubectl("apply", "--server-side", "--filename=-", input=text)

    def is_ready(self, node: str) -> bool:
        try:
            return _is_ready(self.plane.client.request("GET", f"/api/v1/nodes/{node}"))
        except ApiFailure:  # not registered yet
            return False

    def pod(self, name: str, namespace: str = "default") -> Pod:
        """Its network namespace, when it is Ready; programs of the machine run in it.

        The namespace has a name from then on, and lives on when the pod is gone, until a pod of the name comes.
        """
        path = f"/api/v1/namespaces/{namespace}/pods/{name}"
        found: dict[str, Any] = {}

        def ready() -> bool:
            found.update(self.plane.client.request("GET", path))
            return _is_ready(found)

        self.wait(f"pod {namespace}/{name} to be Ready", ready)
        node = self.nodes[found["spec"]["nodeName"]]
        place = f"{self.lab.prefix}-{node.name}-{namespace}-{name}"
        run("ip", "netns", "delete", place, check=False)  # of an earlier pod of the name
        run("ip", "netns", "attach", place, str(node.pod_processes(found["metadata"]["uid"])[0]))
        addresses = tuple(each["ip"] for each in found["status"]["podIPs"])
        return Pod(name=place, address=addresses[0], addresses=addresses)

    def wait(self, what: str, condition: Callable[[], object], *, deadline: float = _READY_SECONDS) -> float:
        """`wait_for`, but it tells of the cluster's state where it fails."""
        try:
            return wait_for(what, condition, deadline=deadline)
        except TimeoutError as error:
            shown = [
                self.plane.kubectl(*words.split(), check=False).stdout
                for words in ("get nodes,pods -A -o wide", "get events -A --sort-by=.lastTimestamp")
            ]
            raise AssertionError("\n".join([str(error), shown[0], *shown[1].splitlines()[-30:]])) from error

    # Pieces

    def _boot(self, name: str) -> KubeletNode:
        pause, taints = self._images["pause"].name, self.network.taints
        node = KubeletNode(self.plane, self.lab.nodes[name], self._cluster_cidrs, pause, self._store, taints)
        node.boot()
        node.install_plugins()
        return node

    def _register(self, node: KubeletNode) -> None:
        node.start_kubelet()
        node.start_proxy()
        self.wait(f"{node.name} to be registered", lambda: self._is_registered(node.name))

    def _is_registered(self, name: str) -> bool:
        return any(node["metadata"]["name"] == name for node in self._get("/api/v1/nodes"))

    def _get(self, path: str) -> list[dict[str, Any]]:
        return list(self.plane.client.request("GET", path)["items"])

    def _took(self, part: str, began: float) -> None:
        self.seconds[part] = time.monotonic() - began


def prefix() -> str:
    """Of a cluster of this process."""
    return f"nlc{os.getpid() % 10000}"


def _is_ready(item: dict[str, Any]) -> bool:
    """Of a Node or a pod."""
    conditions = item.get("status", {}).get("conditions", ())
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)
