"""What would be changed, said as `ip` would say it: the same tables as the real thing, filled from a fresh reading."""

from collections.abc import Iterable

from netloom.kernel import device, reader
from netloom.kernel.address import format_address, format_mac
from netloom.kernel.desired import Desired
from netloom.kernel.device import Step
from netloom.kernel.mesh import Carrier, Mesh
from netloom.kernel.netlink import Commands
from netloom.kernel.owned import ROUTE_PROTOCOL, VXLAN_DEVICE
from netloom.kernel.report import PlannedChange
from netloom.kernel.rows import Nexthop, OddRoute, RouteKey
from netloom.kernel.sysctl import read, wanted

_NO_DEVICE_YET = -1


def planned_changes(commands: Commands, desired: Desired) -> list[PlannedChange]:
    """All changes, in the order in which they would be made."""
    tunnel, around = desired.tunnel, reader.surroundings(commands)
    link = around.link(VXLAN_DEVICE)
    changes, teardown = [], list(device.unwanted(tunnel, around))
    carrier = Carrier()
    if tunnel is not None:
        making = list(device.replacement(tunnel, around))
        if making:
            link = None
        carrier = Carrier(link.ifindex if link and link.up else _NO_DEVICE_YET, tunnel.vni, device.has_ipv6(tunnel))
        underlay = around.underlay(tunnel.local)
        changes += _said(making) + _switches(underlay.name if underlay else "", ipv6=carrier.ipv6)
        if link is None:
            changes += _said(device.first_steps(tunnel))
        else:
            changes += _said(device.adjustment(tunnel, link, around))
            changes += _said(device.missing_addresses(tunnel, link, around))
            teardown = [*device.surplus_addresses(tunnel, link, around), *teardown]
    changes += _rows(commands, desired, carrier)
    return changes + _said(teardown)


def _said(steps: Iterable[Step]) -> list[PlannedChange]:
    return [PlannedChange(f"ip {step.text}", step.why) for step in steps]


def _switches(underlay: str, *, ipv6: bool) -> list[PlannedChange]:
    changes = []
    for sysctl in wanted(VXLAN_DEVICE, underlay, ipv6=ipv6):
        try:
            before = read(sysctl.name)
        except FileNotFoundError:
            before = "not there yet"
        if not sysctl.is_set(before):
            changes.append(PlannedChange(f"sysctl -w {sysctl.name.replace('/', '.')}={sysctl.value}", f"is {before}"))
    return changes


def _rows(commands: Commands, desired: Desired, carrier: Carrier) -> list[PlannedChange]:
    mesh = Mesh()
    mesh.load(reader.nexthops(commands), {}, reader.routes(commands))
    mesh.set_carrier(carrier)
    mesh.neighbours.load(reader.neighbours(commands, max(carrier.ifindex, 0)))
    mesh.replace_peers(desired)
    changes = []
    for address, mac, _ in sorted(mesh.neighbours.updates()):
        text = f"neighbour replace {format_address(address)} lladdr {format_mac(mac)} dev {VXLAN_DEVICE} nud permanent"
        changes.append((text, mesh.peer_of("neighbour", address)))
    for key, nexthop, before in sorted(mesh.nexthops.updates(), key=lambda update: update[0]):
        changes.append((nexthop_text("replace" if before else "add", key, nexthop), mesh.peer_of("nexthop", key)))
    for route, identity, old in sorted(mesh.routes.updates(), key=lambda update: _order(update[0])):
        verb = "add" if old is None else "replace"
        changes.append((f"{route_text(verb, route)} nhid {identity}", mesh.peer_of("route", route)))
    unwanted = "no peer has it"
    changes += [(route_text("delete", key), unwanted) for key, *_ in sorted(mesh.routes.deletions(), key=_first)]
    changes += [
        (f"nexthop delete id {key}", unwanted) for key, *_ in sorted(mesh.nexthops.deletions(), key=lambda e: e[0])
    ]
    changes += [
        (f"neighbour delete {format_address(address)} dev {VXLAN_DEVICE}", unwanted)
        for address, *_ in sorted(mesh.neighbours.deletions())
    ]
    return [PlannedChange(f"ip {text}", why) for text, why in changes]


def nexthop_text(verb: str, identity: int, nexthop: Nexthop) -> str:
    """The nexthop as an `ip` command."""
    encap = f"encap ip id {nexthop.vni} dst {format_address(nexthop.remote)} ttl {nexthop.ttl}"
    return (
        f"nexthop {verb} id {identity} {encap} "
        f"via {format_address(nexthop.gateway)} dev {VXLAN_DEVICE} onlink proto {ROUTE_PROTOCOL}"
    )


def route_text(verb: str, key: RouteKey) -> str:
    """The route as an `ip` command."""
    return f"route {verb} {key} proto {ROUTE_PROTOCOL}"


def _order(key: RouteKey) -> tuple[int, bytes, int, int]:
    prefix = key.prefix if isinstance(key, OddRoute) else key
    return len(prefix.address), prefix.address, prefix.length, key.metric if isinstance(key, OddRoute) else 0


def _first(entry: tuple[RouteKey, None, int]) -> tuple[int, bytes, int, int]:
    return _order(entry[0])
