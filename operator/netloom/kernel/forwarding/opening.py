"""What is to be in an iptables filter table, of either variant: a chain of ours, and a jump to it. Pure.

The chain accepts what comes from this node's pods and what goes to them: all that is forwarded for pods on this node
is one or the other, so its rules do not grow with the cluster. The jump stands as far down as it can: before the first
rule that drops pods' packets whatever else they are, or at the end, before the policy. What others decided about
certain packets stays decided: network policies in this chain, kube-proxy's refusal for a Service without endpoints. Who
insists on the first place (Docker, Calico, kube-router) has it, and is not fought with.

Where the filter lets pods' packets pass anyway there is to be nothing.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec

from netloom.cidr import Cidr
from netloom.kernel.forwarding.packets import (
    Chain,
    Fate,
    FilterPacket,
    FilterRule,
    PacketFilter,
    RuleCondition,
    packet,
    range_of,
)
from netloom.kernel.ownership import DEVICE_PREFIX, FORWARD_CHAIN

FORWARD = "FORWARD"
_JUMP = FilterRule(verdict="jump", target=FORWARD_CHAIN)
TUNNELS = (f"{DEVICE_PREFIX}v*", f"{DEVICE_PREFIX}g*")
"""The mesh's devices. Not all that are ours: by one of ours a local pod's packets come, too."""

FAMILIES = {"ip": 4, "ip6": 6}
"""IP versions, by what `nft` calls the families in which iptables has its tables."""


class ForwardingState(msgspec.Struct, frozen=True):
    """The desired state: this node's pods' packets pass.

    pods:    this node's pod CIDRs. accept: where a filter of iptables drops, open it; else only say so.
    peers:   pod CIDRs of another node, by which it is told what happens between nodes; there may be none.
    peer:    an address of that node (as in spec.addresses), or "".
    tunnel, native: by which ways packets go between nodes: a device of ours, or that of the node's own traffic.
    """

    pods: tuple[Cidr, ...] = ()
    accept: bool = True
    peers: tuple[Cidr, ...] = ()
    peer: str = ""
    tunnel: str = "netloom_vxlan"
    native: bool = False

    def of(self, family: str) -> tuple[Cidr, ...]:
        """The pod CIDRs of the family, without those that lie in another one."""
        mine = sorted(cidr for cidr in set(self.pods) if cidr.version == FAMILIES[family])
        return tuple(cidr for cidr in mine if not any(other.contains(cidr) for other in mine if other != cidr))

    def packets(self, family: str, underlay: str) -> Iterator[tuple[Cidr, FilterPacket]]:
        """Packets from each pod CIDR to another node, and from there. underlay: the device of the node's own traffic
        with it, "" if that is not known."""
        other = next((cidr for cidr in self.peers if cidr.version == FAMILIES[family]), None)
        way = (underlay if not self.tunnel else "") if self.native else self.tunnel
        foreign = [*TUNNELS, *([underlay] if underlay else [])]
        for cidr in self.of(family):
            yield cidr, packet(family, source=cidr, destination=other, out_of=way, foreign=foreign)
            yield cidr, packet(family, source=other, destination=cidr, into=way, foreign=foreign)

    def wide(self, family: str) -> Iterator[FilterPacket]:
        """All packets from pods, and all to them."""
        for cidr in self.of(family):
            yield packet(family, source=cidr)
            yield packet(family, destination=cidr)

    def rules(self, family: str) -> tuple[FilterRule, ...]:
        """What is to be in our chain."""
        return tuple(
            FilterRule((RuleCondition(f"{family} {field}", (range_of(cidr),)),), "accept")
            for cidr in self.of(family)
            for field in ("saddr", "daddr")
        )


class Due(msgspec.Struct, frozen=True):
    """What is to be done about one filter table.

    needed: our chain has to be there. chain: it is there. wrong: its rules are not those that it should have. jumps:
    those that are there and should not. before: the place of the jump that is to be made among the rules of FORWARD, as
    they are without `jumps`; None: none is to be made. rule: that which is there now, None: it is made at the end.
    """

    needed: bool = False
    chain: bool = False
    wrong: bool = False
    jumps: tuple[FilterRule, ...] = ()
    before: int | None = None
    rule: FilterRule | None = None

    @property
    def any(self) -> bool:
        """Whether something is to be done."""
        return self.wrong or bool(self.jumps) or self.before is not None or (self.chain and not self.needed)

    @property
    def in_place(self) -> bool:
        """Whether our chain is there, as it should be."""
        return self.needed and not self.any


def due_in(chains: Mapping[str, Chain], desired: ForwardingState, family: str, underlay: str) -> Due:
    """What is to be done about a filter table that holds these chains."""
    forward = chains.get(FORWARD, Chain())
    others = [rule for rule in forward.rules if rule.meaning != _JUMP.meaning]
    jumps = tuple(rule for rule in forward.rules if rule.meaning == _JUMP.meaning)
    ours = chains.get(FORWARD_CHAIN)
    place = _place(chains, others, desired, family, underlay)
    if place is None:
        return Due(chain=ours is not None, jumps=jumps)
    wrong = ours is None or [rule.meaning for rule in ours.rules] != [rule.meaning for rule in desired.rules(family)]
    if len(jumps) == 1 and forward.rules.index(jumps[0]) <= place:
        return Due(True, ours is not None, wrong)
    return Due(True, ours is not None, wrong, jumps, place, others[place] if place < len(others) else None)


def _place(
    chains: Mapping[str, Chain], others: Sequence[FilterRule], desired: ForwardingState, family: str, underlay: str
) -> int | None:
    """Before which of the others' rules the jump has to stand at the latest; None: all pass without it."""
    if not desired.accept or FORWARD not in chains:
        return None
    without = {**chains, FORWARD: Chain(tuple(others), chains[FORWARD].policy)}
    packets = [*desired.wide(family), *(packet for _cidr, packet in desired.packets(family, underlay))]
    return min((fate.index for fate in fates(without, FORWARD, packets) if fate.verdict == "drop"), default=None)


def fates(chains: Mapping[str, Chain], base: str, packets: Iterable[FilterPacket]) -> list[Fate]:
    """What becomes of these packets in a base chain."""
    return [PacketFilter(chains, packet).fate(base) for packet in packets]


def script(due: Due, desired: ForwardingState, family: str) -> list[str]:
    """The same in words that iptables-restore takes with --noflush, and `iptables` one by one."""
    lines = [f"-D {FORWARD} -j {FORWARD_CHAIN}" for _rule in due.jumps]
    if due.wrong:
        lines += [f"-F {FORWARD_CHAIN}" if due.chain else f"-N {FORWARD_CHAIN}"]
        for cidr in desired.of(family):
            lines += [f"-A {FORWARD_CHAIN} {side} {cidr} -j ACCEPT" for side in ("-s", "-d")]
    if due.before is not None:
        lines.append(f"-I {FORWARD} {due.before + 1} -j {FORWARD_CHAIN}")
    if due.chain and not due.needed:
        lines += [f"-F {FORWARD_CHAIN}", f"-X {FORWARD_CHAIN}"]
    return lines
