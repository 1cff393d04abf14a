"""One node in IPAM mode multi-pool: its agent's allocator and reconciler, its object on a server that fails as it is
told, and an operator that gives what is asked, or some of it. Time is the test's."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from netloom.api.holdings import home_blocks, in_front
from netloom.api.meta import ObjectMeta
from netloom.api.v1alpha1 import (
    NETLOOM_NODES,
    NETWORKS,
    POOLS,
    MultiPool,
    NetloomIPPool,
    NetloomNetwork,
    NetloomNode,
    NetloomNodeSpec,
    NetworkIPAM,
    NetworkSpec,
    NodeIPAM,
    NodePools,
    PoolAllocation,
)
from netloom.cidr import Address, Cidr, Version
from netloom.ipam.node_allocator import NodeAllocator, Owner, Shortage
from netloom.runtime.errors import Conflict, Forbidden, Unavailable
from netloom.runtime.store import Store
from netloom_reconcilers.node.addresses.checkpoint import Checkpoint
from netloom_reconcilers.node.addresses.service import AddressService
from netloom_reconcilers.node.addresses.supply import provision
from netloom_reconcilers.node.known.own_node import OwnNode
from netloom_reconcilers.node.pools.asking import PoolReconciler

V4: frozenset[Version] = frozenset((4,))
REST = 30.0


def pool(name: str, second: int, **spec: Any) -> NetloomIPPool:
    content = {"ipv4": {"cidrs": [f"10.{second}.0.0/16"], "maskSize": 28}, **spec}
    return msgspec.convert({"metadata": {"name": name}, "spec": content}, NetloomIPPool)


def network(default: str = "default") -> NetloomNetwork:
    ipam = NetworkIPAM(mode="multi-pool", multi_pool=MultiPool(default_pool=default))
    return NetloomNetwork(metadata=ObjectMeta(name="default"), spec=NetworkSpec(ipam=ipam))


class World:
    """See the module."""

    def __init__(self, folder: Path, *pools: NetloomIPPool) -> None:
        self.folder = folder
        self.now = 1000.0
        self.version = 1
        self.server = self._stamped(NetloomNode(spec=NetloomNodeSpec(ipam=NodeIPAM(mode="multi-pool"))))
        self.writes: list[Mapping[str, Any]] = []
        self.faults: list[str] = []
        """Of the next patches: "forbidden", "conflict", "lost" (never arrives), "unheard" (is executed, and its answer
        lost), "late" (the same, when `arrive` is called)."""
        self._late: list[Mapping[str, Any]] = []
        self.networks: Store[NetloomNetwork] = Store(NETWORKS)
        self.networks.replace({"default": network()})
        self.pools: Store[NetloomIPPool] = Store(POOLS)
        self.pools.replace({each.metadata.name: each for each in pools or (pool("default", 1), pool("blue", 2))})
        self.others: dict[Cidr, str] = {}
        self.living: dict[Cidr, str] = {}
        self.taken_out: list[Cidr] = []
        self.on_server: Callable[[NetloomNode, NetloomNode], None] = lambda old, new: None
        self._given = dict.fromkeys(self.pools, 0)
        self.start()

    # ------------------------------------------------------------------------------------------------ the agent

    def start(self) -> None:
        """A new life of the agent, of which the last one's checkpoint is all that is known."""
        if hasattr(self, "service"):
            self.service.checkpoint.close()
        self.nodes: Store[NetloomNode] = Store(NETLOOM_NODES)
        self.allocator = NodeAllocator(REST)
        self.service = AddressService(
            self.allocator,
            Checkpoint(self.folder, "a"),
            lambda pool: V4,
            lambda owner, short: "none",
            clock=lambda: self.now,
        )
        self.service.begin()
        self.service.obstacle = ""
        self.own = OwnNode("a", self._occupants, self.folder / "own.json")
        self.reconciler = PoolReconciler(
            "a",
            self,  # type: ignore[arg-type]
            self.nodes,
            self.networks,
            self.pools,
            self.service,
            self.own,
            is_on=lambda: True,
            holder=lambda cidr: next((name for each, name in self.others.items() if each.overlaps(cidr)), ""),
            clock=lambda: self.now,
        )
        self.nodes.subscribe(lambda key, old, new: self._provide(new))
        self.networks.subscribe(lambda key, old, new: self.provide())
        self.nodes.replace({"a": self.server})

    async def _occupants(self, within: Any) -> dict[Cidr, str]:
        return {each: self.living[each] for each in within if each in self.living}

    def _provide(self, node: NetloomNode | None) -> None:
        if node is not None:
            ipam = node.spec.ipam
            default = self.networks.get("default")
            front = default.spec.ipam.multi_pool.default_pool if default else ""
            coming = replace(ipam, pools=replace(ipam.pools, allocated=in_front(ipam.pools.allocated, front)))
            mine = {home.packed for home in (*home_blocks(ipam), *home_blocks(coming))}
            self.service.provide(provision(node, self.pools.get, mine).supply)

    def hear(self) -> None:
        """The watch brings the object as it is."""
        self.nodes.take(self.server)

    def provide(self) -> None:
        """The pools are others."""
        self._provide(self.nodes.get("a"))

    async def look(self) -> float | None:
        """One look of the reconciler, and what it writes."""
        await self.own.look(self.nodes.get("a"))
        try:
            return await self.reconciler.reconcile("a")
        except (Conflict, Unavailable):
            return 0.1

    async def settle(self, seconds: float = 3.0, *, grants: bool = True) -> None:
        """Time goes on, with an operator and a watch that work."""
        end = self.now + seconds
        while True:
            again = await self.look()
            if grants:
                self.grant()
            self.hear()
            if self.now >= end:
                return
            self.now = min(end, self.now + min(again or 1.0, 1.0))

    def pod(self, name: str, pool: str = "default") -> tuple[Address, ...] | None:
        """What a pod gets, if anything."""
        got = self.allocator.allocate(Owner(name), pool, V4, self.now)
        return None if isinstance(got, Shortage) else got

    def pods(self, count: int, pool: str = "default") -> int:
        """How many of so many have an address."""
        return sum(self.pod(f"{pool}/{number}", pool) is not None for number in range(count))

    def gone(self, name: str) -> None:
        """A pod ends."""
        self.allocator.release(Owner(name), now=self.now)

    # ----------------------------------------------------------------------------------------------- the server

    @property
    def blocks(self) -> dict[str, list[str]]:
        """What the object holds."""
        return {each.pool: list(each.cidrs) for each in self.server.spec.ipam.pools.allocated}

    @property
    def asked(self) -> dict[str, int]:
        """What it asks for."""
        return {each.pool: each.needed.ipv4_addrs for each in self.server.spec.ipam.pools.requested}

    def _stamped(self, node: NetloomNode) -> NetloomNode:
        meta = ObjectMeta(name="a", uid="u", resource_version=str(self.version))
        return replace(node, metadata=meta)

    def write(self, **pools: Any) -> None:
        """Of the object's pools."""
        before, ipam = self.server, self.server.spec.ipam
        self.version += 1
        ipam = replace(ipam, pools=replace(ipam.pools, **pools))
        self.server = self._stamped(replace(before, spec=replace(before.spec, ipam=ipam)))
        self.on_server(before, self.server)

    async def patch(self, _res: Any, name: str, patch: Mapping[str, Any], **options: Any) -> NetloomNode:
        """Of the agent."""
        assert (name, options) == ("a", {"field_manager": "netloom-agent-pools"})
        self.writes.append(patch)
        fault = self.faults.pop(0) if self.faults else ""
        if fault == "forbidden":
            raise Forbidden(403, "Forbidden", "it is not granted")
        if fault == "conflict":
            self.write()
        if fault == "late":
            self._late.append(patch)
        if fault in ("lost", "late"):
            raise Unavailable(0, "", "no answer")
        self._execute(patch)
        if fault == "unheard":
            raise Unavailable(0, "", "no answer")
        return self.server

    def arrive(self) -> None:
        """What is late arrives."""
        late, self._late = self._late, []
        for each in late:
            try:
                self._execute(each)
            except Conflict:
                continue

    def _execute(self, patch: Mapping[str, Any]) -> None:
        meta, said = patch["metadata"], patch["spec"]["ipam"]["pools"]
        if meta.get("resourceVersion", str(self.version)) != str(self.version):
            raise Conflict(409, "Conflict", "it is another version")
        before = {each for cidrs in self.blocks.values() for each in cidrs}
        self.write(**{key: getattr(msgspec.convert(said, NodePools), key) for key in said})
        left = {each for cidrs in self.blocks.values() for each in cidrs}
        self.taken_out += map(Cidr.parse, sorted(before - left))

    # --------------------------------------------------------------------------------------------- the operator

    def grant(self, most: int = 1000) -> int:
        """Gives what is asked for, up to so many blocks; how many there were."""
        blocks, given = self.blocks, 0
        for name, wanted in self.asked.items():
            held = blocks.setdefault(name, [])
            while len(held) * 14 < wanted and given < most and name in self.pools:
                family = self.pools.get(name)
                assert family is not None
                assert family.spec.ipv4 is not None
                base = Cidr.parse(family.spec.ipv4.cidrs[0])
                held.append(str(Cidr(4, base.base + 16 * self._given[name], 28)))
                self._given[name] += 1
                given += 1
        if given:
            self.edit(blocks)
        return given

    def edit(self, blocks: Mapping[str, list[str]]) -> None:
        """Somebody writes what the object holds."""
        self.write(allocated=tuple(PoolAllocation(name, tuple(cidrs)) for name, cidrs in blocks.items() if cidrs))
