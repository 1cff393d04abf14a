"""Modes in which somebody outside writes single addresses into NetloomNodes (`crd`): which of them this node's pods may
be given, and the report of those that they use.

Whether any is in use decides whether the IPAM mode of the cluster may be changed, and an agent gives addresses in
milliseconds, by caches that may be old. So before it gives the first one it writes at its NetloomNode that it gives
some (`status.ipam.mode`), and *then* asks the API server for the network: only if the mode is in force there, and not
about to be cleared, it begins. That stays written until spec.ipam.pool is empty, nothing is used, and nothing can be
given any more. Whoever clears the mode writes `clearing` first and reads all NetloomNodes then, so of two that do it at
the same time one sees the other. docs/allocation.md has the proof.

Beginning costs a write and a question, once in a node's life. What is used is told a moment later, and not in every
moment: each write of a node is sent to every agent.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import structlog

from netloom.api.events import ObjectReference
from netloom.api.ipam_modes import mode_named
from netloom.api.v1alpha1 import NETLOOM_NODES, NETWORK_NAME, NETWORKS, NetloomNetwork, NetloomNode, PoolAddress
from netloom.api.words import some
from netloom.cidr import Address, addresses_in, format_address, is_address, parse_address
from netloom.runtime.client import Api
from netloom.runtime.controller import Controller
from netloom.runtime.events import EventRecorder
from netloom.runtime.store import Store
from netloom_reconcilers.conditions import apply, manager_of

log = structlog.get_logger(__name__)

NEW_SECONDS = 1.0
"""How long the use of addresses must have changed before that is told."""
PAUSE_SECONDS = 10.0
"""Between two writes of which only that is the reason."""
AGAIN_SECONDS = 1.0
"""When to ask again whether addresses may be given; what it waits for usually comes first, as an event."""
MOST = 4096
"""Used addresses that are told."""
_SHOWN = 3

Used = Mapping[Address, str]
"""The owners of addresses that are used, `namespace/pod`."""


@dataclass(eq=False)
class OutsideSupply:
    """See the module. `used`: what the node's pods use now, None while that is not known. `changed`: to be called when
    `supply` is another, at once and before anything else is given; and when errors are."""

    node_name: str
    networks: Store[NetloomNetwork]
    nodes: Store[NetloomNode]
    api: Api
    used: Callable[[], Used | None]
    changed: Callable[[], None] = lambda: None
    events: EventRecorder | None = None
    clock: Callable[[], float] = time.monotonic
    _mode: str = ""
    """Of which addresses are given, "" while none are."""
    _uid: str = ""
    """Of the object at which the word was written."""
    _written_at: float = float("-inf")
    _told: frozenset[str] = field(default_factory=frozenset)

    def __post_init__(self) -> None:
        self.controller = Controller("single addresses", self.reconcile)
        self.is_concerned = False
        """Whether there is or was anything to give, so that what is used is told."""
        self.networks.subscribe(lambda key, old, new: self.look())
        self.nodes.subscribe(lambda key, old, new: self.look() if key == self.node_name else None)

    @property
    def supply(self) -> dict[Address, PoolAddress]:
        """What may be given to pods, with what is said of each; empty where nothing may."""
        node = self.nodes.get(self.node_name)
        if node is None or not self._mode or node.metadata.uid != self._uid:
            return {}
        return {parse_address(text): entry for text, entry in node.spec.ipam.pool.items() if is_address(text)}

    def used_changed(self) -> None:
        """The node's pods use other addresses."""
        if self.is_concerned:
            self.controller.enqueue_after(self.node_name, NEW_SECONDS)

    def look(self) -> None:
        """All may be different."""
        self.controller.enqueue(self.node_name)

    async def reconcile(self, key: str) -> float | None:
        """Begins or ends to give addresses, and tells which are used. Seconds until there may be more to do."""
        network, node = self.networks.get(NETWORK_NAME), self.nodes.get(key)
        used = self.used()
        if self._mode and (node is None or node.metadata.uid != self._uid):
            # The word went with the object. It is in use as before, and nothing new is given.
            self._mode = ""
            self.changed()
        if network is None or node is None or used is None:
            return None
        mode, said = self._wanted(network, node), node.status.ipam
        outside = mode_named(network.status.ipam.mode).from_outside
        self.is_concerned = bool(self._mode or said.mode or said.used or outside)
        if mode and not self._mode:
            return await self._begin(node, mode)
        if self._mode and not node.spec.ipam.pool and not used:
            self._mode = ""
            self.changed()
        self._tell_withdrawn(node)
        self.changed()
        return await self._report(node, used) if self.is_concerned else None

    def _wanted(self, network: NetloomNetwork, node: NetloomNode) -> str:
        mode = network.status.ipam.mode
        given = mode_named(mode).from_outside and node.spec.ipam.mode == mode and node.spec.ipam.pool
        return mode if given and (self._mode or in_force(network, mode)) else ""

    async def _begin(self, node: NetloomNode, mode: str) -> float | None:
        """First the word, then the look: see the module."""
        if node.status.ipam.mode != mode and await self._write(node, mode, node.status.ipam.used) is None:
            return AGAIN_SECONDS
        for network in (await self.api.list(NETWORKS)).objects:
            self.networks.put(network)
            if network.metadata.name == NETWORK_NAME and in_force(network, mode):
                self._mode, self._uid = mode, node.metadata.uid
                log.info("single addresses are given", mode=mode)
                self.changed()
                self.look()
                return None
        log.info("no address is given yet", why="the network is about to change its IPAM mode")
        return AGAIN_SECONDS

    async def _report(self, node: NetloomNode, used: Used) -> float | None:
        pool, said = node.spec.ipam.pool, node.status.ipam
        now = dict(sorted((format_address(address), owner) for address, owner in used.items())[:MOST])
        wanted = {text: _entry(owner, pool.get(text) or said.used.get(text)) for text, owner in now.items()}
        mode = self._mode or (said.mode if pool else "")
        if (mode, wanted) == (said.mode, said.used):
            return None
        pause = self._written_at + PAUSE_SECONDS - self.clock()
        if mode == said.mode and pause > 0:
            return pause
        if await self._write(node, mode, wanted) is None:
            return AGAIN_SECONDS
        self._written_at = self.clock()
        return None

    async def _write(self, node: NetloomNode, mode: str, told: Mapping[str, PoolAddress]) -> NetloomNode | None:
        """As written; None where the object is not there any more, or is another one.

        Without a mode only at this very version, of which the pool is empty: a request that is late, of a process that
        died meanwhile perhaps, takes nothing away from one that begins with what the pool holds then."""
        ipam: dict[str, Any] = {"mode": mode} if mode else {}
        if told:
            ipam["used"] = {text: {"owner": each.owner, "resource": each.resource} for text, each in told.items()}
        status = {"ipam": ipam} if ipam else {}  # what is not listed goes
        stored = await apply(self.api, NETLOOM_NODES, node, manager_of("ipam"), fenced=not mode, status=status)
        if stored is not None:
            self.nodes.put(stored)
        return stored

    # What is used and was withdrawn

    @property
    def fault(self) -> str:
        """Why the agent can neither begin nor tell what is used, as a sentence; "" if it can."""
        about = f"NetloomNode {self.node_name}: status.ipam cannot be written"
        return next((f"{about}: {why}. It is tried again." for why in self.controller.failing.values()), "")

    def errors(self) -> list[str]:
        """What is wrong with addresses that are used, as sentences; empty if nothing is."""
        node = self.nodes.get(self.node_name)
        return list(self._wrong(node)) if node is not None else []

    def withdrawn(self) -> list[Address]:
        """Addresses that are used and that spec.ipam.pool has no more."""
        node = self.nodes.get(self.node_name)
        if node is None or not (node.status.ipam.mode or self._mode):
            return []
        known = set(addresses_in(node.spec.ipam.pool))
        return sorted(address for address in self.used() or () if address not in known)

    def _wrong(self, node: NetloomNode) -> Iterator[str]:
        about, used = f"NetloomNode {self.node_name}: spec.ipam.pool", self.used() or {}
        if gone := self.withdrawn():
            named = some([f"{format_address(each)} (of {used[each]})" for each in gone], _SHOWN)
            yield (
                f"{about}: {named} withdrawn while in use: pods keep what they have until they end. Write them "
                "again, or delete these pods; until then no other node may have them."
            )
        others = [
            f"{text} is {entry.owner}'s, and {owner} uses it"
            for text, entry in node.spec.ipam.pool.items()
            if entry.owner and is_address(text) and (owner := used.get(parse_address(text), entry.owner)) != entry.owner
        ]
        if others:
            more = f" (and {len(others) - 1} more such)" if others[1:] else ""
            yield f"{about}: {others[0]}{more}. Delete the pod that uses it, or correct the entry's owner."

    def _tell_withdrawn(self, node: NetloomNode) -> None:
        """Each is told once as an Event, beside the node's condition."""
        found = frozenset(map(format_address, self.withdrawn()))
        new, self._told = found - self._told, found
        if not new:
            return
        log.warning("addresses were withdrawn while in use", addresses=sorted(new)[:_SHOWN], count=len(new))
        if self.events is not None:
            about = ObjectReference.of(NETLOOM_NODES, node)
            self.events.event(about, "Warning", "AddressWithdrawn", next(self._wrong(node)))


def in_force(network: NetloomNetwork, mode: str) -> bool:
    """Whether an agent may begin to give addresses of the mode."""
    status = network.status.ipam
    return status.mode == mode and not status.clearing


def _entry(owner: str, said: PoolAddress | None) -> PoolAddress:
    return PoolAddress(owner=owner, resource=said.resource if said is not None else "")
