"""Whatever the order of crashes and retries: no address has two owners, none is lost, and what somebody was told stays.

The disk is bytes. A request is answered when all of its bytes are there; a crash leaves any part of them. Beside that
the file is cut, has lines repeated, or is another node's: then what runs makes up for it.
"""

import itertools

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from netloom.api.v1alpha1 import PoolAddress
from netloom.cidr import Address, Cidr, Version, parse_address
from netloom.ipam.address_block import usable
from netloom.ipam.address_records import Gave, Header, line, read, whole
from netloom.ipam.address_stock import Supply
from netloom.ipam.node_allocator import NodeAllocator, Owner, Shortage

REST = 10.0
POOLS = ("", "web")
BLOCKS = {
    "": tuple(map(Cidr.parse, ("10.0.0.0/29", "fd00::/125"))),
    "web": tuple(map(Cidr.parse, ("10.0.1.0/30", "10.0.2.0/31", "fd00:1::/126", "fd00:2::7/128"))),
}
SINGLES = {
    parse_address("10.5.0.1"): PoolAddress(),
    parse_address("10.5.0.2"): PoolAddress(owner="d/a"),
    parse_address("fd05::1"): PoolAddress(),
}
BOTH: frozenset[Version] = frozenset({4, 6})
ANY: dict[Version, Address] = {4: bytes(4), 6: bytes(16)}
HEADER = Header("n1", "boot", "first")
FOREIGN = whole(
    Header("n2", "boot", "x"), [Gave("other/pod", "c", "eth0", "", ("10.0.0.2",)), Gave("o/p", "d", "eth0", "", ())]
)[0]

owners = st.builds(
    Owner, st.sampled_from(["d/a", "d/b", "d/c", "d/d"]), st.sampled_from(["1", "2", "3"]), st.just("eth0")
)
supplies = st.fixed_dictionaries(
    {pool: st.sets(st.sampled_from(cidrs)).map(lambda found: tuple(sorted(found))) for pool, cidrs in BLOCKS.items()}
)
singles = st.sets(st.sampled_from(sorted(SINGLES))).map(lambda found: {each: SINGLES[each] for each in sorted(found)})


