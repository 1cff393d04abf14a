"""The objects of group `netloom.dev`, version `v1alpha1`, as typed values.

The CustomResourceDefinitions in `crds/` are the documented source for users; `operator/tests/api/test_drift.py`
compares them with these structs field by field, so neither can change alone. Option names are those of Cilium's Helm
chart where it has the option. CIDRs and addresses stay text here: an object on the wire may hold anything, and what
it holds is parsed where an error can be reported with the object's and the field's name (`validation`). What concerns
prefilters is in `netloom.api.prefilter`.

A field without a default is one that the schema requires: it is always written, even when empty, and an object
without it is refused. A default here is the default of the schema.
"""

from typing import Literal

import msgspec

from netloom.api.meta import Condition, LabelSelector, ObjectMeta, Resource, Struct
from netloom.api.prefilter import NetloomPrefilter, NodePrefilter

GROUP = "netloom.dev"
VERSION = "v1alpha1"

NETWORK_NAME = "default"
"""The one name a NetloomNetwork may have."""

IGNORE_LABEL = "netloom.dev/ignore"
"""Of a Node: takes it out of Netloom; see `netloom.api.participation`."""

IN_USE_FINALIZER = "netloom.dev/in-use"
"""The operator's, on a network that is in use: without it, a deletion that waits goes through."""

IPAMMode = Literal["kubernetes", "cluster-pool", "multi-pool", "crd", "eni", "azure", "gke"]
RoutingMode = Literal["tunnel", "native", "hybrid"]
TunnelProtocol = Literal["vxlan", "geneve"]
TunnelSenders = Literal["nodes", "any"]

DEFAULT_PORTS: dict[TunnelProtocol, int] = {"vxlan": 8472, "geneve": 6081}
"""UDP port that `tunnelPort: 0` stands for."""


class ClusterPool(Struct, frozen=True):
    """spec.ipam.clusterPool: each node gets one CIDR of the mask size, per family that has a list."""

    ipv4_pod_cidr_list: tuple[str, ...] = msgspec.field(name="ipv4PodCIDRList", default=())
    ipv4_mask_size: int = 24
    ipv6_pod_cidr_list: tuple[str, ...] = msgspec.field(name="ipv6PodCIDRList", default=())
    ipv6_mask_size: int = 120


class MultiPool(Struct, frozen=True):
    """spec.ipam.multiPool: which NetloomIPPool a pod gets that names none; `require_pool_match`: it gets none."""

    default_pool: str = "default"
    require_pool_match: bool = False


class NetworkIPAM(Struct, frozen=True):
    """spec.ipam of a NetloomNetwork."""

    mode: IPAMMode = "cluster-pool"
    cluster_pool: ClusterPool = ClusterPool()
    multi_pool: MultiPool = MultiPool()


class Routing(Struct, frozen=True):
    """spec.routing of a NetloomNetwork: how pod traffic gets from node to node. `tunnel_senders`: whose packets are
    taken out of tunnels."""

    mode: RoutingMode = "tunnel"
    tunnel_protocol: TunnelProtocol = "vxlan"
    tunnel_port: int = 0
    tunnel_senders: TunnelSenders = "nodes"
    auto_direct_node_routes: bool = False
    direct_routing_skip_unreachable: bool = False
    ipv4_native_routing_cidr: str = msgspec.field(name="ipv4NativeRoutingCIDR", default="")
    ipv6_native_routing_cidr: str = msgspec.field(name="ipv6NativeRoutingCIDR", default="")

    @property
    def port(self) -> int:
        """UDP port of the tunnels, 0 resolved to the protocol's default."""
        return self.tunnel_port or DEFAULT_PORTS[self.tunnel_protocol]


class Masquerade(Struct, frozen=True):
    """spec.masquerade of a NetloomNetwork."""

    ipv4: bool = True
    ipv6: bool = True
    non_masquerade_cidrs: tuple[str, ...] = msgspec.field(name="nonMasqueradeCIDRs", default=())


class Limits(Struct, frozen=True):
    """spec.limits of a NetloomNetwork. `raises`: agents raise limits of their kernels that a node comes near to."""

    raises: bool = msgspec.field(name="raise", default=False)


class Forwarding(Struct, frozen=True):
    """spec.forwarding of a NetloomNetwork: what agents do where a filter of iptables drops pods' packets."""

    filter: Literal["accept", "report"] = "accept"


class NetworkSpec(Struct, frozen=True):
    """spec of a NetloomNetwork. `mtu` is in bytes, 0 means: from the devices that carry the traffic. `node_selector`
    chooses the Nodes that take part, an empty one all of them."""

    ipam: NetworkIPAM = NetworkIPAM()
    routing: Routing = Routing()
    mtu: int = 0
    devices: tuple[str, ...] = ()
    masquerade: Masquerade = Masquerade()
    limits: Limits = Limits()
    forwarding: Forwarding = Forwarding()
    node_selector: LabelSelector = LabelSelector()


