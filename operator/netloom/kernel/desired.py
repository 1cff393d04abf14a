"""What the kernel should hold, as values: the whole of it, every time.

A caller describes the mesh, never a step towards it. So that a whole state can be handed over for the price of what
changed, `Desired` writes down the names of the peers touched since it was last applied: a change of one peer of
10,000 then costs one look-up, and no walk.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType

import msgspec

from netloom.kernel.address import Address, Mac, Prefix
from netloom.kernel.owned import DEFAULT_VNI

VXLAN_PORT = 8472
"""The Linux default, as flannel and Cilium use it (IANA's is 4789)."""


class Tunnel(msgspec.Struct, frozen=True, kw_only=True):
    """This node's end of all its tunnels: one collect-metadata device; where a packet goes is said by its route.

    local:     this node's underlay address; the device that holds it gives the MTU.
    mac:       as `owned.mac_of` says for this node's name.
    addresses: put on the device, /32 or /128: the network address of each of the node's own pod CIDRs, so that what
               the node itself sends to a remote pod has a source that the remote node routes back through the tunnel.
    mtu:       bytes; 0 = underlay's MTU less the encapsulation.
    """

    local: Address
    mac: Mac
    port: int = VXLAN_PORT
    vni: int = DEFAULT_VNI
    mtu: int = 0
    addresses: tuple[Address, ...] = ()


class Peer(msgspec.Struct, frozen=True, gc=False):
    """A remote node. `since` orders the claims of two peers on one address or CIDR: the older (smaller) one wins."""

    name: str
    underlay: Address
    mac: Mac
    cidrs: tuple[Prefix, ...]
    since: str = ""

    @property
    def seniority(self) -> tuple[str, str]:
        """Orders claims the same way on every node and after every restart."""
        return self.since, self.name


class Desired:
    """The whole desired state, with a journal of what was touched. One `Dataplane` reads the journal."""

    def __init__(self, tunnel: Tunnel | None = None, peers: Iterable[Peer] = ()) -> None:
        self.tunnel = tunnel
        self._peers = {peer.name: peer for peer in peers}
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

    def take_touched(self) -> set[str]:
        """Names changed since the last call; a name without a peer was removed."""
        touched, self._touched = self._touched, set()
        return touched
