"""Objects to what the forward hook has to let pass, and what it does not in words."""

import pytest

from netloom.api.meta import ObjectMeta
from netloom.api.v1alpha1 import (
    NETLOOM_NODES,
    NETWORKS,
    Address,
    ClusterPool,
    Forwarding,
    NetloomNetwork,
    NetloomNode,
    NetloomNodeSpec,
    NetworkIPAM,
    NetworkSpec,
    NodeIPAM,
    PoolAddress,
    Routing,
)
from netloom.cidr import Cidr
from netloom.kernel.forwarding.blocked import Blocked
from netloom.kernel.forwarding.keeper import ForwardKeeper, ForwardReport
from netloom.kernel.forwarding.reading import Base
from netloom.runtime.store import Store
from netloom_reconcilers.node.forwarding import MOST, ForwardingFeature, said_of
from tests.contexts import context

PODS = (Cidr.parse("10.42.1.0/24"), Cidr.parse("fd00:42:1::/64"))


def node(name: str, *cidrs: str, address: str = "192.168.7.2") -> NetloomNode:
    addresses = (Address(type="InternalIP", ip=address),) if address else ()
    spec = NetloomNodeSpec(addresses=addresses, ipam=NodeIPAM(mode="cluster-pool", pod_cidrs=cidrs))
    return NetloomNode(metadata=ObjectMeta(name=name), spec=spec)


def spec(mode: str = "tunnel", ipam: str = "kubernetes", native: str = "", filter_: str = "accept") -> NetworkSpec:
    pool = ClusterPool(ipv4_pod_cidr_list=("10.42.0.0/17",), ipv6_pod_cidr_list=("fd00:42::/32",))
    return NetworkSpec(
        ipam=NetworkIPAM(mode=ipam, cluster_pool=pool),  # type: ignore[arg-type]
        routing=Routing(mode=mode, tunnel_port=4790, ipv4_native_routing_cidr=native),  # type: ignore[arg-type]
        forwarding=Forwarding(filter=filter_),  # type: ignore[arg-type]
    )


class Setting:
    """The feature of node-1 over caches that the test fills; the kernel side is never opened."""

    def __init__(self) -> None:
        self.networks: Store[NetloomNetwork] = Store(NETWORKS)
        self.nodes: Store[NetloomNode] = Store(NETLOOM_NODES)
        self.keeper = ForwardKeeper()
        self.feature = ForwardingFeature(context("node-1", self.networks, self.nodes), self.keeper)

    def network(self, spec: NetworkSpec) -> None:
        self.networks.put(NetloomNetwork(metadata=ObjectMeta(name="default"), spec=spec))

    def said(self) -> str:
        """What is desired."""
        desired = self.feature.desired()
        assert desired is not None
        ways = " ".join(filter(None, [desired.tunnel, "native" if desired.native else ""]))
        peers = " ".join(map(str, desired.peers))
        verb = "accept" if desired.accept else "report"
        return f"{verb} {' '.join(map(str, desired.pods))} | {desired.peer} {peers} | {ways}"


def test_what_has_to_pass() -> None:
    it = Setting()
    assert it.feature.desired() is None
    assert it.feature.errors()
    it.network(spec())
    it.nodes.put(node("node-1", "10.42.1.0/24", address="192.168.7.1"))
    assert it.said() == "accept 10.42.1.0/24 |   | netloom_v4790"
    assert it.feature.errors() == []
    it.nodes.put(node("node-0", address="192.168.7.9"))
    it.nodes.put(node("node-3", "10.42.3.0/24", "fd00:42:3::/64", address="192.168.7.3"))
    assert it.said() == "accept 10.42.1.0/24 | 192.168.7.3 10.42.3.0/24 fd00:42:3::/64 | netloom_v4790"
    it.network(spec(mode="native", filter_="report"))
    assert it.said() == "report 10.42.1.0/24 | 192.168.7.3 10.42.3.0/24 fd00:42:3::/64 | native"
    it.network(spec(mode="hybrid"))
    assert it.said() == "accept 10.42.1.0/24 | 192.168.7.3 10.42.3.0/24 fd00:42:3::/64 | netloom_v4790 native"


def test_nodes_that_come_and_change_do_not_change_what_is_desired() -> None:
    """Another node serves as an example, and stays it."""
    it = Setting()
    it.network(spec())
    it.nodes.put(node("node-1", "10.42.1.0/24", address="192.168.7.1"))
    it.nodes.put(node("node-5", "10.42.5.0/24", address="192.168.7.5"))
    before = it.feature.desired()
    for number in range(6, 60):
        it.nodes.put(node(f"node-{number}", f"10.42.{number}.0/24", address=f"192.168.7.{number}"))
    it.nodes.put(node("a-node", "10.42.4.0/24", address="192.168.7.4"))
    assert it.feature.desired() == before


NFT = Base("inet", "site", "forward", -10, "filter", "drop")
FIREWALLD = Base("inet", "firewalld", "filter_FORWARD", 10, "filter", "accept")
IPTABLES = Base("ip", "filter", "FORWARD", 0, "filter", "drop")

