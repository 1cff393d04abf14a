"""The tunnel devices: what is wrong with them, and the steps that put them right. Pure.

A device of our name is ours. One that cannot be what we need (another type, another port, a fixed VNI) is made anew;
everything else is set on the living device.
"""

import errno
from collections.abc import Collection, Iterable, Iterator
from fnmatch import fnmatchcase

import msgspec
from msgspec.structs import replace

from netloom.cidr import Address
from netloom.kernel.keeper.part import RefusedEntry
from netloom.kernel.mac import format_mac, link_local_of
from netloom.kernel.mesh.desired import MeshNode
from netloom.kernel.mesh.encapsulation import OVERHEAD, Encapsulation
from netloom.kernel.netlink import links
from netloom.kernel.netlink.links import InterfaceAddress, Link, LocalAddress
from netloom.kernel.netlink.sockets import KernelRefusal
from netloom.kernel.ownership import MESH

DEFAULT_MTU = 1500
"""Bytes; Ethernet's, while there is no device to take it from."""


IPV6_MTU = 1280
"""Bytes (RFC 8200): from a device that has less the kernel takes IPv6 away, with addresses, neighbours and routes."""


class DeviceStep(msgspec.Struct, frozen=True):
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


def is_told(node: MeshNode, link: Link) -> bool:
    """Whether the device is one of those that the node was told to use."""
    return any(fnmatchcase(link.name, pattern) for pattern in node.devices)


def absent_addresses(node: MeshNode, interfaces: Interfaces) -> tuple[Address, ...]:
    """Of the addresses that the node is said to have, those that are on no device."""
    held = {each.local.address for each in interfaces.addresses}
    return tuple(address for address in dict.fromkeys((node.local, *node.claimed)) if address not in held)


def source_addresses(node: MeshNode, interfaces: Interfaces, underlay: Iterable[Link]) -> tuple[Address, ...]:
    """IPv4 addresses from which the kernel may send to peers, and that the node is not said to have: those of the
    devices that carry the traffic. A /32 beside others is a virtual one, which the kernel chooses for no network."""
    found: set[Address] = set()
    for link in underlay:
        held = [local for local in interfaces.addresses_on(link.ifindex) if len(local.address) == 4]
        networks = [local for local in held if local.length < 32]
        found.update(local.address for local in networks or held)
    return tuple(sorted(found - {node.local, *node.claimed}))


def tunnel_mtu(underlay: Mtu, encapsulation: Encapsulation, interfaces: Interfaces) -> int:
    """Bytes of the tunnel's device. While nothing says how much there is, it stays as it is."""
    device = interfaces.link(encapsulation.device)
    if underlay.bytes or device is None:
        return (underlay.bytes or DEFAULT_MTU) - OVERHEAD
    return device.mtu


def without_ipv6(node: MeshNode) -> MeshNode:
    """As if it had no IPv6 pod CIDR."""
    return replace(node, addresses=tuple(address for address in node.addresses if len(address) == 4))


def explain_without_ipv6(underlay: Mtu, encapsulation: Encapsulation, mtu: int) -> RefusedEntry:
    """Why IPv6 packets of pods do not get into the tunnel, and what to do. mtu: bytes, of its device."""
    why = (
        f"{mtu} bytes are less than the {IPV6_MTU} that IPv6 needs ({underlay.why}, less {OVERHEAD} for the tunnel), "
        f"so IPv6 packets of pods do not pass. Let the network between the nodes carry {IPV6_MTU + OVERHEAD}"
    )
    return RefusedEntry(("mtu", encapsulation.device), why)


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
    if link.made_in >= 0:
        return "it was made in another network namespace, and receives there"
    if not link.external:
        return "it has a fixed VNI (not external)"
    if link.port != encapsulation.port:
        return f"its UDP port is {link.port}, not {encapsulation.port}"
    return f"it is set to {link.odd}" if link.odd else ""


