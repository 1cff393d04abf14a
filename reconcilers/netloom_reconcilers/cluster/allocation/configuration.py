"""Follows the network, its pools and what is odd about nodes' addresses: by which rules blocks are given.

Each look at the pools is a look at all of them, and a change has all be counted again. So those that come together, be
it at the start, are looked at once, when what told of them has ended; a cache may be older than the settings are then.
"""

import asyncio
from collections.abc import Iterator

from netloom.api.core import Node
from netloom.api.ipam_modes import mode_of
from netloom.api.odd_addresses import odd_addresses
from netloom.api.problem import Problem
from netloom.api.v1alpha1 import NETWORK_NAME, NetloomIPPool, NetloomNetwork
from netloom.ipam import settings as ipam_settings
from netloom.ipam.settings import Settings
from netloom.runtime.store import Unsubscribe
from netloom_reconcilers.cluster.allocation.incarnation import Changed, Incarnation, Member, pool_changed
from netloom_reconcilers.cluster.allocation.node_objects import reported_by
from netloom_reconcilers.cluster.allocation.reserved import Reserved


class AllocationConfiguration(Member):
    """`settings` is None without a network. `reserved`: what no block may overlap."""

    def __init__(self, incarnation: Incarnation, reserved: Reserved) -> None:
        super().__init__(incarnation)
        self.reserved = reserved
        self.odd: dict[str, Problem] = {}
        """What is wrong with the addresses that Nodes report, by node; the first that is."""
        self.settings: Settings | None = None
        self._coming: asyncio.Handle | None = None
        """The next look at the pools."""

    @property
    def mode(self) -> str:
        """The mode in force, else the one asked for; "" without a network."""
        return self.settings.mode if self.settings else ""

    def watch(self) -> list[Unsubscribe]:
        """Follows the caches from now on."""
        return [
            *self.reserved.watch(),  # before it knows which CIDRs are concerned: then all are looked at once
            self._pools.subscribe(self._pool_changed),
            self._networks.subscribe(self._network_changed),
            self._nodes.subscribe(self._node_changed),
            self._leave,
        ]

    def _network_changed(self, key: str, old: NetloomNetwork | None, new: NetloomNetwork | None) -> None:
        if key == NETWORK_NAME:
            self._configure(new)
            self._publish(Changed.NETWORK)

    def _configure(self, network: NetloomNetwork | None) -> None:
        settings = None
        if network is not None:
            settings = ipam_settings.read(network.spec.ipam, mode_of(network).name, self._pools.values())
        if settings != self.settings:
            self.settings = settings
            asked = settings or Settings("")
            self.reserved.configure(asked)
            self._allocator.blocks.configure(asked.mode, asked.fresh_pools())
            self._publish(Changed.SETTINGS)

    def _pool_changed(self, key: str, old: NetloomIPPool | None, new: NetloomIPPool | None) -> None:
        if self._coming is None and (old is None or new is None or pool_changed(old, new)):
            self._coming = asyncio.get_running_loop().call_soon(self._pools_changed)

    def _pools_changed(self) -> None:
        self._coming = None
        self._configure(self._networks.get(NETWORK_NAME))

    def _leave(self) -> None:
        if self._coming is not None:
            self._coming.cancel()

    def _node_changed(self, key: str, old: Node | None, new: Node | None) -> None:
        before = self.odd.pop(key, None)
        found = next(_missed(new), None) if new is not None else None
        if found is not None:
            self.odd[key] = found
        if found != before:
            self._publish(Changed.WAITING)


def _missed(node: Node) -> Iterator[Problem]:
    """What is wrong with addresses of a family of which the Node reports no other."""
    found = reported_by(node)
    if not found.odd:
        return iter(())
    families = {":" in each.ip for each in found.addresses if each.type == "InternalIP"}
    return (problem for problem in odd_addresses(node) if (":" in problem.value) not in families)
