"""CIDRs in objects: from text to networks, and what is wrong with those that are none.

Stricter than `ipaddress`, which takes an address without a prefix length, a netmask, or `/08`: what is accepted here
is exactly what the API server's CEL function `cidr()` accepts, so that an object from a file meets the same rules.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Literal

from netloom.api.problem import Problem

Family = Literal[4, 6]
Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

FAMILIES: tuple[Family, Family] = (4, 6)

NodeAddresses = Mapping[str, Iterable[str]]
"""Addresses of nodes, by the node's name. A text that is no address is passed over: it is the node's fault."""

RESERVED: dict[Family, tuple[Network, ...]] = {
    4: tuple(map(ip_network, ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4"))),
    6: tuple(map(ip_network, ("::/8", "fe80::/10", "ff00::/8"))),
}
"""Addresses with a meaning of their own, which no pod can have (RFC 6890, RFC 4291)."""

_SHOWN = 3
_CIDR = re.compile(r"([0-9A-Fa-f:.]+)/(0|[1-9][0-9]{0,2})", re.ASCII)
_MAPPED = IPv6Network("::ffff:0:0/96")


def parse_address(text: str) -> Address | None:
    """An IP address; None where the text is none, has a zone, or is an IPv4 address dressed as IPv6."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and (address.scope_id or address in _MAPPED):
        return None
    return address


def parse_cidr(text: str) -> Network | None:
    """The network that a CIDR names, host bits dropped; None where the text is no CIDR."""
    match = _CIDR.fullmatch(text)
    address = parse_address(match[1]) if match else None
    if match is None or address is None or int(match[2]) > address.max_prefixlen:
        return None
    return ip_network((address, int(match[2])), strict=False)


def check_cidr(
    text: str, *, object: str, field: str, example: str, family: Family | None = None, for_pods: bool = False
) -> tuple[Network | None, list[Problem]]:
    """The network that one CIDR names, if any, and what is wrong with it.

    example: one to show to somebody who wrote something else.
    for_pods: pods get addresses of it, so it may hold none of RESERVED.
    """

    def wrong(reason: str, message: str, way_out: str) -> Problem:
        return Problem(object, field, text, reason, message, way_out)

    network = parse_cidr(text)
    if network is None or family not in (None, network.version):
        what = f"an IPv{family} CIDR" if family else "a CIDR"
        return None, [wrong("InvalidCIDR", f"not {what}.", f"Write one such as {example}.")]
    problems: list[Problem] = []
    address = ip_address(text.partition("/")[0])
    if address != network.network_address:
        message = "bits are set after the prefix length, so this is an address, not a network."
        problems.append(wrong("InvalidCIDR", message, "Set them to zero."))
    if f"{address}/{network.prefixlen}" != text:
        message = "not in canonical form, and equal CIDRs must be equal as text."
        way_out = 'Write it in lower case, with the longest run of zeros as "::" (RFC 5952).'
        problems.append(wrong("InvalidCIDR", message, way_out))
    reserved = RESERVED[network.version]
    if for_pods and any(network.overlaps(each) for each in reserved):
        names = f"{', '.join(map(str, reserved[:-1]))} and {reserved[-1]}"
        message = f"pods cannot use all of it: the standards give {names} a meaning of their own."
        problems.append(wrong("ReservedCIDR", message, "Give a CIDR outside them."))
    return network, problems


def parse_cidrs(
    texts: Iterable[str],
    *,
    object: str,
    field: str,
    example: str,
    family: Family | None = None,
    for_pods: bool = False,
) -> tuple[tuple[tuple[str, Network], ...], list[Problem]]:
    """Of a list at `field`: the CIDRs that name a network, each with its field, and a Problem for all that is wrong.

    A CIDR with host bits, say, is in both: other rules still have something to say about it.
    """
    networks: list[tuple[str, Network]] = []
    problems: list[Problem] = []
    for number, text in enumerate(texts):
        at = f"{field}[{number}]"
        network, wrong = check_cidr(text, object=object, field=at, example=example, family=family, for_pods=for_pods)
        problems += wrong
        if network is not None:
            networks.append((at, network))
    return tuple(networks), problems


def check_overlap(texts: Sequence[str], *, object: str, field: str, so: str) -> list[Problem]:
    """Names the first two CIDRs of a list that overlap. so: what that leads to."""
    networks = [(text, network) for text in texts if (network := parse_cidr(text))]
    for number, (text, network) in enumerate(networks):
        for other_text, other in networks[number + 1 :]:
            if network.overlaps(other):
                message = f"{text} overlaps {other_text}, so {so}."
                return [Problem(object, field, text, "CIDROverlap", message, "Remove one of them.")]
    return []


def check_mask_size(
    texts: Iterable[str], mask_size: int, *, family: Family, object: str, field: str, block: str
) -> list[Problem]:
    """Names the first CIDR that is too small for a single block. block: what a block is to the reader."""
    for text in texts:
        network = parse_cidr(text)
        if network and network.version == family and network.prefixlen > mask_size:
            message = f"{block} of /{mask_size} is larger than the whole of {text}."
            way_out = "Give a larger CIDR, or a mask size that fits it."
            return [Problem(object, field, str(mask_size), "InvalidMaskSize", message, way_out)]
    return []


def check_nodes_outside(
    networks: Iterable[tuple[str, Network]], node_addresses: NodeAddresses, *, object: str, reason: str
) -> list[Problem]:
    """Names the CIDRs, given with their fields, that hold nodes' own addresses.

    One Problem per CIDR, whatever the number of nodes: a cluster of thousands must stay readable.
    """
    known = [
        (node, address) for node, texts in node_addresses.items() for text in texts if (address := parse_address(text))
    ]
    problems: list[Problem] = []
    for field, network in networks:
        inside = [f"{address} of node {node}" for node, address in known if address in network]
        if inside:
            problems.append(holds_nodes(str(network), inside, len(inside), object=object, field=field, reason=reason))
    return problems


def holds_nodes(cidr: str, inside: Sequence[str], count: int, *, object: str, field: str, reason: str) -> Problem:
    """A CIDR that holds `count` addresses of nodes. inside: the first of them, `10.0.0.1 of node a`."""
    more = f" and {count - _SHOWN} more" if count > _SHOWN else ""
    holds = f"it holds addresses of nodes ({', '.join(inside[:_SHOWN])}{more})"
    message = f"{holds}, so a pod could be given the address of a node."
    return Problem(object, field, cidr, reason, message, "Use CIDRs outside the nodes' network.")
