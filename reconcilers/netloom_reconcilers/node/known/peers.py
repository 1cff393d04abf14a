"""The nodes as the data path takes them: as their objects say, or as they last said.

An object that vanishes is no proof that its node left, so the node is *held* with what it last said, until `forget`
(`departures` finds out). A node whose object lost its pod CIDRs or its address keeps the last ones. Tunnels and
masquerading both read from here, so they agree about who counts. This node's own object is passed on as it is.
"""

from collections.abc import Iterable, Iterator
from functools import lru_cache

import msgspec
import structlog

from netloom.api.holdings import blocks
from netloom.api.ipam_modes import mode_named
from netloom.api.v1alpha1 import CONTESTED, NetloomNode
from netloom.cidr import Cidr, addresses_in
from netloom.runtime.store import Store, Subscriber

log = structlog.get_logger(__name__)

HELD = "~"
"""Creation time of what is held: after every real one, so that whoever lives and claims the same has it."""


class Peers:
    """See the module. A change of one node costs one node; what is remembered is only what is missing."""

    def __init__(self, own: str, nodes: Store[NetloomNode]) -> None:
        self.held: dict[str, NetloomNode] = {}
        """By name, the nodes whose objects vanished, as they last were."""
        self.completed: dict[str, NetloomNode] = {}
        """By name, the nodes whose objects lack something that they had, with that."""
        self.own = own
        self.nodes = nodes
        self._subscribers: list[Subscriber[NetloomNode]] = []
        nodes.subscribe(self._changed)

    def get(self, key: str) -> NetloomNode | None:
        """The node as it counts, or None."""
        return self.completed.get(key) or self.nodes.get(key) or self.held.get(key)

    def __iter__(self) -> Iterator[str]:
        yield from self.nodes
        yield from self.held

    def __len__(self) -> int:
        return len(self.nodes) + len(self.held)

    async def wait_synced(self) -> None:
        """As of the store."""
        await self.nodes.wait_synced()

    def subscribe(self, fn: Subscriber[NetloomNode]) -> None:
        """As of the store; an object that vanishes is told with what is held of it."""
        self._subscribers.append(fn)
        for name in list(self):
            fn(name, None, self.get(name))

    def forget(self, name: str) -> None:
        """The node left: it is no peer any more."""
        node = self.held.pop(name, None)
        if node is not None:
            self._notify(name, node, None)

    def problems(self) -> list[str]:
        """What is in use although no object says so any more, as sentences."""
        return [
            f"NetloomNode {name}: {_lost(node)}; the last known stay in use. Have the operator write them again."
            for name in self.completed
            if (node := self.nodes.get(name)) is not None
        ]

    def _changed(self, name: str, old: NetloomNode | None, new: NetloomNode | None) -> None:
        before = self.completed.pop(name, None) or old or self.held.pop(name, None)
        if name != self.own and before is not None:
            if new is None and is_peer(before):
                self.held[name] = _junior(before)
            elif new is not None and (completed := complete(new, before)) is not new:
                self.completed[name] = completed
                log.warning("a node lost what it needs, the last known stays in use", node=name, lost=_lost(new))
        self._notify(name, before, self.get(name))

    def _notify(self, name: str, old: NetloomNode | None, new: NetloomNode | None) -> None:
        for fn in self._subscribers:
            fn(name, old, new)


def is_peer(node: NetloomNode) -> bool:
    """Whether there is anything of the node that others use."""
    return next(blocks(node.spec.ipam), None) is not None


def is_whole(node: NetloomNode) -> bool:
    """Whether the node has all that others need to send to its pods, or is known to have no address of its own."""
    return is_peer(node) and bool(internal_ip(node) or contested_ip(node))


def is_owned(node: NetloomNode) -> bool:
    """Whether the object stands for a Node, and was not made by hand."""
    return any(owner.kind == "Node" for owner in node.metadata.owner_references)


