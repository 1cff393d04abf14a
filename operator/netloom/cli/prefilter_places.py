"""On which devices of which nodes which prefilters decide, by what nodes say of themselves. Pure.

Prefilters choose devices by names and patterns, or mean those by which a node is known: of a node that has said which
devices these are, the same is made of it here as its agent makes of it.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import NamedTuple

from netloom.api.core import Node
from netloom.api.prefilter import FilteredDevice, NetloomPrefilter, NodeFilter, NodePrefilter
from netloom.api.v1alpha1 import NetloomNode
from netloom_reconcilers.node.prefilter.selection import Machine, devices_of, is_pattern, selecting


class Extent(StrEnum):
    """Which devices of a node are spoken of: some, by their names; those that it has not told yet; or every one."""

    NAMED = "named"
    UNTOLD = "untold"
    EVERY = "every"


class FilterPlace(NamedTuple):
    """Devices of a node on which the same prefilters decide. names: of these, in order; devices: where the extent is
    NAMED. amiss: why it is not so there yet, as sentences."""

    node: str
    names: tuple[str, ...]
    devices: tuple[str, ...]
    extent: Extent
    amiss: tuple[str, ...] = ()


def meant(prefilter: NetloomPrefilter, said: NodePrefilter) -> list[FilteredDevice]:
    """The devices of a node for which a prefilter is meant, of those that the node has told; as its agent chooses."""
    devices = {each.name: each for each in said.devices}
    machine = Machine(tuple(devices), tuple(name for name, each in devices.items() if each.main))
    return [devices[name] for name in devices_of(prefilter.spec.devices, machine) if name in devices]


def places(
    objects: Sequence[NetloomPrefilter],
    nodes: Iterable[Node],
    netloom_nodes: Iterable[NetloomNode],
    asked: Collection[str] = (),
) -> Iterator[FilterPlace]:
    """Of these nodes. asked: names or patterns of the only devices that are of interest; none: all are."""
    said = {each.metadata.name: each.status.prefilter for each in netloom_nodes}
    for node in nodes:
        selected = selecting(objects, node.metadata.labels)
        yield from _of_node(node.metadata.name, selected, said.get(node.metadata.name), asked)


def _of_node(
    node: str, selected: Sequence[NetloomPrefilter], said: NodePrefilter | None, asked: Collection[str]
) -> Iterator[FilterPlace]:
    filters = {each.name: each for each in said.filters} if said is not None else {}
    deciders: dict[str, list[NetloomPrefilter]] = {}
    untold: list[str] = []
    nowhere: list[str] = []
    for each in selected:
        name = each.metadata.name
        found = meant(each, said) if said is not None and name in filters else []
        for one in found:
            deciders.setdefault(one.name, []).append(each)
        if not found and name in filters and filters[name].error:
            nowhere.append(f"NetloomPrefilter {name}: {filters[name].error}")
        elif not found:
            untold.append(name)
    groups: dict[tuple[str, ...], list[str]] = {}
    for device, deciding in deciders.items():
        if not asked or any(fnmatchcase(device, each) for each in asked):
            groups.setdefault(tuple(each.metadata.name for each in deciding), []).append(device)
    for names, members in groups.items():
        amiss = tuple(_amiss(deciders[members[0]], filters, members))
        yield FilterPlace(node, names, tuple(sorted(members)), Extent.NAMED, amiss)
    if untold:
        yield FilterPlace(node, tuple(untold), (), Extent.UNTOLD)
    elif others := tuple(sorted({each for each in asked if not is_pattern(each)} - deciders.keys())):
        yield FilterPlace(node, (), others, Extent.NAMED, tuple(nowhere))
    elif not deciders:
        yield FilterPlace(node, (), (), Extent.EVERY, tuple(nowhere))


def _amiss(
    deciding: Iterable[NetloomPrefilter], filters: dict[str, NodeFilter], here: Collection[str]
) -> Iterator[str]:
    """Why what these say is not so on these devices. What a node says of a prefilter may be of its other devices."""
    for each in deciding:
        said = filters[each.metadata.name]
        if failures := said.failures_on(here):
            yield " ".join(failures)
        elif said.generation != each.metadata.generation:
            yield f"it has not taken over NetloomPrefilter {each.metadata.name} as it is now"