class NetworkIPAMStatus(Struct, frozen=True):
    """status.ipam: the mode in force ("" while no node holds an address) and the ledgers that hold allocations.

    `epoch` grows with every opening of a ledger and every clearing of the mode: each is then a write that really
    changes the object, and whoever wrote by an older resourceVersion notices. `clearing`: the mode is about to be
    cleared, and no agent begins to give addresses of it (see `holdings.is_in_use`). `in_use` says for people who holds
    addresses, as `netloom.api.words.in_use` does; it may be some seconds old, and nothing is decided by it.
    `ledger_ranges` are CIDRs that hold the ranges of all `ledgers`, few enough for the API server's rules to look at.
    `service_cidrs` are those of which Services get their addresses, where they overlap cluster CIDRs: an agent sees no
    Service, and may not take their addresses for pods'. None: that is not known; empty: there are none.
    `nodes_left_out` counts the Nodes that have no NetloomNode, and are meant to have none: without them, agents could
    not tell a cluster in which every Node has its own from one in which some were lost.
    """

    mode: IPAMMode | Literal[""] = ""
    epoch: int = 0
    clearing: bool = False
    ledgers: tuple[str, ...] = ()
    ledger_ranges: tuple[str, ...] = ()
    service_cidrs: tuple[str, ...] | None = msgspec.field(name="serviceCIDRs", default=None)
    in_use: str = ""
    nodes_left_out: int = 0


class NodeCounts(Struct, frozen=True):
    """status.nodes of a NetloomNetwork, some seconds old; `netloom.api.verdict` says what counts as what."""

    total: int
    ready: int
    waiting: int
    not_heard_of: int


class NetworkStatus(Struct, frozen=True):
    """status of a NetloomNetwork. Conditions: `Ready`, `Degraded` (operator)."""

    ipam: NetworkIPAMStatus = NetworkIPAMStatus()
    nodes: NodeCounts | None = None
    conditions: tuple[Condition, ...] = ()


class NetloomNetwork(Struct, frozen=True):
    """The cluster's network: singleton, named `default`."""

    metadata: ObjectMeta = ObjectMeta()
    spec: NetworkSpec = NetworkSpec()
    status: NetworkStatus = NetworkStatus()


CONTESTED = "ContestedIP"
"""Type of an InternalIP of a Node that another Node reports as well, and has: nothing is sent to it for this one."""


class Address(Struct, frozen=True):
    """spec.addresses[] of a NetloomNode, as in Node.status.addresses but for what is CONTESTED."""

    type: str
    ip: str


class NeededAddresses(Struct, frozen=True):
    """spec.ipam.pools.requested[].needed: addresses in use, and those to be ready for new pods."""

    ipv4_addrs: int = 0
    ipv6_addrs: int = 0


class PoolRequest(Struct, frozen=True):
    """spec.ipam.pools.requested[]: what a node wants of one NetloomIPPool; its agent writes it."""

    pool: str
    needed: NeededAddresses = NeededAddresses()


class PoolAllocation(Struct, frozen=True):
    """spec.ipam.pools.allocated[]: blocks a node holds of one pool. The operator adds, the agent takes away."""

    pool: str
    cidrs: tuple[str, ...] = ()


class NodePools(Struct, frozen=True):
    """spec.ipam.pools of a NetloomNode (`multi-pool`)."""

    requested: tuple[PoolRequest, ...] = ()
    allocated: tuple[PoolAllocation, ...] = ()


class PoolAddress(Struct, frozen=True):
    """spec.ipam.pool{} of a NetloomNode (`crd`): one address, its user, and what it belongs to outside."""

    owner: str = ""
    resource: str = ""


class NodeIPAM(Struct, frozen=True):
    """spec.ipam of a NetloomNode: the addresses it holds, and the mode they come from."""

    mode: IPAMMode | Literal[""] = ""
    pod_cidrs: tuple[str, ...] = msgspec.field(name="podCIDRs", default=())
    pools: NodePools = NodePools()
    pool: dict[str, PoolAddress] = msgspec.field(default_factory=dict)


class AcceptedEncapsulation(Struct, frozen=True):
    """spec.encapsulations[] of a NetloomNode: in which this node accepts packets to its pods; `none`, without a port:
    as they are. `sending`: it still sends to others in it, so they have to accept it."""

    protocol: Literal["vxlan", "geneve", "none"]
    port: int = 0
    sending: bool = False


class NetloomNodeSpec(Struct, frozen=True):
    """spec of a NetloomNode. `source_addresses`: from which it may send through tunnels besides its `addresses`."""

    addresses: tuple[Address, ...] = ()
    ipam: NodeIPAM = NodeIPAM()
    encapsulations: tuple[AcceptedEncapsulation, ...] = ()
    source_addresses: tuple[str, ...] = ()


