"""A node whose own object says less than before, or something else: what is kept, for how long, in which words."""

from collections.abc import Collection
from pathlib import Path

import pytest

from netloom.api.holdings import block_texts, home_blocks
from netloom.api.meta import ObjectMeta
from netloom.api.v1alpha1 import (
    NETLOOM_NODES,
    NETWORKS,
    Address,
    NetloomNetwork,
    NetloomNode,
    NetloomNodeSpec,
    NodeIPAM,
    NodePools,
    PoolAllocation,
)
from netloom.cidr import Cidr, format_address
from netloom.kernel.mesh.keeper import MeshKeeper
from netloom.runtime.store import Store
from netloom_reconcilers.node.known.own_node import LOOK_SECONDS, RECORD, OwnNode
from netloom_reconcilers.node.tunnels import TunnelsFeature
from tests.contexts import context
from tests.test_tunnels import network, node

CHANGED = (
    "NetloomNode node-1: spec.ipam.podCIDRs does not hold 10.1.0.0/24 any more, and pods of this node still use it: "
    "this node keeps it beside 10.9.0.0/24. If no other NetloomNode holds it, add it to spec.ipam.podCIDRs again; else "
    "drain Node node-1: it is given up once its pods are gone. See docs/allocation.md."
)
EMPTY = (
    "NetloomNode node-1: spec.ipam.podCIDRs is empty, and was 10.1.0.0/24, fd00:1::/64, which this node keeps. The "
    "operator gives it back; if there is none, enter it again."
)
ADDRESS = (
    "NetloomNode node-1: spec.addresses has no IPv4 address of type InternalIP any more: 192.168.7.1, its last, is "
    "kept. The operator writes it; let the kubelet report it."
)


class Host:
    """Node node-1, in whose CIDRs the test says what lives."""

    def __init__(self, folder: Path) -> None:
        self.record = folder / RECORD
        self.living: dict[str, str] = {}
        self.broken = False
        self.asked = 0
        self.start()

    def start(self) -> None:
        """A new process of the agent."""
        self.own = OwnNode("node-1", self.occupants, self.record)

    async def occupants(self, within: Collection[Cidr]) -> dict[Cidr, str]:
        self.asked += 1
        if self.broken:
            raise OSError("no netlink today")
        return {cidr: self.living[str(cidr)] for cidr in within if str(cidr) in self.living}

    async def cidrs(self, obj: NetloomNode | None) -> list[str]:
        await self.own.look(obj)
        found = self.own.effective(obj)
        return list(found.spec.ipam.pod_cidrs) if found is not None else []


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def own(*cidrs: str, ip: str = "192.168.7.1") -> NetloomNode:
    return node("node-1", ip, *cidrs)


def node_of_age(since: str, *cidrs: str) -> NetloomNode:
    return node("node-1", "192.168.7.1", *cidrs, since=since)


async def test_a_node_that_says_what_it_said_costs_nothing(host: Host) -> None:
    assert await host.cidrs(own("10.1.0.0/24")) == ["10.1.0.0/24"]
    written = host.record.stat().st_mtime_ns
    host.start()
    obj = own("10.1.0.0/24")
    assert await host.own.look(obj) is None
    assert host.own.effective(obj) is obj
    assert (host.asked, host.own.errors(), host.record.stat().st_mtime_ns) == (0, [], written)


@pytest.mark.parametrize("restart", [False, True], ids=["running", "restart"])
async def test_a_changed_cidr_stays_beside_the_new_one_while_something_lives_in_it(host: Host, restart: bool) -> None:
    await host.cidrs(own("10.1.0.0/24"))
    host.living = {"10.1.0.0/24": "10.1.0.5/32 on veth1"}
    for _ in range(2):
        if restart:
            host.start()
        assert await host.cidrs(own("10.9.0.0/24")) == ["10.9.0.0/24", "10.1.0.0/24"]
        assert host.own.errors() == [CHANGED]
        assert host.own.reason == "PodCIDRsChanged"
        assert host.own.kept == {"10.1.0.0/24": "10.1.0.5/32 on veth1"}
    assert await host.own.look(own("10.9.0.0/24")) == LOOK_SECONDS
    host.living.clear()
    assert await host.cidrs(own("10.9.0.0/24")) == ["10.9.0.0/24"]
    assert (host.own.errors(), host.own.reason) == ([], "")
    host.start()
    host.living = {"10.1.0.0/24": "10.1.0.5/32 on veth1"}
    assert await host.cidrs(own("10.9.0.0/24")) == ["10.9.0.0/24"], "what was given up is not remembered"


