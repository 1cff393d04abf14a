"""The NetloomPrefilter, and what a NetloomNode says of those that select it: a part of `netloom.api.v1alpha1`."""

from collections.abc import Collection
from typing import Literal

import msgspec

from netloom.api.meta import Condition, LabelSelector, ObjectMeta, Struct

PrefilterMode = Literal["native", "generic", "best-effort"]


class ListReference(Struct, frozen=True):
    """spec.denyFromConfigMaps[], spec.allowFromConfigMaps[]: a ConfigMap with lists. namespace "": Netloom's own; no
    keys: all of them."""

    name: str
    namespace: str = ""
    keys: tuple[str, ...] = ()


class PrefilterSpec(Struct, frozen=True):
    """spec of a NetloomPrefilter: packets from what is denied, and not allowed by a longer prefix, are dropped at the
    driver's hook of `devices`. `may_cut_off_nodes`: also those that a node lives by."""

    devices: tuple[str, ...] = ()
    node_selector: LabelSelector = LabelSelector()
    mode: PrefilterMode = "best-effort"
    deny_cidrs: tuple[str, ...] = msgspec.field(name="denyCIDRs", default=())
    allow_cidrs: tuple[str, ...] = msgspec.field(name="allowCIDRs", default=())
    deny_from_config_maps: tuple[ListReference, ...] = ()
    allow_from_config_maps: tuple[ListReference, ...] = ()
    may_cut_off_nodes: bool = False

    @property
    def references(self) -> tuple[ListReference, ...]:
        """All ConfigMaps that it names."""
        return (*self.deny_from_config_maps, *self.allow_from_config_maps)


class PrefilterNodes(Struct, frozen=True):
    """status.nodes of a NetloomPrefilter, some seconds old."""

    selected: int
    active: int
    failed: int


class PrefilterFailure(Struct, frozen=True):
    """status.failures[] of a NetloomPrefilter: one of the first nodes that failed, and why."""

    node: str
    message: str


class PrefilterStatus(Struct, frozen=True):
    """status of a NetloomPrefilter, written by the operator. Conditions: `Ready`, `Whole`. Entries are those of a node
    on which it is active, `withheld` of the node with most of them."""

    nodes: PrefilterNodes | None = None
    ipv4_entries: int = 0
    ipv6_entries: int = 0
    withheld: int = 0
    failures: tuple[PrefilterFailure, ...] = ()
    problems: tuple[str, ...] = ()
    conditions: tuple[Condition, ...] = ()


class NetloomPrefilter(Struct, frozen=True):
    """An XDP prefilter on some devices of some nodes."""

    metadata: ObjectMeta = ObjectMeta()
    spec: PrefilterSpec = PrefilterSpec()
    status: PrefilterStatus = PrefilterStatus()


class FilteredDevice(Struct, frozen=True):
    """status.prefilter.devices[] of a NetloomNode: `mode` in which it runs there, "" where it does not. main: whether
    prefilters mean it that name no devices."""

    name: str
    mode: str = ""
    error: str = ""
    main: bool = False


class FilterFailure(Struct, frozen=True):
    """status.prefilter.filters[].failures[] of a NetloomNode. devices: those of which it is; none: all are."""

    message: str
    devices: tuple[str, ...] = ()


class NodeFilter(Struct, frozen=True):
    """status.prefilter.filters[] of a NetloomNode: how a NetloomPrefilter fares there. `error` keeps it from running,
    `problems` do not; `packets` and `bytes` were dropped as of the last write. `failures`: the error's sentences by
    device; older agents tell none beside an error."""

    name: str
    generation: int = 0
    ipv4_entries: int = 0
    ipv6_entries: int = 0
    withheld: int = 0
    bad_lines: int = 0
    packets: int = 0
    bytes: int = 0
    error: str = ""
    failures: tuple[FilterFailure, ...] = ()
    problems: tuple[str, ...] = ()

    def failures_on(self, devices: Collection[str]) -> tuple[str, ...]:
        """Why it does not run on these of its devices, as sentences. An error that is told of no device is of all."""
        if self.error and not self.failures:
            return (self.error,)
        return tuple(
            each.message for each in self.failures if not each.devices or any(name in devices for name in each.devices)
        )


class NodePrefilter(Struct, frozen=True):
    """status.prefilter of a NetloomNode, by its agent, where a NetloomPrefilter selects it."""

    devices: tuple[FilteredDevice, ...]
    filters: tuple[NodeFilter, ...]
