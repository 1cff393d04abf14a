"""Objects to a desired mesh: what is taken, what is refused with which words, and that one change costs one peer."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from netloom.api.meta import ObjectMeta
from netloom.api.v1alpha1 import (
    NETLOOM_NODES,
    NETWORKS,
    AcceptedEncapsulation,
    Address,
    ClusterPool,
    NetloomNetwork,
    NetloomNode,
    NetloomNodeSpec,
    NetworkIPAM,
    NetworkIPAMStatus,
    NetworkSpec,
    NetworkStatus,
    NodeIPAM,
    NodePools,
    PoolAllocation,
    Routing,
)
from netloom.cidr import Cidr, format_address, parse_address
from netloom.kernel.keeper.report import Failure
from netloom.kernel.mac import mac_of
from netloom.kernel.mesh.desired import FurtherAddresses, MeshNode
from netloom.kernel.mesh.encapsulation import GENEVE, VXLAN, Encapsulation
from netloom.kernel.mesh.holes import HoleRules
from netloom.kernel.mesh.keeper import MeshKeeper, MeshReport
from netloom.kernel.mesh.peer_claims import AddressConflict
from netloom.kernel.mesh.rivals import ForeignRoute, RivalRoute
from netloom.kernel.mesh.withheld import WithheldRoute
from netloom.runtime.store import Store
from netloom_reconcilers.features.node import Obstacle
from netloom_reconcilers.node import tunnels
from netloom_reconcilers.node.mesh.cluster_cidrs import hole_rules
from netloom_reconcilers.node.mesh.reading import LocalNode, further_addresses_of, node_of, peer_of
from netloom_reconcilers.node.tunnels import TunnelsFeature
from tests.contexts import context


def node(name: str, ip: str = "192.168.7.1", *cidrs: str, since: str = "", kind: str = "InternalIP") -> NetloomNode:
    addresses = (Address(type=kind, ip=ip),) if ip else ()
    return NetloomNode(
        metadata=ObjectMeta(name=name, creation_timestamp=since),
        spec=NetloomNodeSpec(addresses=addresses, ipam=NodeIPAM(mode="cluster-pool", pod_cidrs=cidrs)),
    )


def network(mtu: int = 0, **routing: object) -> NetloomNetwork:
    return NetloomNetwork(
        metadata=ObjectMeta(name="default"),
        spec=NetworkSpec(mtu=mtu, routing=Routing(**routing)),  # type: ignore[arg-type]
    )


class Setting:
    """A reconciler of node-1 over caches that the test fills; the data path is never opened."""

    def __init__(self, tmp_path: Path) -> None:
        self.networks: Store[NetloomNetwork] = Store(NETWORKS)
        self.nodes: Store[NetloomNode] = Store(NETLOOM_NODES)
        self.tunnels = TunnelsFeature(context("node-1", self.networks, self.nodes), MeshKeeper(run_directory=tmp_path))

    def names(self) -> list[str]:
        desired = self.tunnels.desired()
        assert desired is not None
        return sorted(desired.peers)


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    setting = Setting(tmp_path)
    setting.networks.put(network())
    setting.nodes.put(node("node-1", "192.168.7.1", "10.1.0.0/24", "fd00:1::/64"))
    setting.nodes.put(node("node-2", "192.168.7.2", "10.2.0.0/24", "fd00:2::/64"))
    return setting


def test_the_nodes_own_side() -> None:
    side = node_of(network(mtu=1400), node("node-1", "192.168.7.1", "10.1.0.0/24", "fd00:1::/64"), "node-1")
    assert isinstance(side, MeshNode)
    assert (format_address(side.local), side.mac, side.mtu) == ("192.168.7.1", mac_of("node-1"), 1400)
    assert [format_address(address) for address in side.addresses] == ["10.1.0.0", "fd00:1::"]


@pytest.mark.parametrize(
    ("found", "own", "reason", "words"),
    [
        (None, node("node-1"), "NoNetwork", 'there is no NetloomNetwork "default": apply one.'),
        (
            network(),
            None,
            "NoNode",
            "there is no NetloomNode node-1: the operator makes one for each Node that is not "
            "left out. If this machine's Node has another name, give that as --node-name.",
        ),
        (network(), node("node-1", ""), "NoAddress", "has no IPv4 address of type InternalIP"),
        (network(), node("node-1", "fd00::1"), "NoAddress", "has no IPv4 address of type InternalIP"),
        (network(), node("node-1", "8.8.8.8", kind="ExternalIP"), "NoAddress", "of type InternalIP"),
        (network(), node("node-1", "192.168.7.300"), "NoAddress", "'192.168.7.300' is not an IP address"),
        (network(), node("node-1", "127.0.0.1"), "NoAddress", "127.0.0.1 is a loopback address, and no other node"),
        (network(), node("node-1", "192.168.7.1", "10.1.0.0"), "InvalidPodCIDR", "'10.1.0.0' is not a CIDR"),
        (network(), node("node-1", "192.168.7.1", "10.1.0.7/24"), "InvalidPodCIDR", "has bits set below its mask"),
    ],
)
def test_what_blocks_the_whole_node_is_said_with_the_way_out(
    found: NetloomNetwork | None, own: NetloomNode | None, reason: str, words: str
) -> None:
    blocked = node_of(found, own, "node-1")
    assert isinstance(blocked, Obstacle)
    assert blocked.reason == reason
    assert words in blocked.message


def test_a_peer() -> None:
    peer, problems = peer_of(node("node-2", "192.168.7.2", "10.2.0.0/24", since="2026-01-01T00:00:00Z"), LocalNode())
    assert problems == ()
    assert peer is not None
    assert (peer.name, format_address(peer.underlay), peer.mac) == ("node-2", "192.168.7.2", mac_of("node-2"))
    assert [str(prefix) for prefix in peer.cidrs] == ["10.2.0.0/24"]
    assert peer.since == "2026-01-01T00:00:00Z"


def test_blocks_of_pools_are_pod_cidrs() -> None:
    allocated = (PoolAllocation("a", ("10.2.0.0/28",)), PoolAllocation("b", ("10.2.0.16/28", "fd00:2::/80")))
    ipam = NodeIPAM(mode="multi-pool", pools=NodePools(allocated=allocated))
    found = node("node-2", "192.168.7.2")
    found = msgspec.structs.replace(found, spec=msgspec.structs.replace(found.spec, ipam=ipam))
    peer, problems = peer_of(found, LocalNode())
    assert peer is not None
    assert [str(prefix) for prefix in peer.cidrs] == ["10.2.0.0/28", "10.2.0.16/28", "fd00:2::/80"]
    assert problems == ()
    side = node_of(network(), found, "node-2")
    assert isinstance(side, MeshNode)
    assert side.cidrs == peer.cidrs


@pytest.mark.parametrize(
    ("remote", "routed", "words"),
    [
        (node("node-2", "192.168.7.2"), None, []),
        (node("node-2", "", "10.2.0.0/24"), None, ["has no IPv4 address of type InternalIP"]),
        (node("node-2", "192.168.7.2", "10.2.0.0/24", "junk"), ["10.2.0.0/24"], ["'junk' is not a CIDR"]),
        (node("node-2", "192.168.7.2", "junk"), None, ["'junk' is not a CIDR"]),
        (node("node-2", "192.168.7.1", "10.2.0.0/24"), None, ["has this node's own address"]),
        (node("node-2", "192.168.7.2", "10.1.0.0/25"), None, ["10.1.0.0/25 overlaps a pod CIDR of this node"]),
        (node("node-2", "192.168.7.2", "10.0.0.0/8", "10.2.0.0/24"), ["10.2.0.0/24"], ["10.0.0.0/8 overlaps"]),
    ],
)
def test_a_peer_that_is_not_whole_is_named_and_its_good_cidrs_are_routed(
    remote: NetloomNode, routed: list[str] | None, words: list[str]
) -> None:
    peer, problems = peer_of(
        remote, LocalNode(address=parse_address("192.168.7.1"), cidrs=(Cidr.parse("10.1.0.0/24"),))
    )
    assert (peer and [str(prefix) for prefix in peer.cidrs]) == routed
    assert len(problems) == len(words)
    for problem, word in zip(problems, words, strict=True):
        assert problem.startswith("NetloomNode node-2: ")
        assert word in problem


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [
        ("10.0.0.0/8", "10.1.0.0/24", True),
        ("10.1.0.0/24", "10.1.0.128/25", True),
        ("10.1.0.0/25", "10.1.0.128/25", False),
        ("0.0.0.0/0", "10.1.0.0/24", True),
        ("0.0.0.0/0", "::/0", False),
        ("fd00::/16", "fd00:1::/64", True),
    ],
)
def test_overlap(one: str, other: str, shared: bool) -> None:
    assert Cidr.parse(one).overlaps(Cidr.parse(other)) is shared
    assert Cidr.parse(other).overlaps(Cidr.parse(one)) is shared


def test_a_change_of_one_node_touches_one_peer(setting: Setting) -> None:
    for number in range(3, 50):
        setting.nodes.put(node(f"node-{number}", f"192.168.7.{number}", f"10.{number}.0.0/24"))
    desired = setting.tunnels.desired()
    assert desired is not None
    assert len(desired.take_touched()) == 48
    setting.nodes.put(node("node-7", "192.168.7.7", "10.77.0.0/24"))
    setting.nodes.remove("node-8")
    again = setting.tunnels.desired()
    assert again is desired, "the same object, so that the data path reads its journal"
    assert desired.take_touched() == {"node-7", "node-8"}
    assert "node-8" not in desired.peers
    setting.nodes.put(node("node-7", "192.168.7.7", "10.77.0.0/24"))
    setting.tunnels.desired()
    assert desired.take_touched() == set()


def test_a_peer_comes_with_its_address_and_goes_with_its_object(setting: Setting) -> None:
    assert setting.names() == ["node-2"]
    setting.nodes.put(node("node-3", "", "10.3.0.0/24"))
    assert setting.names() == ["node-2"]
    assert list(setting.tunnels.problems) == ["node-3"]
    setting.nodes.put(node("node-3", "192.168.7.3", "10.3.0.0/24"))
    assert setting.names() == ["node-2", "node-3"]
    assert setting.tunnels.problems == {}
    setting.nodes.remove("node-2")
    assert setting.names() == ["node-3"]


def test_a_new_pod_cidr_of_this_node_is_held_against_all_peers(setting: Setting) -> None:
    setting.nodes.put(node("node-3", "192.168.7.3", "10.3.0.0/24"))
    assert setting.names() == ["node-2", "node-3"]
    setting.nodes.put(node("node-1", "192.168.7.1", "10.1.0.0/24", "10.3.0.0/24"))
    assert setting.names() == ["node-2"]
    assert "overlaps a pod CIDR of this node" in setting.tunnels.problems["node-3"][0]


def test_a_tunnel_that_stands_now_concerns_only_peers_that_accept_another(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = {name: AcceptedEncapsulation(protocol=name, port=port) for name, port in (("vxlan", 8472), ("geneve", 6081))}
    for number, accepts in ((3, ("geneve", "vxlan")), (4, ("vxlan",))):
        one = node(f"node-{number}", f"192.168.7.{number}", f"10.{number}.0.0/24")
        spec = msgspec.structs.replace(one.spec, encapsulations=tuple(said[each] for each in accepts))
        setting.nodes.put(msgspec.structs.replace(one, spec=spec))
    looked_at: list[str] = []
    monkeypatch.setattr(
        tunnels, "peer_of", lambda node, local: (looked_at.append(node.metadata.name), peer_of(node, local))[1]
    )
    standing: list[Encapsulation] = []
    monkeypatch.setattr(MeshKeeper, "tunnels", property(lambda _: tuple(standing)))
    for there, which, by in (
        ([], ["node-2", "node-3", "node-4"], (VXLAN, GENEVE)),
        ([VXLAN], ["node-3"], (VXLAN,)),
        ([], ["node-3"], (VXLAN, GENEVE)),
    ):
        standing[:], looked_at[:] = there, []
        desired = setting.tunnels.desired(keep=(VXLAN,))
        assert desired is not None
        assert (sorted(looked_at), desired.peers["node-3"].encapsulations) == (which, by)


@pytest.mark.parametrize(
    "mistake",
    [
        lambda s: s.networks.remove("default"),
        lambda s: s.nodes.remove("node-1"),
        lambda s: s.nodes.put(node("node-1", "")),
    ],
)
def test_a_mistake_in_the_api_takes_nothing_away(setting: Setting, mistake: Callable[[Setting], None]) -> None:
    desired = setting.tunnels.desired()
    assert desired is not None
    before = dict(desired.peers)
    mistake(setting)
    assert setting.tunnels.desired() is None, "nothing is applied, so the kernel stays as it is"
    assert setting.tunnels.obstacle is not None
    assert dict(desired.peers) == before
    setting.networks.put(network())
    setting.nodes.put(node("node-1", "192.168.7.1", "10.1.0.0/24", "fd00:1::/64"))
    assert setting.tunnels.desired() is desired
    assert setting.tunnels.obstacle is None


def test_all_that_is_wrong_is_said(setting: Setting) -> None:
    setting.nodes.put(node("node-3", "192.168.7.3", "junk"))
    setting.tunnels.desired()
    report = MeshReport(
        failures=(Failure("route", "10.2.0.0/24", "EEXIST: File exists", "node-2"),),
        conflicts=(AddressConflict("10.9.0.0/24", "node-4", "node-5"),),
        contended=("route 10.6.0.0/24 of node-6",),
    )
    assert setting.tunnels.errors(report) == [
        "route 10.2.0.0/24 of node-2: EEXIST: File exists",
        "route 10.6.0.0/24 of node-6: somebody else keeps changing it; its repair is delayed",
    ]
    assert setting.tunnels.warnings(report) == [
        "NetloomNode node-3: spec.ipam.podCIDRs: 'junk' is not a CIDR (address/length).",
        "10.9.0.0/24 is claimed by node-4 and node-5; node-4 is older and keeps it. Drain node-5, and delete its Node.",
    ]
    quiet = msgspec.structs.replace(report, failures=(), conflicts=(), contended=())
    assert setting.tunnels.errors(quiet) == []


@pytest.mark.parametrize(
    ("odd", "words"),
    [
        (node("odd", "", "10.3.0.0/24"), "has no IPv4 address of type InternalIP, and tunnels need one"),
        (node("odd", "fd00::3", "10.3.0.0/24"), "has no IPv4 address of type InternalIP"),
        (node("odd", "10.0.0.300", "10.3.0.0/24"), "'10.0.0.300' is not an IP address"),
        (node("odd", "127.0.0.1", "10.3.0.0/24"), "127.0.0.1 is a loopback address, and no other node can send to it"),
        (node("odd", "0.0.0.0", "10.3.0.0/24"), "0.0.0.0 is no address of a machine, and no"),
        (node("odd", "224.0.0.5", "10.3.0.0/24"), "224.0.0.5 is a multicast address, and no"),
        (node("odd", "255.255.255.255", "10.3.0.0/24"), "255.255.255.255 is the broadcast address, and no"),
        (node("odd", "10.0.0.3", "10.3.0.0/24", kind="ContestedIP"), "10.0.0.3 is another node's, too, which has it"),
        (node("odd", "192.168.7.1", "10.3.0.0/24", since="2026"), "has this node's own address"),
        (node("odd", "192.168.7.3", "10.1.0.0/24", since="2026"), "overlaps a pod CIDR of this node"),
    ],
)
def test_what_is_wrong_with_one_node_is_no_fault_of_the_others(setting: Setting, odd: NetloomNode, words: str) -> None:
    setting.nodes.put(odd)
    assert setting.names() == ["node-2"]
    (warning,) = setting.tunnels.warnings(MeshReport())
    assert warning.startswith("NetloomNode odd: spec.")
    assert words in warning
    assert setting.tunnels.errors(MeshReport()) == []
    setting.nodes.remove("odd")
    assert setting.names() == ["node-2"]
    assert setting.tunnels.warnings(MeshReport()) == []


@pytest.mark.parametrize("what", [("192.168.7.1", "10.3.0.0/24"), ("192.168.7.3", "10.1.0.0/25")])
def test_what_an_older_node_has_this_one_goes_without_and_says_so(setting: Setting, what: tuple[str, str]) -> None:
    own = node("node-1", "192.168.7.1", "10.1.0.0/24", "fd00:1::/64", since="2026-01-02T00:00:00Z")
    setting.nodes.put(own)
    setting.nodes.put(node("older", *what, since="2026-01-01T00:00:00Z"))
    assert setting.names() == ["node-2"]
    assert len(setting.tunnels.errors(MeshReport())) == 1
    assert setting.tunnels.warnings(MeshReport()) == []
    setting.nodes.put(node("older", *what, since="2026-01-03T00:00:00Z"))
    assert setting.names() == ["node-2"]
    assert setting.tunnels.errors(MeshReport()) == []
    assert len(setting.tunnels.warnings(MeshReport())) == 1


def test_an_own_address_that_no_device_has_is_an_error_of_this_node(setting: Setting) -> None:
    own = node("node-1", "192.168.7.1", "10.1.0.0/24")
    more = (*own.spec.addresses, Address("InternalIP", "192.168.7.9"), Address("InternalIP", "fd00::9"))
    spec = msgspec.structs.replace(own.spec, addresses=(*more, Address("ExternalIP", "8.8.8.8")))
    setting.nodes.put(msgspec.structs.replace(own, spec=spec))
    desired = setting.tunnels.desired()
    assert desired is not None
    assert desired.node is not None
    assert list(map(format_address, desired.node.claimed)) == ["192.168.7.1", "192.168.7.9", "fd00::9"]
    absent = parse_address("192.168.7.1"), parse_address("192.168.7.9")
    assert setting.tunnels.errors(MeshReport(absent=absent[1:])) == [], "nobody sends to it"
    (error,) = setting.tunnels.errors(MeshReport(absent=absent))
    assert error.startswith(
        "NetloomNode node-1: spec.addresses: others send to 192.168.7.1, and no device of this machine has it"
    )


def test_a_node_without_an_ipv6_address_that_native_routes_need_says_so_itself(setting: Setting) -> None:
    setting.networks.put(network(mode="native", auto_direct_node_routes=True))
    setting.tunnels.desired()
    own = (
        "NetloomNode node-1: spec.addresses has no IPv6 address of type InternalIP, and native routes to its IPv6 pod "
        "CIDRs need one. Let the kubelet report it (--node-ip)."
    )
    report = MeshReport(unreachable={"node-2": (6,)})
    assert setting.tunnels.errors(report) == [own]
    (warning,) = setting.tunnels.warnings(report)
    assert "NetloomNode node-2: spec.addresses has no IPv6 address" in warning


def test_a_peer_that_lacks_an_ipv6_address_may_be_out_of_reach_all_the_same(setting: Setting) -> None:
    """Its IPv4 pods are not routed either, and nothing else would say so."""
    setting.networks.put(network(mode="native", auto_direct_node_routes=True))
    setting.tunnels.desired()
    away = "NetloomNode node-2: spec.addresses has no address on a network of this node"
    both = MeshReport(unreachable={"node-2": (4, 6)})
    assert setting.tunnels.errors(both)[0].startswith(away)
    assert "has no IPv6 address" in setting.tunnels.warnings(both)[0]
    setting.nodes.put(node("node-2", "192.168.7.2", "10.2.0.0/24"))
    (error, *_) = setting.tunnels.errors(MeshReport(unreachable={"node-2": (4,)}))
    assert error.startswith(away)


def test_addresses_that_no_rows_are_made_for_are_known_all_the_same(setting: Setting) -> None:
    bare = node("node-3", "192.168.7.3", since="2026")
    more = msgspec.structs.replace(
        bare.spec, addresses=(*bare.spec.addresses, Address("InternalIP", "10.0.0.3"), Address("Hostname", "node-3"))
    )
    two = setting.nodes.get("node-2")
    assert two is not None
    setting.nodes.put(bare)
    setting.nodes.put(msgspec.structs.replace(two, spec=msgspec.structs.replace(two.spec, addresses=more.addresses)))
    desired = setting.tunnels.desired()
    assert desired is not None
    assert dict(desired.further) == {
        "node-2": FurtherAddresses((parse_address("10.0.0.3"),)),
        "node-3": FurtherAddresses((parse_address("192.168.7.3"),), "2026"),
    }
    setting.nodes.put(node("node-3", "192.168.7.3", "10.3.0.0/24"))
    setting.nodes.remove("node-2")
    desired = setting.tunnels.desired()
    assert desired is not None
    assert (dict(desired.further), "node-3" in desired.peers) == ({}, True)


def test_an_agent_that_has_said_nothing_speaks_for_no_machine_where_others_do() -> None:
    silent = node("node-2", "192.168.7.2", "10.2.0.0/24")
    for hears, speaks in ((False, True), (True, False)):
        local = LocalNode(hears=hears)
        found, _ = peer_of(silent, local)
        assert found is not None
        assert found.speaks is speaks
        bare = further_addresses_of(node("node-3", "192.168.7.3"), None, local)
        assert bare is not None
        assert bare.speaks is speaks


def test_a_cidr_that_is_withheld_is_an_error_of_this_node_and_names_the_way_out(setting: Setting) -> None:
    setting.tunnels.desired()
    over = WithheldRoute("10.90.0.0/24", "node-2", "it lies in 10.90.0.0/16, a network of this node (eth0)")
    mine = WithheldRoute("10.90.1.0/24", "", "it holds 10.90.1.1, a gateway of this node")
    assert setting.tunnels.errors(MeshReport(withheld=(over,), misplaced=(mine,))) == [
        "NetloomNode node-1: spec.ipam.podCIDRs 10.90.1.0/24 cannot be routed by nodes on the same network: it holds "
        "10.90.1.1, a gateway of this node. If that is due to a device which is left over (a bridge, a VPN), remove "
        "it. Else let pod CIDRs come from outside the networks of the machines, then drain node-1 and delete its Node, "
        "and restart its kubelet when its NetloomNode is gone: it gets others.",
        "NetloomNode node-2: spec.ipam.podCIDRs 10.90.0.0/24 is not routed from here, as a route to it would cut this "
        "node off: it lies in 10.90.0.0/16, a network of this node (eth0). If that is due to a device which is left "
        "over (a bridge, a VPN), remove it. Else let pod CIDRs come from outside the networks of the machines, then "
        "drain node-2 and delete its Node, and restart its kubelet when its NetloomNode is gone: it gets others.",
    ]


def rival(text: str, cidr: str, *, whole: bool) -> RivalRoute:
    via = bytes((1, 8, 0, 5, 0, 192, 168, 7, 9))
    return RivalRoute(ForeignRoute(Cidr.parse(text), 0, 0, 4, via), Cidr.parse(cidr), "node-2", whole)


@pytest.mark.parametrize("carried", [False, True])
def test_routes_of_others_that_take_packets_to_pods_are_named(setting: Setting, carried: bool) -> None:
    setting.networks.put(network(mode="native" if carried else "tunnel"))
    assert setting.tunnels.desired() is not None
    rivals = (rival("10.2.0.0/24", "10.2.0.0/24", whole=True), rival("10.2.0.7/32", "10.2.0.0/24", whole=False))
    errors, warnings = (
        setting.tunnels.errors(MeshReport(rivals=rivals)),
        setting.tunnels.warnings(MeshReport(rivals=rivals)),
    )
    whole = (
        "Route 10.2.0.0/24 via 192.168.7.9 proto 4: it comes before Netloom's own to 10.2.0.0/24, the pods of node-2, "
        "and is somebody else's: packets to these pods go where it leads. If nobody needs it: "
        "ip route del 10.2.0.0/24 via 192.168.7.9 proto 4"
    )
    part = (
        "Route 10.2.0.7/32 via 192.168.7.9 proto 4: it lies in 10.2.0.0/24, the pods of node-2, and is somebody "
        "else's: packets to that part of them go where it leads. If nobody needs it: "
        "ip route del 10.2.0.7/32 via 192.168.7.9 proto 4"
    )
    assert errors == ([] if carried else [whole])
    assert warnings == ([whole, part] if carried else [part])


def test_of_very_many_some_are_named(setting: Setting) -> None:
    assert setting.tunnels.desired() is not None
    rivals = tuple(rival(f"10.2.0.{number}/32", "10.2.0.0/24", whole=False) for number in range(200))
    warnings = setting.tunnels.warnings(MeshReport(rivals=rivals))
    assert len(warnings) == 11
    assert warnings[-1] == "190 more routes that others made take packets to pods of other nodes."


@pytest.mark.parametrize(
    ("routing", "carried"),
    [
        ({"mode": "tunnel"}, False),
        ({"mode": "hybrid"}, False),
        ({"mode": "native"}, True),
        ({"mode": "native", "auto_direct_node_routes": True}, False),
        ({"mode": "native", "auto_direct_node_routes": True, "direct_routing_skip_unreachable": True}, True),
    ],
)
def test_where_packets_for_nobody_end(routing: dict[str, object], carried: bool) -> None:
    pool = ClusterPool(ipv4_pod_cidr_list=("10.0.0.0/12", "10.32.0.0/12"), ipv6_pod_cidr_list=("fd00::/16",))
    plain = network(**routing)
    pooled = msgspec.structs.replace(
        plain, spec=msgspec.structs.replace(plain.spec, ipam=NetworkIPAM("cluster-pool", pool))
    )
    own, own6 = Cidr.parse("10.1.0.0/24"), Cidr.parse("fd00:1::/64")
    four = tuple(map(Cidr.parse, pool.ipv4_pod_cidr_list))
    six = tuple(map(Cidr.parse, pool.ipv6_pod_cidr_list))
    unknown = None
    assert hole_rules(pooled, (own, own6)) == HoleRules((own, own6), (*four, *six), unknown, carried)
    assert hole_rules(pooled, (own,)) == HoleRules((own,), four, unknown, carried), "no IPv6 where a node has none"
    status = NetworkStatus(ipam=NetworkIPAMStatus(mode="kubernetes", service_cidrs=("10.96.0.0/12",)))
    services = (Cidr.parse("10.96.0.0/12"),)
    in_force = msgspec.structs.replace(pooled, status=status)
    assert hole_rules(in_force, (own,)) == HoleRules((own,), (), services, carried)
    none = NetworkStatus(ipam=NetworkIPAMStatus(service_cidrs=()))
    assert hole_rules(msgspec.structs.replace(pooled, status=none), (own,)) == HoleRules((own,), four, (), carried)


def test_of_blocks_of_pools_all_are_the_nodes_and_it_has_an_address_in_the_first_of_each_family(tmp_path: Path) -> None:
    default = PoolAllocation(pool="default", cidrs=("10.1.0.0/28", "10.1.0.16/28", "fd00:1::/120"))
    blue = PoolAllocation(pool="blue", cidrs=("10.2.0.0/28",))
    setting = Setting(tmp_path)
    setting.networks.put(network())
    own, remote = node("node-1"), node("node-2", "192.168.7.2")
    held = NodeIPAM(mode="multi-pool", pools=NodePools(allocated=(default, blue)))
    setting.nodes.put(msgspec.structs.replace(own, spec=msgspec.structs.replace(own.spec, ipam=held)))
    elsewhere = NodeIPAM(
        mode="multi-pool", pools=NodePools(allocated=(PoolAllocation("blue", ("10.2.0.16/28", "10.2.0.0/28")),))
    )
    setting.nodes.put(msgspec.structs.replace(remote, spec=msgspec.structs.replace(remote.spec, ipam=elsewhere)))
    desired = setting.tunnels.desired()
    assert desired is not None
    assert desired.node is not None
    assert list(map(str, desired.node.cidrs)) == ["10.1.0.0/28", "10.1.0.16/28", "fd00:1::/120", "10.2.0.0/28"]
    assert list(map(format_address, desired.node.addresses)) == ["10.1.0.0", "fd00:1::"]
    assert list(map(str, desired.peers["node-2"].cidrs)) == ["10.2.0.16/28"], "what this node has is no peer's"
    assert setting.tunnels.problems["node-2"][0].startswith(
        "NetloomNode node-2: spec.ipam.pools.allocated[0].cidrs 10.2.0.0/28 overlaps a pod CIDR of this node"
    )
    over = WithheldRoute("10.2.0.16/28", "node-2", "it holds 10.2.0.17, a gateway of this node")
    assert setting.tunnels.errors(MeshReport(withheld=(over,)))[0].startswith(
        "NetloomNode node-2: spec.ipam.pools.allocated[0].cidrs 10.2.0.16/28 is not routed from here"
    )
