"""What a node asks of its pools, and what it gives back: from present use, in few writes."""

from collections.abc import Iterable

import pytest

from netloom.api.v1alpha1 import NeededAddresses, PoolRequest
from netloom.cidr import Cidr, Version
from netloom.ipam.address_stock import Supply
from netloom.ipam.node_allocator import NodeAllocator, Owner, Shortage
from netloom.ipam.pool_demand import (
    DEBOUNCE,
    IDLE_SECONDS,
    MOST_ADDRESSES,
    MOST_BLOCKS,
    UNIT,
    Demand,
    DemandStep,
    PoolView,
)

FIRST = Cidr.parse("10.1.0.0/28")
REST = 30.0
BOTH: frozenset[Version] = frozenset((4, 6))
V4: frozenset[Version] = frozenset((4,))


class Node:
    """One node with pools of /28 (and /124), whose operator grants all or nothing; counts the writes."""

    def __init__(self, *pools: str, ready: int = 8, families: frozenset[Version] = V4) -> None:
        self.allocator = NodeAllocator(REST)
        self.demand = Demand()
        self.pools = dict.fromkeys(("default", *pools), ready)
        self.draining: set[str] = set()
        self.families = families
        self.blocks: dict[str, list[Cidr]] = {}
        self.said: tuple[PoolRequest, ...] = ()
        self.now = 1000.0
        self.writes = 0
        self.last: DemandStep | None = None
        self.given = 0
        self.lost: list[Cidr] = []

    def provide(self) -> None:
        blocks = {name: tuple(cidrs) for name, cidrs in self.blocks.items() if cidrs}
        unknown = blocks.keys() - self.pools.keys()
        self.allocator.provide(Supply(blocks=blocks, closed=frozenset(self.draining | unknown)))

    def views(self) -> Iterable[PoolView]:
        for name in sorted({*self.pools, *self.blocks, *self.allocator.pools()}):
            known = name in self.pools
            closed = self.allocator.closed
            yield PoolView(
                name=name,
                per_block=dict.fromkeys(self.families, 14) if known else {},
                ready=self.pools.get(name, 0),
                gives=known and name not in self.draining,
                is_default=name == "default",
                need=self.allocator.need(name, self.now),
                blocks=tuple(each for each in self.blocks.get(name, ()) if each not in closed),
                idle=self.allocator.idle(name, self.now),
            )

    def look(self) -> DemandStep:
        self.provide()
        kept = self.blocks.get("default", [])[:1]
        self.last = step = self.demand.look(self.views(), self.said, kept, self.now)
        if step.is_due:
            self.writes += 1
            self.said = step.requested
            for cidr in step.surplus:
                assert self.allocator.close(cidr, self.now)
                for cidrs in self.blocks.values():
                    if cidr in cidrs:
                        cidrs.remove(cidr)
                self.lost.append(cidr)
            self.provide()
        return step

    def wait(self, seconds: float) -> None:
        """Looks when the steps say so."""
        end = self.now + seconds
        while self.now < end:
            again = self.look().again
            self.now = min(end, self.now + (again if again is not None else seconds))
        self.look()

    def grant(self) -> None:
        """What the operator does, for what is asked."""
        for each in self.said:
            held = self.blocks.setdefault(each.pool, [])
            for version, wanted in ((4, each.needed.ipv4_addrs), (6, each.needed.ipv6_addrs)):
                while sum(cidr.version == version for cidr in held) * 14 < wanted:
                    base = FIRST if version == 4 else Cidr.parse("fd00::/124")
                    held.append(Cidr(base.version, base.base + 16 * self.given, base.length))
                    self.given += 1
        self.provide()

    def settle(self) -> None:
        self.wait(2 * DEBOUNCE)
        self.grant()
        self.look()

    def pod(self, name: str, pool: str = "default") -> bool:
        self.provide()
        return not isinstance(self.allocator.allocate(Owner(name), pool, self.families, self.now), Shortage)

    def gone(self, name: str) -> None:
        self.allocator.release(Owner(name), now=self.now)


def asked(pool: str, ipv4: int, ipv6: int = 0) -> PoolRequest:
    return PoolRequest(pool=pool, needed=NeededAddresses(ipv4_addrs=ipv4, ipv6_addrs=ipv6))


