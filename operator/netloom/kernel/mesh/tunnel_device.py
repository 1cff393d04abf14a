"""The tunnel devices: what is wrong with them, and the steps that put them right. Pure.

A device of our name is ours. One that cannot be what we need (another type, another port, a fixed VNI) is made anew;
everything else is set on the living device.
"""

import errno
from collections.abc import Collection, Iterable, Iterator
from fnmatch import fnmatchcase

import msgspec
from msgspec.structs import replace

from netloom.cidr import Address, Cidr, format_address
from netloom.kernel.mac import format_mac, link_local_of
from netloom.kernel.mesh.desired import MeshNode
from netloom.kernel.mesh.encapsulation import OVERHEAD, Encapsulation
from netloom.kernel.netlink import links
from netloom.kernel.netlink.links import InterfaceAddress, Link, LocalAddress
from netloom.kernel.netlink.sockets import Refusal
from netloom.kernel.ownership import DEVICE_PREFIX, MESH

DEFAULT_MTU = 1500
"""Bytes; Ethernet's, while there is no device to take it from."""


class Step(msgspec.Struct, frozen=True):
    """One change: what it is about, how `ip` would say it, why, and its message.

    creates, deletes: the device or address. flushes: the kernel drops what stands on the device with it.
    link: the device as it is then, when it has been made (its ifindex is not known: 0) or set up.
    """

    kind: str
    key: str
    text: str
    message: bytes
    why: str = ""
    creates: bool = False
    deletes: bool = False
    flushes: bool = False
    link: Link | None = None


class Interfaces(msgspec.Struct, frozen=True):
    """The kernel's links and addresses, as far as the data path depends on them."""

    links: tuple[Link, ...] = ()
    addresses: tuple[InterfaceAddress, ...] = ()

    def link(self, name: str) -> Link | None:
        """The link of that name."""
        return next((link for link in self.links if link.name == name), None)

    def own_links(self) -> list[Link]:
        """Links with a name of the mesh's."""
        return [link for link in self.links if MESH.link(link.name)]

    def addresses_on(self, ifindex: int) -> list[LocalAddress]:
        """Addresses of one link."""
        return [address.local for address in self.addresses if address.ifindex == ifindex]


class Mtu(msgspec.Struct, frozen=True):
    """Bytes that a packet may have, and where that comes from, for people. 0: not known."""

    bytes: int = 0
    why: str = ""


def carrying(node: MeshNode, interfaces: Interfaces, outgoing: Collection[int]) -> list[Link]:
    """The devices that carry traffic between the nodes. `outgoing`: ifindexes that the kernel's routes to peers name.

    Of the devices that the node was told to use, those that routes name; where no route does, all of them; where it
    was told none, those that routes name, or the one that holds its address. Never one that has nothing to do with it.
    """
    foreign = [link for link in interfaces.links if not link.name.startswith(DEVICE_PREFIX)]
    used = [link for link in foreign if link.ifindex in outgoing]
    if node.devices:
        told = [link for link in foreign if any(fnmatchcase(link.name, pattern) for pattern in node.devices)]
        return [link for link in told if link.ifindex in outgoing] or told
    holders = {each.ifindex for each in interfaces.addresses if each.local.address == node.local}
    return used or [link for link in interfaces.links if link.ifindex in holders][:1]


def absent_addresses(node: MeshNode, interfaces: Interfaces) -> tuple[Address, ...]:
    """Of the addresses that the node is said to have, those that are on no device."""
    held = {each.local.address for each in interfaces.addresses}
    return tuple(address for address in dict.fromkeys((node.local, *node.claimed)) if address not in held)


def on_networks(interfaces: Interfaces) -> tuple[InterfaceAddress, ...]:
    """Of the addresses on devices that are not ours, those that say that the device is on a network."""
    ours = {link.ifindex for link in interfaces.links if link.name.startswith(DEVICE_PREFIX)}
    found = (each for each in interfaces.addresses if each.ifindex not in ours and says_network(each))
    return tuple(sorted(found, key=lambda each: (each.ifindex, each.local.address)))


