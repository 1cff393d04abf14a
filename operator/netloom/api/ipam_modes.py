"""The IPAM modes: where the addresses of pods come from, and what follows from that.

What a mode does is asked here; it is compared by name nowhere else.
"""

from dataclasses import dataclass

from netloom.api.v1alpha1 import NetloomNetwork


@dataclass(frozen=True, slots=True)
class IpamMode:
    """One of them.

    from_network: the operator cuts nodes' blocks from the lists in spec.ipam.clusterPool. from_pools: it cuts them from
    NetloomIPPools, as nodes ask. from_node: each Node comes with its CIDRs (`Node.brought`). `writer` puts them there.
    from_outside: somebody else writes single addresses into NetloomNodes, whenever they like; no ledger knows them.
    singles: nodes hold such. no_tunnels: why tunnels do not work with it; "" if they do. no_direct_routes: the same of
    autoDirectNodeRoutes. native_cidr: why the network has to name its native CIDR; "" if it need not.
    """

    name: str
    from_network: bool = False
    from_node: bool = False
    from_outside: bool = False
    from_pools: bool = False
    singles: bool = False
    writer: str = ""
    no_tunnels: str = ""
    no_direct_routes: str = ""
    native_cidr: str = ""

    @property
    def is_implemented(self) -> bool:
        """Whether this version gives addresses in it."""
        return self.from_network or self.from_node or self.from_pools or self.from_outside


_ALL = (
    IpamMode(
        "kubernetes",
        from_node=True,
        writer="kube-controller-manager writes it, if run with --allocate-node-cidrs",
    ),
    IpamMode("cluster-pool", from_network=True),
    IpamMode("multi-pool", from_pools=True),
    IpamMode(
        "crd",
        from_outside=True,
        singles=True,
        no_tunnels="nodes then hold single addresses given from outside, and a tunnel needs whole pod CIDRs.",
        no_direct_routes="nodes then hold single addresses, and the network itself knows the way to each.",
    ),
    IpamMode(
        "eni",
        singles=True,
        no_tunnels="the VPC itself routes the addresses of pods, and expects their packets unwrapped.",
    ),
    IpamMode(
        "azure",
        singles=True,
        no_tunnels="the VNet itself routes the addresses of pods, and expects their packets unwrapped.",
    ),
    IpamMode(
        "gke",
        from_node=True,
        writer="GKE's cloud controller writes it, from the cluster's secondary range",
        no_tunnels="the VPC itself routes the pod CIDRs, and expects their packets unwrapped.",
        native_cidr="hosts in it see the addresses of pods, and nothing here tells which addresses the VPC routes.",
    ),
)

MODES: dict[str, IpamMode] = {mode.name: mode for mode in _ALL}


def mode_named(name: str) -> IpamMode:
    """By its name; of a word that a later version may know, one in which nothing is given."""
    return MODES.get(name) or IpamMode(name)


def mode_of(network: NetloomNetwork) -> IpamMode:
    """The mode in force, else the one asked for."""
    return mode_named(network.status.ipam.mode or network.spec.ipam.mode)
