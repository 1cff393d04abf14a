"""What the kernel should hold, as values: the whole of it, every time.

A caller describes the mesh, never a step towards it. So that a whole state can be handed over for the price of what
changed, `Desired` writes down the names of the peers touched since it was last applied: a change of one peer of
10,000 then costs one look-up, and no walk.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType

import msgspec

from netloom.cidr import Address, Cidr
from netloom.kernel.mac import Mac
from netloom.kernel.mesh.encapsulation import DEFAULT_VNI, VXLAN, Encapsulation
from netloom.kernel.mesh.holes import HoleRules


class MeshNode(msgspec.Struct, frozen=True, kw_only=True):
    """This node: what it holds ready for its peers' packets, and what that is made of.

    local:     this node's IPv4 underlay address.
    mac:       of the tunnel devices, as `netloom.kernel.mac.mac_of` makes it of this node's name.
    encapsulations: in which packets may come in: a device for each tunnel; for `none` the underlay's reverse path
               filter is loosened, as answers may leave by another device. Where a packet goes is said by its route.
    addresses: put on the tunnel devices, /32 or /128: the network address of each of the node's own pod CIDRs, so
               that what the node itself sends to a remote pod has a source that the remote node routes back. Of CIDRs
               of one or two addresses only where there is no larger one.
    mtu:       bytes, of the network between the nodes; 0: that of the devices that carry the traffic.
    devices:   names or shell patterns of the devices that carry the traffic; none: those that routes to peers name.
    claimed:   all addresses that the node is said to have; which of them are on no device is in the report.
    cidrs:     its own pod CIDRs: what leads to an address in them is a pod's device, and no network of nodes.
    strict:    a peer that accepts no encapsulation and which is not on a network of this node is an error.
    holes:     where packets end that are for pods which nobody has; None: nowhere, they go where they go.
    """

    local: Address
    mac: Mac
    encapsulations: tuple[Encapsulation, ...] = (VXLAN,)
    vni: int = DEFAULT_VNI
    mtu: int = 0
    addresses: tuple[Address, ...] = ()
    devices: tuple[str, ...] = ()
    strict: bool = True
    claimed: tuple[Address, ...] = ()
    holes: HoleRules | None = None
    cidrs: tuple[Cidr, ...] = ()

    @property
    def tunnels(self) -> tuple[Encapsulation, ...]:
        """Those that have a device."""
        return tuple(encapsulation for encapsulation in self.encapsulations if encapsulation.is_tunnel)

    @property
    def ipv6(self) -> bool:
        """Whether this node has an IPv6 pod CIDR itself; without one it has no source for such traffic."""
        return any(len(address) == 16 for address in self.addresses)


class Peer(msgspec.Struct, frozen=True, gc=False):
    """A remote node.

    since: orders the claims of two peers on one address or CIDR: the older (smaller) one wins.
    encapsulations: in which to send to it, the best first. The first that is possible is taken: a tunnel if its
           device is up, `none` if the peer is on a network of this node. Empty: its packets go where they go.
    underlay6: its IPv6 underlay address, the gateway of native routes to its IPv6 CIDRs; empty if it has none.
    held:  it is not known whether it still has its CIDRs: a wider one of another peer has them, too.
    speaks: its own agent has been heard of, so its addresses are a machine's.
    """

    name: str
    underlay: Address
    mac: Mac
    cidrs: tuple[Cidr, ...]
    since: str = ""
    encapsulations: tuple[Encapsulation, ...] = (VXLAN,)
    underlay6: Address = b""
    held: bool = False
    speaks: bool = True

    @property
    def seniority(self) -> tuple[str, str]:
        """Orders claims the same way on every node and after every restart."""
        return self.since, self.name


class FurtherAddresses(msgspec.Struct, frozen=True, gc=False):
    """What a node has of addresses that no rows are made for: it has no pod CIDR, or has them beside the one that its
    packets are sent to. `since`, `held` and `speaks` are as a peer's."""

    addresses: tuple[Address, ...]
    since: str = ""
    held: bool = False
    speaks: bool = True


class Desired:
    """The whole desired state, with a journal of what was touched, which one `MeshRows` reads."""

    def __init__(self, node: MeshNode | None = None, peers: Iterable[Peer] = ()) -> None:
        self.node = node
        self._peers = {peer.name: peer for peer in peers}
        self.further: dict[str, FurtherAddresses] = {}
        """By name; to be changed by `set_further`."""
        self._touched: set[str] = set()

    @property
    def peers(self) -> Mapping[str, Peer]:
        """By name."""
        return MappingProxyType(self._peers)

    def set_peer(self, peer: Peer) -> None:
        """Add the peer, or replace the one of that name."""
        if self._peers.get(peer.name) != peer:
            self._peers[peer.name] = peer
            self._touched.add(peer.name)

    def remove_peer(self, name: str) -> None:
        """Forget the peer; not an error if there is none."""
        if self._peers.pop(name, None) is not None:
            self._touched.add(name)

    def set_further(self, name: str, further: FurtherAddresses | None) -> None:
        """What the node of that name, a peer or not, has of further addresses; None: nothing."""
        if self.further.get(name) == further:
            return
        if further is None:
            del self.further[name]
        else:
            self.further[name] = further
        self._touched.add(name)

    def take_touched(self) -> set[str]:
        """Names changed since the last call; a name without a peer was removed."""
        touched, self._touched = self._touched, set()
        return touched
