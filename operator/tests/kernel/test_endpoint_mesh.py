"""Local pods beside the mesh: each part finds its own, packets go from pod to pod, and nobody takes a pod for anything
else."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from netloom.cidr import Cidr
from netloom.kernel.endpoints.endpoint import Endpoints, WiringFailed
from netloom.kernel.endpoints.keeper import EndpointsKeeper
from netloom.kernel.forwarding.opening import ForwardingState
from netloom.kernel.forwarding.packets import RuleCondition, name_range
from netloom.kernel.mesh.desired import Desired
from netloom.kernel.mesh.encapsulation import NO_ENCAPSULATION, VXLAN, Encapsulation
from netloom.kernel.mesh.holes import HoleRules
from netloom.kernel.mesh.keeper import MeshKeeper
from netloom.kernel.mesh.occupants import occupants
from netloom.kernel.netlink.sockets import CommandSocket
from netloom.kernel.surroundings.local_pods import read_local_pods
from tests.kernel.conftest import Planes
from tests.kernel.faults import FaultyCommands
from tests.kernel.meshes import becomes, eventually, here, mesh, peer, running
from tests.kernel.netns import Lab, Namespace
from tests.kernel.wired_pods import Pod, endpoints_of, pod, shown

OWN = (Cidr.parse("10.1.0.0/24"), Cidr.parse("fd00:1::/64"))


async def test_each_finds_its_own_after_restarts(node: Namespace, planes: Planes, lab: Lab) -> None:
    pods = [pod(lab, 1), pod(lab, 2)]
    async with endpoints_of(node) as keeper:
        await (await planes.open()).apply(mesh())
        await keeper.apply(Endpoints())
        for each in pods:
            await each.add(keeper)
    whole = node.state()
    for mesh_first in (True, False):
        plane = await planes.open()
        async with endpoints_of(node) as keeper:
            desired = Endpoints(each.endpoint for each in pods)
            if not mesh_first:
                await keeper.apply(desired)
            assert (await plane.apply(mesh())).written == {}
            await keeper.apply(desired)
            await keeper.prune()
            await plane.prune()
            assert keeper.stats == {}
            assert node.state() == whole
            async with running(plane), running(keeper):
                node.batch([f"route delete {each.split()[0]}" for each in node.ip("route show proto 158").splitlines()])
                await becomes(node.state, whole)
            assert plane.stats == {"newroute": 2}
            assert keeper.stats == {"newroute": 2}
    async with endpoints_of(node) as keeper:
        await keeper.cleanup()
    assert "netloom_vxlan" in node.owned()
    assert shown(node) == ""
    await plane.cleanup()
    assert "158" not in node.state()


@pytest.mark.parametrize("encapsulations", [(VXLAN,), (NO_ENCAPSULATION, VXLAN)], ids=str)
async def test_pods_that_come_and_go_cost_the_mesh_nothing(
    node: Namespace, planes: Planes, lab: Lab, encapsulations: tuple[Encapsulation, ...]
) -> None:
    commands = FaultyCommands()
    plane, peers = await planes.open(commands=lambda: commands), range(2, 50)
    every = [peer(number, encapsulations=encapsulations) for number in peers]
    await plane.apply(Desired(here(encapsulations=encapsulations, cidrs=OWN), every))
    asked, written, compared = commands.asked, plane.stats, plane.report.compared
    async with running(plane), endpoints_of(node) as keeper:
        await keeper.apply(Endpoints())
        one = pod(lab, 5)
        await one.add(keeper)
        await one.delete(keeper)
        await eventually(lambda: not keeper.report.leaving)
        node.ip("route delete 10.2.0.0/24")
        await eventually(lambda: plane.report.repaired == 1)
        assert (commands.asked, plane.report.compared) == (asked, compared)
        assert plane.stats == written | {"newroute": written["newroute"] + 1}
        assert plane.report.rivals == ()


async def test_a_pods_device_is_no_way_to_nodes(node: Namespace, planes: Planes, lab: Lab) -> None:
    """Nor does its MTU count; and a Node that has a pod's address is told."""
    plane, one = await planes.open(), pod(lab, 1, mtu=1400)
    async with endpoints_of(node) as keeper:
        await keeper.apply(Endpoints())
        await one.add(keeper)
        wrong = peer(3, underlay6="")
        wrong = type(wrong)("node-3", one.endpoint.addresses[0], wrong.mac, wrong.cidrs, "", (NO_ENCAPSULATION,))
        own = here(cidrs=OWN, encapsulations=(NO_ENCAPSULATION,), devices=("*",))
        report = await plane.apply(Desired(own, [peer(2, encapsulations=(NO_ENCAPSULATION,)), wrong]))
        assert report.underlay == ("eth0",)
        assert report.mtu == 1500
        assert [(each.device, each.why, each.peers) for each in plane.report.astray] == [
            (one.endpoint.device, "pod", ("node-3",))
        ]