async def test_a_cidr_in_which_nothing_lives_is_given_up_at_once(host: Host) -> None:
    await host.cidrs(own("10.1.0.0/24", "fd00:1::/64"))
    host.living = {"fd00:1::/64": "fd00:1::5/128 on veth1"}
    assert await host.cidrs(own("10.9.0.0/24")) == ["10.9.0.0/24", "fd00:1::/64"]


@pytest.mark.parametrize("restart", [False, True], ids=["running", "restart"])
async def test_cidrs_that_are_emptied_all_stay_whether_anything_lives_in_them_or_not(host: Host, restart: bool) -> None:
    before = ["10.1.0.0/24", "fd00:1::/64"]
    await host.cidrs(own(*before))
    if restart:
        host.start()
    assert await host.cidrs(own()) == before
    assert (host.own.errors(), host.own.reason) == ([EMPTY], "PodCIDRsLost")
    assert await host.cidrs(own(*before)) == before
    assert host.own.errors() == []


def of_pools(*allocated: tuple[str, tuple[str, ...]]) -> NetloomNode:
    said = tuple(PoolAllocation(pool=pool, cidrs=cidrs) for pool, cidrs in allocated)
    ipam = NodeIPAM(mode="multi-pool", pools=NodePools(allocated=said))
    spec = NetloomNodeSpec(addresses=(Address(type="InternalIP", ip="192.168.7.1"),), ipam=ipam)
    return NetloomNode(metadata=ObjectMeta(name="node-1"), spec=spec)


@pytest.mark.parametrize("restart", [False, True], ids=["running", "restart"])
async def test_a_block_that_the_node_gave_back_is_not_kept_and_one_that_was_taken_is(host: Host, restart: bool) -> None:
    await host.own.look(of_pools(("default", ("10.1.0.0/28", "10.1.0.16/28")), ("blue", ("10.2.0.0/28",))))
    host.living = {"10.1.0.16/28": "10.1.0.17/28 on cni0", "10.2.0.0/28": "10.2.0.5/32 on veth1"}
    host.own.give_back([Cidr.parse("10.1.0.16/28")])
    if restart:
        host.start()
    else:  # another write of the object meanwhile
        await host.own.look(of_pools(("default", ("10.1.0.0/28", "10.1.0.16/28")), ("blue", ("10.2.0.0/28",))))
    left = of_pools(("default", ("10.1.0.0/28",)))
    await host.own.look(left)
    assert host.own.kept == {"10.2.0.0/28": "10.2.0.5/32 on veth1"}
    assert host.own.errors() == [
        "NetloomNode node-1: spec.ipam.pools.allocated does not hold 10.2.0.0/28 any more, and pods still use it: this "
        "node keeps that. Its agent enters again what pods use, unless another NetloomNode holds it; then drain Node "
        "node-1: it is given up once its pods are gone. See docs/ipam.md."
    ]
    effective = host.own.effective(left)
    assert effective is not None
    assert block_texts(effective.spec.ipam) == ("10.1.0.0/28", "10.2.0.0/28")
    assert home_blocks(effective.spec.ipam) == (Cidr.parse("10.1.0.0/28"),), "peers see the same one in front"


async def test_a_block_that_was_to_be_given_back_and_is_said_on_is_known_again(host: Host) -> None:
    obj = of_pools(("default", ("10.1.0.0/28", "10.1.0.16/28")))
    await host.own.look(obj)
    host.own.give_back([Cidr.parse("10.1.0.16/28")])
    await host.own.look(obj)
    host.own.take_back([Cidr.parse("10.1.0.16/28")])
    await host.own.look(obj)
    host.living = {"10.1.0.16/28": "10.1.0.17/32 on veth1"}
    await host.own.look(of_pools(("default", ("10.1.0.0/28",))))
    assert list(host.own.kept) == ["10.1.0.16/28"]


async def test_pools_that_are_emptied_are_kept(host: Host) -> None:
    await host.own.look(of_pools(("default", ("10.1.0.0/28",))))
    empty = of_pools()
    await host.own.look(empty)
    assert host.own.reason == "PodCIDRsLost"
    assert host.own.errors()[0].startswith(
        "NetloomNode node-1: spec.ipam.pools.allocated is empty, and was 10.1.0.0/28: this node keeps that."
    )
    effective = host.own.effective(empty)
    assert effective is not None
    assert block_texts(effective.spec.ipam) == ("10.1.0.0/28",)


