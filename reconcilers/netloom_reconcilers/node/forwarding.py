"""The forwarding reconciler: whether what this node forwards for its pods gets through its packet filters.

What iptables drops is let pass; what another filter drops is said, with the command that lets it pass. It depends on no
other reconciler: packets pass the forward hook whatever way they take.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from prometheus_client.core import Metric

from netloom.api.ipam_modes import mode_named, mode_of
from netloom.api.v1alpha1 import NETWORK_NAME, NetloomNetwork, NetloomNode, NetworkSpec, Routing
from netloom.cidr import Cidr
from netloom.ipam.ledger_range import cover
from netloom.kernel.forwarding.blocked import Blocked
from netloom.kernel.forwarding.keeper import ForwardKeeper
from netloom.kernel.forwarding.opening import ForwardingState
from netloom.kernel.keeper.report import Failure, PlannedChange
from netloom.kernel.mesh.encapsulation import Encapsulation
from netloom.runtime.metrics import counter, gauge
from netloom_reconcilers.features.kernel import NftablesFeature
from netloom_reconcilers.features.node import NodeContext, written_metric
from netloom_reconcilers.node.known.peers import internal_ip, is_whole, pod_cidrs_of, pods_of, prefixes_of

MOST = 64
"""CIDRs of a family that are let through, each by two rules of a list that the kernel walks for every packet. A node of
more single addresses has wider ones that hold them."""

FIREWALLD = "firewalld"
"""The table, in family inet, that firewalld makes, and makes anew whenever it is reloaded."""


class ForwardingFeature(NftablesFeature):
    """That pods' packets get through the forward hook."""

    name = "forwarding"
    keeper_runs_as = "forward hook"
    counts_changes = False
    keeper: ForwardKeeper

    def __init__(self, context: NodeContext, keeper: ForwardKeeper | None = None) -> None:
        super().__init__(context, keeper or ForwardKeeper(on_report=lambda report: context.changed()))
        self._in_force: ForwardingState | None = None
        self._other = ""
        """The node by which it is told what happens between nodes. One does: it stays the same as long as it can."""

    async def _apply(self) -> None:
        desired = self.desired()
        if desired is not None and desired != self._in_force:
            await self.keeper.hand_over(desired)
            self._in_force = desired
            self._is_in_place(pods=[str(cidr) for cidr in desired.pods])

    def desired(self) -> ForwardingState | None:
        """Whose packets are to pass, and which way they go."""
        if (objects := self._objects()) is None:
            return None
        network, node = objects
        pods, problems = pods_of(node)
        self._report(self._node_name, problems)
        other, routing = self._another(mode_of(network).from_outside), network.spec.routing
        return ForwardingState(
            pods=tuple(cover(pods, MOST)) if len(pods) > MOST else pods,
            accept=network.spec.forwarding.filter == "accept",
            peers=pod_cidrs_of(other)[0] if other is not None else (),
            peer=internal_ip(other) if other is not None else "",
            tunnel=_device_of(routing) if routing.mode != "native" else "",
            native=routing.mode != "tunnel",
        )

    def _another(self, outside: bool) -> NetloomNode | None:
        """The same node as before, if it is still there, or any that is whole; where pods have single addresses from
        outside, any that has an address itself: of its pods' nothing is known here."""
        is_one = internal_ip if outside else is_whole
        before = self._nodes.get(self._other)
        if before is not None and is_one(before):
            return before
        for name in self._nodes:
            node = self._nodes.get(name)
            if name != self._node_name and node is not None and is_one(node):
                self._other = name
                return node
        return None

    def _found_wrong(self, report: Any) -> list[str]:
        """What drops packets of pods for sure."""
        return self._said_of(report, sure=True)

    def warnings(self, report: Any = None) -> list[str]:
        """What may drop them, and what cannot be looked at."""
        report = report or self.keeper.report
        return [*super().warnings(), *self._said_of(report, sure=False), *report.unread]

    def _said_of(self, report: Any, *, sure: bool) -> list[str]:
        network = self._networks.get(NETWORK_NAME) or NetloomNetwork()
        return [said_of(each, network.spec) for each in report.blocked if each.sure is sure]

    def facts(self) -> dict[str, object]:
        """What is open, and what is not."""
        report = self.keeper.report
        return {"forwarding": {"opened": report.open, "blocked": [str(each.base) for each in report.blocked]}}

    def metrics(self) -> Iterable[Metric]:
        """The forward hook's figures, read off the report."""
        report = self.keeper.report
        yield written_metric("netloom_forward_writes", "Requests written to the tables of iptables-nft.", report)
        yield counter(
            "netloom_forward_drift_repaired",
            "Times that somebody had removed or changed the chain NETLOOM-FORWARD, and it was put back.",
            report.repaired,
        )
        yield gauge(
            "netloom_forward_blocked",
            "Packet filters of this node that drop packets of pods and are not opened; the agent's /status names each. "
            "sure=false: some may pass.",
            {str(sure).lower(): sum(each.sure is sure for each in report.blocked) for sure in (True, False)},
            "sure",
        )

    async def cleanup(self) -> tuple[list[PlannedChange], Sequence[Failure]]:
        """Our chains; a filter that cannot be read may hold one."""
        removed, failures = await super().cleanup()
        return removed, (*failures, *(Failure("filter", "", why) for why in self.keeper.report.unread))


