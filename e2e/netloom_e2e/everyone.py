"""Pods on every node of a cluster of kubelets, reached in every way that Kubernetes has.

    everyone = Everyone(bed)                    # a pod per node, and one in each node's own network; their Services
    assert everyone.unreached() == []   # pod to pod, Services, ports of nodes, from outside and to there

Each look says what did not answer, or who else did, a line each: a fault in the network is seldom alone, and which
calls fail together says more of its cause than the first of them.
"""

from __future__ import annotations

import itertools
import json
import socket
from collections.abc import Iterator, Set

from netloom_e2e.flow import Flows
from netloom_e2e.kubelets import KubeletCluster
from netloom_e2e.lab import OUTSIDE, OUTSIDE6, Namespace, Pod

HTTP, UDP = 80, 81
HOST_HTTP, HOST_UDP = 8080, 8081
"""Of the pods in nodes' own network."""
HOST_PORT, HOST_PORT_UDP = 8090, 8091
NODE_PORT, NODE_PORT_UDP, LOCAL_PORT = 30080, 30081, 30082
SERVICE = {4: "10.96.0.80", 6: "fd00:10:96::80"}
HEADERS = {4: 28, 6: 48}
"""Bytes of IP and ICMP headers."""
FLOW_SECONDS = 90.0
"""In which a flow's end has to answer, beside kubelets that start pods on a machine with few processors."""
_SECONDS = 5

_MANIFEST = f"""
apiVersion: apps/v1
kind: DaemonSet
metadata: {{name: all}}
spec:
  selector: {{matchLabels: {{app: all}}}}
  template:
    metadata: {{labels: {{app: all}}}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
        - name: agnhost
          image: ${{agnhost}}
          imagePullPolicy: Never
          args: [netexec, --http-port={HTTP}, --udp-port={UDP}]
          ports:
            - {{containerPort: {HTTP}, hostPort: {HOST_PORT}}}
            - {{containerPort: {UDP}, hostPort: {HOST_PORT_UDP}, protocol: UDP}}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {{name: host}}
spec:
  selector: {{matchLabels: {{app: host}}}}
  template:
    metadata: {{labels: {{app: host}}}}
    spec:
      terminationGracePeriodSeconds: 0
      hostNetwork: true
      containers:
        - name: agnhost
          image: ${{agnhost}}
          imagePullPolicy: Never
          args: [netexec, --http-port={HOST_HTTP}, --udp-port={HOST_UDP}]
---
apiVersion: v1
kind: Service
metadata: {{name: all}}
spec:
  type: NodePort
  ipFamilyPolicy: PreferDualStack
  clusterIP: {SERVICE[4]}
  clusterIPs: ${{addresses}}
  selector: {{app: all}}
  ports:
    - {{name: http, port: {HTTP}, nodePort: {NODE_PORT}}}
    - {{name: udp, port: {UDP}, protocol: UDP, nodePort: {NODE_PORT_UDP}}}
---
apiVersion: v1
kind: Service
metadata: {{name: local}}
spec:
  type: NodePort
  ipFamilyPolicy: PreferDualStack
  externalTrafficPolicy: Local
  selector: {{app: all}}
  ports: [{{port: {HTTP}, nodePort: {LOCAL_PORT}}}]
"""