def former(node: MeshNode, encapsulation: Encapsulation, interfaces: Interfaces, known: int) -> Link | None:
    """The tunnel's device under a name that somebody gave it: by its ifindex, as it was `known`, or by what it is."""
    for link in interfaces.links:
        ours = link.ifindex == known or _is_made_like_ours(node, link)
        if link.name != encapsulation.device and ours and not unfit(link, encapsulation):
            return link
    return None


def _is_made_like_ours(node: MeshNode, link: Link) -> bool:
    """Nobody else's device takes its VNI from each packet and has our MAC, which is made from the node's name."""
    return link.external and link.mac == node.mac and link.made_in < 0


def renaming(link: Link, name: str) -> DeviceStep:
    """Gives a device its name back."""
    message = links.change(link.ifindex, ifname=name)
    return DeviceStep(
        "link", name, f"link set {link.name} name {name}", message, "somebody renamed it", link=replace(link, name=name)
    )


def renaming_down(link: Link, name: str) -> Iterator[DeviceStep]:
    """The same where the kernel renames no device that is up (before Linux 6.2)."""
    yield DeviceStep("link", name, f"link set {link.name} down", links.set_down(link.ifindex), flushes=True)
    yield renaming(link, name)


def recall(encapsulation: Encapsulation, link: Link, netns: int) -> DeviceStep:
    """Deletion of the tunnel's device where somebody moved it: it still has the port here, and would keep it."""
    text = f"link delete {link.name} in network namespace {netns}"
    why = "somebody moved it there, and it still has this one's UDP port"
    return DeviceStep(
        "link", encapsulation.device, text, links.delete_link(link.ifindex, netns=netns), why, deletes=True
    )


def removal(encapsulation: Encapsulation, interfaces: Interfaces) -> Iterator[DeviceStep]:
    """Deletion of a device of the tunnel's name that cannot serve."""
    link = interfaces.link(encapsulation.device)
    if link is not None and (why := unfit(link, encapsulation)):
        yield _deletion(link, why)


def creation(node: MeshNode, encapsulation: Encapsulation, mtu: int) -> DeviceStep:
    """A device for the tunnel."""
    name, protocol, port = encapsulation.device, encapsulation.protocol, encapsulation.port
    learning = " nolearning" if protocol == "vxlan" else ""
    text = f"address {format_mac(node.mac)} mtu {mtu} type {protocol} external dstport {port}{learning}"
    message = links.create_tunnel(name, protocol, mac=node.mac, mtu=mtu, port=port)
    made = Link(name, 0, protocol, mac=node.mac, mtu=mtu, port=port, external=True, generates_addresses=True)
    return DeviceStep("link", name, f"link add {name} {text}", message, creates=True, link=made)


def unwanted(node: MeshNode | None, interfaces: Interfaces) -> Iterator[DeviceStep]:
    """Deletion of the links with our name that no tunnel uses, and of those that had one and were renamed."""
    wanted = {encapsulation.device for encapsulation in node.tunnels} if node else set()
    for link in interfaces.links:
        if link.name in wanted:
            continue
        if MESH.link(link.name) or (node is not None and _is_made_like_ours(node, link)):
            yield _deletion(link, "no tunnel uses it")


def resizing(link: Link, mtu: int) -> Iterator[DeviceStep]:
    """To be done first: a device that grows may have no IPv6 before."""
    if link.mtu != mtu:
        text, message = f"link set {link.name} mtu {mtu}", links.change(link.ifindex, mtu=mtu)
        yield DeviceStep("link", link.name, text, message, link=replace(link, mtu=mtu))


def adjustment(node: MeshNode, link: Link) -> Iterator[DeviceStep]:
    """What has to be set on the device; up comes last, so that nothing is sent before all is right."""
    name = link.name

    def step(text: str, message: bytes, then: Link | None = None, *, flushes: bool = False) -> DeviceStep:
        return DeviceStep("link", name, f"link set {name} {text}", message, flushes=flushes, link=then)

    if link.protodown:  # it has no carrier, and all nexthops on it are gone
        yield step("protodown off", links.set_no_protodown(link.ifindex), flushes=True)
    if link.no_arp:  # to change that, on or off, takes all neighbours along
        yield step("arp on", links.set_arp(link.ifindex), flushes=True)
    if link.generates_addresses:
        yield step("addrgenmode none", links.set_no_generated_addresses(link.ifindex))
    if link.mac != node.mac:
        yield step(f"address {format_mac(node.mac)}", links.change(link.ifindex, address=node.mac))
    if link.master:
        yield step("nomaster", links.change(link.ifindex, master=0))
    if not link.up:
        yield step("up", links.set_up(link.ifindex), replace(link, up=True))


