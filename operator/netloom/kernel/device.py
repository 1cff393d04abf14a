"""The tunnel device: what is wrong with it, and the steps that put it right. Pure.

A device of our name is ours. One that cannot be what we need (another type, another port, a fixed VNI) is made anew;
everything else is set on the living device.
"""

import errno
from collections.abc import Callable, Iterator

import msgspec

from netloom.kernel import links
from netloom.kernel.address import Address, Prefix, format_mac
from netloom.kernel.desired import Tunnel
from netloom.kernel.links import InterfaceAddress, Link
from netloom.kernel.netlink import Refusal
from netloom.kernel.owned import DEVICE_PREFIX, VXLAN_DEVICE, link_local_of

VXLAN_OVERHEAD = 50
"""Bytes: IPv4 20, UDP 8, VXLAN 8, inner Ethernet 14."""

DEFAULT_MTU = 1450
"""For a new device while none holds the node's underlay address: Ethernet's 1500 less the overhead."""


class Step(msgspec.Struct, frozen=True):
    """One change: what it is about, how `ip` would say it, why, and its message.

    `flushes`: the kernel drops what stands on the device with it.
    """

    kind: str
    key: str
    text: str
    message: bytes
    why: str = ""
    flushes: bool = False


class Surroundings(msgspec.Struct, frozen=True):
    """The kernel's links and addresses, as far as a tunnel device depends on them."""

    links: tuple[Link, ...] = ()
    addresses: tuple[InterfaceAddress, ...] = ()

    def link(self, name: str) -> Link | None:
        """The link of that name."""
        return next((link for link in self.links if link.name == name), None)

    def underlay(self, local: Address) -> Link | None:
        """The link that holds the node's own address."""
        holders = {address.ifindex for address in self.addresses if address.prefix.address == local}
        return next((link for link in self.links if link.ifindex in holders), None)

    def own_links(self) -> list[Link]:
        """Links with our name."""
        return [link for link in self.links if link.name.startswith(DEVICE_PREFIX)]

    def addresses_on(self, ifindex: int) -> set[Prefix]:
        """Addresses of one link."""
        return {address.prefix for address in self.addresses if address.ifindex == ifindex}


def tunnel_mtu(tunnel: Tunnel, around: Surroundings) -> int:
    """Bytes a packet may have inside the tunnel."""
    if tunnel.mtu:
        return tunnel.mtu
    underlay, device = around.underlay(tunnel.local), around.link(VXLAN_DEVICE)
    if underlay is not None:
        return underlay.mtu - VXLAN_OVERHEAD
    return device.mtu if device is not None else DEFAULT_MTU


def has_ipv6(tunnel: Tunnel) -> bool:
    """Whether this node has an IPv6 pod CIDR itself."""
    return any(len(address) == 16 for address in tunnel.addresses)


def desired_addresses(tunnel: Tunnel) -> list[Prefix]:
    """The own addresses as hosts, and, where IPv6 is in use, the link-local address that peers use as gateway."""
    result = [Prefix(address, len(address) * 8) for address in tunnel.addresses]
    if has_ipv6(tunnel):
        result.append(Prefix(link_local_of(tunnel.mac), 64))
    return result


def unfit(link: Link, tunnel: Tunnel) -> str:
    """Why this link cannot be the tunnel device; empty if it can."""
    if link.kind != "vxlan":
        return f"it is a {link.kind or 'physical'} device, not vxlan"
    if not link.external:
        return "it has a fixed VNI (not external)"
    if link.port != tunnel.port:
        return f"its UDP port is {link.port}, not {tunnel.port}"
    return "it learns addresses from traffic" if link.learning else ""


