"""Who is let into the tunnels, by packets: strangers, nodes, nodes that send for others' pods; and no entry of any in
the table of connections."""

import re
import socket
from collections.abc import Iterator

import pytest

from tests.kernel.meshes import eventually, running
from tests.kernel.netns import SOON, Lab
from tests.kernel.nft import nft
from tests.kernel.tunnelled import VXLAN, Keepers, Underlay, add, header, inner, keepers, senders

__all__ = ["keepers"]

STRANGER = "192.168.7.66"


@pytest.fixture
def underlay(lab: Lab) -> Iterator[Underlay]:
    made = Underlay(lab, VXLAN)
    with made.node.entered():
        yield made


@pytest.mark.parametrize("pod", ["10.2.0.5", "fd00:2::5", "192.168.7.2", "203.0.113.9"])
async def test_a_stranger_gets_nothing_in(underlay: Underlay, keepers: Keepers, pod: str) -> None:
    assert underlay.delivered(VXLAN, STRANGER, pod) == 6, "as long as nobody looks"
    keeper = await keepers.open()
    await keeper.apply(senders())
    assert underlay.delivered(VXLAN, STRANGER, pod) == 0
    async with running(keeper):  # type: ignore[arg-type]
        await eventually(lambda: keeper.report.refusals.strangers == 6)
    assert keeper.report.refusals.who == (bytes([192, 168, 7, 66]),)
    await keeper.cleanup()
    assert underlay.delivered(VXLAN, STRANGER, pod) == 6


async def test_nobody_sends_by_ipv6_or_to_all(underlay: Underlay, keepers: Keepers) -> None:
    """The kernel's device listens on IPv6 as well, and on the addresses of all."""
    sent = [
        lambda: underlay.delivered(VXLAN, "fd99::66", "10.2.0.5"),
        lambda: underlay.delivered(VXLAN, STRANGER, "10.2.0.5", to="192.168.7.255"),
        lambda: underlay.delivered(VXLAN, "127.0.0.1", "10.2.0.5", to="127.0.0.1", inside=underlay.node),
        lambda: underlay.delivered(VXLAN, "192.168.7.1", "10.2.0.5", inside=underlay.node),
    ]
    assert [send() for send in sent] == [6, 6, 6, 6]
    keeper = await keepers.open()
    await keeper.apply(senders())
    assert [send() for send in sent] == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("source", "pod", "passes"),
    [
        ("192.168.7.2", "10.2.0.5", True),
        ("192.168.7.2", "fd00:2::5", True),
        ("192.168.7.2", "10.2.0.0", True),
        ("192.168.7.2", "192.168.7.2", True),
        ("192.168.7.2", "203.0.113.9", True),
        ("192.168.7.2", "10.3.0.5", False),
        ("192.168.7.2", "fd00:3::5", False),
        ("192.168.7.3", "10.2.0.5", False),
        ("192.168.7.2", "10.1.0.5", False),
    ],
    ids=["its pod", "its pod, IPv6", "the node by its pods' base", "the node", "from afar", *["another's"] * 3, "ours"],
)
async def test_a_node_sends_for_its_own_pods(
    underlay: Underlay, keepers: Keepers, source: str, pod: str, passes: bool
) -> None:
    assert underlay.delivered(VXLAN, source, pod) == 6
    keeper = await keepers.open()
    await keeper.apply(senders())
    assert underlay.delivered(VXLAN, source, pod) == (6 if passes else 0)
    async with running(keeper):  # type: ignore[arg-type]
        await eventually(lambda: keeper.report.refusals.forged == (0 if passes else 6))
    assert keeper.report.refusals.strangers == 0


async def test_prefix_lengths_side_by_side(underlay: Underlay, keepers: Keepers) -> None:
    """Each has a set of its own; one node's CIDR may lie in the wider one of another, which has the rest."""
    desired = senders(2)
    add(desired, 2, "10.2.0.0/16", "10.40.0.0/26")
    add(desired, 3, "10.2.3.128/25", addresses=("192.168.7.3", "192.168.8.3"))
    keeper = await keepers.open()
    await keeper.apply(desired)
    assert underlay.delivered(VXLAN, "192.168.7.2", "10.2.7.7") == 6
    assert underlay.delivered(VXLAN, "192.168.7.2", "10.40.0.63") == 6
    assert underlay.delivered(VXLAN, "192.168.7.3", "10.2.3.129") == 6
    assert underlay.delivered(VXLAN, "192.168.7.3", "10.2.7.7") == 0
    assert underlay.delivered(VXLAN, "192.168.7.3", "10.40.0.63") == 0


