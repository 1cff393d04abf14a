"""Objects to what is masqueraded: what is taken, what is left out with which words, and that one change costs one."""

from collections.abc import Callable, Collection, Iterable

import msgspec
import pytest

from netloom.api.meta import ObjectMeta
from netloom.api.v1alpha1 import (
    NETLOOM_NODES,
    NETWORKS,
    Address,
    ClusterPool,
    NetloomNetwork,
    NetloomNode,
    NetloomNodeSpec,
    NetloomNodeStatus,
    NetworkIPAM,
    NetworkIPAMStatus,
    NetworkSpec,
    NetworkStatus,
    NodeIPAM,
    NodeIPAMStatus,
    NodePools,
    PoolAddress,
    PoolAllocation,
    Routing,
)
from netloom.api.v1alpha1 import Masquerade as MasqueradeSpec
from netloom.cidr import Cidr
from netloom.kernel.keeper.report import Failure
from netloom.kernel.masquerade.keeper import MasqueradeKeeper, MasqueradeReport
from netloom.runtime.store import Store
from netloom_reconcilers.node import masquerade as module
from netloom_reconcilers.node.known.own_node import OwnNode
from netloom_reconcilers.node.masquerade import MasqueradeFeature
from tests.contexts import context


def node(name: str, *cidrs: str, pools: tuple[str, ...] = ()) -> NetloomNode:
    allocated = (PoolAllocation("blue", pools),) if pools else ()
    ipam = NodeIPAM(mode="cluster-pool", pod_cidrs=cidrs, pools=NodePools(allocated=allocated))
    return NetloomNode(metadata=ObjectMeta(name=name), spec=NetloomNodeSpec(ipam=ipam))


def network(
    *cidrs: str, ipv4: bool = True, ipv6: bool = True, native4: str = "", native6: str = "", mode: str = "tunnel"
) -> NetloomNetwork:
    routing = Routing(mode=mode, ipv4_native_routing_cidr=native4, ipv6_native_routing_cidr=native6)  # type: ignore[arg-type]
    masquerade = MasqueradeSpec(ipv4=ipv4, ipv6=ipv6, non_masquerade_cidrs=cidrs)
    return NetloomNetwork(metadata=ObjectMeta(name="default"), spec=NetworkSpec(routing=routing, masquerade=masquerade))


def outside(name: str, *addresses: str, used: tuple[str, ...] = (), mode: str = "crd") -> NetloomNode:
    """A node that holds single addresses, and whose pods use some."""
    ipam = NodeIPAM(mode=mode, pool={address: PoolAddress() for address in addresses})  # type: ignore[arg-type]
    status = NodeIPAMStatus(used={address: PoolAddress(owner="default/web") for address in used})
    return NetloomNode(
        metadata=ObjectMeta(name=name),
        spec=NetloomNodeSpec(ipam=ipam),
        status=NetloomNodeStatus(ipam=status),
    )


class Setting:
    """A reconciler of node-1 over caches that the test fills; the kernel side is never opened."""

    def __init__(self) -> None:
        self.networks: Store[NetloomNetwork] = Store(NETWORKS)
        self.nodes: Store[NetloomNode] = Store(NETLOOM_NODES)
        self.occupants: dict[Cidr, str] = {}
        self.own = OwnNode("node-1", self._occupants)
        self.connected: list[Cidr] = []
        self.reconciler = MasqueradeFeature(
            context("node-1", self.networks, self.nodes, self.own), MasqueradeKeeper(), self._connected_networks
        )

    async def _connected_networks(self) -> list[Cidr]:
        return self.connected

    async def _occupants(self, within: Collection[Cidr]) -> dict[Cidr, str]:
        return {cidr: what for cidr, what in self.occupants.items() if cidr in within}

    def said(self) -> str:
        """What is desired, one line each."""
        desired = self.reconciler.desired()
        assert desired is not None
        rules = desired.rules
        lines = [f"masquerade {' '.join(rules.families) or 'nothing'}"]
        lines.append(f"from {' '.join(map(str, rules.pods))}")
        lines += [f"but not to {name} {' '.join(map(str, cidrs))}" for name, cidrs in sorted(desired.known.items())]
        lines += [f"but not to {prefix}" for prefix in rules.excluded]
        return "\n".join(lines)