def test_a_new_node_asks_for_what_is_kept_ready_of_the_default_pool_in_whole_blocks() -> None:
    node = Node("blue")
    assert not node.look().is_due, "nobody waits: it may be more in a moment"
    node.wait(DEBOUNCE)
    assert (node.said, node.writes) == ((asked("default", 14),), 1)
    node.grant()
    node.wait(500)
    assert (node.writes, node.last.again if node.last else 0) == (1, None), "nothing more to say, nor to look at"


def test_both_families_are_asked_for() -> None:
    node = Node(families=BOTH)
    node.wait(DEBOUNCE)
    assert node.said == (asked("default", 14, 14),)


def test_more_is_asked_at_once_when_a_pod_waits_and_once_for_all_that_wait() -> None:
    node = Node("blue")
    node.settle()
    for number in range(40):
        node.pod(f"a/{number}", "blue")
    before = node.writes
    step = node.look()
    assert step.is_due
    assert node.said == (asked("blue", 56), asked("default", 14)), "40 that wait, 8 to be ready: four blocks of 14"
    assert node.writes == before + 1
    node.look()
    assert node.writes == before + 1, "it is asked once, however long the operator takes"
    node.grant()
    assert all(node.pod(f"a/{number}", "blue") for number in range(40))
    node.wait(500)
    assert node.writes == before + 1


def test_pods_that_come_and_go_write_nothing() -> None:
    node = Node()
    node.settle()
    for number in range(12):
        assert node.pod(f"a/{number}")
    node.settle()
    before = node.writes
    for number in range(12, 1012):
        node.gone(f"a/{number - 12}")
        node.now += REST / 10
        assert node.pod(f"a/{number}")
        node.look()
        node.grant()
    assert node.writes <= before + 1, "the addresses that rest are asked for once"


def test_a_last_pod_that_goes_and_comes_again_costs_nothing_and_one_that_stays_away_gives_the_blocks_back() -> None:
    node = Node("blue")
    node.settle()
    for again in range(5):
        node.pod(f"a/{again}", "blue")
        node.settle()
        assert node.pod(f"a/{again}", "blue")
        node.gone(f"a/{again}")
        node.wait(REST + IDLE_SECONDS / 2)
    assert (len(node.blocks["blue"]), node.lost) == (1, [])
    assert node.writes == 2, "the default pool's, and the first pod's"
    node.wait(REST + IDLE_SECONDS)
    assert (node.blocks["blue"], node.said) == ([], (asked("default", 14),))
    assert node.writes == 3, "block and request go by one write"
    node.pod("a/new", "blue")
    node.settle()
    assert node.pod("a/new", "blue")


def test_a_block_goes_when_enough_is_ready_without_it_and_never_the_nodes_own() -> None:
    node = Node()
    node.settle()
    for number in range(30):
        node.pod(f"a/{number}")
    node.settle()
    assert len(node.blocks["default"]) == 3
    first = node.blocks["default"][0]
    assert all(node.pod(f"a/{number}") for number in range(30))
    node.settle()
    for number in range(30):
        node.gone(f"a/{number}")
    node.wait(REST + IDLE_SECONDS - 1)
    assert node.lost == []
    node.wait(DEBOUNCE)
    assert (node.blocks["default"], node.said) == ([first], (asked("default", 14),))
    node.wait(500)
    assert node.blocks["default"] == [first]


def test_a_block_with_a_single_pod_stays() -> None:
    node = Node()
    node.settle()
    for number in range(30):
        node.pod(f"a/{number}")
    node.settle()
    assert all(node.pod(f"a/{number}") for number in range(30))
    node.settle()
    for number in range(29):
        node.gone(f"a/{number}")
    used = next(node.allocator.block(each) for _, holding in node.allocator.held() for each in holding.addresses)
    node.wait(500)
    assert used in node.blocks["default"]
    assert len(node.lost) == 1