def says_network(address: InterfaceAddress) -> bool:
    """Whether an address stands for more than itself: not on the loopback device, nor what each device makes."""
    local = address.local
    return local.length < 8 * len(local.address) and not any(each.contains(Cidr.of(local.address)) for each in _LOCAL)


_LOCAL = tuple(map(Cidr.parse, ("127.0.0.0/8", "169.254.0.0/16", "fe80::/10")))


def underlay_mtu(node: MeshNode, interfaces: Interfaces, outgoing: Collection[int]) -> Mtu:
    """Between the nodes: as configured, else the least of the devices that carry the traffic."""
    if node.mtu:
        return Mtu(node.mtu, "as configured")
    found = carrying(node, interfaces, outgoing)
    if not found:
        named = f"matches {', '.join(node.devices)}" if node.devices else f"holds {format_address(node.local)}"
        return Mtu(0, f"no device {named}")
    least = min(found, key=lambda link: link.mtu)
    return Mtu(least.mtu, f"{least.name} has {least.mtu}")


def tunnel_mtu(node: MeshNode, encapsulation: Encapsulation, interfaces: Interfaces, outgoing: Collection[int]) -> int:
    """Bytes of the tunnel's device. While nothing says how much there is, it stays as it is."""
    underlay, device = underlay_mtu(node, interfaces, outgoing), interfaces.link(encapsulation.device)
    if underlay.bytes or device is None:
        return (underlay.bytes or DEFAULT_MTU) - OVERHEAD
    return device.mtu


def native_mtu(node: MeshNode, underlay: Iterable[Link]) -> int:
    """Bytes for native routes, where packets have to be smaller than their devices allow; else 0."""
    return node.mtu if node.mtu and any(link.mtu > node.mtu for link in underlay) else 0


def desired_addresses(node: MeshNode) -> list[LocalAddress]:
    """The own addresses as hosts, and, where IPv6 is in use, the link-local address that peers use as gateway."""
    result = [LocalAddress(address, len(address) * 8) for address in node.addresses]
    if node.ipv6:
        result.append(LocalAddress(link_local_of(node.mac), 64))
    return result


def unfit(link: Link, encapsulation: Encapsulation) -> str:
    """Why this link cannot be the tunnel's device; empty if it can."""
    if link.kind != encapsulation.protocol:
        return f"it is a {link.kind or 'physical'} device, not {encapsulation.protocol}"
    if not link.external:
        return "it has a fixed VNI (not external)"
    if link.port != encapsulation.port:
        return f"its UDP port is {link.port}, not {encapsulation.port}"
    return f"it is set to {link.odd}" if link.odd else ""


def replacement(node: MeshNode, encapsulation: Encapsulation, interfaces: Interfaces, mtu: int) -> Iterator[Step]:
    """Deletion of a device of the tunnel's name that cannot serve, and creation of one that can."""
    name = encapsulation.device
    link = interfaces.link(name)
    why = "there is none" if link is None else unfit(link, encapsulation)
    if not why:
        return
    if link is not None:
        yield _deletion(link, why)
    protocol, port = encapsulation.protocol, encapsulation.port
    learning = " nolearning" if protocol == "vxlan" else ""
    text = f"address {format_mac(node.mac)} mtu {mtu} type {protocol} external dstport {port}{learning}"
    message = links.create_tunnel(name, protocol, mac=node.mac, mtu=mtu, port=port)
    made = Link(name, 0, protocol, mac=node.mac, mtu=mtu, port=port, external=True, generates_addresses=True)
    yield Step("link", name, f"link add {name} {text}", message, creates=True, link=made)


