"""Switches of the kernel as they are found: off for devices, on for others' sake, and what forwarding takes away."""

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from netloom.cidr import Cidr
from netloom.kernel.mesh.encapsulation import NO_ENCAPSULATION
from netloom.kernel.sysctl import SysctlRecord
from tests.kernel.conftest import Planes
from tests.kernel.meshes import Desired, eventually, here, mesh, peer, running
from tests.kernel.netns import Lab, Namespace

FORWARD4, FORWARD6 = "net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"


def accepts(node: Namespace, device: str) -> str:
    return node.sysctl(f"net.ipv6.conf.{device}.accept_ra")


def by_advertisement(node: Namespace) -> set[str]:
    """The devices of the default routes that routers have advertised."""
    return {route["dev"] for route in node.ip_json("-6 route show default proto ra")}


@pytest.fixture
def router(node: Namespace, lab: Lab) -> Namespace:
    """On the other end of eth0 (its `node`) and of a second device, eth1 (its `second`); both have been advertised."""
    router = lab.namespace("router")
    for device, far in (("eth0", "node"), ("eth1", "second")):
        if device == "eth0":
            node.ip("link delete eth0")
        lab.wire(node, device, router, far)
    node.ip("address add 192.168.7.1/24 dev eth0")
    return router


async def advertised(router: Namespace, far: str, prefix: str, until: Callable[[], bool]) -> None:
    """An advertisement is sent again while nobody has heard it, or while nobody can send it: a link-local address may
    be a moment old, or come a moment later."""

    def sent() -> bool:
        try:
            router.advertise_router(far, prefix)
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL:
                raise
        return until()

    await eventually(sent)


async def test_routes_from_router_advertisements_stay_and_are_renewed(
    node: Namespace, router: Namespace, planes: Planes
) -> None:
    """Also on a device that has nothing to do with pods, and that no word names."""
    await advertised(router, "node", "2001:db8:77::", lambda: "eth0" in by_advertisement(node))
    await advertised(router, "second", "2001:db8:78::", lambda: "eth1" in by_advertisement(node))
    plane = await planes.open()
    await plane.apply(mesh())
    assert node.sysctl(FORWARD6) == "1"
    assert by_advertisement(node) == {"eth0", "eth1"}
    for device, far in (("eth0", "node"), ("eth1", "second")):
        node.ip(f"-6 route delete default dev {device}")
        await advertised(router, far, "", lambda device=device: device in by_advertisement(node))
    assert (await plane.apply(mesh())).written == plane.stats
    await plane.cleanup()
    assert [node.sysctl(FORWARD6), accepts(node, "eth0"), accepts(node, "eth1")] == ["1", "2", "2"]
    assert by_advertisement(node) == {"eth0", "eth1"}, "forwarding stays on between two devices, and so do these"


async def test_an_address_from_an_advertisement_is_enough(node: Namespace, router: Namespace, planes: Planes) -> None:
    await advertised(router, "second", "2001:db8:78::", lambda: "eth1" in by_advertisement(node))
    node.ip("-6 route delete default dev eth1")
    await (await planes.open()).apply(mesh())
    assert "2001:db8:78:0:" in node.ip("-6 address show dev eth1 scope global")
    assert accepts(node, "eth1") == "2"


async def test_devices_that_come_later_may_be_advertised_to_and_pods_may_not(
    node: Namespace, router: Namespace, planes: Planes, lab: Lab
) -> None:
    node.ip("link delete eth1")
    plane, pod = await planes.open(), lab.namespace("pod")
    await plane.apply(Desired(here(devices=("eth*",)), [peer(2)]))
    async with running(plane):
        lab.wire(node, "veth1", pod, "eth0")
        lab.wire(node, "eth1", router, "second")
        node.ip("link add net1 link eth0 type macvlan mode bridge")
        node.ip("link set net1 up")
        await eventually(lambda: [accepts(node, device) for device in ("eth1", "net1")] == ["2", "2"])
        await advertised(router, "second", "", lambda: "eth1" in by_advertisement(node))
        await advertised(router, "node", "", lambda: "net1" in by_advertisement(node))
        assert accepts(node, "veth1") == "1"
        pod.advertise_router("eth0")
        assert "veth1" not in by_advertisement(node)


async def test_what_a_pod_has_advertised_goes(node: Namespace, router: Namespace, planes: Planes, lab: Lab) -> None:
    """While nothing was forwarded, a pod could make itself the node's router."""
    await advertised(router, "second", "", lambda: "eth1" in by_advertisement(node))
    pod = lab.namespace("pod")
    lab.wire(node, "veth1", pod, "eth0")
    node.ip("route add 10.1.0.5/32 dev veth1")
    await advertised(pod, "eth0", "", lambda: "veth1" in by_advertisement(node))
    await (await planes.open()).apply(Desired(here(cidrs=(Cidr.parse("10.1.0.0/24"),)), [peer(2)]))
    assert by_advertisement(node) == {"eth1"}
    assert [accepts(node, device) for device in ("eth1", "veth1")] == ["2", "1"]