async def test_what_is_said_again_or_covered_is_not_kept(host: Host) -> None:
    await host.cidrs(own("10.1.0.0/24"))
    host.living = {"10.1.0.0/24": "10.1.0.5/32 on veth1"}
    await host.cidrs(own("10.9.0.0/24"))
    assert await host.cidrs(own("10.9.0.0/24", "10.1.0.0/24")) == ["10.9.0.0/24", "10.1.0.0/24"]
    assert host.own.errors() == []
    assert await host.cidrs(own("10.9.0.0/24", "10.1.0.0/23")) == ["10.9.0.0/24", "10.1.0.0/23"]
    assert host.own.errors() == []


async def test_an_object_that_is_gone_or_cannot_be_read_changes_nothing(host: Host) -> None:
    await host.cidrs(own("10.1.0.0/24"))
    assert await host.own.look(None) is None
    assert await host.own.look(own("junk")) is None
    host.living = {"10.1.0.0/24": "10.1.0.5/32 on veth1"}
    assert await host.cidrs(own("10.9.0.0/24")) == ["10.9.0.0/24", "10.1.0.0/24"]


async def test_a_kernel_that_cannot_be_asked_is_no_proof_that_nothing_lives(host: Host) -> None:
    await host.cidrs(own("10.1.0.0/24"))
    host.broken = True
    assert await host.cidrs(own("10.9.0.0/24")) == ["10.9.0.0/24", "10.1.0.0/24"]


@pytest.mark.parametrize("restart", [False, True], ids=["running", "restart"])
async def test_the_address_stays_until_another_is_said(host: Host, restart: bool) -> None:
    await host.cidrs(own("10.1.0.0/24"))
    lost = own("10.1.0.0/24", ip="fd07::1")
    for _ in range(2):
        if restart:
            host.start()
        await host.own.look(lost)
        found = host.own.effective(lost)
        assert found is not None
        assert [each.ip for each in found.spec.addresses] == ["192.168.7.1", "fd07::1"]
        assert (host.own.errors(), host.own.reason) == ([ADDRESS], "AddressLost")
    moved = own("10.1.0.0/24", ip="192.168.7.8")
    await host.own.look(moved)
    assert host.own.effective(moved) is moved
    assert host.own.errors() == []


async def test_a_record_of_another_node_or_of_nonsense_says_nothing(host: Host, tmp_path: Path) -> None:
    await host.cidrs(own("10.1.0.0/24"))
    host.living = {"10.1.0.0/24": "10.1.0.5/32 on veth1"}
    other = OwnNode("node-2", host.occupants, host.record)
    await other.look(node("node-2", "192.168.7.2", "10.2.0.0/24"))
    assert other.kept == {}
    host.record.write_text('{"node": "node-1"')
    host.start()
    assert await host.cidrs(own("10.9.0.0/24")) == ["10.9.0.0/24"]


async def test_what_could_not_be_written_is_written_when_there_is_room(host: Host) -> None:
    in_the_way = host.record.with_suffix(".new")
    in_the_way.mkdir()
    obj = own("10.1.0.0/24")
    assert await host.own.look(obj) == host.own.look_seconds
    in_the_way.rmdir()
    assert await host.own.look(obj) is None
    host.start()
    host.living = {"10.1.0.0/24": "10.1.0.5/32 on veth1"}
    assert await host.cidrs(own("10.9.0.0/24")) == ["10.9.0.0/24", "10.1.0.0/24"]


async def test_where_there_is_no_room_nothing_is_left_beside_the_record(host: Host) -> None:
    begun = host.record.with_suffix(".new")
    begun.parent.mkdir(parents=True, exist_ok=True)
    begun.symlink_to("/dev/full")
    assert await host.own.look(own("10.1.0.0/24")) == host.own.look_seconds
    assert list(begun.parent.iterdir()) == []


async def test_a_plan_looks_and_writes_nothing(host: Host) -> None:
    await host.own.look(own("10.1.0.0/24"), write=False)
    assert not host.record.exists()


# What the mesh makes of it


