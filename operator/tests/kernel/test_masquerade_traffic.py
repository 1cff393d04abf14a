"""Real packets: a pod behind a node, and hosts beyond it that print whom they see.

pod 10.1.0.2 -- node 192.168.7.1 -- eth0 -- host with 192.0.2.9 (outside), 10.2.0.2 (another node's pod),
                                            172.16.0.9 (in an excluded CIDR), and their like in IPv6
"""

import subprocess
import sys
from collections.abc import Iterator

import pytest

from netloom.cidr import Cidr
from netloom.kernel.masquerade.sets import Masquerading
from tests.kernel.meshes import running
from tests.kernel.netns import Lab, Namespace
from tests.kernel.nft import Masquerades, masquerades, nft, rules, ruleset

__all__ = ["masquerades"]

HOST_ADDRESSES = ["192.0.2.9", "10.2.0.2", "172.16.0.9", "2001:db8::9", "fd00:2::2", "fd55::9"]
NODE4, NODE6, POD4, POD6 = "192.168.7.1", "fd77::1", "10.1.0.2", "fd00:1::2"

SERVER = """
import socket
server = socket.create_server(("::", 7), family=socket.AF_INET6, dualstack_ipv6=True)
print("ready", flush=True)
while True:
    connection, peer = server.accept()
    connection.sendall(peer[0].removeprefix("::ffff:").encode())
    connection.close()
"""

CLIENT = """
import socket, sys
print(socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5).recv(100).decode())
"""

KUBE_PROXY = [
    "iptables -t nat -N KUBE-POSTROUTING",
    "iptables -t nat -A POSTROUTING -m comment --comment kubernetes -j KUBE-POSTROUTING",
    "iptables -t nat -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN",
    "iptables -t nat -A KUBE-POSTROUTING -j MARK --xor-mark 0x4000",
    "iptables -t nat -A KUBE-POSTROUTING -j MASQUERADE --random-fully",
    "iptables -t nat -A PREROUTING -d 10.96.0.1/32 -p tcp --dport 80 -j MARK --or-mark 0x4000",
    "iptables -t nat -A PREROUTING -d 10.96.0.1/32 -p tcp --dport 80 -j DNAT --to-destination 10.2.0.2:7",
    "iptables -t nat -A PREROUTING -d 10.96.0.2/32 -p tcp --dport 80 -j DNAT --to-destination 10.2.0.2:7",
    "iptables -t filter -A FORWARD -m conntrack --ctstate INVALID -j DROP",
]
"""10.96.0.1 is a service whose traffic kube-proxy masquerades, 10.96.0.2 one whose traffic it does not."""

FIREWALLD = """
table inet firewalld {
    chain filter_FORWARD {
        type filter hook forward priority filter + 10; policy accept;
        ct state { established, related } accept
        ip daddr 203.0.113.0/24 reject
    }
    chain nat_POSTROUTING {
        type nat hook postrouting priority srcnat + 10; policy accept;
        oifname "docker0" masquerade
    }
}
"""


