"""A node that forwards between a pod of its own and one of another node, and filters that somebody else made."""

import fcntl
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from netloom.cidr import Cidr
from netloom.kernel.forwarding import reading
from netloom.kernel.forwarding.keeper import ForwardKeeper
from netloom.kernel.forwarding.opening import ForwardingState
from tests.kernel.netns import Lab

PODS = (Cidr.parse("10.42.1.0/24"), Cidr.parse("fd00:42:1::/64"))
PEERS = (Cidr.parse("10.42.2.0/24"), Cidr.parse("fd00:42:2::/64"))
DESIRED = ForwardingState(PODS, peers=PEERS, peer="192.168.7.2", tunnel="", native=True)
REPORTED = ForwardingState(PODS, accept=False, peers=PEERS, peer="192.168.7.2", tunnel="", native=True)
TUNNELLED = ForwardingState(PODS, peers=PEERS)
PROGRAMS = {"nft": ("iptables-nft", "ip6tables-nft"), "legacy": ("iptables-legacy", "ip6tables-legacy")}

# As Docker 28 leaves it, before any container publishes a port.
DOCKER = """*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:DOCKER - [0:0]
:DOCKER-BRIDGE - [0:0]
:DOCKER-CT - [0:0]
:DOCKER-FORWARD - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-ISOLATION-STAGE-2 - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-FORWARD
-A DOCKER ! -i docker0 -o docker0 -j DROP
-A DOCKER-BRIDGE -o docker0 -j DOCKER
-A DOCKER-CT -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A DOCKER-FORWARD -j DOCKER-CT
-A DOCKER-FORWARD -j DOCKER-ISOLATION-STAGE-1
-A DOCKER-FORWARD -j DOCKER-BRIDGE
-A DOCKER-FORWARD -i docker0 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
-A DOCKER-USER -j RETURN
COMMIT
"""


class Crossing:
    """`a` is a pod of the node, `b` one beyond its wire, by the device of that name."""

    def __init__(self, lab: Lab, wire: str = "eth0") -> None:
        self.node, self.a, self.b = (lab.namespace(name) for name in ("node", "a", "b"))
        lab.wire(self.node, "pods", self.a, "eth0")
        lab.wire(self.node, wire, self.b, "eth0")
        self.node.sysctl("net.ipv4.ip_forward", "1")
        self.node.sysctl("net.ipv6.conf.all.forwarding", "1")
        nodad = "nodad"
        self.node.batch(
            [
                "address add 10.42.1.1/24 dev pods",
                f"address add fd00:42:1::1/64 dev pods {nodad}",
                f"address add 192.168.7.1/24 dev {wire}",
                f"address add 10.42.2.1/24 dev {wire}",
                f"address add fd00:42:2::1/64 dev {wire} {nodad}",
            ]
        )
        for pod, number in ((self.a, 1), (self.b, 2)):
            pod.batch(
                [
                    f"address add 10.42.{number}.5/24 dev eth0",
                    f"address add fd00:42:{number}::5/64 dev eth0 {nodad}",
                    f"route add default via 10.42.{number}.1",
                    f"route add default via fd00:42:{number}::1",
                ]
            )
        self.b.ip("address add 192.168.7.2/24 dev eth0")

    def passes(self, seconds: float = 1) -> dict[str, bool]:
        """Pings in both directions and families, at the same time; `seconds` is what it costs where one is dropped."""
        ways = {
            "4 out": (self.a, "10.42.2.5"),
            "4 in": (self.b, "10.42.1.5"),
            "6 out": (self.a, "fd00:42:2::5"),
            "6 in": (self.b, "fd00:42:1::5"),
        }
        pings = {
            way: subprocess.Popen(
                ["ip", "netns", "exec", pod.name, "ping", "-n", "-c", "1", "-W", f"{seconds:g}", target],
                stdout=subprocess.DEVNULL,
            )
            for way, (pod, target) in ways.items()
        }
        return {way: ping.wait(30) == 0 for way, ping in pings.items()}

    def feed(self, program: str, text: str) -> str:
        """Have a program of the node read this."""
        return self.node.exec(program, given=text)

    def tables(self) -> str:
        """All filters of the node, without counters and handles, and no program's date."""
        there = [
            each
            for each in PROGRAMS["legacy"]
            if self.node.exec(f"cat /proc/net/{each.partition('-')[0][:-6]}_tables_names")
        ]
        made = [self.node.exec("nft -s list ruleset"), *(self.node.exec(f"{each}-save") for each in there)]
        lines = "\n".join(made).splitlines()
        return "\n".join(line.split(" [")[0] for line in lines if not line.startswith("#"))


ALL = {"4 out": True, "4 in": True, "6 out": True, "6 in": True}
NONE = dict.fromkeys(ALL, False)


@asynccontextmanager
async def keeping(**options: object) -> AsyncIterator[ForwardKeeper]:
    """One without resyncs: what is repaired is repaired by events and looks."""
    async with AsyncExitStack() as stack:
        keeper = ForwardKeeper(**{"resync_seconds": None, **options})  # type: ignore[arg-type]
        await keeper.open()
        stack.push_async_callback(keeper.close)
        yield keeper


def count_readings(keeper: ForwardKeeper, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """One for each time that nftables is read from now on."""
    seen: list[object] = []
    real = reading.read
    monkeypatch.setattr(reading, "read", lambda *what: seen.append(keeper) or real(*what))
    return seen


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Somebody holds the lock of iptables-legacy."""
    with path.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
