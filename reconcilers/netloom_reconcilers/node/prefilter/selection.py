"""Which prefilters run on a node together, and on which of its devices. Pure.

All prefilters of a node are one set of rules, so they share their devices: where two are meant for others, the first by
name has its way, and the other says so. A list that is meant for one device and dropped on all would be worse than one
that is not in force and says why.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

import msgspec

from netloom.api.participation import chosen
from netloom.api.v1alpha1 import NetloomPrefilter
from netloom.cidr import Address, Cidr
from netloom.kernel.mesh.lifelines import Surroundings
from netloom.kernel.prefilter.prefiltering import DeviceWish, Mode

_NEVER = ("lo",)
_LOOPBACK = (Cidr.parse("127.0.0.0/8"), Cidr.parse("::1/128"))


class Machine(msgspec.Struct, frozen=True):
    """names: of its devices but loopback and Netloom's own, in order. main: those with a default route or an address
    that the node is known by. own: addresses on devices. gateways: of all its routes."""

    names: tuple[str, ...] = ()
    main: tuple[str, ...] = ()
    own: frozenset[Address] = frozenset()
    gateways: frozenset[Address] = frozenset()


def machine_of(around: Surroundings, known_by: Collection[Address]) -> Machine:
    """Of what the kernel shows, and the addresses that the node is known by."""
    devices = {index: each.name for index, each in around.devices.items() if not each.ours and each.name not in _NEVER}
    hops = [(route, index, gateway) for route in around.routes for index, gateway in route.hops]
    main = {index for route, index, _ in hops if route.wide}
    main |= {index for index, address in around.addresses if address in known_by}
    return Machine(
        tuple(sorted(devices.values())),
        tuple(sorted(devices[index] for index in main if index in devices)),
        frozenset(address for _, address in around.addresses if not _is_loopback(address)),
        frozenset(gateway for route, _, gateway in hops if gateway and route.wide),
    )


def _is_loopback(address: Address) -> bool:
    """No packet from there comes by a device. (Loopback may have others, as routing daemons put them there.)"""
    return any(each.contains(Cidr.of(address)) for each in _LOOPBACK)


def devices_of(patterns: Sequence[str], machine: Machine) -> tuple[str, ...]:
    """The devices that are meant, in order; one that is named is among them even if it is not there."""
    wanted = [each for each in patterns if not each.startswith("!")]
    unwanted = [each[1:] for each in patterns if each.startswith("!")]
    found = set() if wanted else set(machine.main)
    for each in wanted:
        found.update([name for name in machine.names if fnmatchcase(name, each)] if _is_pattern(each) else [each])
    return tuple(sorted(name for name in found if not any(fnmatchcase(name, each) for each in unwanted)))


def _is_pattern(text: str) -> bool:
    return any(each in text for each in "*?[")


class Together(msgspec.Struct, frozen=True):
    """devices: that are filtered. active: the prefilters that are in force, in the order of their names. errors: by
    name, why one is not. problems: what is not as one wants it."""

    devices: tuple[DeviceWish, ...]
    active: tuple[NetloomPrefilter, ...]
    errors: Mapping[str, str]
    problems: Mapping[str, str]


def selecting(prefilters: Iterable[NetloomPrefilter], labels: Mapping[str, str]) -> list[NetloomPrefilter]:
    """Those that select a node with these labels, in the order of their names. One that is being deleted does not."""
    found = [
        each for each in prefilters if not each.metadata.deletion_timestamp and chosen(labels, each.spec.node_selector)
    ]
    return sorted(found, key=lambda each: each.metadata.name)


def together(prefilters: Sequence[NetloomPrefilter], machine: Machine) -> Together:
    """Of those that select the node, in the order of their names."""
    active: list[NetloomPrefilter] = []
    errors: dict[str, str] = {}
    problems: dict[str, str] = {}
    names: tuple[str, ...] = ()
    mode, moded = Mode.BEST_EFFORT, ""
    for each in prefilters:
        name, spec = each.metadata.name, each.spec
        devices = devices_of(spec.devices, machine)
        if not devices:
            errors[name] = _no_device(spec.devices)
        elif active and devices != names:
            errors[name] = (
                f"it is meant for {_listed(devices)} and NetloomPrefilter {active[0].metadata.name} for "
                f"{_listed(names)}, and all prefilters of a node share their devices. Give both the same spec.devices, "
                "or let them select other nodes."
            )
        else:
            names = devices
            active.append(each)
            if Mode(spec.mode) not in (Mode.BEST_EFFORT, mode):
                if moded:
                    problems[name] = (
                        f"it runs in {mode} mode, as NetloomPrefilter {moded} wants, not in {spec.mode} mode."
                    )
                else:
                    mode, moded = Mode(spec.mode), name
    return Together(tuple(DeviceWish(name, mode) for name in names), tuple(active), errors, problems)


def _no_device(patterns: Sequence[str]) -> str:
    if not patterns:
        return (
            "no device of this node has a default route or an address that the node is known by. Name devices in "
            "spec.devices."
        )
    return f"spec.devices ({', '.join(patterns)}) means no device of this node. Name another, or select other nodes."


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)