class NodeIPAMStatus(Struct, frozen=True):
    """status.ipam of a NetloomNode (`crd`), written by its agent: addresses that its pods use, with their users; and
    the mode of which it may give addresses to pods at any moment, "" while it gives none."""

    mode: IPAMMode | Literal[""] = ""
    used: dict[str, PoolAddress] = msgspec.field(default_factory=dict)


class NetloomNodeStatus(Struct, frozen=True):
    """status of a NetloomNode. Conditions: `Allocated`, `AddressReported` (operator), `DataplaneReady`,
    `PrefilterReady` (agent).
    By its agent: `absent_addresses`, those that the Node reports and that are on no device of the machine;
    `connected_cidrs`, the networks that devices of the machine are on, apart from its own pods'."""

    conditions: tuple[Condition, ...] = ()
    absent_addresses: tuple[str, ...] = ()
    connected_cidrs: tuple[str, ...] = msgspec.field(name="connectedCIDRs", default=())
    ipam: NodeIPAMStatus = NodeIPAMStatus()
    prefilter: NodePrefilter | None = None


class NetloomNode(Struct, frozen=True):
    """One per Node, of the same name, owned by it."""

    metadata: ObjectMeta = ObjectMeta()
    spec: NetloomNodeSpec = NetloomNodeSpec()
    status: NetloomNodeStatus = NetloomNodeStatus()


class PoolFamily(Struct, frozen=True):
    """spec.ipv4 or spec.ipv6 of a NetloomIPPool: blocks of `maskSize` are cut from `cidrs`."""

    cidrs: tuple[str, ...]
    mask_size: int


class IPPoolSpec(Struct, frozen=True):
    """spec of a NetloomIPPool. `pre_allocation`: addresses of each family that a node which uses the pool keeps ready.
    `pod_selector` and `namespace_selector` choose pods that name no pool: None of both, none. `draining`: nothing new
    is given. `reserved_cidrs` are kept free. `allow_first_last_ips`: pods may have these addresses of a block, too."""

    ipv4: PoolFamily | None = None
    ipv6: PoolFamily | None = None
    pre_allocation: int = 8
    allow_first_last_ips: bool = msgspec.field(name="allowFirstLastIPs", default=False)
    draining: bool = False
    reserved_cidrs: tuple[str, ...] = msgspec.field(name="reservedCIDRs", default=())
    pod_selector: LabelSelector | None = None
    namespace_selector: LabelSelector | None = None


class PoolUsage(Struct, frozen=True):
    """status.ipv4 or status.ipv6 of a NetloomIPPool, counted in blocks, up to 2**53 - 1. `orphaned` blocks are held
    outside the present CIDRs; `addresses` are those of all held blocks, `addresses_needed` those asked for."""

    total: int = 0
    used: int = 0
    free: int = 0
    orphaned: int = 0
    addresses: int = 0
    addresses_needed: int = 0


class IPPoolStatus(Struct, frozen=True):
    """status of a NetloomIPPool. Conditions: `Ready`. `nodes` hold blocks of it, `waiting` ones need more than it has;
    `full_at`: RFC 3339, when it will be full at the present rate, "" if it will not."""

    ipv4: PoolUsage | None = None
    ipv6: PoolUsage | None = None
    nodes: int = 0
    waiting: int = 0
    full_at: str = ""
    conditions: tuple[Condition, ...] = ()


class NetloomIPPool(Struct, frozen=True):
    """Address blocks that nodes draw on as their pods need them (`multi-pool`)."""

    metadata: ObjectMeta = ObjectMeta()
    spec: IPPoolSpec = IPPoolSpec()
    status: IPPoolStatus = IPPoolStatus()


class LedgerSpec(Struct, frozen=True):
    """spec of a NetloomLedger: who holds which CIDR inside `range`.

    `entries` is one opaque string on purpose: the API server tracks the ownership of every key of a map, and a write
    of 1,000 keys takes it 24 ms, of the same content as a string 6 ms.
    """

    mode: IPAMMode | Literal[""] = ""
    range: str = ""
    used: int = 0
    entries: str = ""


class NetloomLedger(Struct, frozen=True):
    """Internal: the allocations inside one fixed range of the address space, committed by compare-and-swap."""

    metadata: ObjectMeta = ObjectMeta()
    spec: LedgerSpec = LedgerSpec()


NETWORKS = Resource(GROUP, VERSION, "netloomnetworks", NetloomNetwork)
NETLOOM_NODES = Resource(GROUP, VERSION, "netloomnodes", NetloomNode)
POOLS = Resource(GROUP, VERSION, "netloomippools", NetloomIPPool)
PREFILTERS = Resource(GROUP, VERSION, "netloomprefilters", NetloomPrefilter)
LEDGERS = Resource(GROUP, VERSION, "netloomledgers", NetloomLedger)