def said_of(blocked: Blocked, spec: NetworkSpec) -> str:
    """The filter, what it does to whose packets, why, and what to do."""
    base, pods = blocked.base, ", ".join(map(str, blocked.pods))
    name = f"{blocked.program} chain {base}" if blocked.program == "nft" else f"{blocked.program} chain {base.name}"
    does = "drops" if blocked.sure else "may drop"
    if blocked.policy:
        why = "its policy is drop" + ("" if blocked.sure else ", and whether a rule before accepts them cannot be told")
    else:
        rule = f"rule handle {blocked.handle} of chain {blocked.chain}" if blocked.handle else f"chain {blocked.chain}"
        why = f"{rule} drops or rejects what gets there"
    hook = f"(forward hook, priority {base.priority})"
    return f"{name} {hook} {does} packets between pods of {pods} and other nodes: {why}. {_advice(blocked, spec)}"


def _advice(blocked: Blocked, spec: NetworkSpec) -> str:
    base = blocked.base
    if blocked.is_iptables:
        return f"Set spec.forwarding.filter of NetloomNetwork {NETWORK_NAME} to accept, and agents open it for them."
    if (base.family, base.table) == ("inet", FIREWALLD):
        trusted, whole = _trusted(blocked.pods, spec)
        more = "" if whole else " Other nodes' pod CIDRs have to be trusted as well: an --add-source for each."
        return (
            "An agent cannot overrule it. Let firewalld trust pods: "
            f"`{' && '.join(f'firewall-cmd {each}' for each in (*trusted, '--reload'))}`.{more}"
        )
    rules = [
        f"`nft insert rule {base} {'ip6' if version == 6 else 'ip'} {field} {_set_of(cidrs)} accept`"
        for version in (4, 6)
        if (cidrs := [cidr for cidr in blocked.pods if cidr.version == version])
        for field in ("saddr", "daddr")
    ]
    return (
        f"An agent cannot overrule it. Let them pass: {', '.join(rules)}; and have the program or file that makes the "
        "chain do so, too, or it is lost when that runs again."
    )


def _device_of(routing: Routing) -> str:
    return Encapsulation(routing.tunnel_protocol, routing.port).device


def _set_of(cidrs: Sequence[Cidr]) -> str:
    return str(cidrs[0]) if len(cidrs) == 1 else f"{{ {', '.join(map(str, cidrs))} }}"


def _trusted(pods: Sequence[Cidr], spec: NetworkSpec) -> tuple[list[str], bool]:
    """What firewalld has to trust, as options: sources that hold all nodes' pods, where they are known; else those of
    this node's pods, and our device by which the others' come. And whether that is all. (It takes options of one kind
    at a time.)"""
    pool, routing = spec.ipam.cluster_pool, spec.routing
    native = [routing.ipv4_native_routing_cidr, routing.ipv6_native_routing_cidr]
    by_pool = mode_named(spec.ipam.mode).from_network
    texts = [*pool.ipv4_pod_cidr_list, *pool.ipv6_pod_cidr_list] if by_pool else list(filter(None, native))
    ranges = [cidr for cidr in prefixes_of("", ("", texts))[0] if cidr.version in {pod.version for pod in pods}]
    own = [pod for pod in pods if not any(each.contains(pod) for each in ranges)]
    trust = "--permanent --zone=trusted"
    options = [f"{trust} {' '.join(f'--add-source={cidr}' for cidr in (*ranges, *own))}"]
    if own and routing.mode == "tunnel":
        options.append(f"{trust} --add-interface={_device_of(routing)}")
    return options, not own or routing.mode == "tunnel"