class Node(RuleBasedStateMachine):
    """`told`: what owners have been told that they have. `unsure`: those whose last request was not answered."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.told: dict[Owner, tuple[Address, ...]] = {}
        self.results: list[tuple[Owner, tuple[Address, ...]]] = []
        self.unsure: set[Owner] = set()
        self.freed: dict[Address, float] = {}
        self.files = map(str, itertools.count())
        self.supply = Supply(blocks=BLOCKS, singles=SINGLES)

    @initialize()
    def begin(self) -> None:
        self.data = line(0, HEADER, 0)
        self.restart()

    # The agent's life

    def restart(self) -> None:
        """From what is on the disk, and what runs: whoever was told of an address shows it."""
        reading = read(self.data)
        self.made = NodeAllocator(REST)
        if reading.header is not None and reading.header.node == "n1":
            self.made.restore(reading.records, self.now)
        self.made.provide(self.supply)
        for owner, addresses in self.told.items():
            if self.made.holding(owner) is None:
                contested = self.made.adopt(Owner(owner.name, "", ""), addresses)
                assert not contested, (owner, contested)
        self.write_anew()

    def write_anew(self) -> None:
        self.header = Header("n1", "boot", next(self.files))
        self.data, self.last = whole(self.header, self.made.records(self.now))
        self.made.unwritten.clear()

    def written(self, part: float | None) -> bool:
        """Whether the agent lived to answer: `part` of its bytes were written when it crashed, None: it did not."""
        lines = [line(number, each, self.header.seed) for number, each in enumerate(self.made.unwritten, self.last + 1)]
        batch = b"".join(lines)
        if part is None:
            self.data, self.last = self.data + batch, self.last + len(lines)
            self.made.unwritten.clear()
            return True
        self.data += batch[: int(part * len(batch))]
        return False

    # What is asked of it

    @rule(
        owner=owners,
        pool=st.sampled_from(POOLS),
        versions=st.sampled_from([BOTH, BOTH, frozenset({4}), frozenset({6})]),
        crash=st.none() | st.floats(0, 1),
    )
    def allocate(self, owner: Owner, pool: str, versions: frozenset[Version], crash: float | None) -> None:
        before = self.made.holding(owner)
        got = self.made.allocate(owner, pool, versions, self.now)
        if isinstance(got, Shortage):
            return
        if before is None:
            for address in got:
                assert self.now >= self.freed.get(address, -REST) + REST, "it has not rested"
                others = [each for each, had in self.told.items() if address in had]
                assert not others, f"{owner} is given what {others} have"
                assert self.supply.singles.get(address, PoolAddress()).owner in ("", owner.name)
        if self.written(crash):
            assert set(self.told.get(owner, got)) <= set(got), "it was told of another before"
            self.told[owner] = got
            self.results.append((owner, got))
            self.unsure.discard(owner)
        else:
            if owner not in self.told:
                self.unsure.add(owner)
            self.restart()

    @rule(owner=owners, crash=st.none() | st.floats(0, 1))
    def release(self, owner: Owner, crash: float | None) -> None:
        self.take_back(owner, None, crash)

    @precondition(lambda self: self.results)
    @rule(data=st.data(), crash=st.none() | st.floats(0, 1))
    def release_by_an_old_result(self, data: st.DataObject, crash: float | None) -> None:
        owner, addresses = data.draw(st.sampled_from(self.results))
        self.take_back(owner, addresses, crash)

    def take_back(self, owner: Owner, addresses: tuple[Address, ...] | None, crash: float | None) -> None:
        had = self.told.get(owner, ())
        gone = self.made.release(owner, addresses, now=self.now)
        if owner not in self.unsure:
            assert set(gone) <= set(had), "it freed what was another's"
        # From its question on the owner does not use them, whether it hears the answer or not.
        left = tuple(each for each in self.told.pop(owner, ()) if addresses is not None and each not in addresses)
        if left:
            self.told[owner] = left
        if self.written(crash):
            self.freed |= dict.fromkeys(gone, self.now)
            if self.made.holding(owner) is None:
                self.unsure.discard(owner)
        else:
            self.unsure.add(owner)
            self.restart()

    @rule(seconds=st.sampled_from([1.0, REST / 2, REST, 100.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(blocks=supplies, singles=singles)
    def another_supply(self, blocks: dict[str, tuple[Cidr, ...]], singles: dict[Address, PoolAddress]) -> None:
        self.supply = Supply(blocks=blocks, singles=singles)
        self.made.provide(self.supply)
        self.written(None)

    @rule(pool=st.sampled_from(POOLS), data=st.data())
    def give_up_what_is_idle(self, pool: str, data: st.DataObject) -> None:
        idle = self.made.idle(pool, self.now)
        if idle:
            cidr = data.draw(st.sampled_from(idle))
            assert not [each for had in self.told.values() for each in had if cidr.contains(Cidr.of(each))]
            assert self.made.close(cidr, self.now)
            self.written(None)

    @rule()
    def open_all(self) -> None:
        for cidr in self.made.closed:
            self.made.reopen(cidr)
        self.written(None)

    # What happens to it

    @rule()
    def crash(self) -> None:
        self.restart()

    @rule()
    def compaction(self) -> None:
        self.write_anew()

    @rule(data=st.data())
    def a_line_is_repeated(self, data: st.DataObject) -> None:
        lines = self.data.splitlines(keepends=True)
        self.data += data.draw(st.sampled_from(lines))
        self.restart()

    @rule(part=st.floats(0, 1))
    def the_file_is_cut(self, part: float) -> None:
        self.data = self.data[: int(part * len(self.data))]
        self.lose()

    @rule(how=st.sampled_from(["instead", "before", "behind", "gone"]))
    def the_file_is_anothers(self, how: str) -> None:
        self.data = {"instead": FOREIGN, "before": FOREIGN + self.data, "behind": self.data + FOREIGN, "gone": b""}[how]
        self.lose()

    def lose(self) -> None:
        """What runs stays with whom it is; who is not known any more cannot release, and is gone some day."""
        self.freed.clear()
        self.restart()
        for owner in [each for each in self.told if self.made.holding(each) is None]:
            del self.told[owner]
            self.unsure.add(Owner(owner.name, "", ""))
        self.unsure |= {owner for owner, _ in self.made.held() if owner not in self.told}

    # What holds at any time

    @invariant()
    def nobody_shares(self) -> None:
        held = [address for _, holding in self.made.held() for address in holding.addresses]
        assert len(held) == len(set(held))

    @invariant()
    def what_was_told_is_held(self) -> None:
        for owner, addresses in self.told.items():
            holding = self.made.holding(owner)
            assert holding is not None
            assert set(addresses) <= set(holding.addresses)

    @invariant()
    def nothing_is_held_for_nobody(self) -> None:
        assert {owner for owner, _ in self.made.held()} <= self.told.keys() | self.unsure

    @invariant()
    def all_is_counted(self) -> None:
        for pool in POOLS:
            for version, count in self.made.need(pool, self.now).items():
                blocks = [cidr for cidr in self.supply.blocks[pool] if cidr.version == version]
                size = sum(
                    usable(cidr, gateway=not pool, whole=False) for cidr in blocks if cidr not in self.made.closed
                )
                size += 0 if pool else sum(len(each) == len(ANY[version]) for each in self.supply.singles)
                assert count.used + count.free + count.resting == size, (pool, version)

    def teardown(self) -> None:
        """When all have released, and all has rested, every address can be given again: none was lost."""
        self.made.provide(Supply(blocks=BLOCKS, singles=SINGLES))
        self.open_all()
        for owner, _ in self.made.held():
            self.made.release(owner, now=self.now)
        for pool, cidrs in BLOCKS.items():
            free = self.made.need(pool, self.now + REST)
            for version, count in free.items():
                sizes = [usable(cidr, gateway=not pool, whole=False) for cidr in cidrs if cidr.version == version]
                single = [] if pool else [each for each in SINGLES if len(each) == len(ANY[version])]
                assert count == (0, count.waiting, sum(sizes) + len(single), 0)
            given = 0
            while not isinstance(
                self.made.allocate(Owner(f"{pool}/{given}"), pool, frozenset({4}), self.now + REST), Shortage
            ):
                given += 1
            assert given == free[4].free - (not pool), "one is d/a's alone"


def live(examples: int, steps: int) -> None:
    run_state_machine_as_test(Node, settings=settings(max_examples=examples, stateful_step_count=steps, deadline=None))  # type: ignore[no-untyped-call]


def test_no_address_has_two_owners_and_none_is_lost() -> None:
    live(40, 30)


@pytest.mark.slow
def test_no_address_has_two_owners_and_none_is_lost_in_long_lives() -> None:
    live(400, 60)
