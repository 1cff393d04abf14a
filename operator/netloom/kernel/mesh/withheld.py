"""Pod CIDRs that are not routed from here, because a route to them would cut this node off.

`Lifelines` knows what the node lives by; here is what the peers have to do with it: their addresses are such lifelines,
and of a CIDR and a node's address inside it, each is somebody's claim. The address counts, unless

- its node is younger than the one with the CIDR: a node that comes later takes no other node's pods their network;
- no agent speaks for its node. A virtual kubelet reports the address of the pod that it is, which has to lie in a CIDR.

A node's own address in its own CIDR always counts: what is sent to it through a tunnel would go into that tunnel.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from netloom.cidr import Address, Cidr
from netloom.kernel.mesh.desired import FurtherAddresses, Peer
from netloom.kernel.mesh.lifelines import Lifelines
from netloom.kernel.mesh.rows import Nexthop, OddRoute, RouteContent, RouteKey

_ANY = "~"
"""After every time."""


class WithheldRoute(msgspec.Struct, frozen=True):
    """A pod CIDR (as text) of `peer`, and why it is not routed."""

    cidr: str
    peer: str
    why: str


class WithheldRoutes:
    """See the module. `holders`: whose which address and CIDR is. `reasons`: why each CIDR is not routed."""

    def __init__(self, peers: Mapping[str, Peer], holders: Mapping[Any, str]) -> None:
        self.lifelines = Lifelines()
        self.reasons: dict[Cidr, str] = {}
        self._peers = peers
        self._holders = holders
        self.further: dict[str, FurtherAddresses] = {}
        """By name; to be changed by `set_further`."""
        self._further_names: dict[Address, set[str]] = {}

    def is_withheld(self, prefix: Cidr, peer: Peer) -> bool:
        """Decide it, of a CIDR that is this peer's."""
        why = self.lifelines.harm(prefix, lambda address: self._whose(address, peer))
        if why:
            self.reasons[prefix] = why
        elif self.reasons:
            self.reasons.pop(prefix, None)
        return bool(why)

    def is_harmful(self, prefix: Cidr, remote: Address) -> bool:
        """Whether a route of an earlier life, of which nobody knows whose it is, cuts this node off. `remote`: where
        its tunnel leads; empty if it has none."""
        lifelines = self.lifelines
        if remote and lifelines.takes_along(prefix, remote):
            return True
        return bool(self.harm(prefix))

    def harm(self, prefix: Cidr) -> str:
        """Why a route to this prefix would cut the node off, whoever has it; "" if it would not."""
        return self.lifelines.harm(prefix, lambda address: self._whose(address, None))

    def lifeline_at(self, address: Address) -> str:
        """What this node lives by that has the address; "" if nothing has."""
        return self.lifelines.at(address, lambda each: self._whose(each, None))

    def of_own(self, prefixes: Iterable[Cidr]) -> tuple[WithheldRoute, ...]:
        """Of this node's own pod CIDRs, those over what it lives by itself: none of the others will route them."""
        reasons = ((prefix, self.harm(prefix)) for prefix in prefixes)
        return tuple(WithheldRoute(str(prefix), "", why) for prefix, why in reasons if why)

    def forget(self, prefixes: Iterable[Cidr]) -> None:
        """Nobody has these any more."""
        if self.reasons:
            for prefix in prefixes:
                self.reasons.pop(prefix, None)

    def routes(self) -> tuple[WithheldRoute, ...]:
        """All of them, in order."""
        return tuple(
            WithheldRoute(str(prefix), self._holders.get(prefix, ""), why)
            for prefix, why in sorted(self.reasons.items())
        )

    def set_further(self, name: str, further: FurtherAddresses | None) -> tuple[Address, ...]:
        """What a node has of addresses that no peer's rows need. Returns those about which that is news."""
        old = self.further.pop(name, None)
        if old == further:
            if further is not None:
                self.further[name] = further
            return ()
        before, after = (old.addresses if old else ()), (further.addresses if further else ())
        for address in before:
            self._further_names[address].discard(name)
            if not self._further_names[address]:
                del self._further_names[address]
        if further is not None:
            self.further[name] = further
        for address in after:
            self._further_names.setdefault(address, set()).add(name)
        self.lifelines.move_node(before, after)
        return (*before, *after)

    def _whose(self, address: Address, owner: Peer | None) -> str:
        """Name of the node whose address is a reason, if it is one. `owner`: of the CIDR; None: not known."""
        holder = self._holders.get(address, "")
        claims: list[tuple[str, Peer | FurtherAddresses | None]] = [(holder, self._peers.get(holder))]
        claims += [(name, self.further[name]) for name in sorted(self._further_names.get(address, ()))]
        youngest = owner.since if owner is not None and not owner.held else _ANY
        for name, claim in claims:
            if claim is None:
                continue
            if (owner is not None and name == owner.name) or (claim.speaks and (claim.held or claim.since <= youngest)):
                return name
        return ""


def addresses_of(peer: Peer | None) -> tuple[Address, ...]:
    """All that others know it by."""
    if peer is None:
        return ()
    return (peer.underlay, peer.underlay6) if peer.underlay6 else (peer.underlay,)


def cutting_off(
    lifelines: Lifelines, routes: Mapping[RouteKey, RouteContent], nexthops: Mapping[int, Nexthop]
) -> list[RouteKey]:
    """Of the routes of an earlier life, those that may keep the node from asking whose they are: they hold a gateway
    or the API server, or lead into a tunnel whose own packets they take along."""
    found: list[RouteKey] = []
    for key, content in routes.items():
        prefix, nexthop = key.prefix if isinstance(key, OddRoute) else key, nexthops.get(content.nexthop)
        remote = nexthop.remote if nexthop is not None else b""
        if lifelines.holds_point(prefix) or (remote and lifelines.takes_along(prefix, remote)):
            found.append(key)
    return found
