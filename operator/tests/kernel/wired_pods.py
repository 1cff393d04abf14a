"""Pods' network namespaces, and what a CNI plugin hands over of them."""

import contextlib
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from netloom.cidr import parse_address
from netloom.kernel.endpoints.endpoint import Endpoint, Wired
from netloom.kernel.endpoints.keeper import EndpointsKeeper
from netloom.kernel.ownership import ENDPOINTS
from tests.kernel.netns import Lab, Namespace


class Pod:
    """A pod's network namespace, with what is wanted of its interface."""

    def __init__(self, place: Namespace, endpoint: Endpoint) -> None:
        self.place = place
        self.endpoint = endpoint

    @contextmanager
    def handed_over(self) -> Iterator[tuple[int, int]]:
        """The namespace, and a netlink socket that was made in it."""
        with self.place.entered():
            inside = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        netns = os.open(f"/run/netns/{self.place.name}", os.O_RDONLY)
        try:
            yield netns, inside.fileno()
        finally:
            os.close(netns)
            inside.close()

    async def add(self, keeper: EndpointsKeeper) -> Wired:
        """As by CNI ADD."""
        with self.handed_over() as (netns, inside):
            return await keeper.wire(self.endpoint, netns, inside)

    async def check(self, keeper: EndpointsKeeper) -> list[str]:
        """As by CNI CHECK."""
        with self.handed_over() as (_netns, inside):
            return await keeper.differences(self.endpoint, inside)

    async def delete(self, keeper: EndpointsKeeper) -> bool:
        """As by CNI DEL."""
        return await keeper.unwire(self.endpoint.container, self.endpoint.interface)


def pod(lab: Lab, number: int, *addresses: str, **more: object) -> Pod:
    """Pod `number` of node 1: 10.1.0.N and fd00:1::N."""
    place = lab.namespace(f"pod{number}")
    given = addresses or (f"10.1.{number // 250}.{number % 250 + 1}", f"fd00:1::{number + 1:x}")
    about = {"netns": f"/run/netns/{place.name}", "pod": f"default/pod-{number}", **more}
    return Pod(
        place,
        Endpoint(
            container=f"{number:064x}",
            interface="eth0",
            addresses=tuple(parse_address(address) for address in given),
            **about,  # type: ignore[arg-type]
        ),
    )


@asynccontextmanager
async def endpoints_of(node: Namespace, **options: object) -> AsyncIterator[EndpointsKeeper]:
    """A keeper without resyncs by time. All is inside meanwhile: its threads are where they were begun."""
    with node.entered():
        keeper = EndpointsKeeper(**{"resync_seconds": None, **options})  # type: ignore[arg-type]
        await keeper.open()
        try:
            yield keeper
        finally:
            await keeper.close()


def forwarding_node(lab: Lab, name: str = "node") -> Namespace:
    """A node that forwards, as the mesh has it."""
    node = lab.namespace(name)
    node.sysctl("net.ipv4.ip_forward", "1")
    node.sysctl("net.ipv6.conf.all.forwarding", "1")
    return node


def switches(node: Namespace, device: str) -> str:
    """Those of a host end that matter, one a line; empty if it is not there."""
    lines = []
    for name in ("ipv4 forwarding", "ipv4 rp_filter", "ipv4 accept_redirects", "ipv4 send_redirects",
                 "ipv6 accept_ra", "ipv6 disable_ipv6"):  # fmt: skip
        family, switch = name.split()
        with contextlib.suppress(FileNotFoundError):
            lines.append(f"{name} {node.sysctl(f'net/{family}/conf/{device}/{switch}')}")
    return "\n".join(lines)


def shown(place: Namespace, *devices: str) -> str:
    """What `ip` shows of devices (all of the endpoints', if none is named): their links, addresses, permanent
    neighbours and routes of the main table, one a line."""
    lines = []
    modes = {link["ifname"]: link.get("inet6_addr_gen_mode", "no IPv6") for link in place.ip_json("link")}
    for link in place.ip_json("address"):
        name = link["ifname"]
        if name not in devices and (devices or not ENDPOINTS.link(name)):
            continue
        state = "up" if "UP" in link["flags"] else "down"
        lines.append(f"link {name} {state} mtu {link['mtu']} address {link['address']} addrgenmode {modes.get(name)}")
        for each in link["addr_info"]:
            tentative = " tentative" if each.get("tentative") else ""
            lines.append(f"address {each['local']}/{each['prefixlen']} dev {name} scope {each['scope']}{tentative}")
        with contextlib.suppress(RuntimeError):  # it has gone meanwhile
            lines += _on_device(place, name)
    return "\n".join(lines)


def _on_device(place: Namespace, name: str) -> list[str]:
    permanent = place.ip(f"neighbour show dev {name} nud permanent").splitlines()
    routes = [line for family in ("-4", "-6") for line in place.ip(f"{family} route show dev {name}").splitlines()]
    lines = [f"neighbour {each.strip().replace(' PERMANENT', '')} dev {name}" for each in permanent]
    return lines + [f"route {' '.join(line.split())} dev {name}" for line in routes if "proto kernel" not in line]