def replacement(tunnel: Tunnel, around: Surroundings) -> Iterator[Step]:
    """Deletion of a device of the tunnel's name that cannot serve, and creation of one that can."""
    link = around.link(VXLAN_DEVICE)
    why = "there is none" if link is None else unfit(link, tunnel)
    if not why:
        return
    if link is not None:
        yield _deletion(link, why)
    mtu = tunnel_mtu(tunnel, around)
    yield Step(
        "link",
        VXLAN_DEVICE,
        f"link add {VXLAN_DEVICE} address {format_mac(tunnel.mac)} mtu {mtu} "
        f"type vxlan external dstport {tunnel.port} nolearning",
        links.create_vxlan(VXLAN_DEVICE, mac=tunnel.mac, mtu=mtu, port=tunnel.port),
    )


def unwanted(tunnel: Tunnel | None, around: Surroundings) -> Iterator[Step]:
    """Deletion of the links with our name that no tunnel uses."""
    for link in around.own_links():
        if tunnel is None or link.name != VXLAN_DEVICE:
            yield _deletion(link, "no tunnel uses it")


def adjustment(tunnel: Tunnel, link: Link, around: Surroundings) -> Iterator[Step]:
    """What has to be set on the device; up comes last, so that nothing is sent before all is right."""
    name, mtu = link.name, tunnel_mtu(tunnel, around)

    def step(text: str, message: bytes) -> Step:
        return Step("link", name, f"link set {name} {text}", message)

    if link.generates_addresses:
        yield step("addrgenmode none", links.set_no_generated_addresses(link.ifindex))
    if link.mac != tunnel.mac:
        yield step(f"address {format_mac(tunnel.mac)}", links.set_mac(link.ifindex, tunnel.mac))
    if link.mtu != mtu:
        yield step(f"mtu {mtu}", links.set_mtu(link.ifindex, mtu))
    if link.master:
        yield step("nomaster", links.set_no_master(link.ifindex))
    if not link.up:
        yield step("up", links.set_up(link.ifindex))


def first_steps(tunnel: Tunnel) -> Iterator[Step]:
    """For a plan: what follows the creation of a device that has no ifindex yet."""
    link = Link(VXLAN_DEVICE, 0, mac=tunnel.mac, mtu=-1, generates_addresses=True)
    around = Surroundings((msgspec.structs.replace(link, mtu=tunnel.mtu),))
    yield from adjustment(tunnel, msgspec.structs.replace(link, mtu=tunnel_mtu(tunnel, around)), around)
    yield from missing_addresses(tunnel, link, Surroundings())


def missing_addresses(tunnel: Tunnel, link: Link, around: Surroundings) -> Iterator[Step]:
    """Addresses to add."""
    present = around.addresses_on(link.ifindex)
    for prefix in desired_addresses(tunnel):
        if prefix not in present:
            yield _address_step("replace", link, prefix, links.put_address)


def surplus_addresses(tunnel: Tunnel, link: Link, around: Surroundings) -> Iterator[Step]:
    """Addresses to remove: every address on our device is ours."""
    wanted = desired_addresses(tunnel)
    for prefix in sorted(around.addresses_on(link.ifindex), key=str):
        if prefix not in wanted:
            yield _address_step("delete", link, prefix, links.delete_address)


def explain(step: Step, tunnel: Tunnel | None, refusal: Refusal) -> str:
    """The kernel's errno as what it means for this step."""
    port = tunnel.port if tunnel else 0
    if step.kind == "link" and refusal.errno in (errno.EEXIST, errno.EADDRINUSE):
        return f"UDP port {port} is in use by another tunnel device or program ({refusal})"
    if step.kind == "link" and refusal.errno == errno.EOPNOTSUPP:
        return f"this kernel cannot make vxlan devices: CONFIG_VXLAN is missing ({refusal})"
    return f"`ip {step.text}`: {refusal}"


def _deletion(link: Link, why: str) -> Step:
    return Step("link", link.name, f"link delete {link.name}", links.delete_link(link.ifindex), why, flushes=True)


def _address_step(verb: str, link: Link, prefix: Prefix, build: Callable[[int, Prefix], bytes]) -> Step:
    return Step("address", str(prefix), f"address {verb} {prefix} dev {link.name}", build(link.ifindex, prefix))
