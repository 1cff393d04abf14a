"""What would be changed, said as `ip` would say it: the same tables as the real thing, filled from a fresh reading."""

from collections.abc import Iterable, Mapping

from netloom.cidr import format_address
from netloom.kernel.keeper.report import PlannedChange
from netloom.kernel.mac import format_mac
from netloom.kernel.mesh import reader
from netloom.kernel.mesh import tunnel_device as device
from netloom.kernel.mesh.desired import Desired, MeshNode
from netloom.kernel.mesh.encapsulation import NO_ENCAPSULATION, Encapsulation
from netloom.kernel.mesh.mesh import DeviceState, Mesh
from netloom.kernel.mesh.rows import NeighbourKey, Nexthop, OddRoute, RouteContent, RouteKey
from netloom.kernel.mesh.tunnel_device import Interfaces, Step
from netloom.kernel.netlink.sockets import CommandSocket
from netloom.kernel.ownership import ROUTE_PROTOCOL
from netloom.kernel.sysctl import Sysctl, effective, of_node, of_tunnel

_NO_DEVICE_YET = -1
"""Less this times the number of the tunnel: ifindexes of devices that would have to be made first."""


def planned_changes(commands: CommandSocket, desired: Desired) -> list[PlannedChange]:
    """All changes, in the order in which they would be made."""
    node, interfaces = desired.node, reader.read_interfaces(commands)
    teardown = list(device.unwanted(node, interfaces))
    changes: list[PlannedChange] = []
    device_state = DeviceState()
    mesh = Mesh()
    mesh.fib.set_stopped([link.ifindex for link in interfaces.links if not link.running])
    mesh.replace_peers(desired)
    mesh.fib.answered_all(reader.fib_lookups(commands, list(mesh.fib.due)))
    names = {link.ifindex: link.name for link in interfaces.links}
    if node is not None:
        tunnels: dict[Encapsulation, int] = {}
        outgoing = mesh.fib.outgoing
        underlay = device.carrying(node, interfaces, outgoing)
        switches = of_node(
            [link.name for link in underlay], ipv6=node.ipv6, native=NO_ENCAPSULATION in node.encapsulations
        )
        changes += _switches(switches)
        for encapsulation in node.tunnels:
            mtu = device.tunnel_mtu(node, encapsulation, interfaces, outgoing)
            steps, tunnels[encapsulation] = _tunnel(node, encapsulation, mtu, interfaces, teardown)
            tunnels[encapsulation] = tunnels[encapsulation] or _NO_DEVICE_YET - len(tunnels)
            names[tunnels[encapsulation]] = encapsulation.device
            changes += steps
        device_state = DeviceState(tunnels, node.vni, node.ipv6, device.native_mtu(node, underlay), node.strict)
    return changes + _rows(commands, mesh, device_state, names) + _said(teardown)


def _tunnel(
    node: MeshNode, encapsulation: Encapsulation, mtu: int, interfaces: Interfaces, teardown: list[Step]
) -> tuple[list[PlannedChange], int]:
    """What has to be done to the tunnel's device, and its ifindex (0: it has to be made)."""
    making = list(device.replacement(node, encapsulation, interfaces, mtu))
    switches = _switches(of_tunnel(encapsulation.device, ipv6=node.ipv6))
    link = interfaces.link(encapsulation.device)
    if making or link is None:
        return [*_said(making), *switches, *_said(device.first_steps(node, encapsulation, mtu))], 0
    steps = [*device.adjustment(node, link, mtu), *device.missing_addresses(node, link, interfaces)]
    teardown[:0] = device.surplus_addresses(node, link, interfaces)
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


def _rows(
    commands: CommandSocket, mesh: Mesh, device_state: DeviceState, names: Mapping[int, str]
) -> list[PlannedChange]:
    mesh.load(reader.nexthops(commands), {}, reader.routes(commands))
    mesh.neighbours.load(reader.neighbours(commands, [index for index in device_state.tunnels.values() if index > 0]))
    mesh.set_device_state(device_state)
    changes = []
    for key, mac, _ in sorted(mesh.neighbours.updates()):
        text = f"neighbour replace {_neighbour(key, names)} lladdr {format_mac(mac)} nud permanent"
        changes.append((text, mesh.peer_of("neighbour", key)))
    for identity, nexthop, before in sorted(mesh.nexthops.updates(), key=lambda update: update[0]):
        text = nexthop_text("replace" if before else "add", identity, nexthop, names)
        changes.append((text, mesh.peer_of("nexthop", identity)))
    for route, content, old in sorted(mesh.routes.updates(), key=lambda update: _order(update[0])):
        verb = "add" if old is None else "replace"
        changes.append((route_text(verb, route, content), mesh.peer_of("route", route)))
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


def route_text(verb: str, key: RouteKey, content: RouteContent | None = None) -> str:
    """The route as an `ip` command."""
    text = f" nhid {content.nexthop}" + (f" mtu {content.mtu}" if content.mtu else "") if content else ""
    return f"route {verb} {key} proto {ROUTE_PROTOCOL}{text}"


def _order(key: RouteKey) -> tuple[int, int, int, int]:
    prefix = key.prefix if isinstance(key, OddRoute) else key
    return prefix.version, prefix.base, prefix.length, key.metric if isinstance(key, OddRoute) else 0


def _first(entry: tuple[RouteKey, None, RouteContent]) -> tuple[int, int, int, int]:
    return _order(entry[0])