SAID = {
    "a policy": (
        Blocked(NFT, "nft", PODS, True, "forward", True),
        spec(),
        "nft chain inet site forward (forward hook, priority -10) drops packets between pods of 10.42.1.0/24, "
        "fd00:42:1::/64 and other nodes: its policy is drop. An agent cannot overrule it. Let them pass: "
        "`nft insert rule inet site forward ip saddr 10.42.1.0/24 accept`, "
        "`nft insert rule inet site forward ip daddr 10.42.1.0/24 accept`, "
        "`nft insert rule inet site forward ip6 saddr fd00:42:1::/64 accept`, "
        "`nft insert rule inet site forward ip6 daddr fd00:42:1::/64 accept`; and have the program or file that makes "
        "the chain do so, too, or it is lost when that runs again.",
    ),
    "a rule, perhaps, of several CIDRs": (
        Blocked(NFT, "nft", (PODS[0], Cidr.parse("10.43.0.0/24")), False, "deny", False, 7),
        spec(),
        "nft chain inet site forward (forward hook, priority -10) may drop packets between pods of 10.42.1.0/24, "
        "10.43.0.0/24 and other nodes: rule handle 7 of chain deny drops or rejects what gets there. An agent cannot "
        "overrule it. Let them pass: "
        "`nft insert rule inet site forward ip saddr { 10.42.1.0/24, 10.43.0.0/24 } accept`, "
        "`nft insert rule inet site forward ip daddr { 10.42.1.0/24, 10.43.0.0/24 } accept`; and have the program or "
        "file that makes the chain do so, too, or it is lost when that runs again.",
    ),
    "iptables": (
        Blocked(IPTABLES, "iptables-legacy", PODS[:1], True, "late", False),
        spec(),
        "iptables-legacy chain FORWARD (forward hook, priority 0) drops packets between pods of 10.42.1.0/24 and other "
        "nodes: chain late drops or rejects what gets there. Set spec.forwarding.filter of NetloomNetwork default to "
        "accept, and agents open it for them.",
    ),
}

TRUSTED = {
    "the pool": (PODS, spec(ipam="cluster-pool"), "--add-source=10.42.0.0/17 --add-source=fd00:42::/32", ""),
    "the pool of a family": (PODS[:1], spec(ipam="cluster-pool"), "--add-source=10.42.0.0/17", ""),
    "the native routing CIDR": (PODS[:1], spec("native", native="10.0.0.0/8"), "--add-source=10.0.0.0/8", ""),
    "the tunnel": (
        PODS,
        spec(),
        "--add-source=10.42.1.0/24 --add-source=fd00:42:1::/64 && "
        "firewall-cmd --permanent --zone=trusted --add-interface=netloom_v4790",
        "",
    ),
    "nobody knows": (
        PODS[:1],
        spec("hybrid"),
        "--add-source=10.42.1.0/24",
        " Other nodes' pod CIDRs have to be trusted as well: an --add-source for each.",
    ),
}


@pytest.mark.parametrize(("blocked", "network", "said"), [pytest.param(*each, id=name) for name, each in SAID.items()])
def test_a_filter_is_named_with_the_way_out(blocked: Blocked, network: NetworkSpec, said: str) -> None:
    assert said_of(blocked, network) == said


@pytest.mark.parametrize(
    ("pods", "network", "options", "more"), [pytest.param(*each, id=name) for name, each in TRUSTED.items()]
)
def test_what_firewalld_has_to_trust(pods: tuple[Cidr, ...], network: NetworkSpec, options: str, more: str) -> None:
    blocked = Blocked(FIREWALLD, "nft", pods, True, "filter_FWD_public", False, 9)
    command = f"`firewall-cmd --permanent --zone=trusted {options} && firewall-cmd --reload`"
    assert said_of(blocked, network).endswith(
        f"An agent cannot overrule it. Let firewalld trust pods: {command}.{more}"
    )


def test_what_is_sure_is_an_error_and_the_rest_a_warning() -> None:
    it = Setting()
    it.network(spec())
    it.nodes.put(node("node-1", "10.42.1.0/24", address="192.168.7.1"))
    assert it.feature.desired()
    sure, perhaps = (Blocked(NFT, "nft", PODS[:1], each, "forward", True) for each in (True, False))
    report = ForwardReport(blocked=(sure, perhaps), unread=("it cannot be told.",))
    (error,) = it.feature.errors(report)
    assert " drops packets" in error
    said, unread = it.feature.warnings(report)
    assert " may drop packets" in said
    assert "whether a rule before accepts them cannot be told" in said
    assert unread == "it cannot be told."


def test_many_single_addresses_are_let_through_by_few_rules() -> None:
    """The kernel walks the rules for each packet."""
    it = Setting()
    it.network(spec("native", ipam="crd"))
    addresses = [f"10.7.{n // 256}.{n % 256}" for n in range(0, 3000, 3)]
    ipam = NodeIPAM(mode="crd", pool={address: PoolAddress() for address in addresses})
    it.nodes.put(NetloomNode(metadata=ObjectMeta(name="node-1"), spec=NetloomNodeSpec(ipam=ipam)))
    it.nodes.put(node("node-2"))
    desired = it.feature.desired()
    assert desired is not None
    assert desired.peer == "192.168.7.2", "by which the way of the node's own traffic is found"
    pods = desired.of("ip")
    assert len(pods) <= MOST
    assert all(any(cidr.contains(Cidr.parse(f"{each}/32")) for cidr in pods) for each in addresses)
    few = NodeIPAM(mode="crd", pool={"10.7.0.5": PoolAddress()})
    it.nodes.put(NetloomNode(metadata=ObjectMeta(name="node-1"), spec=NetloomNodeSpec(ipam=few)))
    assert it.said() == "accept 10.7.0.5/32 | 192.168.7.2  | native"