def test_less_is_asked_only_after_a_while() -> None:
    node = Node("blue")
    node.settle()
    for number in range(20):
        node.pod(f"a/{number}", "blue")
    node.look()
    assert node.said[0] == asked("blue", 28)
    for number in range(20):
        node.gone(f"a/{number}")
    node.wait(IDLE_SECONDS - 1)
    assert node.said[0] == asked("blue", 28), "the operator has given nothing, and it may be wanted again"
    node.wait(2)
    assert node.said == (asked("default", 14),)


def test_of_a_draining_pool_nothing_is_asked_and_what_is_free_goes() -> None:
    node = Node("blue")
    for number in range(20):
        node.pod(f"a/{number}", "blue")
    node.settle()
    assert all(node.pod(f"a/{number}", "blue") for number in range(20))
    node.settle()
    node.draining.add("blue")
    node.pod("a/late", "blue")
    for number in range(14):
        node.gone(f"a/{number}")
    node.wait(REST + 2 * IDLE_SECONDS)
    assert node.said == (asked("blue", 14), asked("default", 14)), "what is used is still said"
    assert (len(node.blocks["blue"]), len(node.lost)) == (1, 1)


def test_a_block_of_an_unknown_pool_is_kept_while_it_is_used() -> None:
    node = Node("blue")
    node.pod("a/1", "blue")
    node.settle()
    assert node.pod("a/1", "blue")
    del node.pools["blue"]
    node.wait(500)
    assert (len(node.blocks["blue"]), node.said) == (1, (asked("default", 14),))
    node.gone("a/1")
    node.wait(REST + IDLE_SECONDS)
    assert node.blocks["blue"] == []


def test_what_of_a_block_cannot_be_given_is_asked_for_on_top() -> None:
    demand, block = Demand(), FIRST
    allocator = NodeAllocator(REST)
    taken = frozenset(bytes((10, 1, 0, last)) for last in range(1, 11))
    allocator.provide(Supply(blocks={"default": (block,)}, taken=taken))
    view = PoolView(
        name="default", per_block={4: 14}, ready=8, is_default=True, need=allocator.need("default", 0), blocks=(block,)
    )
    demand.look([view], (), (), 0)
    assert demand.look([view], (), (), DEBOUNCE).requested == (asked("default", 28),)


@pytest.mark.parametrize("per_block", [14, 2**72])
def test_there_is_a_limit_to_what_is_asked_and_it_is_said(per_block: int) -> None:
    allocator = NodeAllocator(REST)
    for number in range(MOST_ADDRESSES + 1):
        allocator.allocate(Owner(f"a/{number}"), "default", V4, 0)
    view = PoolView(name="default", per_block={4: per_block}, ready=8, need=allocator.need("default", 0))
    step = Demand().look([view], (), (), 0)
    limit = min(MOST_ADDRESSES, MOST_BLOCKS * min(per_block, UNIT))
    assert step.requested == (asked("default", limit),)
    assert step.capped == {("default", 4): MOST_ADDRESSES + 9}
    assert step.is_due


def test_a_hand_edited_request_is_put_right() -> None:
    node = Node()
    node.settle()
    node.said = (asked("default", 1_000_000), asked("ghost", 7))
    node.wait(DEBOUNCE)
    assert node.said == (asked("default", 14),)


def test_a_block_of_more_addresses_than_are_counted_serves_and_goes_like_any() -> None:
    demand, large = Demand(), (Cidr.parse("fd00::/64"), Cidr.parse("fd00:0:0:1::/64"))
    allocator = NodeAllocator(REST)
    allocator.provide(Supply(blocks={"blue": large}))

    def look(now: float) -> DemandStep:
        view = PoolView(
            name="blue",
            per_block={6: 2**64 - 2},
            ready=8,
            need=allocator.need("blue", now),
            blocks=large,
            idle=allocator.idle("blue", now),
        )
        return demand.look([view], (asked("blue", 0, 1024),), (), now)

    allocator.allocate(Owner("a/1"), "blue", frozenset((6,)), 0)
    assert (look(0).requested, look(IDLE_SECONDS).surplus) == ((asked("blue", 0, 1024),), large[1:])
    allocator.release(Owner("a/1"), now=IDLE_SECONDS)
    look(200)
    assert look(200 + IDLE_SECONDS).surplus == large[::-1]