def unwanted(node: MeshNode | None, interfaces: Interfaces) -> Iterator[Step]:
    """Deletion of the links with our name that no tunnel uses."""
    wanted = {encapsulation.device for encapsulation in node.tunnels} if node else set()
    for link in interfaces.own_links():
        if link.name not in wanted:
            yield _deletion(link, "no tunnel uses it")


def adjustment(node: MeshNode, link: Link, mtu: int) -> Iterator[Step]:
    """What has to be set on the device; up comes last, so that nothing is sent before all is right."""
    name = link.name

    def step(text: str, message: bytes, then: Link | None = None) -> Step:
        return Step("link", name, f"link set {name} {text}", message, link=then)

    if link.generates_addresses:
        yield step("addrgenmode none", links.set_no_generated_addresses(link.ifindex))
    if link.mac != node.mac:
        yield step(f"address {format_mac(node.mac)}", links.change(link.ifindex, address=node.mac))
    if link.mtu != mtu:
        yield step(f"mtu {mtu}", links.change(link.ifindex, mtu=mtu))
    if link.master:
        yield step("nomaster", links.change(link.ifindex, master=0))
    if not link.up:
        yield step("up", links.set_up(link.ifindex), replace(link, up=True))


def missing_addresses(node: MeshNode, link: Link, interfaces: Interfaces) -> Iterator[Step]:
    """Addresses to add; an added one comes last. The node's own packets have the first IPv4 address as their source, so
    those that stand before the one that shall be it are added anew."""
    wanted = desired_addresses(node)
    present = interfaces.addresses_on(link.ifindex)
    missing = [local for local in wanted if local not in present]
    for local in missing:
        yield _address_step(link, local)
    first = next((local for local in wanted if len(local.address) == 4), None)
    for local in (*present, *missing):
        if local == first:
            return
        if local in wanted and len(local.address) == 4:
            yield _address_step(link, local, deletes=True)
            yield _address_step(link, local)


def surplus_addresses(node: MeshNode, link: Link, interfaces: Interfaces) -> Iterator[Step]:
    """Addresses to remove: every address on our device is ours."""
    wanted = desired_addresses(node)
    for local in sorted(interfaces.addresses_on(link.ifindex), key=str):
        if local not in wanted:
            yield _address_step(link, local, deletes=True)


def explain(step: Step, encapsulations: Collection[Encapsulation], refusal: Refusal) -> str:
    """The kernel's errno as what it means for this step."""
    encapsulation = next((encapsulation for encapsulation in encapsulations if encapsulation.device == step.key), None)
    if step.kind == "link" and encapsulation is not None:
        if refusal.errno == errno.EADDRINUSE or (step.creates and _port_is_taken(refusal)):
            return f"UDP port {encapsulation.port} is in use by another tunnel device or program ({refusal})"
        if step.creates and refusal.errno == errno.EOPNOTSUPP:
            module = encapsulation.protocol.upper()
            return f"this kernel cannot make {encapsulation.protocol} devices: CONFIG_{module} is missing ({refusal})"
    return f"`ip {step.text}`: {refusal}"


def _port_is_taken(refusal: Refusal) -> bool:
    """A device of the protocol has it: VXLAN says EEXIST; Geneve says EBUSY if that one is external, else EPERM, and
    why. A program, or another protocol's device, shows only when the device goes up: EADDRINUSE, both protocols."""
    if refusal.errno == errno.EPERM:
        return "externally controlled device" in refusal.message
    return refusal.errno in (errno.EEXIST, errno.EBUSY)


def _deletion(link: Link, why: str) -> Step:
    message = links.delete_link(link.ifindex)
    return Step("link", link.name, f"link delete {link.name}", message, why, deletes=True, flushes=True)


def _address_step(link: Link, local: LocalAddress, *, deletes: bool = False) -> Step:
    key = f"{local} dev {link.name}"
    verb, build = ("delete", links.delete_address) if deletes else ("replace", links.put_address)
    return Step("address", key, f"address {verb} {key}", build(link.ifindex, local), deletes=deletes)
