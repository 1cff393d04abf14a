"""What runs on a node and has addresses: by the API server's pods, and by the kernel's routes.

It is asked whenever the agent begins, and so makes up for what a checkpoint may lack. Who is known by that alone is
entered without a container, and without an interface, which nobody can ask or release by: it is looked again and again
whether it is still there, and freed when nothing shows it any more. Where pods cannot be listed, those stay that were
known by them.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import structlog

from netloom.api.core import PODS, Pod
from netloom.cidr import Address, CidrError, format_address, parse_address
from netloom.ipam.node_allocator import NodeAllocator, Owner
from netloom.runtime.client import Api

log = structlog.get_logger(__name__)

DEVICE = "device:"
"""Begins the name of who is known by a route alone."""
SEEN = ""
"""As an owner's interface: it was seen to have its address."""


class Pods(NamedTuple):
    """found: which pod has which address. known: whether these are all."""

    found: Mapping[Address, str]
    known: bool = True


def seen(name: str) -> Owner:
    """One that is known by what was seen alone."""
    return Owner(name, "", SEEN)


def is_seen(owner: Owner) -> bool:
    """Whether it is one of these."""
    return owner.interface == SEEN


async def pods_of(api: Api, node: str) -> dict[Address, str]:
    """Which pod of the node has which address. Raises ApiError."""
    found = await api.list(PODS, field_selector=f"spec.nodeName={node}")
    return addresses_of(found.objects)


def addresses_of(pods: Iterable[Pod]) -> dict[Address, str]:
    """Of those that have addresses of their own, and are not over."""
    found: dict[Address, str] = {}
    for pod in pods:
        for each in pod.status.pod_ips if pod.is_on_network else ():
            try:
                found[parse_address(each.ip)] = pod.name
            except CidrError as error:
                log.warning("what a pod has for an address is none", pod=pod.metadata.name, error=str(error))
    return found


@dataclass(slots=True)
class MergedPods:
    """adopted: who is entered now. contested: addresses that somebody else has, by what is written down."""

    adopted: dict[Address, str] = field(default_factory=dict)
    contested: dict[Address, tuple[str, str]] = field(default_factory=dict)


def merge(
    allocator: NodeAllocator,
    pods: Mapping[Address, str],
    routed: Mapping[Address, str],
    is_ours: Callable[[Address], bool],
) -> MergedPods:
    """Enters what runs and is not known. A pod tells more than a route, so it comes first."""
    found = MergedPods()
    shown = {address: name for address, name in pods.items() if is_ours(address)}
    shown |= {
        address: f"{DEVICE}{name}" for address, name in routed.items() if is_ours(address) and address not in shown
    }
    for address, name in shown.items():
        user = allocator.user(address)
        if user is None:
            allocator.adopt(seen(name), [address])
            found.adopted[address] = name
        elif user.name not in (name, user.container) and not name.startswith(DEVICE):  # a container may be the pod's
            found.contested[address] = (user.name, name)
    for address, (user_name, name) in found.contested.items():
        log.warning("two have one address", address=format_address(address), holder=user_name, pod=name)
    return found


def gone(allocator: NodeAllocator, pods: Pods, routed: Mapping[Address, str]) -> list[Owner]:
    """Who was seen to have addresses, and does not show any more with any of them."""
    return [
        owner
        for owner, holding in allocator.held()
        if is_seen(owner)
        and (pods.known or owner.name.startswith(DEVICE))
        and not any(each in pods.found or each in routed for each in holding.addresses)
    ]
