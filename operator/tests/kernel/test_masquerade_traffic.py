"""Real packets: a pod behind a node, and hosts beyond it that print whom they see.

pod 10.1.0.2 -- node 192.168.7.1 -- eth0 -- host with 192.0.2.9 (outside), 10.2.0.2 (another node's pod),
                                            172.16.0.9 (in an excluded CIDR), and their like in IPv6,
                                            169.254.169.254 (a cloud's metadata)
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from netloom.cidr import Cidr
from netloom.kernel.masquerade.sets import Masquerading
from tests.kernel.meshes import eventually, running
from tests.kernel.netns import Lab, Namespace
from tests.kernel.nft import Masquerades, masquerades, nft, rules, ruleset

__all__ = ["masquerades"]

HOST_ADDRESSES = ["192.0.2.9", "169.254.169.254", "10.2.0.2", "172.16.0.9", "2001:db8::9", "fd00:2::2", "fd55::9"]
NODE4, NODE6, POD4, POD6 = "192.168.7.1", "fd77::1", "10.1.0.2", "fd00:1::2"
CIDRS = {POD4: "10.1.0.0/24", POD6: "fd00:1::/64"}

PYTHON = (sys.executable, "-I", "-S")
"""Without the packages of a project, which take longer to find than a test to run."""

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

DATAGRAMS = """
import select, socket, sys
servers = []
for address in sys.argv[1:]:
    server = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    server.bind((address, 9))
    servers.append(server)
print("ready", flush=True)
while True:
    for server in select.select(servers, [], [])[0]:
        said, peer = server.recvfrom(100)
        print(said.decode(), peer[0], flush=True)
        if said == b"question":
            server.sendto(b"answer", peer)
"""
"""Answers only what is a question, and says of all from whom it came."""

FLOW = """
import socket, sys
target, what = sys.argv[1:]
flow = socket.socket(socket.AF_INET6 if ":" in target else socket.AF_INET, socket.SOCK_DGRAM)
flow.settimeout(5)
flow.connect((target, 9))
for _ in sys.stdin:
    flow.send(what.encode())
    if what == "question":
        flow.recv(100)
        print("answered", flush=True)
"""

TRACKING = "table inet somebody { chain input { type filter hook forward priority 0; ct state invalid counter; }; }"
"""Connections are tracked before we come, as by kube-proxy."""

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


class Script:
    """A program in a namespace that is talked to line by line."""

    def __init__(self, stack: ExitStack, inside: Namespace, code: str, *arguments: str) -> None:
        command = ["ip", "netns", "exec", inside.name, *PYTHON, "-c", code, *arguments]
        pipe = subprocess.PIPE
        self._process = stack.enter_context(subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True))
        stack.callback(self._process.kill)

    def go(self) -> None:
        """Once more."""
        assert self._process.stdin
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def said(self) -> str:
        """The next line."""
        assert self._process.stdout
        return self._process.stdout.readline().strip()


class World:
    """The pod, the node (in which the test runs), and what the host sees."""

    def __init__(self, pod: Namespace, node: Namespace, host: Namespace) -> None:
        self.pod, self.node, self.host = pod, node, host

    def seen(self, target: str, port: int = 7) -> str:
        """The source address that the host at `target` sees of the pod."""
        command = ["ip", "netns", "exec", self.pod.name, *PYTHON, "-c", CLIENT, target, str(port)]
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
    command = ["ip", "netns", "exec", host.name, *PYTHON, "-c", SERVER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        assert server.stdout.readline() == "ready\n"
        with node.entered():
            yield World(pod, node, host)
        server.terminate()


def cluster(*, ipv4: bool = True, ipv6: bool = True) -> Masquerading:
    desired = Masquerading(rules("172.16.0.0/12", "fd55::/16", ipv4=ipv4, ipv6=ipv6))
    desired.set_known("node-2", (Cidr.parse("10.2.0.0/24"), Cidr.parse("fd00:2::/64")))
    return desired


@pytest.mark.parametrize(
    ("target", "seen"),
    [
        ("192.0.2.9", NODE4),
        ("169.254.169.254", NODE4),
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
    assert World(world.node, world.node, world.host).seen("192.0.2.9") == NODE4


async def test_a_packet_out_of_our_own_device_is_left_alone(world: World, masquerades: Masquerades) -> None:
    world.node.ip("link set eth0 down")
    world.node.ip("link set eth0 name netloom_x")
    world.node.ip("link set netloom_x up")
    world.node.ip("route add default via 192.168.7.9")
    await (await masquerades.open()).apply(cluster())
    assert world.seen("192.0.2.9") == POD4


@pytest.mark.parametrize(("target", "pod", "node"), [("192.0.2.9", POD4, NODE4), ("2001:db8::9", POD6, NODE6)])
async def test_a_flow_that_began_before(
    world: World, masquerades: Masquerades, target: str, pod: str, node: str
) -> None:
    """What nobody answers is masqueraded from the next packet on; what works stays as it is, and so does what goes to
    other nodes' pods."""
    nft(world.node, TRACKING)
    other = "fd00:2::2" if ":" in target else "10.2.0.2"
    with ExitStack() as stack:
        server = Script(stack, world.host, DATAGRAMS, target, other)
        assert server.said() == "ready"
        destinations = {"plain": target, "question": target, "inside": other}
        flows = {what: Script(stack, world.pod, FLOW, to, what) for what, to in destinations.items()}

        def seen() -> dict[str, str]:
            for flow in flows.values():
                flow.go()
            return dict(server.said().split(" ") for _ in flows)

        untranslated = dict.fromkeys(flows, pod)
        assert seen() == untranslated
        masquerade = await masquerades.open()
        await masquerade.apply(cluster())
        expected = untranslated | {"plain": node}
        assert seen() == expected
        nft(world.node, f"delete element inet netloom {'pods6' if ':' in pod else 'pods4'} {{ {CIDRS[pod]} }}")
        flows["late"] = Script(stack, world.pod, FLOW, target, "late")
        assert seen() == expected | {"late": pod}, "it began while somebody had changed a set"
        async with running(masquerade):
            await eventually(lambda: seen() == expected | {"late": node})


@pytest.mark.slow
async def test_every_moment_has_its_rule(world: World, masquerades: Masquerades) -> None:
    """Connections that begin while the table is edited, and repaired, and changed, again and again."""
    until_told = "import select\nseen = set()\nwhile not select.select([sys.stdin], [], [], 0)[0]: seen.add"
    script = CLIENT.replace("print", until_told) + "print(*sorted(seen))"
    masquerade = await masquerades.open()
    desired = cluster()
    await masquerade.apply(desired)
    command = ["ip", "netns", "exec", world.pod.name, *PYTHON, "-c", script, "192.0.2.9", "7"]
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
