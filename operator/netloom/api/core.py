"""The built-in objects of Kubernetes that Netloom reads, with just the fields it uses."""

import base64
import binascii
from typing import Any

import msgspec

from netloom.api.meta import READY, ObjectMeta, Resource, Struct


class NodeAddress(Struct, frozen=True):
    """Node.status.addresses[]: `type` is InternalIP, ExternalIP, Hostname, ..."""

    type: str = ""
    address: str = ""


POD_CIDR_ANNOTATIONS = (
    ("netloom.dev/ipv4-pod-cidr", "network.cilium.io/ipv4-pod-cidr"),
    ("netloom.dev/ipv6-pod-cidr", "network.cilium.io/ipv6-pod-cidr"),
)
"""Of a Node without spec.podCIDRs, for each family: the first of these that is there. (Cilium's name is the second.)"""


NOT_READY_TAINT = "node.netloom.dev/not-ready"
"""Key of the taint that keeps pods away from a Node until its agent takes it off."""


class NodeSpec(Struct, frozen=True):
    """Node.spec: what kube-controller-manager's node IPAM allocated, in `kubernetes` mode."""

    pod_cidrs: tuple[str, ...] = msgspec.field(name="podCIDRs", default=())


class NodeCondition(Struct, frozen=True):
    """Node.status.conditions[], without the time of its heartbeat."""

    type: str = ""
    status: str = ""
    last_transition_time: str = ""


class NodeStatus(Struct, frozen=True):
    """Node.status without its heartbeats."""

    addresses: tuple[NodeAddress, ...] = ()
    conditions: tuple[NodeCondition, ...] = ()

    @property
    def ready(self) -> NodeCondition:
        """Whether the kubelet says that it is Ready, and since when: Unknown where the kubelet is silent, empty where
        there is no kubelet that says anything."""
        return next((each for each in self.conditions if each.type == READY), _NOT_SAID)


_NOT_SAID = NodeCondition(READY)


class Node(Struct, frozen=True):
    """core/v1 Node."""

    metadata: ObjectMeta = ObjectMeta()
    spec: NodeSpec = NodeSpec()
    status: NodeStatus = NodeStatus()

    @property
    def brought(self) -> tuple[tuple[str, str], ...]:
        """The pod CIDRs that it comes with, each with its field."""
        if self.spec.pod_cidrs:
            return tuple((f"spec.podCIDRs[{number}]", text) for number, text in enumerate(self.spec.pod_cidrs))
        said = self.metadata.annotations
        found = (next((key for key in keys if said.get(key)), "") for keys in POD_CIDR_ANNOTATIONS) if said else ()
        return tuple((f"metadata.annotations[{key}]", said[key]) for key in found if key)


NODES = Resource("", "v1", "nodes", Node)


class ManagedFields(Struct, frozen=True):
    """metadata.managedFields[]: what `manager` wrote, by a server-side apply or (`operation` Update) otherwise, and
    when it last changed that."""

    manager: str = ""
    operation: str = ""
    time: str = ""
    fields_v1: dict[str, Any] = msgspec.field(name="fieldsV1", default_factory=dict)


class ManagedMeta(ObjectMeta, frozen=True):
    """With who wrote which field; for kinds of which few objects are kept, as it takes room."""

    managed_fields: tuple[ManagedFields, ...] = ()


class ConfigMap(Struct, frozen=True):
    """core/v1 ConfigMap: `binary_data` as on the wire, in base64."""

    metadata: ManagedMeta = ManagedMeta()
    data: dict[str, str] = msgspec.field(default_factory=dict)
    binary_data: dict[str, str] = msgspec.field(default_factory=dict)

    @property
    def files(self) -> dict[str, str]:
        """What a container sees that mounts it: the keys of both. What is no UTF-8 is shown as it can be."""
        return {key: _text(value) for key, value in self.binary_data.items()} | self.data


class Secret(Struct, frozen=True):
    """core/v1 Secret: `data` as on the wire, in base64."""

    metadata: ObjectMeta = ObjectMeta()
    type: str = "Opaque"
    data: dict[str, str] = msgspec.field(default_factory=dict)


class TaintedSpec(Struct, frozen=True):
    """Node.spec, with taints as they are on the wire: they are written back."""

    taints: tuple[dict[str, Any], ...] = ()


class PodIP(Struct, frozen=True):
    """Pod.status.podIPs[]."""

    ip: str = ""


class PodSpec(Struct, frozen=True):
    """Pod.spec, as far as it says whose addresses the pod has."""

    host_network: bool = False
    node_name: str = ""


class PodStatus(Struct, frozen=True):
    """Pod.status: one in phase Succeeded or Failed has given its addresses back."""

    phase: str = ""
    pod_ips: tuple[PodIP, ...] = msgspec.field(name="podIPs", default=())


class Pod(Struct, frozen=True):
    """core/v1 Pod."""

    metadata: ObjectMeta = ObjectMeta()
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()

    @property
    def name(self) -> str:
        """`namespace/name`."""
        return f"{self.metadata.namespace}/{self.metadata.name}"

    @property
    def is_over(self) -> bool:
        """Whether it has ended, and what it had is free."""
        return self.status.phase in ("Succeeded", "Failed")

    @property
    def is_on_network(self) -> bool:
        """Whether it has addresses of its own, or is to get some."""
        return not self.spec.host_network and not self.is_over


STATIC = ("kubernetes.io/config.mirror", "kubernetes.io/config.hash")
"""Annotations of pods that a kubelet has of a file, with the uid by which it and its runtime know them: the API server
shows their mirrors, which have one of their own."""


def has_uid(pod: Pod, uid: str) -> bool:
    """Whether that is the pod's uid, as a runtime says it; so it is where none is said."""
    return not uid or uid in (pod.metadata.uid, *map(pod.metadata.annotations.get, STATIC))


class Namespace(Struct, frozen=True):
    """core/v1 Namespace."""

    metadata: ObjectMeta = ObjectMeta()


class ServiceSpec(Struct, frozen=True):
    """Service.spec: its virtual addresses, "None" where it has none."""

    cluster_ips: tuple[str, ...] = msgspec.field(name="clusterIPs", default=())


class Service(Struct, frozen=True):
    """core/v1 Service."""

    metadata: ObjectMeta = ObjectMeta()
    spec: ServiceSpec = ServiceSpec()


class ServiceCIDRSpec(Struct, frozen=True):
    """ServiceCIDR.spec: at most one CIDR of each family."""

    cidrs: tuple[str, ...] = ()


class ServiceCIDR(Struct, frozen=True):
    """networking.k8s.io/v1 ServiceCIDR: Services get their addresses of all of them. Served since Kubernetes 1.33."""

    metadata: ObjectMeta = ObjectMeta()
    spec: ServiceCIDRSpec = ServiceCIDRSpec()


PODS = Resource("", "v1", "pods", Pod)
NAMESPACES = Resource("", "v1", "namespaces", Namespace)
SERVICES = Resource("", "v1", "services", Service)
SERVICE_CIDRS = Resource("networking.k8s.io", "v1", "servicecidrs", ServiceCIDR)
CONFIG_MAPS = Resource("", "v1", "configmaps", ConfigMap)
SECRETS = Resource("", "v1", "secrets", Secret)


def _text(encoded: str) -> str:
    try:
        return base64.b64decode(encoded).decode(errors="replace")
    except (binascii.Error, ValueError):
        return encoded