@pytest.fixture
def setting() -> Setting:
    setting = Setting()
    setting.networks.put(network())
    setting.nodes.put(node("node-1", "10.1.0.0/24", "fd00:1::/64"))
    setting.nodes.put(node("node-2", "10.2.0.0/24", "fd00:2::/64"))
    return setting


def test_the_rules_of_a_cluster(setting: Setting) -> None:
    setting.networks.put(network("172.16.0.0/12", "fd55::/16", native4="10.0.0.0/8", native6="fd00::/8"))
    assert setting.said() == (
        "masquerade 4 6\n"
        "from 10.1.0.0/24 fd00:1::/64\n"
        "but not to node-1 10.1.0.0/24 fd00:1::/64\n"
        "but not to node-2 10.2.0.0/24 fd00:2::/64\n"
        "but not to 10.0.0.0/8\n"
        "but not to fd00::/8\n"
        "but not to 172.16.0.0/12\n"
        "but not to fd55::/16"
    )
    assert setting.reconciler.errors(MasqueradeReport()) == []


@pytest.mark.parametrize(
    ("ipv4", "ipv6", "families"), [(True, False, "4"), (False, True, "6"), (False, False, "nothing")]
)
def test_families_are_switched_by_themselves(setting: Setting, ipv4: bool, ipv6: bool, families: str) -> None:
    setting.networks.put(network(ipv4=ipv4, ipv6=ipv6))
    assert setting.said().splitlines()[0] == f"masquerade {families}"


@pytest.mark.parametrize("mode", ["tunnel", "native", "hybrid"])
def test_it_works_in_every_routing_mode(setting: Setting, mode: str) -> None:
    setting.networks.put(network(mode=mode))
    assert setting.said().startswith("masquerade 4 6\n")


def test_blocks_of_pools_are_pod_cidrs(setting: Setting) -> None:
    setting.nodes.put(node("node-1", pools=("10.7.0.0/27", "10.7.0.32/27")))
    assert setting.said().splitlines()[:3] == [
        "masquerade 4",
        "from 10.7.0.0/27 10.7.0.32/27",
        "but not to node-1 10.7.0.0/27 10.7.0.32/27",
    ]


def test_a_change_of_one_node_touches_one_name(setting: Setting) -> None:
    for number in range(3, 50):
        setting.nodes.put(node(f"node-{number}", f"10.{number}.0.0/24"))
    desired = setting.reconciler.desired()
    assert desired is not None
    assert len(desired.take_touched()) == 49
    setting.nodes.put(node("node-7", "10.77.0.0/24"))
    setting.nodes.remove("node-8")
    assert setting.reconciler.desired() is desired, "the same object, so that the kernel side reads its journal"
    assert desired.take_touched() == {"node-7", "node-8"}
    setting.nodes.put(node("node-7", "10.77.0.0/24"))
    setting.reconciler.desired()
    assert desired.take_touched() == set()


