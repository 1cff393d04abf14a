"""The senders reconciler: from NetloomNetwork and NetloomNodes to whose packets this node takes out of its tunnels.

It depends on no other reconciler. By which ports tunnels come in it knows from what the network wants and this node
announces; and a port stays guarded as long as one of our devices listens on it.
"""

import socket
import time
from collections.abc import Iterable

import msgspec
from prometheus_client.core import Metric

from netloom.api.node_addresses import unusable
from netloom.api.v1alpha1 import CONTESTED, NetloomNode
from netloom.api.words import some
from netloom.cidr import Address, Cidr, addresses_in, format_address
from netloom.kernel.keeper.report import Failure
from netloom.kernel.keeper.transaction import ELEMENT
from netloom.kernel.mesh.encapsulation import Encapsulation, encapsulation_of
from netloom.kernel.senders.keeper import SendersKeeper, SendersReport
from netloom.kernel.senders.senders import Senders, TunnelPort
from netloom.runtime.metrics import counter, gauge
from netloom_reconcilers.features.kernel import NftablesFeature
from netloom_reconcilers.features.node import NodeContext, written_metric
from netloom_reconcilers.node.known.peers import pod_cidrs_of
from netloom_reconcilers.node.mesh.encapsulations import announced, wanted

DEVICE_SECONDS = 10.0
"""Between two looks whether a device that is no longer needed still listens."""

_SENDING = ("InternalIP", "ExternalIP", CONTESTED)
"""Types of addresses that a node may send from: which it is, its own routes decide. What two nodes claim may be
either's."""

_NAMED = 5
"""Addresses that a warning names."""


def senders_of(node: NetloomNode) -> tuple[Address, ...]:
    """The IPv4 addresses that the node's packets may come from."""
    texts = [each.ip for each in node.spec.addresses if each.type in _SENDING]
    texts += node.spec.source_addresses
    return tuple([address for address in addresses_in(texts) if not unusable(address)])


class SendersFeature(NftablesFeature):
    """Whose packets are taken out of this node's tunnels, in a table of nftables."""

    name = "senders"
    keeper_runs_as = "nftables of tunnels"
    in_kernel = "nftables "
    drops = True
    keeper: SendersKeeper
    _desired: Senders

    def __init__(self, context: NodeContext, keeper: SendersKeeper | None = None) -> None:
        retain = context.retain_unknown
        super().__init__(
            context, keeper or SendersKeeper(on_report=lambda report: context.changed(), retain_unknown=retain)
        )
        self._only_listening = False
        """Whether there is a device of a port that is no longer needed."""

    def facts(self) -> dict[str, object]:
        """Whose packets pass, and what was dropped."""
        report = self.keeper.report
        refusals = report.refusals
        return {
            "tunnelSenders": {
                "ports": [str(port) for port in report.ports],
                "checked": report.checked,
                "lingering": self._desired.lingering,
                "strangersDropped": refusals.strangers,
                "strangers": [*map(format_address, refusals.who)],
                "forgedDropped": refusals.forged,
                "forgers": [*map(format_address, refusals.forgers)],
            }
        }

    def metrics(self) -> Iterable[Metric]:
        """The table's figures, read off its report."""
        report = self.keeper.report
        yield written_metric("netloom_tunnel_senders_writes", "Requests written to the table of senders.", report)
        yield counter(
            "netloom_tunnel_packets_dropped",
            "Packets of tunnels that were not taken out: stranger, from an address of no node; forged, with a pod as "
            "inner source that the sending node does not have. Counted anew when the table is.",
            {"stranger": report.refusals.strangers, "forged": report.refusals.forged},
            "reason",
        )
        yield counter(
            "netloom_tunnel_senders_drift_repaired",
            "Parts of the table of senders that somebody had changed and that were put back.",
            report.repaired,
        )
        yield gauge(
            "netloom_tunnel_senders_errors",
            "What keeps the table of senders from being as desired; the agent's /status names each.",
            len(report.failures) + len(report.contended),
        )

    async def _apply(self) -> float | None:
        desired = self.desired()
        if desired is None:
            return None
        expiry = desired.expire(time.monotonic())
        report = await self.keeper.apply(desired)
        self._is_in_place(ports=[str(port) for port in report.ports], checked=report.checked)
        look = DEVICE_SECONDS if self._only_listening else None
        return min((each for each in (expiry, look) if each is not None), default=None)

    def desired(self) -> Senders | None:
        """Whose packets pass."""
        if (objects := self._objects()) is None:
            return None
        network, node = objects
        touched, self._touched = self._touched, set()
        self._desired.set_nodes(map(self._taken, touched | {self._node_name}), time.monotonic())
        self._desired.checked = network.spec.routing.tunnel_senders == "nodes"
        needed = _ports({*wanted(network.spec.routing), *announced(node).accepts})
        listening = _ports(filter(None, (encapsulation_of(name) for _, name in socket.if_nameindex())))
        self._only_listening = not listening <= needed
        self._desired.ports = tuple(sorted(needed | listening))
        return self._desired

    def _taken(self, name: str) -> tuple[str, tuple[Address, ...], tuple[Cidr, ...]]:
        """A node, the addresses that it may send from, and its pod CIDRs."""
        node = self._nodes.get(name)
        own = name == self._node_name
        if own:
            node = self.own.effective(node)
        cidrs, problems = pod_cidrs_of(node) if node is not None else ((), ())
        self._report(name, problems)
        return name, senders_of(node) if node is not None and not own else (), cidrs

    def errors(self, report: SendersReport | None = None) -> list[str]:
        """What makes packets of nodes be dropped. Without the table all pass, so its failures are warnings."""
        report = report or self.keeper.report
        return super().errors(msgspec.structs.replace(report, failures=_split(report)[0]))

    def warnings(self, report: SendersReport | None = None) -> list[str]:
        """What other nodes lack, why the table is not in place, and whose packets were dropped of late."""
        report = report or self.keeper.report
        found = [f"nftables {failure}" for failure in _split(report)[1]]
        refusals, table = report.refusals, "nftables table inet netloom-tunnels"
        if refusals.who:
            found.append(
                f"{table}: packets to the tunnels from {_some(refusals.who)} are dropped ({refusals.strangers} so "
                "far): no NetloomNode has the address in its spec.addresses. If it is a node's, let its kubelet report "
                "it (--node-ip), or set spec.routing.tunnelSenders of the NetloomNetwork to any; else see who"
                " sends there."
            )
        if refusals.forgers:
            found.append(
                f"{table}: packets from {_some(refusals.forgers)} with pods of other nodes as inner source are dropped "
                f"({refusals.forged} so far). See what runs on these nodes that sends so."
            )
        return super().warnings() + found


def _ports(encapsulations: Iterable[Encapsulation]) -> set[TunnelPort]:
    return {TunnelPort(each.protocol, each.port) for each in encapsulations if each.protocol != "none"}


def _split(report: SendersReport) -> tuple[tuple[Failure, ...], tuple[Failure, ...]]:
    """Failures of elements, which cut nodes off, and all others."""
    elements = tuple(failure for failure in report.failures if failure.kind == ELEMENT)
    return elements, tuple(failure for failure in report.failures if failure.kind != ELEMENT)


def _some(addresses: Iterable[Address]) -> str:
    return some([*map(format_address, addresses)], _NAMED)
