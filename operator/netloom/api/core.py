"""The built-in objects of Kubernetes that Netloom reads, with just the fields it uses."""

import msgspec

from netloom.api.meta import ObjectMeta, Resource, Struct


class NodeAddress(Struct, frozen=True):
    """Node.status.addresses[]: `type` is InternalIP, ExternalIP, Hostname, ..."""

    type: str = ""
    address: str = ""


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
        return next((each for each in self.conditions if each.type == "Ready"), _NOT_SAID)


_NOT_SAID = NodeCondition("Ready")


class Node(Struct, frozen=True):
    """core/v1 Node."""

    metadata: ObjectMeta = ObjectMeta()
    spec: NodeSpec = NodeSpec()
    status: NodeStatus = NodeStatus()


NODES = Resource("", "v1", "nodes", Node)


class ConfigMap(Struct, frozen=True):
    """core/v1 ConfigMap; its `binaryData` is not read."""

    metadata: ObjectMeta = ObjectMeta()
    data: dict[str, str] = msgspec.field(default_factory=dict)


class Secret(Struct, frozen=True):
    """core/v1 Secret: `data` as on the wire, in base64."""

    metadata: ObjectMeta = ObjectMeta()
    type: str = "Opaque"
    data: dict[str, str] = msgspec.field(default_factory=dict)


CONFIG_MAPS = Resource("", "v1", "configmaps", ConfigMap)
SECRETS = Resource("", "v1", "secrets", Secret)