def test_bad_cidrs_are_named_and_the_others_done(setting: Setting) -> None:
    setting.networks.put(network("junk", "172.16.0.0/12", native4="10.0.0.1/8"))
    setting.nodes.put(node("node-2", "10.2.0.0/33", "fd00:2::/64"))
    assert "but not to 172.16.0.0/12" in setting.said()
    assert "but not to node-2 fd00:2::/64" in setting.said()
    assert setting.reconciler.warnings() == [
        "NetloomNode node-2: spec.ipam.podCIDRs: '10.2.0.0/33': an IPv4 prefix has at most 32 bits."
    ]
    assert setting.reconciler.errors(MasqueradeReport()) == [
        "NetloomNetwork default: spec.routing.ipv4NativeRoutingCIDR: '10.0.0.1/8' has bits set below its mask: write "
        "10.0.0.0/8.",
        "NetloomNetwork default: spec.masquerade.nonMasqueradeCIDRs: 'junk' is not a CIDR (address/length).",
    ]
    setting.networks.put(network())
    setting.nodes.put(node("node-2", "10.2.0.0/24"))
    setting.said()
    assert setting.reconciler.errors(MasqueradeReport()) == []
    assert setting.reconciler.warnings() == []
    setting.nodes.put(node("node-1", "10.1.0.0/33"))
    setting.said()
    assert "NetloomNode node-1: spec.ipam.podCIDRs" in setting.reconciler.errors(MasqueradeReport())[0]


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (lambda s: s.networks.remove("default"), 'there is no NetloomNetwork "default": apply one.'),
        (lambda s: s.nodes.remove("node-1"), "there is no NetloomNode node-1: the operator makes one"),
    ],
)
def test_a_mistake_in_the_api_takes_nothing_away(
    setting: Setting, mistake: Callable[[Setting], None], words: str
) -> None:
    desired = setting.reconciler.desired()
    before = setting.said()
    mistake(setting)
    assert setting.reconciler.desired() is None, "nothing is applied, so the kernel stays as it is"
    assert words in setting.reconciler.errors(MasqueradeReport())[0]
    setting.networks.put(network())
    setting.nodes.put(node("node-1", "10.1.0.0/24", "fd00:1::/64"))
    assert setting.said() == before
    assert setting.reconciler.desired() is desired


async def test_pods_of_a_former_cidr_are_masqueraded_until_they_are_gone(setting: Setting) -> None:
    setting.occupants = {Cidr.parse("10.1.0.0/24"): "10.1.0.5/32 on veth1"}
    await setting.own.look(setting.nodes.get("node-1"))
    setting.nodes.put(node("node-1", "10.9.0.0/24"))
    await setting.own.look(setting.nodes.get("node-1"))
    assert setting.said().splitlines()[:3] == [
        "masquerade 4",
        "from 10.9.0.0/24 10.1.0.0/24",
        "but not to node-1 10.9.0.0/24 10.1.0.0/24",
    ]
    setting.occupants.clear()
    await setting.own.look(setting.nodes.get("node-1"))
    assert setting.said().splitlines()[1:3] == ["from 10.9.0.0/24", "but not to node-1 10.9.0.0/24"]


def test_all_that_is_wrong_is_said(setting: Setting) -> None:
    setting.said()
    report = MasqueradeReport(
        failures=(Failure("table", "inet netloom", "create chain postrouting: EBUSY: Device or resource busy"),),
        contended=("rules inet netloom postrouting",),
    )
    assert setting.reconciler.errors(report) == [
        "nftables table inet netloom: create chain postrouting: EBUSY: Device or resource busy",
        "nftables rules inet netloom postrouting: somebody else keeps changing it; its repair is delayed",
    ]


