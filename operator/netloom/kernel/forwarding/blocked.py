"""Filters at the forward hook that drop pods' packets, and that nothing of ours can overrule.

An accept ends the one chain that says it; the packet goes on to the chains of other tables, each of which may drop it.
"""

from collections.abc import Iterator, Mapping

import msgspec

from netloom.cidr import Cidr
from netloom.kernel.forwarding.opening import FORWARD, ForwardingState, fates
from netloom.kernel.forwarding.packets import PROTOCOL_FAMILY, Chain
from netloom.kernel.forwarding.reading import Base


class Blocked(msgspec.Struct, frozen=True):
    """A filter that drops packets between this node's pods and other nodes'.

    base: its base chain; program: what shows it (`nft`, `iptables-legacy`, ...). pods: the pod CIDRs whose packets it
    drops. sure: it drops all of them; else some may pass by a rule of which that cannot be told. chain, handle: where
    it is decided, in this chain by the rule of this handle (0: that is not known), or by its policy.
    """

    base: Base
    program: str
    pods: tuple[Cidr, ...]
    sure: bool
    chain: str
    policy: bool
    handle: int = 0

    @property
    def is_iptables(self) -> bool:
        """Whether it is one that we open, unless told not to."""
        return is_iptables(self.base)


def is_iptables(base: Base) -> bool:
    """Whether `iptables` calls the chain FORWARD, in its table filter."""
    return (base.table, base.name) == ("filter", FORWARD) and base.family in PROTOCOL_FAMILY


def blocked(
    base: Base, chains: Mapping[str, Chain], desired: ForwardingState, underlay: str, program: str = "nft"
) -> Iterator[Blocked]:
    """The base chain, if it drops packets of pods: those of some for sure, those of others perhaps."""
    families = PROTOCOL_FAMILY if base.family == "inet" else (base.family,)
    packets = [each for family in families for each in desired.packets(family, underlay)]
    found = zip(packets, fates(chains, base.name, [packet for _cidr, packet in packets]), strict=True)
    drops = [(cidr, fate) for (cidr, _packet), fate in found if fate.verdict == "drop"]
    certain = {cidr for cidr, fate in drops if not fate.perhaps}
    for sure in (True, False):
        these = [(cidr, fate) for cidr, fate in drops if (cidr in certain) is sure and fate.perhaps is not sure]
        if these:
            fate = these[0][1]
            pods = tuple(dict.fromkeys(cidr for cidr, _fate in these))
            handle = fate.rule.handle if fate.rule is not None else 0
            yield Blocked(base, program, pods, sure, fate.chain, fate.rule is None, handle)
