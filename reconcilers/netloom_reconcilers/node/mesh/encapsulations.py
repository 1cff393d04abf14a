"""By which encapsulations (none is one, with native routing) nodes reach each other while a cluster changes from one to
another, without a lost packet. Pure.

A node announces which encapsulations it accepts, and by which it still sends (`spec.encapsulations`). From this and the
network's spec every node decides by itself:

- it accepts what the spec wants, what a peer still sends, and what it needs to reach peers that do not accept what the
  spec wants yet;
- it sends to a peer by what the spec wants if the peer accepts it, else by what the peer accepts.

So agents may notice a change of the spec at any time and in any order: first all accept the new, then each sender moves
peer by peer, and only when nobody sends the old any more is it given up. A node that cannot do the new goes on with the
old, and all others with it, towards that node.
"""

import functools
from collections import Counter
from collections.abc import Iterable

import msgspec

from netloom.api.v1alpha1 import AcceptedEncapsulation, NetloomNode, Routing
from netloom.kernel.mesh.encapsulation import NO_ENCAPSULATION, Encapsulation

_SHARED = 256
"""Different announcements of a cluster's nodes that are remembered; there are few, but during a change."""


class Announcement(msgspec.Struct, frozen=True):
    """What a node says of itself. Nothing at all (an agent that has not spoken yet): it is new, and has used none.
    `sources`: addresses that it may send from, besides those that its object has."""

    accepts: tuple[Encapsulation, ...] = ()
    sends: frozenset[Encapsulation] = frozenset()
    sources: tuple[str, ...] = ()


def announced(node: NetloomNode) -> Announcement:
    """What the object says. Nodes that say the same share one value: 10,000 of their own are 6 MiB."""
    return _announcement(node.spec.encapsulations)


@functools.lru_cache(_SHARED)
def _announcement(tunnels: tuple[AcceptedEncapsulation, ...]) -> Announcement:
    accepts = tuple(Encapsulation(each.protocol, each.port) for each in tunnels)
    sends = frozenset(Encapsulation(each.protocol, each.port) for each in tunnels if each.sending)
    return Announcement(accepts, sends)


_shared_set = functools.lru_cache(_SHARED)(frozenset[Encapsulation])


def wanted(routing: Routing) -> tuple[Encapsulation, ...]:
    """The encapsulations that the network's spec asks for, the best first."""
    tunnel = Encapsulation(routing.tunnel_protocol, routing.port)
    if routing.mode == "tunnel":
        return (tunnel,)
    return (NO_ENCAPSULATION, tunnel) if routing.mode == "hybrid" else (NO_ENCAPSULATION,)


@functools.lru_cache(_SHARED)
def encapsulations_to(
    accepts: tuple[Encapsulation, ...], routing: Routing, *, able: bool = True
) -> tuple[Encapsulation, ...]:
    """By which to send to a peer that accepts these, the best first; empty: the network itself leads there.

    able: whether this node has all tunnels that the spec wants; one whose kernel refuses goes on with the old.
    """
    wants = wanted(routing)
    both = tuple(encapsulation for encapsulation in wants if encapsulation in accepts)
    if accepts and (both != wants or not able):
        return (*both, *(encapsulation for encapsulation in accepts if encapsulation not in both))
    return () if wants == (NO_ENCAPSULATION,) and not routing.auto_direct_node_routes else wants


class Needs:
    """Which encapsulations the peers make this node keep. A change of one peer costs one peer."""

    def __init__(self) -> None:
        self._of: dict[str, frozenset[Encapsulation]] = {}
        self._sends: dict[str, frozenset[Encapsulation]] = {}
        self._count: Counter[Encapsulation] = Counter()

    def change(self, name: str, encapsulations: tuple[Encapsulation, ...], theirs: Announcement) -> None:
        """The peer is sent to in `encapsulations`, and announces `theirs`."""
        sends = self._sends[name] = _shared_set(encapsulations)
        self._replace(name, sends if theirs.sends <= sends else sends | theirs.sends)

    def forget(self, name: str) -> None:
        """There is no such peer (any more)."""
        self._sends.pop(name, None)
        self._replace(name, frozenset())

    def _replace(self, name: str, new: frozenset[Encapsulation]) -> None:
        old = self._of.pop(name, frozenset())
        if new:
            self._of[name] = new
        if new is not old:
            self._count.update(new - old)
            self._count.subtract(old - new)

    @property
    def encapsulations(self) -> frozenset[Encapsulation]:
        """All that a peer sends or has to be sent by."""
        return frozenset(each for each, count in self._count.items() if count)

    @property
    def sends(self) -> frozenset[Encapsulation]:
        """All that a peer is or may be sent by."""
        return frozenset().union(*set(self._sends.values()))


class Leaving(msgspec.Struct):
    """One that is no longer needed: since when (monotonic seconds), and how many packets had come by it then."""

    since: float
    received: int


def accepted(
    routing: Routing, needed: frozenset[Encapsulation], leaving: Iterable[Encapsulation]
) -> tuple[tuple[Encapsulation, ...], tuple[Encapsulation, ...]]:
    """Those to keep ready, and of them those to announce: what is leaving is kept for a while, silently."""
    wants = wanted(routing)
    announce = (*wants, *sorted(needed - set(wants)))
    return (*announce, *sorted(set(leaving) - set(announce))), announce
