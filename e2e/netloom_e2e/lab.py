"""Nodes and pods as network namespaces of one machine, on Ethernet segments.

    lab-sw   the switch: a bridge per segment; the first, `br0`, also carries the control plane's address
    lab-n1   a node: `eth0` on a segment; an agent runs in it
    lab-n1-a a pod of that node: a veth, addresses of the node's pod CIDRs, default routes
    lab-rt   a router with an address on every segment, where there is more than one or an outside
    lab-out  a host beyond the router that knows the nodes and no pods

A node without further words is on the segment of the control plane. The others reach it through the router:

    lab.add_segment("a")                    # 172.30.1.0/24, router .1
    lab.add_segment("b", mtu=9000)          # 172.30.2.0/24
    n1 = lab.add_node("n1", segment="a")    # 172.30.1.11
    n2 = lab.add_node("n2", segment="b")    # 172.30.2.12: the host number stays when a node moves
    lab.router.learn(n1, "10.42.1.0/24")    # "the network knows all pod CIDRs"

Nothing is added to the namespace the caller is in. A lab is taken down by its context manager, or else with the
process that made it, however that ends (see `netloom_e2e.processes.own`).
"""

import ipaddress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import IO

from netloom_e2e import belongings, processes
from netloom_e2e.machines import Machine, Ping, Pod, parse_ping
from netloom_e2e.namespaces import (
    NETNS,
    Namespace,
    add,
    die_with_parent,
    environment,
    existing,
    held,
    is_held,
    remove,
    run,
    wait_for,
)

__all__ = [
    "NETNS",
    "SEGMENT",
    "Lab",
    "Machine",
    "Namespace",
    "Ping",
    "Pod",
    "Router",
    "Segment",
    "die_with_parent",
    "environment",
    "parse_ping",
    "run",
    "wait_for",
]

SEGMENT = ipaddress.IPv4Network("172.31.0.0/16")
_SEGMENT6 = ipaddress.IPv6Network("fd00:31::/64")
_OTHERS = ipaddress.IPv4Network("172.30.0.0/16")
_OTHERS6 = ipaddress.IPv6Network("fd00:30::/48")
OUTSIDE = ipaddress.IPv4Network("192.0.2.0/24")
OUTSIDE6 = ipaddress.IPv6Network("2001:db8::/64")


@dataclass(frozen=True)
class Segment:
    """A layer-2 network: a bridge of the switch, a subnet per family, and where its nodes' default routes point."""

    name: str
    bridge: str
    network: ipaddress.IPv4Network
    network6: ipaddress.IPv6Network
    gateway: str
    gateway6: str
    mtu: int
    first: int
    """Host number of the node with index 0, in both families."""

    @property
    def leg(self) -> str:
        """The router's interface here."""
        return f"to-{self.name or 'sw'}"

    def addresses(self, index: int) -> tuple[str, str]:
        """Of the node with this index, without prefix lengths."""
        return str(self.network[self.first + index]), str(self.network6[self.first + index])


@dataclass(frozen=True)
class Router(Namespace):
    """Forwards between the segments. It knows no pod CIDR unless told."""

    def learn(self, node: Machine, *cidrs: str) -> None:
        """Static routes to a node's pod CIDRs, as an administrator would enter them."""
        for cidr in cidrs:
            self.ip("route", "replace", cidr, "via", node.address6 if ":" in cidr else node.address)

    def forget(self, *cidrs: str) -> None:
        """Take static routes away."""
        for cidr in cidrs:
            self.ip("-6" if ":" in cidr else "-4", "route", "delete", cidr)