@pytest.mark.parametrize(
    ("connected", "address", "services", "excluded"),
    [
        ("192.168.7.0/24", "192.168.7.2", (), "10.0.0.0/12 fd00::/16"),
        ("10.1.0.0/24", "192.168.7.2", (), "10.0.0.0/12 fd00::/16"),
        ("10.9.0.0/16", "192.168.7.2", (), "fd00::/16"),
        ("192.168.7.0/24", "10.9.0.2", (), "fd00::/16"),
        ("192.168.7.0/24", "fd00:99::2", (), "10.0.0.0/12"),
        ("192.168.7.0/24", "192.168.7.2", ("10.8.0.0/16",), "fd00::/16"),
        ("192.168.7.0/24", "192.168.7.2", None, ""),
    ],
    ids=["apart", "a bridge of own pods", "a network of this node", "a node", "a node, IPv6", "Services", "not known"],
)
async def test_the_cluster_cidrs_are_never_masqueraded_unless_others_live_there(
    setting: Setting, connected: str, address: str, services: tuple[str, ...] | None, excluded: str
) -> None:
    pool = ClusterPool(ipv4_pod_cidr_list=("10.0.0.0/12",), ipv6_pod_cidr_list=("fd00::/16",))
    plain = network()
    spec = msgspec.structs.replace(plain.spec, ipam=NetworkIPAM("cluster-pool", pool))
    status = NetworkStatus(ipam=NetworkIPAMStatus(service_cidrs=services))
    setting.networks.put(msgspec.structs.replace(plain, spec=spec, status=status))
    assert "but not to 10.0.0.0/12" not in setting.said(), "not before it is known who lives there"
    setting.connected = [Cidr.parse(connected)]
    second = node("node-2", "10.2.0.0/24")
    spec2 = msgspec.structs.replace(second.spec, addresses=(Address("InternalIP", address),))
    setting.nodes.put(msgspec.structs.replace(second, spec=spec2))
    await setting.reconciler._look_around()
    lines = [line for line in setting.said().splitlines() if line.startswith("but not to ") and "node-" not in line]
    assert [line.removeprefix("but not to ") for line in lines] == excluded.split()
    setting.nodes.remove("node-2")
    if connected != "10.9.0.0/16" and services == ():
        assert "but not to 10.0.0.0/12\nbut not to fd00::/16" in setting.said(), "the node left"


async def test_of_nodes_among_pods_one_change_costs_one_and_the_last_that_leaves_counts(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = ClusterPool(ipv4_pod_cidr_list=("10.0.0.0/12", "10.0.0.0/14"))
    plain = network()
    spec = msgspec.structs.replace(plain.spec, ipam=NetworkIPAM("cluster-pool", pool))
    status = NetworkStatus(ipam=NetworkIPAMStatus(service_cidrs=()))
    setting.networks.put(msgspec.structs.replace(plain, spec=spec, status=status))
    for number in range(100):
        each = node(f"among-{number}", f"10.2.{number}.0/24")
        inside = msgspec.structs.replace(each.spec, addresses=(Address("InternalIP", f"10.9.0.{number}"),))
        setting.nodes.put(msgspec.structs.replace(each, spec=inside))
    await setting.reconciler._look_around()
    shared, wide = "but not to 10.0.0.0/14", "but not to 10.0.0.0/12"
    assert (shared in setting.said(), wide in setting.said()) == (True, False)
    looked_at: list[int] = []
    unshared = module.unshared

    def counted(
        cluster: Iterable[Cidr], pods: tuple[Cidr, ...], networks: Collection[Cidr], addresses: Collection[Cidr]
    ) -> tuple[Cidr, ...]:
        looked_at.append(len(addresses))
        return unshared(cluster, pods, networks, addresses)

    monkeypatch.setattr(module, "unshared", counted)
    for number in range(100):
        assert wide not in setting.said()
        setting.nodes.remove(f"among-{number}")
    assert (shared in setting.said(), wide in setting.said()) == (True, True)
    assert set(looked_at) == {0}


def test_single_addresses_are_masqueraded_like_those_of_any_pod() -> None:
    """Those that were withdrawn under a pod, too. Of other nodes' no more is known than the native routing CIDR."""
    it = Setting()
    it.networks.put(network(native4="10.0.0.0/8", mode="native"))
    it.nodes.put(outside("node-1", "10.7.0.5", "10.7.9.1", "fd00::7", used=("10.7.9.1", "10.7.0.8")))
    it.nodes.put(outside("node-2", "10.7.0.6"))
    assert it.said().splitlines() == [
        "masquerade 4 6",
        "from 10.7.0.5/32 10.7.9.1/32 fd00::7/128 10.7.0.8/32",
        "but not to 10.0.0.0/8",
    ]
    it.nodes.put(outside("node-1", "10.7.0.5", mode="cluster-pool"))
    assert it.said().splitlines()[0] == "masquerade nothing", "nobody gives single addresses in that mode"
