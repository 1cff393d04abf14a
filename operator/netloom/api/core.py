"""The built-in objects of Kubernetes that Netloom reads, with just the fields it uses."""

import base64
import binascii
from typing import Any

import msgspec

from netloom.api.meta import ObjectMeta, Resource, Struct


class NodeAddress(Struct, frozen=True):
    """Node.status.addresses[]: `type` is InternalIP, ExternalIP, Hostname, ..."""

    type: str = ""
    address: str = ""


class NodeSpec(Struct, frozen=True):
    """Node.spec: what kube-controller-manager's node IPAM allocated, in `kubernetes` mode."""

    pod_cidrs: tuple[str, ...] = msgspec.field(name="podCIDRs", default=())


class NodeStatus(Struct, frozen=True):
    """Node.status without its heartbeats."""

    addresses: tuple[NodeAddress, ...] = ()


class Node(Struct, frozen=True):
    """core/v1 Node."""

    metadata: ObjectMeta = ObjectMeta()
    spec: NodeSpec = NodeSpec()
    status: NodeStatus = NodeStatus()


NODES = Resource("", "v1", "nodes", Node)


class ManagedFields(Struct, frozen=True):
    """metadata.managedFields[]: what `manager` wrote, by a server-side apply or (`operation` Update) otherwise."""

    manager: str = ""
    operation: str = ""
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


def _text(encoded: str) -> str:
    try:
        return base64.b64decode(encoded).decode(errors="replace")
    except (binascii.Error, ValueError):
        return encoded


CONFIG_MAPS = Resource("", "v1", "configmaps", ConfigMap)
SECRETS = Resource("", "v1", "secrets", Secret)