class Mesh:
    """The tunnels of node-1, over caches that the test fills; the data path is never opened."""

    def __init__(self, host: Host, folder: Path) -> None:
        self.host = host
        self.networks: Store[NetloomNetwork] = Store(NETWORKS)
        self.nodes: Store[NetloomNode] = Store(NETLOOM_NODES)
        plane = MeshKeeper(run_directory=folder)
        self.tunnels = TunnelsFeature(context("node-1", self.networks, self.nodes, host.own), plane)
        self.networks.put(network())

    async def put(self, *nodes: NetloomNode) -> None:
        for each in nodes:
            self.nodes.put(each)
        await self.host.own.look(self.nodes.get("node-1"))

    def says(self) -> tuple[list[str], dict[str, list[str]]]:
        """The node's own addresses, and what is routed to each peer."""
        desired = self.tunnels.desired()
        assert desired is not None
        assert desired.node is not None
        addresses = [format_address(each) for each in desired.node.addresses]
        return addresses, {name: [str(cidr) for cidr in peer.cidrs] for name, peer in desired.peers.items()}


@pytest.fixture
def mesh(host: Host, tmp_path: Path) -> Mesh:
    return Mesh(host, tmp_path)


async def test_a_former_cidr_keeps_its_address_and_is_not_routed_to_who_holds_it_now(mesh: Mesh, host: Host) -> None:
    await mesh.put(own("10.1.0.0/24"), node("node-2", "192.168.7.2", "10.2.0.0/24"))
    assert mesh.says() == (["10.1.0.0"], {"node-2": ["10.2.0.0/24"]})
    host.living = {"10.1.0.0/24": "10.1.0.5/32 on veth1"}
    await mesh.put(node("node-2", "192.168.7.2", "10.2.0.0/24", "10.1.0.0/24"), own("10.9.0.0/24"))
    assert mesh.says() == (["10.9.0.0", "10.1.0.0"], {"node-2": ["10.2.0.0/24"]})
    assert mesh.tunnels.problems["node-2"] == (
        "NetloomNode node-2: spec.ipam.podCIDRs 10.1.0.0/24 is still used by pods of this node, whose own NetloomNode "
        "does not hold it any more, and is not routed from here. Drain this node; see docs/allocation.md.",
    )
    host.living.clear()
    await mesh.put()
    assert mesh.says() == (["10.9.0.0"], {"node-2": ["10.2.0.0/24", "10.1.0.0/24"]})
    assert mesh.tunnels.problems == {}


async def test_a_clash_with_a_cidr_that_the_node_does_hold_is_said_as_ever(mesh: Mesh, host: Host) -> None:
    await mesh.put(own("10.1.0.0/24"))
    host.living = {"10.1.0.0/24": "10.1.0.5/32 on veth1"}
    await mesh.put(node("node-2", "192.168.7.2", "10.9.0.0/24"), own("10.9.0.0/24"))
    mesh.says()
    assert mesh.tunnels.problems["node-2"] == (
        "NetloomNode node-2: spec.ipam.podCIDRs 10.9.0.0/24 overlaps a pod CIDR of this node, and is not routed. Drain "
        "node-2, the younger of the two nodes, and delete its Node.",
    )
    await mesh.put(node("node-2", "192.168.7.2", "10.9.0.0/24"), node_of_age("2026-01-01T00:00:00Z", "10.9.0.0/24"))
    mesh.says()
    assert "Drain node-1, the younger of the two nodes" in mesh.tunnels.problems["node-2"][0]


async def test_an_address_that_is_lost_does_not_keep_peers_from_being_followed(mesh: Mesh) -> None:
    await mesh.put(own("10.1.0.0/24"))
    await mesh.put(own("10.1.0.0/24", ip=""), node("node-2", "192.168.7.2", "10.2.0.0/24"))
    assert mesh.says() == (["10.1.0.0"], {"node-2": ["10.2.0.0/24"]})


@pytest.mark.parametrize("known", [False, True])
async def test_an_address_that_another_node_has_is_said_and_takes_nothing_away(
    mesh: Mesh, host: Host, known: bool
) -> None:
    if known:
        await mesh.put(own("10.1.0.0/24"))
    contested = node("node-1", "192.168.7.1", "10.1.0.0/24", kind="ContestedIP")
    await mesh.put(contested, node("node-2", "192.168.7.2", "10.2.0.0/24"))
    assert mesh.says() == (["10.1.0.0"], {"node-2": ["10.2.0.0/24"]})
    assert host.own.reason == "AddressContested"
    assert host.own.errors() == [
        "NetloomNode node-1: spec.addresses: 192.168.7.1 is another node's, too, which has it: nothing is sent to this "
        "one. Its condition AddressReported names it, and says what to do."
    ]
    await mesh.put(own("10.1.0.0/24"))
    assert (host.own.errors(), host.own.reason) == ([], "")