def missing_addresses(node: MeshNode, link: Link, interfaces: Interfaces) -> Iterator[DeviceStep]:
    """Addresses to add; an added one comes last. The node's own packets have the first IPv4 address as their source, so
    those that stand before the one that shall be it are added anew. One that has been given an end is given none again
    in its place; one in another form (a length, a peer) has to go first, as the kernel knows an IPv6 address by itself.
    """
    wanted = desired_addresses(node)
    found = interfaces.addresses_on(link.ifindex)
    present = [replace(local, expires=False) for local in found]
    for local in wanted:
        if local not in found:
            if local not in present:
                yield from (_address_step(link, odd, deletes=True) for odd in found if odd.address == local.address)
            yield _address_step(link, local)
    first = next((local for local in wanted if len(local.address) == 4), None)
    for local in (*present, *(local for local in wanted if local not in present)):
        if local == first:
            return
        if local in wanted and len(local.address) == 4:
            yield _address_step(link, local, deletes=True)
            yield _address_step(link, local)


def surplus_addresses(node: MeshNode, link: Link, interfaces: Interfaces) -> Iterator[DeviceStep]:
    """Addresses to remove: every address on our device is ours."""
    wanted = desired_addresses(node)
    for local in sorted(interfaces.addresses_on(link.ifindex), key=str):
        if replace(local, expires=False) not in wanted:
            yield _address_step(link, local, deletes=True)


def taken_port(
    step: DeviceStep, encapsulations: Collection[Encapsulation], refusal: KernelRefusal
) -> Encapsulation | None:
    """The tunnel whose UDP port somebody else has, if the kernel refused the step for that."""
    taken = refusal.errno == errno.EADDRINUSE or (step.creates and _port_is_taken(refusal))
    return _tunnel_of(step, encapsulations) if taken else None


def explain(step: DeviceStep, encapsulations: Collection[Encapsulation], refusal: KernelRefusal) -> str:
    """The kernel's errno as what it means for this step."""
    encapsulation = _tunnel_of(step, encapsulations)
    if encapsulation is not None and step.creates and refusal.errno == errno.EOPNOTSUPP:
        module = encapsulation.protocol.upper()
        return f"this kernel cannot make {encapsulation.protocol} devices: CONFIG_{module} is missing ({refusal})"
    return f"`ip {step.text}`: {refusal}"


def _tunnel_of(step: DeviceStep, encapsulations: Collection[Encapsulation]) -> Encapsulation | None:
    return next((each for each in encapsulations if step.kind == "link" and each.device == step.key), None)


def _port_is_taken(refusal: KernelRefusal) -> bool:
    """A device of the protocol has it: VXLAN says EEXIST; Geneve says EBUSY if that one is external, else EPERM, and
    why. A program, or another protocol's device, shows only when the device goes up: EADDRINUSE, both protocols."""
    if refusal.errno == errno.EPERM:
        return "externally controlled device" in refusal.message
    return refusal.errno in (errno.EEXIST, errno.EBUSY)


def _deletion(link: Link, why: str) -> DeviceStep:
    message = links.delete_link(link.ifindex)
    return DeviceStep("link", link.name, f"link delete {link.name}", message, why, deletes=True, flushes=True)


def _address_step(link: Link, local: LocalAddress, *, deletes: bool = False) -> DeviceStep:
    key = f"{local} dev {link.name}"
    verb, build = ("delete", links.delete_address) if deletes else ("replace", links.put_address)
    return DeviceStep("address", key, f"address {verb} {key}", build(link.ifindex, local), deletes=deletes)