async def test_a_machine_that_forwarded_before_takes_no_more_advertisements(
    node: Namespace, router: Namespace, planes: Planes
) -> None:
    """But on the underlay. Where its owner has made it a router, another router is none of its."""
    node.sysctl(FORWARD6, "1")
    node.ip("link add net1 link eth1 type macvlan mode bridge")
    await (await planes.open()).apply(mesh())
    assert [accepts(node, device) for device in ("eth0", "eth1", "net1")] == ["2", "1", "1"]


async def test_devices_that_do_not_forward_are_switched_on_and_put_back(
    node: Namespace, planes: Planes, tmp_path: Path
) -> None:
    """As on a hardened machine: packets from pods (default: of veths to come) and natively from peers were dropped."""
    switches = ["net.ipv4.conf.default.forwarding", "net.ipv4.conf.eth0.forwarding"]
    node.sysctl(FORWARD4, "1")
    for name in switches:
        node.sysctl(name, "0")
    plane = await planes.open()
    planned = [change.text for change in await plane.plan(mesh()) if "forwarding" in change.text]
    assert planned == [f"sysctl -w {name}=1" for name in (*switches, FORWARD6)]
    await plane.apply(mesh())
    node.ip("link add pod type veth peer name far")
    assert node.sysctl("net.ipv4.conf.pod.forwarding") == "1"
    node.ip("link delete pod")
    assert [node.sysctl(name) for name in switches] == ["1", "1"]
    await plane.cleanup()
    assert [node.sysctl(name) for name in (FORWARD4, *switches, FORWARD6)] == ["1", "0", "0", "0"]
    assert not (tmp_path / "run" / "sysctl.json").exists()


async def test_a_restart_writes_no_switch(node: Namespace, planes: Planes) -> None:
    await (await planes.open()).apply(mesh())
    again = await planes.open()
    assert await again.plan(mesh()) == []
    assert (await again.apply(mesh())).repaired == 0
    assert again.stats == {}


async def test_a_strict_filter_on_the_underlay_is_loosened_again(node: Namespace, planes: Planes) -> None:
    name = "net.ipv4.conf.eth0.rp_filter"
    node.sysctl(name, "1")
    plane = await planes.open()
    await plane.apply(Desired(here(encapsulations=(NO_ENCAPSULATION,)), [peer(2, encapsulations=(NO_ENCAPSULATION,))]))
    assert node.sysctl(name) == "2"
    async with running(plane):
        node.sysctl(name, "1")
        await eventually(lambda: node.sysctl(name) == "2")


@pytest.mark.parametrize(
    ("other", "by"),
    [
        (["link add docker0 type bridge", "link set docker0 up"], "the devices docker0, eth0"),
        (["link add eth1 type veth peer name far", "link set eth1 up"], "the devices eth0, eth1"),
        (["!nft add table ip kube-proxy",
          "!nft add chain ip kube-proxy services { type nat hook prerouting priority dstnat; }",
          "!nft add rule ip kube-proxy services counter accept"], "rules of nft table kube-proxy"),
        (["!iptables-legacy -t nat -A PREROUTING -j ACCEPT"], "rules of iptables' nat table"),
    ],
)  # fmt: skip
async def test_forwarding_stays_on_where_others_may_rely_on_it(
    node: Namespace, planes: Planes, tmp_path: Path, other: list[str], by: str
) -> None:
    plane = await planes.open()
    await plane.apply(mesh())
    for line in other:
        node.exec(line[1:]) if line.startswith("!") else node.ip(line)
    await plane.cleanup()
    assert [node.sysctl(name) for name in (FORWARD4, FORWARD6)] == ["1", "1"]
    assert await plane.left() == [
        "net.ipv6.conf.all.forwarding=1, net.ipv4.ip_forward=1, net.ipv6.conf.eth0.accept_ra=2: left as the agent set "
        f"it, because packets of others may be forwarded by {by}. If nothing on this machine forwards packets any more"
        ": sysctl -w net.ipv6.conf.all.forwarding=0 net.ipv4.ip_forward=0 net.ipv6.conf.eth0.accept_ra=1"
    ]
    assert await plane.plan_cleanup() == []
    assert SysctlRecord(tmp_path / "run" / "sysctl.json").before("net/ipv4/ip_forward") == "0"


async def test_what_was_left_goes_when_nobody_relies_on_it_any_more(node: Namespace, planes: Planes) -> None:
    plane = await planes.open()
    await plane.apply(mesh())
    node.ip("link add docker0 type bridge")
    node.ip("link set docker0 up")
    await plane.cleanup()
    node.ip("link delete docker0")
    assert [change.text for change in await plane.plan_cleanup()] == [
        "sysctl -w net.ipv6.conf.all.forwarding=0",
        "sysctl -w net.ipv4.ip_forward=0",
        "sysctl -w net.ipv6.conf.eth0.accept_ra=1",
    ]
    await plane.cleanup()
    assert [node.sysctl(name) for name in (FORWARD4, FORWARD6)] == ["0", "0"]
    assert await plane.left() == []
