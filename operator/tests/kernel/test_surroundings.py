"""Rules, limits and switches of others around the data path, read off a real kernel."""

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
import pytest

from netloom.cidr import Cidr, parse_address
from netloom.kernel.mesh.encapsulation import NO_ENCAPSULATION
from netloom.kernel.surroundings import part, tables
from netloom.kernel.surroundings.detours import Detour, Remote
from netloom.kernel.surroundings.keeper import SurroundingsKeeper
from netloom.kernel.surroundings.part import Surroundings
from tests.economy import spread
from tests.kernel.conftest import Planes
from tests.kernel.meshes import Desired, becomes, eventually, here, many, mesh, peer, running
from tests.kernel.netns import Lab, Namespace

OWN = (Cidr.parse("10.1.0.0/24"), Cidr.parse("fd00:1::/64"))
REMOTES = tuple(
    Remote(f"node-{number}", Cidr.parse(cidr), (parse_address(f"192.168.7.{number}"),))
    for number in (2, 3)
    for cidr in (f"10.{number}.0.0/24", f"fd00:{number}::/64")
)
AROUND = Surroundings(own=OWN, remotes=lambda: REMOTES, peers=2)


@pytest.fixture
def pod(node: Namespace, lab: Lab) -> Namespace:
    """10.1.0.5 and fd00:1::5, by a host route each; somewhere to lead packets astray: by gw to 192.168.9.9."""
    pod, gateway = lab.namespace("pod"), lab.namespace("gateway")
    lab.wire(node, "veth1", pod, "eth0")
    node.batch(["route add 10.1.0.5/32 dev veth1", "route add fd00:1::5/128 dev veth1"])
    lab.wire(node, "gw", gateway, "eth0", "address add 192.168.9.1/24 dev gw", "address add fd09::1/64 dev gw")
    return pod


Opener = Callable[..., Awaitable[SurroundingsKeeper]]


@pytest.fixture
async def keepers(tmp_path: Path) -> AsyncIterator[Opener]:
    async with AsyncExitStack() as stack:

        async def opened(**options: object) -> SurroundingsKeeper:
            made = SurroundingsKeeper(run_directory=tmp_path / "run", resync_seconds=None, **options)  # type: ignore[arg-type]
            await made.open()
            stack.push_async_callback(made.close)
            return made

        yield opened


def told(detour: Detour) -> str:
    way = f"out of {detour.device}" if detour.device else "dropped"
    side = "to pods here" if detour.inward else f"to {detour.node}"
    return f"{detour.rule.priority}: {detour.rule.text}: {side} {detour.cidr} ({detour.count}), {way}"


HARMLESS = {
    "kube-proxy": [],
    "cilium": [
        "rule add pref 100 lookup local",
        "rule delete pref 0",
        "rule add pref 9 fwmark 0x200/0xf00 lookup 2004",
        "rule add pref 10 fwmark 0xa00/0xf00 lookup 2005",
        "route add local default dev lo table 2004",
        "route add default via 192.168.9.9 table 2005",
    ],
    "calico": [
        "rule add pref 99 not fwmark 0x100000/0x100000 lookup 1",
        "route add 10.9.0.0/16 via 192.168.9.9 table 1",
    ],
    "tailscale": [
        "rule add pref 5210 fwmark 0x80000/0xff0000 lookup main",
        "rule add pref 5230 fwmark 0x80000/0xff0000 lookup default",
        "rule add pref 5250 fwmark 0x80000/0xff0000 unreachable",
        "rule add pref 5270 lookup 52",
        "route add 100.100.100.100 dev gw table 52",
        "route add throw 127.0.0.0/8 table 52",
    ],
    "wg-quick": [
        "rule add pref 32764 lookup main suppress_prefixlength 0",
        "rule add pref 32765 not fwmark 0xca6c lookup 51820",
        "route add default dev gw table 51820",
    ],
    "vrf": ["rule add pref 1000 l3mdev"],
    "a second uplink": [
        "rule add pref 100 from 192.168.9.1 lookup 100",
        "rule add pref 101 oif gw lookup 100",
        "rule add pref 102 iif lo lookup 100",
        "rule add pref 103 uidrange 1000-1000 lookup 100",
        "rule add pref 104 to 10.77.0.0/16 lookup 100",
        "route add default via 192.168.9.9 table 100",
    ],
    "AWS": ["rule add pref 512 to 10.1.0.5 lookup main", "rule add pref 1536 from 10.1.0.5 to 10.99.0.0/16 lookup 2"],
}  # fmt: skip