class Everyone:
    """The pods by their nodes, and the looks. The lab of the cluster has a host outside.

    versions: of IP, that the cluster has.
    """

    def __init__(self, bed: KubeletCluster) -> None:
        self.bed = bed
        self.versions = (4, 6) if bed.lab.dual_stack else (4,)
        self.pods: dict[str, Pod] = {}
        self.names: dict[str, str] = {}
        """Of the pods' objects, and of their hosts."""
        bed.apply(_MANIFEST, addresses=json.dumps([SERVICE[version] for version in self.versions]))
        self.gather()

    def gather(self) -> None:
        """Who is there now, on all nodes that there are; returns when Services are answered everywhere."""
        bed = self.bed
        bed.wait(
            "pods on each node", lambda: all(self._named(app).keys() == bed.nodes.keys() for app in ("all", "host"))
        )
        self.names = self._named("all")
        self.pods = {node: bed.pod(name) for node, name in self.names.items()}
        for name in self._named("host").values():
            bed.pod(name)
        # kube-proxy hears of pods later than kubelets say that they are ready.
        for node, version in itertools.product(bed.nodes.values(), self.versions):
            curl = _curl(SERVICE[version], HTTP)
            bed.wait(f"{node.name} to know the Service", lambda n=node, c=curl: n.machine.run(*c, check=False))  # type: ignore[misc]

    def _named(self, app: str) -> dict[str, str]:
        path = f"/api/v1/namespaces/default/pods?labelSelector=app={app}"
        living = [
            pod
            for pod in self.bed.plane.client.request("GET", path)["items"]
            if "deletionTimestamp" not in pod["metadata"] and pod["spec"].get("nodeName") in self.bed.nodes
        ]
        return {pod["spec"]["nodeName"]: pod["metadata"]["name"] for pod in living}

    def flows(self, *nodes: str) -> Flows:
        """1,000 packets a second from every pod to every other, in each family; of these nodes, or of all."""
        pods = {node: self.pods[node] for node in nodes or self.pods}
        return Flows(pods, versions=self.versions, deadline=FLOW_SECONDS)

    # Looks

    @property
    def mtu(self) -> int:
        """Bytes of the largest packet between pods."""
        return min(int(json.loads(pod.ip("-j", "link", "show", "eth0"))[0]["mtu"]) for pod in self.pods.values())

    def unreached(self) -> list[str]:
        """All of them. Empty where all is well."""
        looks = (
            self.between_pods(),
            self.by_service(),
            self.by_ports_of_nodes(),
            self.with_host_network(),
            self.outside(),
        )
        return [*itertools.chain(*looks)]

    def between_pods(self) -> Iterator[str]:
        """Every pod from every other: packets of the full size with DF, TCP, UDP."""
        mtu = self.mtu
        for (near, source), (far, target) in itertools.permutations(self.pods.items(), 2):
            for version in self.versions:
                address = target.of(version)
                if source.ping(address, payload=mtu - HEADERS[version]).lost:
                    yield f"{near} -> {far} {address}: a packet of {mtu} bytes with DF is lost"
                yield from _asked(source, address, (HTTP, UDP), {self.names[far]})

    def by_service(self) -> Iterator[str]:
        """The ClusterIP, from pods and from nodes."""
        everyone = {*self.names.values()}
        for source, version in itertools.product(self._sources(), self.versions):
            yield from _asked(source, SERVICE[version], (HTTP, UDP), everyone)

    def by_ports_of_nodes(self) -> Iterator[str]:
        """NodePort and hostPort of each node, from a host outside of the cluster and from every pod."""
        everyone = {*self.names.values()}
        for source in (self.bed.lab.outside, *self.pods.values()):
            for node, address in self._nodes():
                yield from _asked(source, address, (NODE_PORT, NODE_PORT_UDP), everyone)
                yield from _asked(source, address, (HOST_PORT, HOST_PORT_UDP), {self.names[node]})
        for _, address in self._nodes():
            # externalTrafficPolicy Local: the pod sees who asks; only connection tracking knows the way of the answer.
            outside = OUTSIDE6[10] if ":" in address else OUTSIDE[10]
            seen = _fetched(self.bed.lab.outside, address, LOCAL_PORT, "clientip").rpartition(":")[0].strip("[]")
            if seen != str(outside):
                yield f"{outside} at port {LOCAL_PORT} of {address} is {seen!r} to the pod"

    def with_host_network(self) -> Iterator[str]:
        """Pods and the pods in nodes' own network, both ways, on one node and across."""
        for (name, pod), (node, address) in itertools.product(self.pods.items(), self._nodes()):
            yield from _asked(pod, address, (HOST_HTTP, HOST_UDP), {node})
            version = 6 if ":" in address else 4
            machine = self.bed.nodes[node].machine
            yield from _asked(machine, pod.of(version), (HTTP, UDP), {self.names[name]})

    def outside(self) -> Iterator[str]:
        """A host that knows no way to pods, so an answer shows that they are masqueraded."""
        for name, pod in self.pods.items():
            for version in self.versions:
                address = str((OUTSIDE if version == 4 else OUTSIDE6)[10])
                if pod.ping(address).lost:
                    yield f"{name} -> {address}: no answer from outside"

    def _sources(self) -> list[Namespace]:
        return [*self.pods.values(), *(node.machine for node in self.bed.nodes.values())]

    def _nodes(self) -> list[tuple[str, str]]:
        """Names and addresses, of all families."""
        return [(name, address) for name, node in self.bed.nodes.items() for address in node.machine.underlay]


def _asked(source: Namespace, address: str, ports: tuple[int, int], whom: Set[str]) -> Iterator[str]:
    """By TCP and by UDP: who answers has to be one of these hosts."""
    answers = {"TCP": _fetched(source, address, ports[0], "hostname"), "UDP": _told(source, address, ports[1])}
    for protocol, answer in answers.items():
        if answer not in whom:
            port = ports[protocol == "UDP"]
            expected = " or ".join(sorted(whom))
            yield f"{source.name} -> {address} port {port}/{protocol}: {answer or 'no answer'}; expected {expected}"


def _fetched(source: Namespace, address: str, port: int, path: str) -> str:
    return source.run(*_curl(address, port, path), check=False)


def _curl(address: str, port: int, path: str = "hostname") -> list[str]:
    host = f"[{address}]" if ":" in address else address
    return ["curl", "-s", "--max-time", f"{_SECONDS}", f"http://{host}:{port}/{path}"]


def _told(source: Namespace, address: str, port: int) -> str:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with source.inside(lambda: socket.socket(family, socket.SOCK_DGRAM)) as client:
        client.settimeout(_SECONDS)
        try:
            client.sendto(b"hostname", (address, port))
            return client.recv(1000).decode()
        except OSError:
            return ""
