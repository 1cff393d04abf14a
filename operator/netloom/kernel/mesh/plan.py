"""What would be changed, said as `ip` would say it: the same work as the real thing, but that nothing is done."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from msgspec.structs import replace

from netloom.cidr import Address, format_address
from netloom.kernel.keeper.report import PlannedChange
from netloom.kernel.mac import format_mac
from netloom.kernel.mesh import reader
from netloom.kernel.mesh.desired import Desired, MeshNode
from netloom.kernel.mesh.devices_part import DevicesFound, DeviceWork
from netloom.kernel.mesh.mesh import Mesh
from netloom.kernel.mesh.node_network import SeenNodeNetwork
from netloom.kernel.mesh.rows import Nexthop, OddRoute, RouteContent, RouteKey
from netloom.kernel.mesh.tunnel_device import DeviceStep, Interfaces
from netloom.kernel.mesh.underlay import merged, own_addresses_of_peers
from netloom.kernel.netlink.links import Link
from netloom.kernel.netlink.neighbours import NeighbourKey
from netloom.kernel.netlink.sockets import CommandSocket
from netloom.kernel.ownership import ROUTE_PROTOCOL
from netloom.kernel.sysctl import Sysctl, SysctlRecord, effective

_UNMADE = 1 << 30
"""From here on: ifindexes of devices that would have to be made first."""


class PlannedDeviceWork(DeviceWork):
    """Notes what would be done, and goes on as if it had been."""

    def __init__(self, commands: CommandSocket, record: SysctlRecord, node: MeshNode | None) -> None:
        super().__init__(commands, record, node, delayed=frozenset())
        self.changes: list[PlannedChange] = []
        self._devices: dict[str, Link] = {}
        self._switched: set[str] = set()

    def read(self) -> Interfaces:
        """The kernel's links and addresses, as they would be."""
        found = super().read()
        links = {link.name: link for link in found.links} | self._devices
        return Interfaces(tuple(links.values()), found.addresses)

    def _take(self, steps: Iterable[DeviceStep]) -> bool:
        before = len(self.changes)
        for step in steps:
            self.changes.append(PlannedChange(f"ip {step.text}", step.why))
            if step.link is not None:
                ifindex = step.link.ifindex or _UNMADE + len(self._devices)
                self._devices[step.key] = replace(step.link, ifindex=ifindex)
        return len(self.changes) > before

    def _leave_merging_to(self, devices: Collection[str], tunnel: str) -> None:
        if devices:
            self.changes.append(PlannedChange(f"ethtool -K {tunnel} gro off", merged(devices)))

    def _switch(self, switches: Iterable[Sysctl]) -> None:
        for sysctl in switches:
            try:
                before = effective(sysctl)
            except FileNotFoundError:
                before = "not there yet"
            implied = sysctl.implied_by in self._switched or (sysctl.implied_by and before == "not there yet")
            if not sysctl.is_set(before) and not implied:
                self._switched.add(sysctl.name)
                text = f"sysctl -w {sysctl.dotted}={sysctl.value}"
                self.changes.append(PlannedChange(text, f"is {before}"))


def planned_changes(
    commands: CommandSocket, record: SysctlRecord, desired: Desired, servers: Mapping[Address, str]
) -> list[PlannedChange]:
    """All changes, in the order in which they would be made, and what is left out. `servers`: see `SeenNodeNetwork`."""
    work, mesh, node_network = PlannedDeviceWork(commands, record, desired.node), Mesh(), SeenNodeNetwork()
    reader.load_node_network(commands, node_network)
    if desired.node is not None:
        node_network.know(desired.node.cidrs, (desired.node.local, *desired.node.claimed), servers)
    mesh.look_around(node_network.current())
    mesh.fib.set_narrow(node_network.narrow)
    routes = reader.routes(commands)
    mesh.holes.load(routes.ours)
    mesh.holes.set_rules(desired.node.holes if desired.node is not None else None)
    mesh.fib.set_stopped([link.ifindex for link in work.read().links if not link.running])
    mesh.replace_peers(desired)
    mesh.fib.answered_all(reader.fib_lookups(commands, list(mesh.fib.due)))
    found = work.prepare(mesh.fib, {})
    device_state = found.device_state
    neighbours = reader.neighbours(commands, [index for index in device_state.tunnels.values() if index < _UNMADE])
    mesh.seen.load(reader.nexthops(commands), neighbours, routes.ours)
    mesh.set_device_state(device_state)
    mesh.rivals.sort_out()
    mesh.holes.leave_to_network(bool(mesh.unreachable) and not device_state.strict)
    mesh.holes.bring_up_to_date()
    work.changes += _rows(mesh, {link.ifindex: link.name for link in work.read().links})
    work.tear_down()
    work.changes += [
        PlannedChange(f"{each.cidr} of {each.peer} is not routed", each.why, left_out=True)
        for each in mesh.withheld.routes()
    ]
    if desired.node is not None:
        work.changes += _astray(desired.node, found, mesh)
    return work.changes


