"""From a Node to its NetloomNode: what it shall say, and what has to change where it says something else."""

import sys
from collections.abc import Collection
from functools import lru_cache
from typing import Any, cast

import msgspec

from netloom.api.core import POD_CIDR_ANNOTATIONS, Node, NodeAddress
from netloom.api.holdings import block_texts, blocks, cidrs_of, held_cidrs, holds, is_in_use
from netloom.api.ipam_modes import mode_named
from netloom.api.meta import READY, ObjectMeta, OwnerReference
from netloom.api.odd_addresses import is_usable
from netloom.api.problem import Problem
from netloom.api.v1alpha1 import (
    Address,
    IPAMMode,
    NetloomNode,
    NetloomNodeSpec,
    NodeIPAM,
    NodePools,
    PoolAllocation,
)
from netloom.cidr import Address as Packed
from netloom.cidr import Cidr, CidrError, parse_address, single
from netloom.ipam.ledger_range import ledger_range_of
from netloom.ipam.plan import Block

_ADDRESS_TYPES = frozenset({"InternalIP", "ExternalIP"})
MAX_ADDRESSES = 64
_NOTHING: dict[str, str] = {}
"""One for all: each of its own takes 64 bytes."""


class Reported(msgspec.Struct, frozen=True, gc=False):
    """The addresses that a Node reports and that others can send to (`netloom.api.node_addresses`), in its order.

    packed: the same, packed. internal: of these the InternalIPs. odd: there is an InternalIP that nobody can send to.
    """

    addresses: tuple[Address, ...] = ()
    packed: tuple[Packed, ...] = ()
    internal: tuple[Packed, ...] = ()
    odd: bool = False


def reported_by(node: Node) -> Reported:
    """Parsed once per version of a Node, though a newcomer's are asked for ten times."""
    return _parsed(node.status.addresses)


def addresses_of(node: Node) -> tuple[Address, ...]:
    """See `Reported`."""
    return _parsed(node.status.addresses).addresses


@lru_cache(maxsize=8192)
def _parsed(texts: tuple[NodeAddress, ...]) -> Reported:
    known = [each for each in texts if each.type in _ADDRESS_TYPES]
    usable = [each for each in known if is_usable(each.address)]
    odd = any(each.type == "InternalIP" and each not in usable for each in known)
    addresses = tuple(dict.fromkeys(Address(type=each.type, ip=each.address) for each in usable))[:MAX_ADDRESSES]
    return of_addresses(addresses, odd=odd)


def of_addresses(addresses: tuple[Address, ...], *, odd: bool = False) -> Reported:
    """Of addresses that are usable."""
    packed = tuple(parse_address(each.ip) for each in addresses)
    internal = tuple(ip for each, ip in zip(addresses, packed, strict=True) if each.type == "InternalIP")
    return Reported(addresses, packed, packed if internal == packed else internal, odd)


_KEPT = tuple(key for keys in POD_CIDR_ANNOTATIONS for key in keys)


def trimmed(node: Node) -> Node:
    """What the operator keeps of a Node: 5,000 have the same labels but for a few, so their texts are kept once; and
    of its conditions whether it is Ready."""
    meta = node.metadata
    labels = {sys.intern(key): sys.intern(value) for key, value in meta.labels.items()} if meta.labels else _NOTHING
    kept = ObjectMeta(
        name=meta.name,
        uid=meta.uid,
        resource_version=meta.resource_version,
        creation_timestamp=meta.creation_timestamp,
        labels=labels,
        annotations={key: meta.annotations[key] for key in _KEPT if key in meta.annotations} or _NOTHING,
    )
    ready = tuple(each for each in node.status.conditions if each.type == READY)
    return msgspec.structs.replace(node, metadata=kept, status=msgspec.structs.replace(node.status, conditions=ready))


def owner_of(obj: NetloomNode) -> OwnerReference | None:
    """The Node that a NetloomNode was made for; None where it was made by hand."""
    for owner in obj.metadata.owner_references:
        if owner.kind == "Node" and owner.api_version == "v1" and owner.name == obj.metadata.name:
            return owner
    return None


