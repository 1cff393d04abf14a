"""The caches that allocation reads, and which changes of their objects concern it."""

from dataclasses import dataclass

from netloom.api.core import Node
from netloom.api.v1alpha1 import NetloomNetwork, NetloomNode
from netloom.runtime.store import Store


@dataclass(frozen=True, slots=True)
class Stores:
    """Somebody else fills them."""

    networks: Store[NetloomNetwork]
    nodes: Store[Node]
    netloom_nodes: Store[NetloomNode]


def node_changed(old: Node, new: Node) -> bool:
    """Whether allocation has to look again. Not at heartbeats: 5,000 nodes write 500 of them a second."""
    return (
        old.metadata.uid != new.metadata.uid
        or old.spec.pod_cidrs != new.spec.pod_cidrs
        or old.status.addresses != new.status.addresses
    )


def netloom_node_changed(old: NetloomNode, new: NetloomNode) -> bool:
    """Whether allocation has to look again. Not at a status: two operators that disagree would answer each other."""
    return (
        old.spec != new.spec
        or old.metadata.uid != new.metadata.uid
        or old.metadata.deletion_timestamp != new.metadata.deletion_timestamp
        or old.metadata.owner_references != new.metadata.owner_references
    )