def complete(node: NetloomNode, before: NetloomNode) -> NetloomNode:
    """The node, with the last known pod CIDRs and addresses where it has none any more; else the same object."""
    spec = node.spec
    if not is_peer(node) and is_peer(before):
        spec = msgspec.structs.replace(spec, ipam=before.spec.ipam)
    if not internal_ip(node) and not contested_ip(node) and internal_ip(before):
        spec = msgspec.structs.replace(spec, addresses=before.spec.addresses)
    return node if spec is node.spec else _junior(msgspec.structs.replace(node, spec=spec))


def _junior(node: NetloomNode) -> NetloomNode:
    return msgspec.structs.replace(node, metadata=msgspec.structs.replace(node.metadata, creation_timestamp=HELD))


def internal_ip(node: NetloomNode, *, ipv6: bool = False) -> str:
    """The node's first address of type InternalIP of the family; "" if it has none."""
    return _first_ip(node, "InternalIP", ipv6=ipv6)


def contested_ip(node: NetloomNode) -> str:
    """The IPv4 address that the node reports, and that another one has; "" if there is none."""
    return _first_ip(node, CONTESTED)


def _first_ip(node: NetloomNode, type_: str, *, ipv6: bool = False) -> str:
    for address in node.spec.addresses:
        if address.type == type_ and (":" in address.ip) is ipv6:
            return address.ip
    return ""


def prefixes_of(obj: str, *fields: tuple[str, Iterable[str]]) -> tuple[tuple[Cidr, ...], tuple[str, ...]]:
    """The CIDRs in these fields of an object, and a sentence about each that could not be read."""
    found, problems = [], []
    for field, texts in fields:
        for text in texts:
            try:
                found.append(Cidr.parse(text))
            except ValueError as error:
                problems.append(f"{obj}: {field}: {error}.")
    return tuple(found), tuple(problems)


def pod_cidrs_of(node: NetloomNode) -> tuple[tuple[Cidr, ...], tuple[str, ...]]:
    """The node's pod CIDRs, and sentences about what could not be read."""
    ipam, name = node.spec.ipam, f"NetloomNode {node.metadata.name}"
    if not ipam.pools.allocated:  # nearly always, and asked by each feature for each node
        return prefixes_of(name, ("spec.ipam.podCIDRs", ipam.pod_cidrs))
    found, problems = prefixes_of(name, *((each.field, each.texts) for each in blocks(ipam)))
    return tuple(dict.fromkeys(found)), problems


def pods_of(node: NetloomNode) -> tuple[tuple[Cidr, ...], tuple[str, ...]]:
    """All that pods of this node may have as addresses: its pod CIDRs, the single ones that it holds, and those that
    are used and were withdrawn; and sentences as of `pod_cidrs_of`."""
    found, problems = pod_cidrs_of(node)
    ipam, used = node.spec.ipam, node.status.ipam
    outside = mode_named(ipam.mode or used.mode).from_outside
    texts = dict.fromkeys((*(ipam.pool if outside else ()), *used.used))
    singles = _parsed(tuple(texts))
    return (*found, *singles) if singles else found, problems


def field_of(node: NetloomNode, cidr: Cidr) -> str:
    """Where its object says that it has a CIDR."""
    found = (each.field for each in blocks(node.spec.ipam) for text in each.texts if Cidr.masked(text) == cidr)
    return next(found, "spec.ipam.podCIDRs")


@lru_cache(maxsize=2)
def _parsed(texts: tuple[str, ...]) -> tuple[Cidr, ...]:
    """Of this node alone, and asked whenever any node changes: 4,000 take 15 ms."""
    return tuple(map(Cidr.of, addresses_in(texts)))


def _lost(node: NetloomNode) -> str:
    missing = [] if is_peer(node) else ["spec.ipam has no pod CIDRs any more"]
    if not internal_ip(node):
        missing.append("spec.addresses has no IPv4 address of type InternalIP any more")
    return " and ".join(missing)
