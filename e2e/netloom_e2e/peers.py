"""The peers of a bench, the same ones in every form: for the engine, for `ip -batch`, for pyroute2.

Peer number N is the NetloomNode number N of `netloom_e2e.load`: node-N at 172.16.0.1 + N, with the N-th /24 of 10/8.
None of them exists, and nothing is sent to them: what is measured is the kernel's tables.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from netloom.cidr import Cidr, parse_address
from netloom.kernel.mac import format_mac, mac_of
from netloom.kernel.mesh.desired import Desired, MeshNode, Peer
from netloom_e2e.bench import Wrong
from netloom_e2e.lab import Machine
from netloom_e2e.load import PODS, UNDERLAY
from netloom_e2e.mesh import PROTOCOL, TUNNEL

PREFIX = "node-"
MOST = 50_000
"""The pods' /24 of higher numbers are for nodes that do exist."""
CLASSIC = "classic0"
"""VXLAN device with one VNI and an FDB, as flannel makes it."""
_FIRST_ID = 0x6E00_0001


class PeerText(NamedTuple):
    """A peer as one would type it."""

    name: str
    underlay: str
    cidr: str
    mac: str


def peer(number: int) -> PeerText:
    """Peer `number`, from 0."""
    name = f"{PREFIX}{number:05}"
    underlay, cidr = ipaddress.IPv4Address(UNDERLAY + number), ipaddress.IPv4Address(PODS + (number << 8))
    return PeerText(name, str(underlay), f"{cidr}/24", format_mac(mac_of(name)))


def peers(count: int) -> list[PeerText]:
    """The first `count`."""
    return [peer(number) for number in range(count)]


def desired(local: str, count: int) -> Desired:
    """The mesh of the node at `local`, with `count` peers. The engine's types are named here and nowhere else."""
    own = MeshNode(local=parse_address(local), mac=mac_of("bench"), addresses=(parse_address("192.168.0.0"),))
    others = []
    for each in peers(count):
        cidrs = (Cidr.parse(each.cidr),)
        others.append(Peer(each.name, parse_address(each.underlay), mac_of(each.name), cidrs))
    return Desired(own, others)


def same_operations(count: int) -> Iterator[str]:
    """What the engine does for its peers, as lines for `ip -batch`, in its order."""
    found = peers(count)
    for each in found:
        yield f"neigh add {each.underlay} lladdr {each.mac} dev {TUNNEL} nud permanent"
    for number, each in enumerate(found, _FIRST_ID):
        yield (
            f"nexthop add id {number} encap ip id 1 dst {each.underlay} ttl 64 "
            f"via {each.underlay} dev {TUNNEL} onlink proto {PROTOCOL}"
        )
    for number, each in enumerate(found, _FIRST_ID):
        yield f"route add {each.cidr} nhid {number} proto {PROTOCOL}"


def classic_operations(count: int) -> Iterator[str]:
    """The same mesh without nexthop objects: the encapsulation is in every route."""
    for each in peers(count):
        yield f"neigh add {each.underlay} lladdr {each.mac} dev {TUNNEL} nud permanent"
        yield (
            f"route add {each.cidr} encap ip id 1 dst {each.underlay} ttl 64 "
            f"via {each.underlay} dev {TUNNEL} onlink proto {PROTOCOL}"
        )


def add_external_device(machine: Machine) -> None:
    """The device that the engine would make."""
    machine.batch([f"link add {TUNNEL} type vxlan external dstport 8472", f"link set {TUNNEL} up"])


def add_classic_device(machine: Machine) -> None:
    """flannel's device."""
    words = f"id 1 local {machine.address} dev eth0 dstport 8472 nolearning"
    machine.batch([f"link add {CLASSIC} type vxlan {words}", f"link set {CLASSIC} up"])


def sweep(machine: Machine) -> None:
    """Take the devices away, and with them all that stands on them."""
    for device in (TUNNEL, CLASSIC):
        machine.ip("link", "del", device, check=False)


def held(machine: Machine) -> dict[str, tuple[str, ...]]:
    """What the kernel does for each peer, by CIDR: outer destination, gateway, its MAC, device. Ids do not matter.

    Raises Wrong if there is something that no route uses, or a route without what it needs.
    """
    nexthops = {each["id"]: each for each in _json(machine, "nexthop")}
    macs = {each["dst"]: each["lladdr"] for each in _json(machine, "neigh", "show", "dev", TUNNEL, "nud", "permanent")}
    found: dict[str, tuple[str, ...]] = {}
    for route in _json(machine, "route", "show", "type", "unicast", "proto", PROTOCOL):
        nexthop = nexthops.pop(route.get("nhid"), {})
        gateway = str(nexthop.get("gateway"))
        found[route["dst"]] = (str(nexthop.get("dst")), gateway, macs.pop(gateway, ""), str(nexthop.get("dev")))
    if nexthops or macs:
        example = [*nexthops, *macs][0]
        raise Wrong(f"{len(nexthops)} nexthops and {len(macs)} neighbours have no route: {example}, ...")
    return found


def expected(count: int) -> dict[str, tuple[str, ...]]:
    """What `held` has to give."""
    return {each.cidr: (each.underlay, each.underlay, each.mac, TUNNEL) for each in peers(count)}


def _json(machine: Machine, *words: str) -> list[dict[str, Any]]:
    # `ip -d -j nexthop` has the key `id` twice, the nexthop's and the encapsulation's; the first is the nexthop's.
    return list(json.loads(machine.ip("-j", *words) or "[]", object_pairs_hook=_first))


def _first(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return dict(reversed(pairs))
