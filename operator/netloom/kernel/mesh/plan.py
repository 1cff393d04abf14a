"""What would be changed, said as `ip` would say it: the same tables as the real thing, filled from a fresh reading."""

from collections.abc import Iterable, Mapping

from netloom.cidr import format_address
from netloom.kernel.keeper.report import PlannedChange
from netloom.kernel.mac import format_mac
from netloom.kernel.mesh import reader
from netloom.kernel.mesh import tunnel_device as device
from netloom.kernel.mesh.desired import Desired, Node
from netloom.kernel.mesh.encapsulation import NATIVE, Way
from netloom.kernel.mesh.mesh import Carriers, Mesh
from netloom.kernel.mesh.rows import NeighbourKey, Nexthop, OddRoute, RouteKey, Via
from netloom.kernel.mesh.tunnel_device import Step, Surroundings
from netloom.kernel.netlink.sockets import Commands
from netloom.kernel.ownership import ROUTE_PROTOCOL
from netloom.kernel.sysctl import Sysctl, effective, of_node, of_tunnel

_NO_DEVICE_YET = -1
"""Less this times the number of the tunnel: ifindexes of devices that would have to be made first."""


def planned_changes(commands: Commands, desired: Desired) -> list[PlannedChange]:
    """All changes, in the order in which they would be made."""
    node, around = desired.node, reader.surroundings(commands)
    teardown = list(device.unwanted(node, around))
    changes: list[PlannedChange] = []
    carriers = Carriers()
    mesh = Mesh()
    mesh.reach.stopped_are([link.ifindex for link in around.links if not link.running])
    mesh.replace_peers(desired)
    mesh.reach.answered_all(reader.hops(commands, list(mesh.reach.due)))
    names = {link.ifindex: link.name for link in around.links}
    if node is not None:
        tunnels: dict[Way, int] = {}
        outgoing = mesh.reach.outgoing
        underlay = device.carrying(node, around, outgoing)
        switches = of_node([link.name for link in underlay], ipv6=node.ipv6, native=NATIVE in node.ways)
        changes += _switches(switches)
        for way in node.tunnels:
            mtu = device.tunnel_mtu(node, way, around, outgoing)
            steps, tunnels[way] = _tunnel(node, way, mtu, around, teardown)
            tunnels[way] = tunnels[way] or _NO_DEVICE_YET - len(tunnels)
            names[tunnels[way]] = way.device
            changes += steps
        carriers = Carriers(tunnels, node.vni, node.ipv6, device.native_mtu(node, underlay), node.strict)
    return changes + _rows(commands, mesh, carriers, names) + _said(teardown)


def _tunnel(
    node: Node, way: Way, mtu: int, around: Surroundings, teardown: list[Step]
) -> tuple[list[PlannedChange], int]:
    """What has to be done to the tunnel's device, and its ifindex (0: it has to be made)."""
    making = list(device.replacement(node, way, around, mtu))
    switches = _switches(of_tunnel(way.device, ipv6=node.ipv6))
    link = around.link(way.device)
    if making or link is None:
        return [*_said(making), *switches, *_said(device.first_steps(node, way, mtu))], 0
    steps = [*device.adjustment(node, link, mtu), *device.missing_addresses(node, link, around)]
    teardown[:0] = device.surplus_addresses(node, link, around)
    return [*switches, *_said(steps)], link.ifindex if link.up else 0


def _said(steps: Iterable[Step]) -> list[PlannedChange]:
    return [PlannedChange(f"ip {step.text}", step.why) for step in steps]


def _switches(switches: Iterable[Sysctl]) -> list[PlannedChange]:
    changes = []
    for sysctl in switches:
        try:
            before = effective(sysctl)
        except FileNotFoundError:
            before = "not there yet"
        if not sysctl.is_set(before):
            changes.append(PlannedChange(f"sysctl -w {sysctl.name.replace('/', '.')}={sysctl.value}", f"is {before}"))
    return changes


def _rows(commands: Commands, mesh: Mesh, carriers: Carriers, names: Mapping[int, str]) -> list[PlannedChange]:
    mesh.load(reader.nexthops(commands), {}, reader.routes(commands))
    mesh.neighbours.load(reader.neighbours(commands, [index for index in carriers.tunnels.values() if index > 0]))
    mesh.set_carriers(carriers)
    changes = []
    for key, mac, _ in sorted(mesh.neighbours.updates()):
        text = f"neighbour replace {_neighbour(key, names)} lladdr {format_mac(mac)} nud permanent"
        changes.append((text, mesh.peer_of("neighbour", key)))
    for identity, nexthop, before in sorted(mesh.nexthops.updates(), key=lambda update: update[0]):
        text = nexthop_text("replace" if before else "add", identity, nexthop, names)
        changes.append((text, mesh.peer_of("nexthop", identity)))
    for route, via, old in sorted(mesh.routes.updates(), key=lambda update: _order(update[0])):
        verb = "add" if old is None else "replace"
        changes.append((route_text(verb, route, via), mesh.peer_of("route", route)))
    unwanted = "no peer has it"
    changes += [(route_text("delete", key), unwanted) for key, *_ in sorted(mesh.routes.deletions(), key=_first)]
    changes += [
        (f"nexthop delete id {key}", unwanted) for key, *_ in sorted(mesh.nexthops.deletions(), key=lambda e: e[0])
    ]
    changes += [
        (f"neighbour delete {_neighbour(key, names)}", unwanted) for key, *_ in sorted(mesh.neighbours.deletions())
    ]
    return [PlannedChange(f"ip {text}", why) for text, why in changes]


def _neighbour(key: NeighbourKey, names: Mapping[int, str]) -> str:
    ifindex, address = key
    return f"{format_address(address)} dev {names.get(ifindex, ifindex)}"


def nexthop_text(verb: str, identity: int, nexthop: Nexthop, names: Mapping[int, str]) -> str:
    """The nexthop as an `ip` command; `names` of devices by ifindex."""
    encap = (
        f"encap ip id {nexthop.vni} dst {format_address(nexthop.remote)} ttl {nexthop.ttl} " if nexthop.remote else ""
    )
    device_name = names.get(nexthop.ifindex, nexthop.ifindex)
    return (
        f"nexthop {verb} id {identity} {encap}"
        f"via {format_address(nexthop.gateway)} dev {device_name} onlink proto {ROUTE_PROTOCOL}"
    )


def route_text(verb: str, key: RouteKey, via: Via | None = None) -> str:
    """The route as an `ip` command."""
    content = f" nhid {via.nexthop}" + (f" mtu {via.mtu}" if via.mtu else "") if via else ""
    return f"route {verb} {key} proto {ROUTE_PROTOCOL}{content}"


def _order(key: RouteKey) -> tuple[int, int, int, int]:
    prefix = key.prefix if isinstance(key, OddRoute) else key
    return prefix.version, prefix.base, prefix.length, key.metric if isinstance(key, OddRoute) else 0


def _first(entry: tuple[RouteKey, None, Via]) -> tuple[int, int, int, int]:
    return _order(entry[0])
