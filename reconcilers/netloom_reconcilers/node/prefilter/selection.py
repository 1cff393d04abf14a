"""Which prefilters run on which devices of a node, and which of them together. Pure.

What is dropped on a device is decided by the prefilters that are meant for it, and by no others. Devices for which the
same are meant share their rules.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

import msgspec

from netloom.api.participation import chosen
from netloom.api.prefilter import NetloomPrefilter
from netloom.cidr import Address, is_loopback
from netloom.kernel.mesh.lifelines import NodeNetwork
from netloom.kernel.prefilter.prefiltering import DeviceWish, Mode

_NEVER = ("lo",)


class Machine(msgspec.Struct, frozen=True):
    """names: of its devices but loopback and Netloom's own, in order. main: those with a default route or an address
    that the node is known by. own: addresses on devices. gateways: of all its routes."""

    names: tuple[str, ...] = ()
    main: tuple[str, ...] = ()
    own: frozenset[Address] = frozenset()
    gateways: frozenset[Address] = frozenset()


def machine_of(around: NodeNetwork, known_by: Collection[Address]) -> Machine:
    """Of what the kernel shows, and the addresses that the node is known by."""
    devices = {index: each.name for index, each in around.devices.items() if not each.ours and each.name not in _NEVER}
    hops = [(route, index, gateway) for route in around.routes for index, gateway in route.hops]
    main = {index for route, index, _ in hops if route.wide}
    main |= {index for index, address in around.addresses if address in known_by}
    return Machine(
        tuple(sorted(devices.values())),
        tuple(sorted(devices[index] for index in main if index in devices)),
        # From there no packet comes by a device. (Loopback may have others, as routing daemons put them there.)
        frozenset(address for _, address in around.addresses if not is_loopback(address)),
        frozenset(gateway for route, _, gateway in hops if gateway and route.wide),
    )


def devices_of(patterns: Sequence[str], machine: Machine) -> tuple[str, ...]:
    """The devices that are meant, in order; one that is named is among them even if it is not there."""
    wanted = [each for each in patterns if not each.startswith("!")]
    unwanted = [each[1:] for each in patterns if each.startswith("!")]
    found = set() if wanted else set(machine.main)
    for each in wanted:
        found.update([name for name in machine.names if fnmatchcase(name, each)] if is_pattern(each) else [each])
    return tuple(sorted(name for name in found if not any(fnmatchcase(name, each) for each in unwanted)))


def is_pattern(text: str) -> bool:
    """Whether it may mean several devices."""
    return any(each in text for each in "*?[")


class Together(msgspec.Struct, frozen=True):
    """devices: that are filtered, each with the place of its prefilters in `groups`. groups: prefilters that decide
    together, in the order of their names. errors: by name, why one is not in force. problems: what is not as one wants
    it. meant: by name, the devices of each."""

    devices: tuple[DeviceWish, ...]
    groups: tuple[tuple[NetloomPrefilter, ...], ...]
    errors: Mapping[str, str]
    problems: Mapping[str, str]
    meant: Mapping[str, tuple[str, ...]]

    @property
    def active(self) -> tuple[NetloomPrefilter, ...]:
        """All that are in force, each once."""
        return tuple({each.metadata.name: each for group in self.groups for each in group}.values())


def selecting(prefilters: Iterable[NetloomPrefilter], labels: Mapping[str, str]) -> list[NetloomPrefilter]:
    """Those that select a node with these labels, in the order of their names. One that is being deleted does not."""
    found = [
        each for each in prefilters if not each.metadata.deletion_timestamp and chosen(labels, each.spec.node_selector)
    ]
    return sorted(found, key=lambda each: each.metadata.name)


def together(prefilters: Sequence[NetloomPrefilter], machine: Machine) -> Together:
    """Of those that select the node, in the order of their names."""
    meant = {each.metadata.name: devices_of(each.spec.devices, machine) for each in prefilters}
    errors = {each.metadata.name: _no_device(each.spec.devices) for each in prefilters if not meant[each.metadata.name]}
    problems: dict[str, str] = {}
    places: dict[tuple[str, ...], int] = {}
    groups: list[tuple[NetloomPrefilter, ...]] = []
    devices: list[DeviceWish] = []
    for name in sorted({name for names in meant.values() for name in names}):
        group = tuple(each for each in prefilters if name in meant[each.metadata.name])
        key = tuple(each.metadata.name for each in group)
        if key not in places:
            places[key] = len(groups)
            groups.append(group)
        devices.append(DeviceWish(name, _mode(group, name, problems), places[key]))
    return Together(tuple(devices), tuple(groups), errors, problems, meant)


def _mode(group: Sequence[NetloomPrefilter], device: str, problems: dict[str, str]) -> Mode:
    """Of a device: as the first wants that does not leave it open; who wants another says so."""
    asking = [each for each in group if Mode(each.spec.mode) != Mode.BEST_EFFORT]
    for each in asking[1:]:
        if each.spec.mode != asking[0].spec.mode:
            problems[each.metadata.name] = (
                f"it runs in {asking[0].spec.mode} mode on {device}, as NetloomPrefilter {asking[0].metadata.name} "
                f"wants, not in {each.spec.mode} mode."
            )
    return Mode(asking[0].spec.mode) if asking else Mode.BEST_EFFORT


def _no_device(patterns: Sequence[str]) -> str:
    if not patterns:
        return (
            "no device of this node has a default route or an address that the node is known by. Name devices in "
            "spec.devices."
        )
    return f"spec.devices ({', '.join(patterns)}) means no device of this node. Name another, or select other nodes."