def _astray(node: MeshNode, found: DevicesFound, mesh: Mesh) -> Iterator[PlannedChange]:
    for each in (*found.astray, *own_addresses_of_peers(node, found.interfaces, mesh.fib)):
        where = f"packets to these addresses {each}" if each.why != "here" else f"it is an address that {each}"
        for address in each.addresses:
            text = f"{format_address(address)} of {mesh.peer_of('address', address)} does not count as a node's"
            yield PlannedChange(text, where, left_out=True)


def _rows(mesh: Mesh, names: Mapping[int, str]) -> list[PlannedChange]:
    changes = []
    for key, mac, _ in sorted(mesh.neighbours.updates()):
        text = f"neighbour replace {_neighbour(key, names)} lladdr {format_mac(mac)} nud permanent"
        changes.append((text, mesh.peer_of("neighbour", key)))
    for identity, nexthop, old in sorted(mesh.nexthops.updates(), key=_key):
        text = _nexthop("replace" if old else "add", identity, nexthop, names)
        changes.append((text, mesh.peer_of("nexthop", identity)))
    for route, content, before in sorted(mesh.routes.updates(), key=_order):
        text = _route("replace" if before else "add", route, content)
        changes.append((text, mesh.peer_of("route", route)))
    holes = mesh.holes.table
    for hole, _, before in sorted(holes.updates()):
        text = f"route {'replace' if before else 'add'} {hole} proto {ROUTE_PROTOCOL}"
        changes.append((text, "what nobody has there ends here"))
    gone = [f"route delete {hole} proto {ROUTE_PROTOCOL}" for hole, *_ in sorted(holes.deletions())]
    changes += [(text, "no pods are there") for text in gone]
    unwanted = [_route("delete", key) for key, *_ in sorted(mesh.routes.deletions(), key=_order)]
    unwanted += [f"nexthop delete id {key}" for key, *_ in sorted(mesh.nexthops.deletions(), key=_key)]
    unwanted += [f"neighbour delete {_neighbour(key, names)}" for key, *_ in sorted(mesh.neighbours.deletions())]
    changes += [(text, "no peer has it") for text in unwanted]
    return [PlannedChange(f"ip {text}", why) for text, why in changes]


def _neighbour(key: NeighbourKey, names: Mapping[int, str]) -> str:
    ifindex, address = key
    return f"{format_address(address)} dev {names.get(ifindex, ifindex)}"


def _nexthop(verb: str, identity: int, nexthop: Nexthop, names: Mapping[int, str]) -> str:
    remote, gateway = format_address(nexthop.remote) if nexthop.remote else "", format_address(nexthop.gateway)
    encap = f"encap ip id {nexthop.vni} dst {remote} ttl {nexthop.ttl} " if remote else ""
    device = names.get(nexthop.ifindex, nexthop.ifindex)
    return f"nexthop {verb} id {identity} {encap}via {gateway} dev {device} onlink proto {ROUTE_PROTOCOL}"


def _route(verb: str, key: RouteKey, content: RouteContent | None = None) -> str:
    text = f" nhid {content.nexthop}" + (f" mtu {content.mtu}" if content.mtu else "") if content else ""
    return f"route {verb} {key} proto {ROUTE_PROTOCOL}{text}"


def _key(entry: tuple[int, Any, Any]) -> int:
    return entry[0]


def _order(entry: tuple[RouteKey, Any, Any]) -> tuple[int, int, int, int, str]:
    key = entry[0]
    prefix = key.prefix if isinstance(key, OddRoute) else key
    return prefix.version, prefix.base, prefix.length, key.metric if isinstance(key, OddRoute) else 0, str(key)