@pytest.mark.parametrize("software", spread(HARMLESS))
async def test_rules_of_common_software_are_no_alarm(
    node: Namespace, pod: Namespace, planes: Planes, keepers: Opener, software: str
) -> None:
    await (await planes.open()).apply(mesh())
    for line in HARMLESS[software]:
        node.ip(line)
    assert (await (await keepers()).apply(AROUND)).found.detours == ()


HARMFUL = {
    "a VPN for everything": (
        ["rule add pref 100 lookup 200", "route add default via 192.168.9.9 table 200"],
        ["100: from all lookup 200: to node-2 10.2.0.0/24 (2), out of gw",
         "100: from all lookup 200: to pods here 10.1.0.5/32 (1), out of gw"],
    ),
    "one that a mark saves from it": (
        ["rule add pref 100 not fwmark 0xca6c lookup 200", "route add default via 192.168.9.9 table 200"],
        ["100: not from all fwmark 0xca6c/0xffffffff lookup 200: to node-2 10.2.0.0/24 (2), out of gw",
         "100: not from all fwmark 0xca6c/0xffffffff lookup 200: to pods here 10.1.0.5/32 (1), out of gw"],
    ),
    "a subnet router of a VPN": (
        ["rule add pref 5270 lookup 52", "route add 10.3.0.0/16 dev gw table 52"],
        ["5270: from all lookup 52: to node-3 10.3.0.0/24 (1), out of gw"],
    ),
    "a table for pods": (
        ["rule add pref 100 from 10.1.0.0/24 lookup 200", "route add default via 192.168.9.9 table 200"],
        ["100: from 10.1.0.0/24 lookup 200: to node-2 10.2.0.0/24 (2), out of gw"],
    ),
    "of one protocol": (
        ["rule add pref 100 ipproto tcp dport 443 lookup 200", "route add default via 192.168.9.9 table 200"],
        ["100: from all ipproto 6 dport 443 lookup 200: to node-2 10.2.0.0/24 (2), out of gw",
         "100: from all ipproto 6 dport 443 lookup 200: to pods here 10.1.0.5/32 (1), out of gw"],
    ),
    "of ports and a TOS": (
        ["rule add pref 100 ipproto tcp sport 1024-60000 dport 80-90 tos 0x10 lookup 200",
         "route add default via 192.168.9.9 table 200"],
        ["100: from all tos 0x10 ipproto 6 sport 1024-60000 dport 80-90 lookup 200: to node-2 10.2.0.0/24 (2), "
         "out of gw",
         "100: from all tos 0x10 ipproto 6 sport 1024-60000 dport 80-90 lookup 200: to pods here 10.1.0.5/32 (1), "
         "out of gw"],
    ),
    "packets that come in": (
        ["rule add pref 100 iif netloom_vxlan lookup 200", "route add default via 192.168.9.9 table 200"],
        ["100: from all iif netloom_vxlan lookup 200: to pods here 10.1.0.5/32 (1), out of gw"],
    ),
    "refused": (
        ["rule add pref 100 to 10.2.0.0/16 prohibit", "-6 rule add pref 90 from fd00:1::/64 blackhole"],
        ["100: from all to 10.2.0.0/16 prohibit: to node-2 10.2.0.0/24 (1), dropped",
         "90: from fd00:1::/64 blackhole: to node-2 fd00:2::/64 (2), dropped"],
    ),
    "IPv6": (
        ["-6 rule add pref 100 lookup 200", "-6 route add default via fd09::9 table 200"],
        ["100: from all lookup 200: to node-2 fd00:2::/64 (2), out of gw",
         "100: from all lookup 200: to pods here fd00:1::5/128 (1), out of gw"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", spread(HARMFUL))
async def test_rules_that_lead_pods_packets_elsewhere_are_found_and_go_by_their_text(
    node: Namespace, pod: Namespace, planes: Planes, keepers: Opener, case: str
) -> None:
    await (await planes.open()).apply(mesh())
    lines, expected = HARMFUL[case]
    for line in lines:
        node.ip(line)
    found = (await (await keepers()).apply(AROUND)).found.detours
    assert sorted(map(told, found)) == sorted(expected)
    for rule in {each.rule for each in found}:
        six = "-6 " if rule.family == socket.AF_INET6 else ""
        node.ip(f"{six}rule add pref {rule.priority} fwmark 7 lookup 300")  # not the first of its priority to go
        node.ip(f"{six}rule delete pref {rule.priority} {rule.text}")
        assert "fwmark 0x7 lookup 300" in node.ip(f"{six}rule")
    assert (await (await keepers()).apply(AROUND)).found.detours == ()


async def test_a_rule_is_seen_when_it_comes_though_its_routes_come_later(
    node: Namespace, pod: Namespace, planes: Planes, keepers: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part, "AFTERWARDS_SECONDS", 0.2)
    await (await planes.open()).apply(mesh())
    reports: list[object] = []
    keeper = await keepers(on_report=reports.append)
    await keeper.apply(AROUND)
    async with running(keeper):
        node.ip("rule add pref 100 lookup 200")
        node.ip("route add default via 192.168.9.9 table 200")
        await eventually(lambda: bool(keeper.report.found.detours))
        node.ip("rule delete pref 100")
        await eventually(lambda: not keeper.report.found.detours)
    assert reports


async def test_main_table_that_no_rule_has_asked(
    node: Namespace, pod: Namespace, planes: Planes, keepers: Opener
) -> None:
    """`ip rule flush` takes all rules but the local table's away. One that asks for all but default routes will do."""
    await (await planes.open()).apply(mesh())
    keeper = await keepers()

    async def dropped() -> list[tuple[int, str, int, bool]]:
        keeper._doubt()
        found = (await keeper.apply(AROUND)).found.detours
        assert all(each.rule.is_end and not each.device for each in found)
        return sorted((each.cidr.version, each.node, each.count, each.inward) for each in found)

    four, six = ([(version, "", 1, True), (version, "node-2", 2, False)] for version in (4, 6))
    assert await dropped() == []
    node.ip("rule flush")
    assert await dropped() == four
    node.ip("-6 rule delete pref 32766")
    assert await dropped() == four, "a kernel that was never given a rule of IPv6 has the main table asked anyway"
    node.ip("-6 rule add pref 99 fwmark 7 lookup 300")
    assert await dropped() == four + six
    node.ip("rule add pref 100 lookup main suppress_prefixlength 0")
    assert await dropped() == six
    node.ip("-6 rule add pref 32766 lookup main")
    assert await dropped() == []


async def test_native_routes_in_the_main_table_are_no_detour_and_a_rules_are(
    node: Namespace, pod: Namespace, planes: Planes, keepers: Opener
) -> None:
    native = (NO_ENCAPSULATION,)
    desired = Desired(
        here("node-1", "192.168.7.1", "10.1.0.0", encapsulations=native),
        [peer(2, "10.2.0.0/24", encapsulations=native)],
    )
    await (await planes.open()).apply(desired)
    keeper = await keepers()
    node.ip("rule add pref 100 lookup 200")
    node.ip("route add 10.2.0.0/24 via 192.168.7.2 table 200")
    assert (await keeper.apply(AROUND)).found.detours == (), "the same way"
    node.ip("route replace 10.2.0.0/24 via 192.168.7.9 table 200")
    keeper._doubt()
    found = (await keeper.apply(AROUND)).found.detours
    assert [told(each) for each in found] == ["100: from all lookup 200: to node-2 10.2.0.0/24 (1), out of eth0"]


async def test_devices_of_pods_are_made_to_forward(
    node: Namespace, pod: Namespace, planes: Planes, keepers: Opener, lab: Lab
) -> None:
    """Made while the default was 0, or switched off by a tool that goes over all devices."""
    switch = "net.ipv4.conf.veth1.forwarding"
    await (await planes.open()).apply(mesh())
    node.sysctl(switch, "0")
    keeper = await keepers()
    assert [change.text for change in await keeper.plan(AROUND)] == [f"sysctl -w {switch}=1"]
    await keeper.apply(AROUND)
    assert node.sysctl(switch) == "1"
    async with running(keeper):
        node.sysctl(switch, "0")
        await becomes(lambda: node.sysctl(switch), "1")
        lab.wire(node, "veth2", lab.namespace("later"), "eth0")
        node.sysctl("net.ipv4.conf.veth2.forwarding", "0")
        node.ip("route add 10.1.0.6/32 dev veth2")
        await becomes(lambda: node.sysctl("net.ipv4.conf.veth2.forwarding"), "1")
        await eventually(lambda: keeper.report.repaired == 2)
    assert node.sysctl("net.ipv4.conf.gw.forwarding") == "1", "as ip_forward has left it"
    await keeper.cleanup()
    assert node.sysctl(switch) == "1", "others may rely on forwarding here"
    assert "net.ipv4.conf.veth1.forwarding=0" in (await keeper.left())[0]


@pytest.fixture
def bridge(node: Namespace, lab: Lab) -> None:
    """Pods on a bridge, and somebody who translates addresses."""
    lab.wire(node, "veth1", lab.namespace("pod"), "eth0")
    for line in (
        "link add cni0 type bridge",
        "link set veth1 master cni0",
        "link set cni0 up",
        "address add 10.1.0.1/24 dev cni0",
    ):
        node.ip(line)


async def test_bridged_pods_around_kube_proxy_are_seen(node: Namespace, bridge: None, keepers: Opener) -> None:
    switch = "net.bridge.bridge-nf-call-iptables"
    keeper = await keepers()
    node.sysctl(switch, "0")
    assert (await keeper.apply(AROUND)).found.unfiltered == (), "nobody translates addresses"
    node.exec("nft add table ip kube-proxy")
    node.exec("nft add chain ip kube-proxy services { type nat hook prerouting priority dstnat; }")
    node.exec("nft add rule ip kube-proxy services counter accept")
    for value in ("0", "1"):
        node.sysctl(switch, value)
        keeper._doubt()
        found = (await keeper.apply(AROUND)).found.unfiltered
        assert [(each.name, each.value) for each in found] == ([("cni0", "0")] if value == "0" else [])


async def test_native_peers_are_held_against_the_neighbours_that_the_kernel_takes(
    node: Namespace, pod: Namespace, planes: Planes, keepers: Opener
) -> None:
    """The limits are the machine's, and not to be set from a network namespace: which is what is said then."""
    keeper = await keepers()
    around = msgspec.structs.replace(AROUND, native=True, raise_limits=True)
    (table, _) = (await keeper.apply(around)).found.tables.neighbours
    assert table.expected == 2, "the pod here, and the node in the pod"
    native, count = (NO_ENCAPSULATION,), table.thresholds[1]
    node.ip("address add 172.16.255.254/12 dev eth0")
    peers = [msgspec.structs.replace(peer, encapsulations=native) for peer in many(count).peers.values()]
    await (await planes.open()).apply(
        Desired(here("node-1", "172.16.255.254", "10.1.0.0", encapsulations=native), peers)
    )
    found = (await keeper.apply(msgspec.structs.replace(around, peers=count))).found
    assert found.tables.neighbours[0].expected == count + 2
    names = [f"net/ipv4/neigh/default/gc_thresh{number}" for number in (3, 2, 1)]
    assert found.unset == dict.fromkeys(names, "it is shown in the machine's first network namespace only")
    assert found.refused == {}


async def test_tunnels_take_no_neighbours(node: Namespace, planes: Planes, keepers: Opener) -> None:
    await (await planes.open()).apply(many(300))
    found = (await (await keepers()).apply(msgspec.structs.replace(AROUND, native=True))).found
    assert found.tables.neighbours[0].expected == 0


async def test_tunnels_of_other_nodes_on_the_same_machine_take_none(node: Namespace, lab: Lab, keepers: Opener) -> None:
    """The kernel counts the permanent neighbours of all namespaces in one figure."""
    other = lab.namespace("other")
    other.ip("link add many type vxlan external dstport 8472")
    other.ip("link set many up")
    other.batch(
        [f"neigh add 10.9.{n >> 8}.{n & 255} lladdr 02:00:00:00:00:01 dev many nud permanent" for n in range(1500)]
    )
    found = (await (await keepers()).apply(AROUND)).found
    by_family = {table.family: table for table in found.tables.neighbours}
    assert by_family["ipv4"].needed < 500


async def test_tracked_connections_are_counted_and_those_that_were_dropped(
    node: Namespace, keepers: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = await keepers()
    node.exec("nft add table ip tracked")
    node.exec("nft add chain ip tracked output { type filter hook output priority 0; }")
    node.exec("nft add rule ip tracked output ct state new counter")
    node.exec("ping -c 1 -W 1 127.0.0.1")
    tracked = (await keeper.apply(AROUND)).found.tables.conntrack
    assert tracked is not None
    assert (tracked.count, tracked.dropped) == (1, 0)
    assert tracked.limit == int(node.sysctl("net.netfilter.nf_conntrack_max"))

    statistics = tmp_path / "nf_conntrack"
    monkeypatch.setattr(tables, "_CONNTRACK_STATISTICS", statistics)
    for drops, refused in (("05 02", {"conntrack": 7}), ("05 02", {"conntrack": 7}), ("06 02", {"conntrack": 8})):
        one, two = drops.split()
        statistics.write_text(f"entries  found drop\n00000001 00000000 000000{one}\n00000001 00000000 000000{two}\n")
        keeper._doubt()
        found = (await keeper.apply(msgspec.structs.replace(AROUND, raise_limits=True))).found
        assert found.refused == refused
        assert found.unset == {"net/netfilter/nf_conntrack_max": "Permission denied"}, "in a namespace it is only shown"
