"""A node and its pods: what is in a lab's namespaces before an agent comes."""

import ipaddress
import re
from dataclasses import dataclass, field

from netloom_e2e.namespaces import Namespace, add, run, wait_for

_GATEWAYS = {4: "169.254.1.1", 6: "fe80::1"}
_HOST_MAC = "ee:ee:ee:ee:ee:ee"


@dataclass(frozen=True)
class Ping:
    """What `ping` counted."""

    sent: int
    received: int

    @property
    def lost(self) -> int:
        return self.sent - self.received


def parse_ping(output: str) -> Ping:
    """The counts of ping's summary. Raises ValueError if there is none."""
    found = re.search(r"(\d+) packets transmitted, (\d+) received", output)
    if not found:
        raise ValueError(f"ping gave no summary: {output.strip()}")
    return Ping(int(found[1]), int(found[2]))


@dataclass(frozen=True)
class Pod(Namespace):
    """A namespace with a veth and a default route per family."""

    address: str
    """The first of `addresses`."""

    addresses: tuple[str, ...] = ()

    def of(self, version: int) -> str:
        """Its address of IP version 4 or 6; KeyError if it has none."""
        by_version: dict[int, str] = {ipaddress.ip_address(address).version: address for address in self.addresses}
        return by_version[version]

    def ping_command(
        self, to: str, *, count: int = 1, interval: float = 0.2, payload: int = 56, wait: float = 1.0
    ) -> list[str]:
        """A `ping` with DF set whose IP packet carries `payload` + 8 bytes of ICMP."""
        words = ["ping", "-n", "-q", "-M", "do", "-c", str(count), "-i", f"{interval:g}"]
        return [*words, "-s", str(payload), "-W", f"{wait:g}", to]

    def ping(self, to: str, *, count: int = 1, interval: float = 0.2, payload: int = 56, wait: float = 1.0) -> Ping:
        """Ping with DF set and count the answers."""
        command = self.ping_command(to, count=count, interval=interval, payload=payload, wait=wait)
        return parse_ping(self.run(*command, check=False, timeout=count * interval + wait + 30))


@dataclass(frozen=True)
class Machine(Namespace):
    """A node: its own network namespace, with `eth0` on a segment."""

    node: str
    address: str
    address6: str = ""
    """"" unless the lab is dual-stack."""

    segment: str = ""
    port: str = ""
    """The switch's end of `eth0`: `lab.switch.ip("link", "set", machine.port, "down")` pulls the cable."""

    pods: dict[str, Pod] = field(default_factory=dict, compare=False)

    @property
    def underlay(self) -> tuple[str, ...]:
        """Its addresses, as the kubelet reports them."""
        return (self.address, self.address6) if self.address6 else (self.address,)

    def add_pod(self, name: str, *addresses: str, mtu: int) -> Pod:
        """A pod with addresses of this node's pod CIDRs, at most one per family; `mtu` in bytes."""
        ips = [ipaddress.ip_address(address) for address in addresses]
        pod = Pod(name=f"{self.name}-{name}", address=addresses[0], addresses=addresses)
        veth = f"p-{name}"
        add(pod)
        link = f"link add {veth} address {_HOST_MAC} mtu {mtu} type veth peer name eth0 netns {pod.name}"
        self.ip(*link.split())
        host, inside = [], [f"link set eth0 mtu {mtu} up"]
        if any(ip.version == 6 for ip in ips):
            # The gateway's own link-local address, at once: duplicate detection would keep it from asking for a second.
            host += [f"link set {veth} addrgenmode none", f"addr add {_GATEWAYS[6]}/64 dev {veth} nodad"]
        host.append(f"link set {veth} up")
        for ip in ips:
            gateway = _GATEWAYS[ip.version]
            host.append(f"route add {ip}/{ip.max_prefixlen} dev {veth}")
            inside.append(f"addr add {ip}/{ip.max_prefixlen} dev eth0{' nodad' if ip.version == 6 else ''}")
            if ip.version == 4:
                inside.append(f"route add {gateway} dev eth0")
            inside.append(f"neigh add {gateway} lladdr {_HOST_MAC} dev eth0 nud permanent")
            inside.append(f"route add default via {gateway} dev eth0")
        self.batch(host)
        pod.batch(inside)
        # What is sent before the kernel has seen the carrier of both ends is dropped: on a busy machine, a ping.
        ends = ((self, veth), (pod, "eth0"))
        wait_for(f"{veth} to be up", lambda: all("state UP" in at.ip("link", "show", end) for at, end in ends))
        self.pods[name] = pod
        return pod

    def set_pod_mtu(self, name: str, mtu: int) -> None:
        """Change the MTU (bytes) of a running pod, at both ends of its veth."""
        self.ip("link", "set", f"p-{name}", "mtu", str(mtu))
        self.pods[name].ip("link", "set", "eth0", "mtu", str(mtu))

    def remove_pods(self) -> None:
        """Take its pods away. A namespace goes some time after its name, so their veths are deleted first."""
        for name in list(self.pods):
            self.remove_pod(name)

    def remove_pod(self, name: str) -> None:
        """The same of one."""
        self.ip("link", "delete", f"p-{name}")
        run("ip", "netns", "delete", self.pods.pop(name).name)