class Lab:
    """A switch and its nodes. `prefix` names the namespaces: at most 8 characters, unique on the machine.

    mtu: of the first segment, in bytes.
    dual_stack: nodes have an IPv6 address, too.
    """

    address = str(SEGMENT[1])
    """Of the switch: where the nodes find the control plane."""

    def __init__(self, prefix: str, *, mtu: int = 1500, dual_stack: bool = False) -> None:
        self.prefix = prefix
        self.dual_stack = dual_stack
        self.switch = Namespace(f"{prefix}-sw")
        self.router = Router(f"{prefix}-rt")
        self.outside = Namespace(f"{prefix}-out")
        self.nodes: dict[str, Machine] = {}
        self.segments: dict[str, Segment] = {}
        self._mtu = mtu
        self._made = 0
        self._routed = False
        self._owner: Path | None = None
        self._held: IO[str] | None = None

    def __enter__(self) -> "Lab":
        """Raises RuntimeError where a lab of this prefix is at work."""
        if is_held(self.switch):
            raise RuntimeError(
                f"a lab {self.prefix} is at work, perhaps in another container that shares {NETNS}: wait for its end"
            )
        self.sweep()
        self._owner = processes.own().path
        belongings.add_namespaces(self._owner, self.prefix)
        _make(self.switch)
        self._held = held(self.switch)
        self._add_bridge(Segment("", "br0", SEGMENT, _SEGMENT6, self.address, str(_SEGMENT6[1]), self._mtu, 256))
        self.switch.batch([f"addr add {self.address}/{SEGMENT.prefixlen} dev br0"])
        if self.dual_stack:
            self.switch.batch([f"addr add {_SEGMENT6[1]}/{_SEGMENT6.prefixlen} dev br0 nodad"])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.sweep()

    def hand_over(self, folder: Path) -> None:
        """From now on it is gone with this state folder, and no longer with this process."""
        belongings.add_namespaces(folder, self.prefix)
        self._disown()

    def enter_switch(self) -> None:
        """Move the calling thread, and all that it starts from now on, into the switch's namespace."""
        self.switch.move_thread()

    # The network between the nodes.

    def add_segment(self, name: str, *, mtu: int = 1500) -> Segment:
        """Another layer-2 network, behind the router. `name` has at most 8 characters."""
        self.add_router()
        index = len(self.segments)
        network = list(_OTHERS.subnets(new_prefix=24))[index]
        network6 = ipaddress.IPv6Network((int(_OTHERS6.network_address) + (index << 64), 64))
        segment = Segment(name, f"br-{name}", network, network6, str(network[1]), str(network6[1]), mtu, 10)
        self._add_bridge(segment)
        self._add_leg(segment, segment.gateway, segment.gateway6)
        return segment

    def add_router(self) -> Router:
        """The router, with a leg in every segment; nodes of the control plane's segment now default to it as well."""
        if self._routed:
            return self.router
        self._routed = True
        _make(self.router)
        self.router.sysctl(
            ipv4__ip_forward=1,
            ipv6__conf__all__forwarding=1,
            # A redirect would show a node a shorter way, and hide that it relies on the router.
            ipv4__conf__all__send_redirects=0,
            ipv4__conf__default__send_redirects=0,
            ipv4__conf__all__rp_filter=0,
            ipv4__conf__default__rp_filter=0,
        )
        first = replace(self.segments[""], gateway=str(SEGMENT[254]), gateway6=str(_SEGMENT6[254]))
        self.segments[""] = first
        self._add_leg(first, first.gateway, first.gateway6)
        self.switch.batch([f"route add default via {first.gateway}"])
        if self.dual_stack:
            self.switch.batch([f"route add default via {first.gateway6}"])
        for node in self.nodes.values():
            self._set_default_routes(node, first)
        return self.router

    def add_outside(self) -> Namespace:
        """A host beyond the router, at `OUTSIDE[10]` and `OUTSIDE6[10]`; see `netloom_e2e.echo`."""
        self.add_router()
        _make(self.outside)
        self.router.ip(*f"link add to-out type veth peer name eth0 netns {self.outside.name}".split())
        self.router.batch(
            [
                "link set to-out up",
                f"addr add {OUTSIDE[1]}/{OUTSIDE.prefixlen} dev to-out",
                f"addr add {OUTSIDE6[1]}/{OUTSIDE6.prefixlen} dev to-out nodad",
            ]
        )
        self.outside.batch(
            [
                "link set eth0 up",
                f"addr add {OUTSIDE[10]}/{OUTSIDE.prefixlen} dev eth0",
                f"addr add {OUTSIDE6[10]}/{OUTSIDE6.prefixlen} dev eth0 nodad",
                f"route add default via {OUTSIDE[1]}",
                f"route add default via {OUTSIDE6[1]}",
            ]
        )
        return self.outside

    def set_mtu(self, segment: str, mtu: int) -> None:
        """Change a segment's MTU (bytes) while it is in use: the switch's, the router's and the nodes'."""
        found = self.segments[segment] = replace(self.segments[segment], mtu=mtu)
        nodes = [node for node in self.nodes.values() if node.segment == segment]
        if self._routed:
            self.switch.ip("link", "set", f"rt-{found.leg}", "mtu", str(mtu))
            self.router.ip("link", "set", found.leg, "mtu", str(mtu))
        self.switch.batch(
            [f"link set {node.port} mtu {mtu}" for node in nodes] + [f"link set {found.bridge} mtu {mtu}"]
        )
        for node in nodes:
            node.ip("link", "set", "eth0", "mtu", str(mtu))

    # Nodes.

    def add_node(self, node: str, *, segment: str = "") -> Machine:
        """A namespace with `eth0` on a segment; addresses count up from .1.1, and from .11 on the other segments."""
        self._made += 1
        index, place = self._made, self.segments[segment]
        address, address6 = place.addresses(index)
        machine = Machine(
            name=f"{self.prefix}-{node}",
            node=node,
            address=address,
            address6=address6 if self.dual_stack else "",
            segment=segment,
            port=f"port{index}",
        )
        self._plug(machine, place)
        self.nodes[node] = machine
        return machine

    def reset_node(self, node: str) -> Machine:
        """A node's network as after a reboot: the namespace is another one, and the same card is in it."""
        machine = self.nodes[node]
        mac = _mac(machine)
        # A namespace goes some time after its name, and the cable with it.
        self.switch.ip("link", "delete", machine.port)
        remove([machine.name, *existing(f"{machine.name}-*")])
        self._plug(machine, self.segments[machine.segment], f"address {mac}")
        machine.pods.clear()
        return machine

    def move_node(self, node: str, *, segment: str) -> Machine:
        """Plug a node into another segment: it keeps its pods and gets another address, as from DHCP."""
        before, place = self.nodes[node], self.segments[segment]
        address, address6 = place.addresses(int(before.port.removeprefix("port")))
        machine = replace(before, segment=segment, address=address, address6=address6 if self.dual_stack else "")
        self.switch.batch([f"link set {machine.port} mtu {place.mtu} master {place.bridge}"])
        machine.batch(["addr flush dev eth0 scope global", f"link set eth0 mtu {place.mtu}"])
        self._set_addresses(machine, place)
        self.nodes[node] = machine
        return machine

    def introduce_nodes(self) -> None:
        """Tell all nodes of a segment each other's link addresses, so that none has to ask by ARP: a kernel gives up a
        neighbour that has not answered for 3 s, and the answer may wait for a processor for as long."""
        for node in self.nodes.values():
            others = [other for other in self.nodes.values() if other != node and other.segment == node.segment]
            node.batch([f"neigh replace {other.address} lladdr {_mac(other)} dev eth0" for other in others])

    def remove_node(self, node: str) -> None:
        """Take a node away, with its pods and all that runs in it."""
        machine = self.nodes.pop(node)
        remove([machine.name, *existing(f"{machine.name}-*")])

    def sweep(self) -> None:
        """End every process in a namespace of this prefix, then the namespaces."""
        if self._held:
            self._held.close()
        remove(existing(f"{self.prefix}-*"))
        self.nodes.clear()
        self.segments.clear()
        self._routed = False
        self._disown()

    # Pieces.

    def _disown(self) -> None:
        if self._owner:
            belongings.forget_namespaces(self._owner, self.prefix)
            self._owner = None

    def _add_bridge(self, segment: Segment) -> None:
        self.segments[segment.name] = segment
        # Without an address of its own a bridge takes the lowest of its ports' addresses: it would get another one when
        # a node comes or goes, and the nodes would not reach the control plane until they ask for its address again.
        address = f"02:00:00:00:00:{len(self.segments):02x}"
        self.switch.batch(
            [
                f"link add {segment.bridge} mtu {segment.mtu} address {address} type bridge",
                f"link set {segment.bridge} addrgenmode none",
                f"link set {segment.bridge} up",
            ]
        )

    def _add_leg(self, segment: Segment, address: str, address6: str) -> None:
        port = f"rt-{segment.leg}"
        link = f"link add {port} mtu {segment.mtu} type veth peer name {segment.leg} netns {self.router.name}"
        self.switch.ip(*link.split())
        self.switch.batch([f"link set {port} master {segment.bridge} up"])
        self.router.batch(
            [
                f"link set {segment.leg} mtu {segment.mtu} up",
                f"addr add {address}/{segment.network.prefixlen} dev {segment.leg}",
                f"addr add {address6}/{segment.network6.prefixlen} dev {segment.leg} nodad",
            ]
        )

    def _plug(self, machine: Machine, segment: Segment, card: str = "") -> None:
        _make(machine)
        link = f"link add {machine.port} mtu {segment.mtu} type veth peer name eth0 {card} netns {machine.name}"
        self.switch.ip(*link.split())
        self.switch.batch([f"link set {machine.port} master {segment.bridge} up"])
        machine.batch([f"link set eth0 mtu {segment.mtu} up"])
        self._set_addresses(machine, segment)

    def _set_addresses(self, machine: Machine, segment: Segment) -> None:
        machine.batch([f"addr add {machine.address}/{segment.network.prefixlen} dev eth0"])
        if machine.address6:
            machine.batch([f"addr add {machine.address6}/{segment.network6.prefixlen} dev eth0 nodad"])
        self._set_default_routes(machine, segment)

    def _set_default_routes(self, machine: Machine, segment: Segment) -> None:
        machine.batch([f"route replace default via {segment.gateway}"])
        if machine.address6:
            machine.batch([f"route replace default via {segment.gateway6}"])


def _mac(machine: Machine) -> str:
    return machine.ip("-o", "link", "show", "eth0").partition("link/ether ")[2].split()[0]


def _make(place: Namespace) -> None:
    # For 2 s duplicate detection would keep back the link-local address that a router asks for neighbours with.
    add(place, ipv6__conf__default__accept_dad=0)