async def test_no_pod_is_given_an_address_that_the_node_lives_by(node: Namespace, planes: Planes, lab: Lab) -> None:
    """Its route would come before the network on which the gateway is."""
    plane, gateway = await planes.open(), "192.168.7.254"
    node.ip(f"route add default via {gateway}")
    await plane.apply(mesh(2))
    async with endpoints_of(node, lifeline_at=plane.lifeline_at) as keeper:
        await keeper.apply(Endpoints())
        for number, (address, what) in enumerate(
            ((gateway, "a gateway of this node"), ("192.168.7.2", "the address of node-2")), 1
        ):
            one, before = pod(lab, number, address), node.state()
            with pytest.raises(WiringFailed, match=f"{address} is {what}: a pod with it would cut") as caught:
                await one.add(keeper)
            assert (caught.value.reason, node.state()) == ("address-taken", before)
        await pod(lab, 3, "192.168.7.3").add(keeper)


async def test_where_pods_are_is_seen_by_all_who_ask(node: Namespace, lab: Lab) -> None:
    one = pod(lab, 1)
    async with endpoints_of(node) as keeper:
        await keeper.apply(Endpoints())
        await one.add(keeper)
        device = one.endpoint.device
        assert await occupants(OWN) == {OWN[0]: f"10.1.0.2/32 on {device}", OWN[1]: f"fd00:1::2/128 on {device}"}
        with contextlib.closing(CommandSocket()) as commands:
            found = read_local_pods(commands, OWN)
        assert {str(each.destination) for each in found.places} == {"10.1.0.2/32", "fd00:1::2/128"}
        assert found.counts == {"ipv4": 0, "ipv6": 0}, "their neighbours are permanent, and count against no limit"


def test_a_filter_that_lets_all_of_ours_in_may_let_a_pod_in() -> None:
    """It comes by a device of ours, or by another plugin's."""
    peers = (Cidr.parse("10.2.0.0/24"),)
    (_, outward), (_, inward) = ForwardingState(pods=OWN[:1], peers=peers).packets("ip", "eth0")
    for name, out, back in (("netloom_*", None, True), ("netloom_vxlan", False, True), ("eth0", False, False)):
        by = RuleCondition("iif", (name_range(name),))
        assert (outward.meets(by), inward.meets(by)) == (out, back), name


# -------------------------------------------------------------------------------------------------- between nodes


class Node:
    """One of two nodes in the mesh, with a pod."""

    def __init__(self, place: Namespace, plane: MeshKeeper, keeper: EndpointsKeeper, own: Pod) -> None:
        self.place, self.plane, self.keeper, self.pod = place, plane, keeper, own


@pytest.fixture
async def two(lab: Lab, tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[list[Node]]:
    """With unreachable routes for their own CIDRs, and all with the mesh's MTU."""
    ways = (getattr(request, "param", VXLAN),)
    places, nodes = [lab.namespace(f"node{number}") for number in (1, 2)], []
    lab.wire(places[0], "eth0", places[1], "eth0")
    async with contextlib.AsyncExitStack() as stack:
        for number, place in enumerate(places, 1):
            place.ip(f"address add 192.168.7.{number}/24 dev eth0")
            place.ip(f"address add fd07::{number}/64 dev eth0 nodad")
            cidrs = (Cidr.parse(f"10.{number}.0.0/24"), Cidr.parse(f"fd00:{number}::/64"))
            own = here(
                f"node-{number}",
                f"192.168.7.{number}",
                f"10.{number}.0.0",
                f"fd00:{number}::",
                cidrs=cidrs,
                holes=HoleRules(own=cidrs),
                encapsulations=ways,
            )
            other = peer(3 - number, encapsulations=ways, underlay6=f"fd07::{3 - number}")
            keeper = await stack.enter_async_context(endpoints_of(place))
            plane = MeshKeeper(run_directory=tmp_path / str(number), resync_seconds=None)
            await plane.open()
            stack.push_async_callback(plane.close)
            report = await plane.apply(Desired(own, [other]))
            await keeper.apply(Endpoints())
            mtu = report.mtu
            mine = pod(lab, number, f"10.{number}.0.5", f"fd00:{number}::5", mtu=mtu)
            await mine.add(keeper)
            nodes.append(Node(place, plane, keeper, mine))
            await stack.enter_async_context(running(plane))
            await stack.enter_async_context(running(keeper))
        yield nodes


@pytest.mark.parametrize("two", [VXLAN, NO_ENCAPSULATION], indirect=True, ids=str)
async def test_from_pod_to_pod(two: list[Node]) -> None:
    one, other = two
    size = one.pod.endpoint.mtu
    for target in ("10.2.0.5", "fd00:2::5"):
        assert one.pod.place.pings(target, size=size), "as large as it may be"
        assert not one.pod.place.pings(target, size=size + 1)
        assert one.place.pings(target), "the node itself to another's pod"
    for target in ("192.168.7.2", *(("10.2.0.0", "fd00:2::") if one.plane.tunnels else ())):
        assert one.pod.place.pings(target), "a pod to another node"
    await other.pod.delete(other.keeper)
    for target in ("10.2.0.5", "fd00:2::5"):
        text = one.pod.place.exec(f"ping -n -c 1 -W 2 {target}", check=False)
        assert "nreachable" in text, "and not to the default route, or for nothing"
    await other.pod.add(other.keeper)
    assert one.pod.place.pings("10.2.0.5")