@pytest.fixture
def tracking(underlay: Underlay) -> Underlay:
    """With a rule that has connections tracked, as masquerading does."""
    chain = "chain c { type nat hook postrouting priority 100; ip daddr 203.0.113.1 masquerade; }"
    nft(underlay.node, f"table inet t {{ {chain}\n}}")
    return underlay


async def test_any_lets_everybody_in_and_tracks_nobody(tracking: Underlay, keepers: Keepers) -> None:
    keeper = await keepers.open()
    await keeper.apply(senders(checked=False))
    assert tracking.delivered(VXLAN, STRANGER, "10.2.0.5") == 6
    assert tracked(tracking) == []


@pytest.mark.parametrize("kept", [False, True])
async def test_outer_packets_are_not_tracked(tracking: Underlay, keepers: Keepers, kept: bool) -> None:
    """In both directions; and what is no tunnel's packet is tracked, and let in, as ever."""
    node = tracking.node
    node.ip("neigh add 10.2.0.0 lladdr 02:00:00:00:aa:02 dev netloom_vxlan nud permanent")
    node.ip("route add 10.2.0.0/24 encap ip id 1 dst 192.168.7.2 ttl 64 via 10.2.0.0 dev netloom_vxlan onlink")
    if kept:
        keeper = await keepers.open()
        await keeper.apply(senders())
    assert tracking.delivered(VXLAN, "192.168.7.2", "10.2.0.5") == 6
    assert tracking.delivered(VXLAN, "192.168.7.2", "192.168.7.2") == 6, "the node itself"
    node.pings("10.2.0.9", seconds=SOON)
    assert tracked(tracking) == ([] if kept else ["192.168.7.1 192.168.7.2", "192.168.7.2 192.168.7.1"])
    with tracking.lan.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((STRANGER, 0))
        sock.sendto(b"another protocol", ("192.168.7.1", VXLAN.number))
    assert f"{STRANGER} 192.168.7.1" in tracked(tracking)


async def test_what_only_passes_is_left_alone(tracking: Underlay, keepers: Keepers, lab: Lab) -> None:
    """Packets of somebody's tunnel that this node forwards: neither dropped nor kept from being translated."""
    beyond = lab.namespace("beyond")
    lab.wire(tracking.node, "eth1", beyond, "eth0")
    tracking.node.ip("address add 172.16.0.1/24 dev eth1")
    tracking.node.sysctl("net/ipv4/ip_forward", "1")
    beyond.ip("address add 172.16.0.2/24 dev eth0")
    beyond.ip("route add default via 172.16.0.1")
    tracking.lan.ip("route add 172.16.0.0/24 via 192.168.7.1")
    keeper = await keepers.open()
    await keeper.apply(senders())
    with beyond.entered():
        inbox = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        inbox.bind(("172.16.0.2", VXLAN.number))
        inbox.settimeout(5)
    with inbox, tracking.lan.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((STRANGER, 0))
        sock.sendto(header(VXLAN) + inner("10.9.0.1", "10.8.0.1", b"x"), ("172.16.0.2", VXLAN.number))
        assert inbox.recvfrom(200)[1][0] == STRANGER
    assert tracked(tracking) == [f"{STRANGER} 172.16.0.2"]


def tracked(underlay: Underlay) -> list[str]:
    """Source and destination of connections to the tunnels' port."""
    lines = underlay.node.exec("cat /proc/net/nf_conntrack").splitlines()
    found = [re.search(r"src=(\S+) dst=(\S+) sport=\d+ dport=(\d+)", line) for line in lines]
    return sorted({f"{each[1]} {each[2]}" for each in found if each and each[3] == str(VXLAN.number)})