def built(node: Node, mode: str, given: Collection[Block], addresses: tuple[Address, ...]) -> NetloomNode:
    """The NetloomNode to create. Without CIDRs it has no mode either: it holds no address of any."""
    return NetloomNode(
        metadata=ObjectMeta(name=node.metadata.name, owner_references=(_owner(node),)),
        spec=NetloomNodeSpec(
            addresses=addresses,
            ipam=_holding(mode, given) if given else NodeIPAM(),
        ),
    )


def difference(
    node: Node, obj: NetloomNode, mode: str, addresses: tuple[Address, ...], given: Collection[Block] = ()
) -> dict[str, Any]:
    """The merge patch that makes the object follow its Node, fenced by its version; empty where it does already.

    `addresses`: see `last_known_addresses`. `given`: what it gets now, beside what it has.
    """
    meta: dict[str, Any] = {}
    spec: dict[str, Any] = {}
    owner = owner_of(obj)
    if owner is None or owner.uid != node.metadata.uid:
        others = [each for each in obj.metadata.owner_references if each != owner]
        meta["ownerReferences"] = [msgspec.to_builtins(each) for each in (*others, _owner(node))]
    if addresses != obj.spec.addresses:
        spec["addresses"] = [msgspec.to_builtins(each) for each in addresses]
    if given:
        spec["ipam"] = msgspec.to_builtins(_holding(mode, given, obj.spec.ipam))
    elif not obj.spec.ipam.mode and holds(obj.spec.ipam):
        spec["ipam"] = {"mode": mode}
    elif obj.spec.ipam.mode not in ("", mode) and not is_in_use(obj):
        spec["ipam"] = {"mode": None}  # all came back before the network's mode was changed
    written = spec.get("ipam", {}).get("mode")
    if written and not mode_named(written).from_pools and obj.spec.ipam.pools.requested:
        spec["ipam"]["pools"] = {"requested": None}  # of before that change; who asks for nothing now takes it not back
    if not meta and not spec:
        return {}
    meta |= {"resourceVersion": obj.metadata.resource_version, "uid": obj.metadata.uid}
    return {"metadata": meta, "spec": spec} if spec else {"metadata": meta}


def _holding(mode: str, given: Collection[Block], had: NodeIPAM | None = None) -> NodeIPAM:
    """All that the node has then, in the field of what is given now."""
    of_mode = cast(IPAMMode, mode)
    if not any(block.pool for block in given):
        new = tuple(str(block.cidr) for block in given)
        kept = tuple(text for text in had.pod_cidrs if text not in new) if had else ()
        return NodeIPAM(mode=of_mode, pod_cidrs=(*kept, *new))
    texts: dict[str, list[str]] = {each.pool: list(each.cidrs) for each in had.pools.allocated} if had else {}
    for pool, cidr in given:
        texts.setdefault(pool, []).append(str(cidr))
    allocated = tuple(PoolAllocation(pool=pool, cidrs=tuple(cidrs)) for pool, cidrs in texts.items())
    return NodeIPAM(mode=of_mode, pools=NodePools(allocated=allocated))


def held(obj: NetloomNode) -> tuple[Cidr, ...]:
    """What the object holds of addresses for pods, in whatever IPAM mode."""
    return held_cidrs(obj.spec.ipam)


def lived_in(obj: NetloomNode) -> tuple[Cidr, ...]:
    """Where its pods may be: what it holds, and what they use and it holds no more."""
    used = (Cidr.masked(single(text)) for text in obj.status.ipam.used)
    return (*held(obj), *(cidr for cidr in used if cidr is not None))


def held_blocks(obj: NetloomNode) -> tuple[Cidr, ...]:
    """Of that, the blocks: what ledgers are to know."""
    return cidrs_of(block_texts(obj.spec.ipam))


def unusable(obj: NetloomNode) -> Problem | None:
    """What is wrong with the pod CIDRs of an object that somebody else wrote, None if nothing."""
    for field, text in (
        (f"{each.field}[{number}]", text) for each in blocks(obj.spec.ipam) for number, text in enumerate(each.texts)
    ):
        try:
            ledger_range_of(Cidr.parse(text))
        except CidrError as error:
            way_out = "Remove the Node (and this object with it), and let it join again."
            return Problem(f"NetloomNode {obj.metadata.name}", field, text, "InvalidPodCIDR", f"{error}.", way_out)
    return None


def _owner(node: Node) -> OwnerReference:
    return OwnerReference(api_version="v1", kind="Node", name=node.metadata.name, uid=node.metadata.uid)
