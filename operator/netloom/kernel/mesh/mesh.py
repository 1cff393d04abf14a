"""From peers to rows: which nexthops, neighbours and routes the kernel should hold.

Pure: peers, what they can be reached by, and what was seen in the kernel (`SeenRows`) go in, three tables with their
differences come out. A peer's change costs what its own rows cost, whatever the number of peers.

A peer's nexthop object keeps its id when the encapsulation changes: it is replaced, and the kernel moves all routes
with it, at once. A peer whose underlay address or MAC is somebody else's gets no rows at all, one whose pod CIDR is, no
route for that CIDR; see `PeerClaims`. Nor is there a route that would cut this node off; see `WithheldRoutes`.
"""

from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping
from typing import Any

from netloom.cidr import Address, Cidr, Version
from netloom.kernel.keeper.table import Table
from netloom.kernel.mac import Mac, link_local_of, mac_in
from netloom.kernel.mesh.desired import Desired, FurtherAddresses, Peer
from netloom.kernel.mesh.encapsulation import NO_ENCAPSULATION
from netloom.kernel.mesh.fib import FibLookups
from netloom.kernel.mesh.holes import Holes
from netloom.kernel.mesh.lifelines import FAR_BITS, NEAR, NodeNetwork
from netloom.kernel.mesh.nexthop_ids import NexthopIds
from netloom.kernel.mesh.peer_claims import PeerClaims
from netloom.kernel.mesh.rivals import RivalRoutes
from netloom.kernel.mesh.rows import (
    DeviceState,
    FamilyRows,
    Nexthop,
    OddRoute,
    PeerRows,
    RouteContent,
    RouteKey,
)
from netloom.kernel.mesh.seen_rows import RowTables, SeenRows
from netloom.kernel.mesh.withheld import WithheldRoutes, addresses_of
from netloom.kernel.netlink.neighbours import NeighbourKey


