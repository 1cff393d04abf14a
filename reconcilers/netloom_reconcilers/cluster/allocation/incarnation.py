"""What the members of one incarnation share, what they tell without knowing whom, and which changes concern them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum, auto

from netloom.api.core import Node
from netloom.api.holdings import is_in_use
from netloom.api.v1alpha1 import NetloomIPPool, NetloomNetwork, NetloomNode
from netloom.cidr import Cidr
from netloom.ipam.allocator import Allocator
from netloom.runtime.client import Api
from netloom.runtime.store import Store
from netloom_reconcilers.conditions import Conditions


@dataclass(frozen=True, slots=True)
class NodesAffected:
    """What is known of these nodes changed: they are to be reconciled."""

    names: Iterable[str]


@dataclass(frozen=True, slots=True)
class BlocksFreed:
    """So many blocks can be given to others, of pools these; None: a whole ledger's, or nobody knows how many."""

    count: int | None = None
    blocks: tuple[Cidr, ...] = ()


@dataclass(frozen=True, slots=True)
class PoolsAffected:
    """There may be news to tell of these NetloomIPPools."""

    names: Iterable[str]


class Changed(Enum):
    """What else may be told or done differently now."""

    LEDGERS = auto()
    """Ledgers were written or read."""
    NETWORK = auto()
    """The NetloomNetwork came, went or was edited, or its status was written."""
    SETTINGS = auto()
    """Blocks are given by other rules than before."""
    RESERVED = auto()
    """Other blocks are given to nobody than before, or for other reasons."""
    WAITING = auto()
    """Other nodes wait, or for other reasons."""
    LEFT_OUT = auto()
    """Other Nodes are left out, or keep what they had."""


Event = NodesAffected | BlocksFreed | PoolsAffected | Changed


@dataclass(frozen=True, slots=True)
class Stores:
    """Somebody else fills them."""

    networks: Store[NetloomNetwork]
    nodes: Store[Node]
    netloom_nodes: Store[NetloomNode]
    pools: Store[NetloomIPPool]


@dataclass(frozen=True, slots=True)
class Incarnation:
    """`publish` tells an event at once, as a `Store` does: whoever is told only queues keys and takes notes."""

    api: Api
    stores: Stores
    allocator: Allocator
    conditions: Conditions
    publish: Callable[[Event], None]
    clock: Callable[[], float]


class Member:
    """Of an incarnation: it has what all share."""

    def __init__(self, incarnation: Incarnation) -> None:
        self._api = incarnation.api
        self._networks = incarnation.stores.networks
        self._nodes = incarnation.stores.nodes
        self._netloom_nodes = incarnation.stores.netloom_nodes
        self._pools = incarnation.stores.pools
        self._allocator = incarnation.allocator
        self._conditions = incarnation.conditions
        self._publish = incarnation.publish
        self._clock = incarnation.clock


def node_changed(old: Node, new: Node) -> bool:
    """Whether allocation has to look again. Not at heartbeats: 5,000 nodes write 500 of them a second."""
    return (
        old.metadata.uid != new.metadata.uid
        or old.metadata.labels != new.metadata.labels
        or old.brought != new.brought
        or old.status.addresses != new.status.addresses
        or old.status.ready.status != new.status.ready.status
    )


def netloom_node_changed(old: NetloomNode, new: NetloomNode) -> bool:
    """Whether allocation has to look again. Not at what operators write of the status: two that disagree would answer
    each other. Nor at which addresses of a node are used, as long as any is."""
    return (
        old.spec != new.spec
        or old.metadata.uid != new.metadata.uid
        or old.metadata.deletion_timestamp != new.metadata.deletion_timestamp
        or old.metadata.owner_references != new.metadata.owner_references
        or old.status.absent_addresses != new.status.absent_addresses
        or old.status.connected_cidrs != new.status.connected_cidrs
        or is_in_use(old) != is_in_use(new)
    )


def pool_changed(old: NetloomIPPool, new: NetloomIPPool) -> bool:
    """Whether anything has to be looked at again. Not at what is written of the status."""
    return old.spec != new.spec or old.metadata.uid != new.metadata.uid