class World:
    """The pod, the node (in which the test runs), and what the host sees."""

    def __init__(self, pod: Namespace, node: Namespace) -> None:
        self.pod, self.node = pod, node

    def seen(self, target: str, port: int = 7) -> str:
        """The source address that the host at `target` sees of the pod."""
        command = ["ip", "netns", "exec", self.pod.name, sys.executable, "-c", CLIENT, target, str(port)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def iptables(self) -> list[str]:
        """kube-proxy's rules, without the comments that say when they were shown."""
        lines = [
            line for table in ("nat", "filter") for line in self.node.exec(f"iptables-save -t {table}").splitlines()
        ]
        return [line for line in lines if not line.startswith("#")]


@pytest.fixture
def world(lab: Lab) -> Iterator[World]:
    pod, node, host = lab.namespace("pod"), lab.namespace("node"), lab.namespace("host")
    lab.wire(node, "eth0", host, "eth0")
    lab.wire(node, "lxc0", pod, "eth0")
    node.ip(f"address add {NODE4}/24 dev eth0")
    node.ip(f"-6 address add {NODE6}/64 dev eth0 nodad")
    node.ip("address add 10.1.0.1/24 dev lxc0")
    node.ip("-6 address add fd00:1::1/64 dev lxc0 nodad")
    pod.ip(f"address add {POD4}/24 dev eth0")
    pod.ip(f"-6 address add {POD6}/64 dev eth0 nodad")
    pod.ip("route add default via 10.1.0.1")
    pod.ip("-6 route add default via fd00:1::1")
    node.sysctl("net.ipv4.ip_forward", "1")
    node.sysctl("net.ipv6.conf.all.forwarding", "1")
    host.ip("address add 192.168.7.9/24 dev eth0")
    host.ip("-6 address add fd77::9/64 dev eth0 nodad")
    for address in HOST_ADDRESSES:
        host.ip(f"{'-6 ' if ':' in address else ''}address add {address} dev lo")
    node.ip("route add default via 192.168.7.9")
    node.ip("-6 route add default via fd77::9")
    # The host knows the way to the pod, too, as another node does.
    host.ip(f"route add 10.1.0.0/24 via {NODE4}")
    host.ip(f"-6 route add fd00:1::/64 via {NODE6}")
    command = ["ip", "netns", "exec", host.name, sys.executable, "-c", SERVER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        assert server.stdout.readline() == "ready\n"
        with node.entered():
            yield World(pod, node)
        server.terminate()


def cluster(*, ipv4: bool = True, ipv6: bool = True) -> Masquerading:
    desired = Masquerading(rules("172.16.0.0/12", "fd55::/16", ipv4=ipv4, ipv6=ipv6))
    desired.set_known("node-2", (Cidr.parse("10.2.0.0/24"), Cidr.parse("fd00:2::/64")))
    return desired


@pytest.mark.parametrize(
    ("target", "seen"),
    [
        ("192.0.2.9", NODE4),
        ("10.2.0.2", POD4),
        ("172.16.0.9", POD4),
        ("2001:db8::9", NODE6),
        ("fd00:2::2", POD6),
        ("fd55::9", POD6),
    ],
)
async def test_whom_the_other_side_sees(world: World, masquerades: Masquerades, target: str, seen: str) -> None:
    own = POD6 if ":" in target else POD4
    assert world.seen(target) == own, "as long as there is no masquerading"
    masquerade = await masquerades.open()
    await masquerade.apply(cluster())
    assert world.seen(target) == seen
    await masquerade.cleanup()
    assert world.seen(target) == own


@pytest.mark.parametrize(("ipv4", "ipv6"), [(True, False), (False, True)])
async def test_each_family_is_switched_by_itself(
    world: World, masquerades: Masquerades, ipv4: bool, ipv6: bool
) -> None:
    await (await masquerades.open()).apply(cluster(ipv4=ipv4, ipv6=ipv6))
    assert world.seen("192.0.2.9") == (NODE4 if ipv4 else POD4)
    assert world.seen("2001:db8::9") == (NODE6 if ipv6 else POD6)


async def test_the_nodes_own_packets_are_left_alone(world: World, masquerades: Masquerades) -> None:
    await (await masquerades.open()).apply(cluster())
    assert World(world.node, world.node).seen("192.0.2.9") == NODE4


async def test_a_packet_out_of_our_own_device_is_left_alone(world: World, masquerades: Masquerades) -> None:
    world.node.ip("link set eth0 down")
    world.node.ip("link set eth0 name netloom_x")
    world.node.ip("link set netloom_x up")
    world.node.ip("route add default via 192.168.7.9")
    await (await masquerades.open()).apply(cluster())
    assert world.seen("192.0.2.9") == POD4


async def test_every_moment_has_its_rule(world: World, masquerades: Masquerades) -> None:
    """Connections that begin while the table is edited, and repaired, and changed, again and again."""
    until_told = "import select\nseen = set()\nwhile not select.select([sys.stdin], [], [], 0)[0]: seen.add"
    script = CLIENT.replace("print", until_told) + "print(*sorted(seen))"
    masquerade = await masquerades.open()
    desired = cluster()
    await masquerade.apply(desired)
    command = ["ip", "netns", "exec", world.pod.name, sys.executable, "-c", script, "192.0.2.9", "7"]
    async with running(masquerade):
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as flow:
            for rounds in range(20):
                assert flow.poll() is None
                nft(world.node, "add rule inet netloom postrouting ip daddr 198.51.100.1 drop")
                desired.set_known("node-3", (Cidr.parse(f"10.3.{rounds % 200}.0/24"),))
                desired.rules = cluster(ipv6=rounds % 2 == 0).rules
                await masquerade.apply(desired)
            output, _ = flow.communicate("enough", timeout=30)
            assert output.split() == [NODE4]


@pytest.mark.parametrize("ours_first", [True, False], ids=["ours first", "theirs first"])
async def test_beside_kube_proxy(world: World, masquerades: Masquerades, ours_first: bool) -> None:
    def kube_proxy() -> None:
        for command in KUBE_PROXY:
            world.node.exec(command)

    masquerade = await masquerades.open()
    if ours_first:
        await masquerade.apply(cluster())
        kube_proxy()
    else:
        kube_proxy()
        await masquerade.apply(cluster())
    theirs = world.iptables()
    assert world.seen("10.96.0.1", 80) == NODE4, "kube-proxy's mark is obeyed, though the destination is a pod"
    assert world.seen("10.96.0.2", 80) == POD4, "a service's pod sees the client"
    assert world.seen("192.0.2.9") == NODE4
    assert world.seen("10.2.0.2") == POD4
    await masquerade.apply(cluster(ipv6=False))
    await masquerade.cleanup()
    assert world.iptables() == theirs
    assert world.seen("10.96.0.1", 80) == NODE4


@pytest.mark.parametrize("ours_first", [True, False], ids=["ours first", "theirs first"])
async def test_beside_firewalld(world: World, masquerades: Masquerades, ours_first: bool) -> None:
    masquerade = await masquerades.open()
    if ours_first:
        await masquerade.apply(cluster())
        nft(world.node, FIREWALLD)
    else:
        nft(world.node, FIREWALLD)
        await masquerade.apply(cluster())
    assert world.seen("192.0.2.9") == NODE4
    assert world.seen("10.2.0.2") == POD4
    assert world.seen("2001:db8::9") == NODE6
    async with running(masquerade):
        # firewalld's reload: its table goes and comes in one transaction.
        nft(world.node, "delete table inet firewalld\n" + FIREWALLD)
        assert world.seen("192.0.2.9") == NODE4
    theirs = world.node.exec("nft list table inet firewalld")
    await masquerade.cleanup()
    assert ruleset(world.node) == theirs