class Mesh:
    """Peers, and the tables of their rows."""

    def __init__(self, fib: FibLookups | None = None) -> None:
        self.nexthops: Table[int, Nexthop] = Table()
        self.neighbours: Table[NeighbourKey, Mac] = Table()
        self.routes: Table[RouteKey, RouteContent] = Table()
        self.tables: dict[str, Table[Any, Any]] = {
            "nexthop": self.nexthops,
            "neighbour": self.neighbours,
            "route": self.routes,
        }
        self.device_state = DeviceState()
        self.fib = fib or FibLookups()
        self.rivals = RivalRoutes(self.routes, self.wider_route)
        self.peers: dict[str, Peer] = {}
        self.unreachable: dict[str, tuple[Version, ...]] = {}
        """Peers that accept no encapsulation, with CIDRs (of which IP versions) that no network here leads to."""
        self.natives = 0
        """Peers that may be reached natively: the FIB's answer has to be known before rows are written."""
        self._natives_on: Counter[int] = Counter()
        self._rows: dict[str, PeerRows] = {}
        self.ids = NexthopIds()
        self.claims = PeerClaims(self.peers)
        self.withheld = WithheldRoutes(self.peers, self.claims.holders)
        self.holes = Holes(self.withheld.lifelines, self.withheld.harm)
        tables = RowTables(self.nexthops, self.neighbours, self.routes)
        self.seen = SeenRows(tables, self.ids, self._rows, self.rivals, self.holes)

    def set_device_state(self, device_state: DeviceState) -> None:
        """Put all rows on these devices."""
        if device_state == self.device_state:
            return
        gone = set(self.device_state.tunnels.values()) - set(device_state.tunnels.values())
        if gone:
            for key in [key for key in self.neighbours.kernel if key[0] in gone]:
                self.neighbours.gone(key)  # a device takes its neighbours along
        self.device_state = device_state
        self._expand(self.peers)

    def reached(self, addresses: Iterable[Address]) -> None:
        """What the FIB says of these addresses may have changed."""
        if not self.natives:
            return  # tunnels do not depend on it
        holders, peers = self.claims.holders, self.peers
        names = {name for address in addresses if (name := holders.get(address)) is not None}
        self._expand([name for name in names if NO_ENCAPSULATION in peers[name].encapsulations])

    def make_way(self) -> None:
        """Where a nexthop of somebody else's has a peer's id, as after all were flushed, the peer gets another."""
        self._expand(self.ids.displaced())

    def look_around(self, around: NodeNetwork) -> None:
        """Take in what this node lives by, as it is now."""
        changed = self.withheld.lifelines.see(around)
        if changed:
            self.holes.look_again()
        if changed and self.peers:
            self._expand(self.claims.overlapping(changed))

    def set_further(self, name: str, further: FurtherAddresses | None) -> None:
        """A node has these addresses beside those that rows are made for."""
        moved = self.withheld.set_further(name, further)
        self.holes.moved(moved)
        self._expand(self.claims.around(moved))

    def replace_peers(self, desired: Desired) -> None:
        """Take over a whole state; what is the same object as before costs one look-up."""
        peers, known = desired.peers, self.peers
        self.holes.look_again()
        for name in self.withheld.further.keys() | desired.further.keys():
            self.set_further(name, desired.further.get(name))
        for name in [name for name in known if name not in peers]:
            self.remove_peer(name)
        self.set_peers([peer for name, peer in peers.items() if known.get(name) is not peer])

    def set_peers(self, peers: Iterable[Peer]) -> None:
        """Add or change peers."""
        known, change, former = self.peers, self.claims.change, self.holes.former
        concerned: dict[str, None] = {}
        moved: list[Address] = []
        first = not known
        for peer in peers:
            name, old = peer.name, known.get(peer.name)
            if old == peer:
                continue
            known[name] = peer
            self._want(old, peer)
            concerned[name] = None
            others = change(name, old, peer)
            if old is not None or former:
                self._count_holes(old, peer)
            for other in others:
                concerned[other] = None
            if old is not None and old.cidrs != peer.cidrs:
                self.withheld.forget(prefix for prefix in old.cidrs if prefix not in self.claims.holders)
            if not first and _is_other(old, peer):
                moved += (*addresses_of(old), *addresses_of(peer))
        if first:  # all of them are decided about, anyway
            self.holes.look_again()
        elif moved:
            self.holes.moved(moved)
            concerned.update(dict.fromkeys(self.claims.around(moved)))
        self._expand(concerned)

    def remove_peer(self, name: str) -> None:
        """Forget a peer."""
        peer = self.peers.pop(name, None)
        if peer is None:
            return
        self._want(peer, None)
        self.holes.moved(addresses_of(peer))
        others = self.claims.change(name, peer, None)
        self._count_holes(peer, None)
        concerned = others | self.claims.around(addresses_of(peer))
        self.withheld.forget(prefix for prefix in peer.cidrs if prefix not in self.claims.holders)
        self._expand({name: None, **dict.fromkeys(concerned)})
        self.unreachable.pop(name, None)
        self.ids.take_back(name)

    def items_of(self, name: str) -> list[tuple[str, Hashable]]:
        """(kind, key) of the peer's rows."""
        items: list[tuple[str, Hashable]] = []
        for rows in self._rows.get(name, ()):
            items.append(("nexthop", rows.content.nexthop))
            if rows.neighbour:
                items.append(("neighbour", rows.neighbour))
            items += [("route", prefix) for prefix in rows.prefixes]
        return items

    def pending(self) -> list[tuple[str, Hashable]]:
        """(kind, key) of all that differs from the kernel."""
        return [(kind, key) for kind, table in self.tables.items() for key in table.pending]

    def is_tunnel(self, ifindex: int) -> bool:
        """Whether this is a device of ours that rows stand on."""
        return ifindex in self.device_state.tunnels.values()

    def stands_on(self, ifindex: int) -> bool:
        """Whether a native nexthop goes through this device."""
        return self._natives_on[ifindex] > 0

    def peer_of(self, kind: str, key: Any) -> str:
        """Whose entry it is; empty if nobody's (any more)."""
        if kind == "nexthop":
            return self.ids.peer_of.get(key, "")
        if kind == "neighbour":
            _ifindex, key = key
            key = mac_in(key) if len(key) == 16 else key
        return self.claims.holders.get(key, "")

    def _want(self, old: Peer | None, new: Peer | None) -> None:
        """Count the native ones, and tell the FIB and `WithheldRoutes` which addresses matter."""
        if new is not None and NO_ENCAPSULATION in new.encapsulations:
            self.natives += 1
        if old is not None and NO_ENCAPSULATION in old.encapsulations:
            self.natives -= 1
        before, after = addresses_of(old), addresses_of(new)
        if before != after:
            self.withheld.lifelines.move_node(before, after)
        before, after = _looked_up(old, before), _looked_up(new, after)
        if before != after:
            for address in after:
                self.fib.want(address)
            for address in before:
                self.fib.unwant(address)

    def _expand(self, names: Iterable[str]) -> None:
        """Bring the desired rows of these peers up to date. What one loses, another may win: first all losses."""
        gains: list[PeerRows] = []
        near, unrouted = self.withheld.lifelines.near, self.holes.unrouted
        for name in names:
            peer, old = self.peers.get(name), self._rows.get(name, ())
            new = self._rows_of(peer, near) if peer is not None else ()
            if unrouted or (peer is not None and (len(new) != 1 or len(new[0].prefixes) != len(peer.cidrs))):
                self.holes.set_unrouted(name, self._without_route(peer, new))
            if new == old:
                continue
            if old:
                self._unwant(old, new)
            if self.natives or self._natives_on:
                self._natives_on.subtract(rows.nexthop.ifindex for rows in old if not rows.mac)
                self._natives_on.update(rows.nexthop.ifindex for rows in new if not rows.mac)
            if new:
                self._rows[name] = new
                gains.append(new)
            else:
                del self._rows[name]
        nexthops: dict[int, Nexthop] = {}
        neighbours: dict[NeighbourKey, Mac] = {}
        routes: dict[RouteKey, RouteContent] = {}
        for peer_rows in gains:
            for rows in peer_rows:
                content, nexthop = rows.content, rows.nexthop
                nexthops[content.nexthop] = nexthop
                if rows.mac:
                    neighbours[nexthop.ifindex, nexthop.gateway] = rows.mac
                for prefix in rows.prefixes:
                    routes[prefix] = content
        self.nexthops.want_all(nexthops)
        self.neighbours.want_all(neighbours)
        self.routes.want_all(routes)

    def _unwant(self, old: PeerRows, new: PeerRows) -> None:
        for identity in {rows.content.nexthop for rows in old} - {rows.content.nexthop for rows in new}:
            self.nexthops.unwant(identity)
        for neighbour in {rows.neighbour for rows in old} - {rows.neighbour for rows in new}:
            if neighbour is not None:
                self.neighbours.unwant(neighbour)
        for prefix in {p for rows in old for p in rows.prefixes} - {p for rows in new for p in rows.prefixes}:
            self.routes.unwant(prefix)

    def _rows_of(self, peer: Peer, near: Mapping[Version, Collection[int]]) -> PeerRows:
        """`near`: a pod CIDR with none of these leading bits cannot harm this node."""
        name, holders = peer.name, self.claims.holders
        if holders[peer.underlay] != name or holders[peer.mac] != name:
            self.unreachable.pop(name, None)
            self.withheld.forget(prefix for prefix in peer.cidrs if holders[prefix] == name)
            return ()
        reasons = self.withheld.reasons
        four: list[Cidr] = []
        six: list[Cidr] = []
        for prefix in peer.cidrs:
            if holders[prefix] != name:
                continue
            version = prefix.version
            routed = peer.encapsulations and (version == 4 or self.device_state.ipv6)
            if not routed or (peer.held and self.claims.has_wider(prefix, name)):
                self.withheld.forget((prefix,))
            elif (
                prefix.base >> FAR_BITS[version] not in near[version] and prefix.length >= NEAR[version] and not reasons
            ) or not self.withheld.is_withheld(prefix, peer):
                (four if version == 4 else six).append(prefix)
        if not self.device_state.tunnels and not self.natives:
            self.unreachable.pop(name, None)
            return ()  # there is no device yet
        peer_rows: PeerRows = ()
        lost: tuple[Version, ...] = ()
        for size, prefixes in ((4, four), (16, six)):
            if prefixes:
                rows = self._family_rows(peer, size, prefixes)
                peer_rows += rows
                lost += () if rows else (prefixes[0].version,)
        if lost and peer.encapsulations == (NO_ENCAPSULATION,):
            self.unreachable[name] = lost
        else:
            self.unreachable.pop(name, None)
        return peer_rows

    def _without_route(self, peer: Peer | None, rows: PeerRows) -> tuple[Cidr, ...]:
        """The peer's CIDRs that none of these rows leads to, and which no other peer has."""
        if peer is None or sum(len(each.prefixes) for each in rows) == len(peer.cidrs):
            return ()
        routed, ipv6 = {prefix for each in rows for prefix in each.prefixes}, self.device_state.ipv6
        without = (p for p in peer.cidrs if p not in routed and (p.version == 4 or ipv6))
        ours = [prefix for prefix in without if self.claims.holders[prefix] == peer.name]
        return tuple(prefix for prefix in ours if not (peer.held and self.claims.has_wider(prefix, peer.name)))

    def _count_holes(self, old: Peer | None, new: Peer | None) -> None:
        """Which CIDRs nobody has any more, and which somebody has (again)."""
        before, after = old.cidrs if old is not None else (), new.cidrs if new is not None else ()
        if self.holes.former:
            self.holes.claimed(after)
        if before and before != after:
            holders = self.claims.holders
            lost = (prefix for prefix in before if prefix not in after)
            self.holes.given_up(p for p in lost if not any(wider in holders for wider in self.claims.and_wider(p)))

    def wider_route(self, prefix: Cidr) -> Cidr | None:
        """The route of ours, as it should be, in which the prefix lies."""
        wanted = (wider for wider in self.claims.and_wider(prefix) if wider in self.routes.desired)
        return max(wanted, key=lambda wider: wider.length, default=None)

    def _family_rows(self, peer: Peer, size: int, prefixes: list[Cidr]) -> PeerRows:
        """In the first of the peer's encapsulations that is possible; empty if none is."""
        for encapsulation in peer.encapsulations:
            if size == 16 and encapsulation in self.device_state.narrow:
                continue
            if encapsulation.is_tunnel:
                ifindex, mac, mtu = self.device_state.tunnels.get(encapsulation, 0), peer.mac, 0
                gateway = peer.underlay if size == 4 else link_local_of(peer.mac)
                nexthop = Nexthop(ifindex, gateway, peer.underlay, self.device_state.vni)
            else:
                gateway = peer.underlay if size == 4 else peer.underlay6
                mine = bool(gateway) and self.claims.holders[gateway] == peer.name
                sure = not self.device_state.strict or peer.encapsulations != (NO_ENCAPSULATION,)
                ifindex = self.fib.device(gateway, sure=sure) if mine else 0
                mac, mtu = b"", self.device_state.native_mtu
                nexthop = Nexthop.native(ifindex, gateway)
            if ifindex:
                identity = self.ids.given[size].get(peer.name) or self.ids.give(peer.name, size, nexthop)
                return (FamilyRows(RouteContent(identity, mtu), nexthop, mac, tuple(prefixes)),)
        return ()

    def retain_unknown(self, among: Collection[RouteKey], own: Collection[Address]) -> None:
        """Of these routes leave alone what no peer explains: those to pod CIDRs that neither a peer nor this node (with
        the `own` network addresses) claims, by nexthops that no peer has, to addresses that are no peer's, and
        with them their nexthops and neighbours. One that would cut this node off is not left."""
        routes = {key for key in among if key not in self.routes.desired and self._unknown(key, own)}
        ids = {self.routes.kernel[key].nexthop for key in routes}
        nexthops = [self.nexthops.kernel[identity] for identity in ids]
        neighbours = {(nexthop.ifindex, nexthop.gateway) for nexthop in nexthops}
        self.routes.retain(routes)
        self.nexthops.retain(ids)
        self.neighbours.retain((neighbours & self.neighbours.kernel.keys()) - self.neighbours.desired.keys())

    def release_retained(self) -> None:
        """What no peer explains is to go."""
        for table in self.tables.values():
            table.retain(set())

    def _unknown(self, key: RouteKey, own: Collection[Address]) -> bool:
        identity, holders = self.routes.kernel[key].nexthop, self.claims.holders
        nexthop = self.nexthops.kernel.get(identity)
        if nexthop is None or identity in self.nexthops.desired or isinstance(key, OddRoute):
            return False
        if nexthop.gateway in holders or nexthop.remote in holders:
            return False
        if self.withheld.is_harmful(key, nexthop.remote):
            return False
        mine = any(key.holds(address) for address in own)
        return not mine and not any(wider in holders for wider in self.claims.and_wider(key))


def _is_other(old: Peer | None, new: Peer) -> bool:
    """Whether its addresses are, or what they count for."""
    if old is None:
        return True
    return any(
        getattr(old, name) != getattr(new, name) for name in ("underlay", "underlay6", "since", "held", "speaks")
    )


def _looked_up(peer: Peer | None, addresses: tuple[Address, ...]) -> tuple[Address, ...]:
    """Those of its addresses that the FIB is asked about: of IPv6 the one that a native route may need."""
    return addresses if len(addresses) < 2 or (peer and NO_ENCAPSULATION in peer.encapsulations) else addresses[:1]
