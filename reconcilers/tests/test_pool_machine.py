"""A node's pods, its agent that dies, an operator that gives late and in part, a server whose answers are lost, and
somebody who edits: no block is given up while it is used, everybody is served in the end, and writes are few."""

import asyncio
import tempfile
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from netloom.api.v1alpha1 import NetloomNode
from netloom.cidr import Address, Cidr
from netloom.ipam.node_allocator import Owner
from netloom.ipam.pool_demand import IDLE_SECONDS
from netloom_reconcilers.node.pools.asking import HEAL_SECONDS, LATE_SECONDS
from netloom_reconcilers.node.pools.blocks import held
from tests.economy import examples
from tests.pool_world import REST, World

NAMES = ("default", "blue")


class PoolMachine(RuleBasedStateMachine):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = tempfile.TemporaryDirectory()
        self.wanted: dict[str, str] = {}
        """Pods that live, with their pools."""
        self.has: dict[str, tuple[Address, ...]] = {}
        self.by_hand: set[Cidr] = set()

    def run(self, coroutine: Awaitable[Any]) -> Any:
        async def all_of_it() -> Any:
            found = await coroutine
            if self.world.allocator.unwritten:
                await self.world.service.written()
            return found

        return self.loop.run_until_complete(all_of_it())

    @initialize()
    def begin(self) -> None:
        async def made() -> None:
            self.world = World(Path(self.folder.name))
            self.world.on_server = self._seen

        self.loop.run_until_complete(made())
        self.run(self.world.settle())

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.run(self._in_the_end())
            self.world.service.checkpoint.close()
        self.loop.close()
        self.folder.cleanup()

    def _seen(self, old: NetloomNode, new: NetloomNode) -> None:
        """At every write: what is taken out, unless by hand, nobody uses."""
        before, after = held(old.spec.ipam), held(new.spec.ipam)
        gone = {each for cidrs in before.values() for each in cidrs} - {each for c in after.values() for each in c}
        for block in gone - self.by_hand:
            users = [
                owner
                for owner, holding in self.world.allocator.held()
                for each in holding.addresses
                if block.contains(Cidr.of(each))
            ]
            assert users == [], f"{block} is given up, and {users} use it"

    # ------------------------------------------------------------------------------------------------- pods

    @rule(pool=st.sampled_from(NAMES), count=st.integers(1, 30))
    def pods_come(self, pool: str, count: int) -> None:
        for number in range(len(self.wanted), len(self.wanted) + count):
            if len(self.wanted) < 120:
                self.wanted[f"{pool}/{number}-{self.world.now}"] = pool
        self.ask()

    @rule(share=st.sampled_from([1, 2, 5]), which=st.integers(0, 4))
    def pods_go(self, share: int, which: int) -> None:
        for number, name in enumerate(list(self.wanted)):
            if number % share == which % share:
                del self.wanted[name]
                self.has.pop(name, None)
                self.run(self._gone(name))

    async def _gone(self, name: str) -> None:
        self.world.gone(name)

    @rule()
    def ask(self) -> None:
        async def asked() -> None:
            for name, pool in self.wanted.items():
                got = self.world.pod(name, pool)
                if got is not None:
                    assert self.has.setdefault(name, got) == got, "what a pod has stays"

        self.run(asked())

    # -------------------------------------------------------------------------------- the agent, the server, others

    @rule()
    def look(self) -> None:
        self.run(self.world.look())

    @rule()
    def hear(self) -> None:
        self.run(self._hear())

    async def _hear(self) -> None:
        self.world.hear()

    @rule(seconds=st.sampled_from([1.0, 10.0, REST, IDLE_SECONDS]))
    def time_goes_on(self, seconds: float) -> None:
        self.run(self._pass(seconds))

    async def _pass(self, seconds: float) -> None:
        await self.world.settle(seconds, grants=False)

    @rule(most=st.integers(1, 3))
    def the_operator_gives_some(self, most: int) -> None:
        self.world.grant(most)

    @rule(fault=st.sampled_from(["lost", "unheard", "late", "conflict"]))
    def the_server_fails(self, fault: str) -> None:
        self.world.faults.append(fault)

    @rule()
    def what_is_late_arrives(self) -> None:
        self.world.arrive()

    @rule()
    def the_agent_dies(self) -> None:
        async def anew() -> None:
            self.world.start()
            self.world.on_server = self._seen

        self.run(anew())

    @rule(which=st.integers(0, 3))
    def somebody_takes_a_block_out(self, which: int) -> None:
        blocks = self.world.blocks
        every = [(pool, text) for pool, texts in blocks.items() for text in texts]
        if every:
            pool, text = every[which % len(every)]
            self.by_hand.add(Cidr.parse(text))
            blocks[pool].remove(text)
            self.world.edit(blocks)

    @rule(fault=st.sampled_from(["lost", "unheard", "late"]), after=st.sampled_from([10.0, LATE_SECONDS + 2]))
    def a_burst_leaves_blocks_that_are_given_back_in_vain(self, fault: str, after: float) -> None:
        """What takes many steps to come about. Then pods come back, and what was late arrives."""

        async def burst() -> None:
            world, names = self.world, [f"burst/{number}-{self.world.now}" for number in range(30)]
            for _ in range(2):
                for name in names:
                    world.pod(name)
                await world.settle()
            for name in names:
                world.gone(name)
            world.faults = []
            await world.settle(REST + 1)
            world.faults = [fault]
            for _ in range(200):
                if world.faults:
                    await world.look()
                    world.now += 1
            await world.settle(after, grants=False)
            for name in names:
                world.pod(name)
            world.arrive()
            for name in names:
                world.gone(name)

        self.run(burst())

    # -------------------------------------------------------------------------------------------- what must hold

    @invariant()
    def what_pods_have_they_keep(self) -> None:
        for name, addresses in self.has.items():
            holding = self.world.allocator.holding(Owner(name))
            assert holding is not None
            assert holding.addresses == addresses

    async def _in_the_end(self) -> None:
        """All works again."""
        world = self.world
        world.faults.clear()
        world.arrive()
        self.by_hand.clear()
        until = world.now + max(LATE_SECONDS, HEAL_SECONDS) + 4 * IDLE_SECONDS
        while world.now < until:
            for name, pool in self.wanted.items():  # a kubelet asks until it is given
                world.pod(name, pool)
            await world.settle(REST)
        assert [name for name, pool in self.wanted.items() if world.pod(name, pool) is None] == [], "all are served"
        assert world.allocator.orphans() == {}
        assert world.allocator.closed == frozenset()
        count = len(world.writes)
        await world.settle(2 * IDLE_SECONDS)
        assert len(world.writes) == count, "it comes to rest"
        for pool in NAMES:
            used = sum(holding.pool == pool for _, holding in world.allocator.held())
            ready = 8 if used or pool == "default" else 0
            needed = -(-(used + ready) // 14)
            most = needed + used  # every block with a pod stays
            assert needed <= len(world.blocks.get(pool, ())) <= max(1, most) if needed else not world.blocks.get(pool)


PoolMachine.TestCase.settings = settings(max_examples=examples(30), stateful_step_count=25, deadline=None)
TestPools = PoolMachine.TestCase
