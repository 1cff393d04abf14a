"""Which block comes next, and what it costs to find it."""

from hypothesis import given
from hypothesis import strategies as st

from netloom.cidr import Cidr
from netloom.ipam.ledger_range import MOST_ENTRIES
from netloom.ipam.pool import RESTING, Exhausted, Pool, Usage


class Taken:
    """What is in use, and how often was asked."""

    def __init__(self) -> None:
        self.cidrs: list[Cidr] = []
        self.asked = 0

    def __call__(self, cidr: Cidr) -> int | None:
        self.asked += 1
        return max((each.last for each in self.cidrs if each.overlaps(cidr)), default=None)


def pool(mask: int, *cidrs: str) -> Pool:
    parsed = [Cidr.parse(cidr) for cidr in cidrs]
    return Pool(parsed[0].version, parsed, mask)


def take(pool: Pool, taken: Taken) -> str:
    found = pool.take(taken)
    if isinstance(found, Cidr):
        taken.cidrs.append(found)
    return str(found)


def test_blocks_come_in_the_order_of_the_list() -> None:
    blocks, taken = pool(24, "10.1.0.0/23", "10.0.0.0/24"), Taken()
    assert [take(blocks, taken) for _ in range(4)] == [
        "10.1.0.0/24",
        "10.1.1.0/24",
        "10.0.0.0/24",
        "all 3 IPv4 blocks (/24) of 10.1.0.0/23, 10.0.0.0/24 are in use",
    ]


def test_exhaustion_says_what_is_exhausted() -> None:
    blocks, taken = pool(120, "fd00::/119"), Taken()
    take(blocks, taken), take(blocks, taken)
    assert blocks.take(taken) == Exhausted(6, (Cidr.parse("fd00::/119"),), 120, 2)


def test_a_block_rests_before_it_is_given_again() -> None:
    blocks, taken = pool(24, "10.0.0.0/22"), Taken()
    first, second = take(blocks, taken), take(blocks, taken)
    for each in (second, first):
        taken.cidrs.remove(Cidr.parse(each))
        blocks.put_back(Cidr.parse(each))
    assert [take(blocks, taken) for _ in range(4)] == ["10.0.2.0/24", "10.0.3.0/24", second, first]


def test_what_overlaps_in_part_is_passed_over_in_one_step() -> None:
    blocks, taken = pool(24, "10.0.0.0/16"), Taken()
    taken.cidrs = [Cidr.parse("10.0.0.0/17"), Cidr.parse("10.0.128.77/32")]
    assert take(blocks, taken) == "10.0.129.0/24"
    assert taken.asked == 3


def test_space_of_another_size_that_comes_back_is_found() -> None:
    blocks, taken = pool(24, "10.0.0.0/23"), Taken()
    taken.cidrs = [Cidr.parse("10.0.0.0/23")]
    assert isinstance(blocks.take(taken), Exhausted)
    taken.cidrs = []
    blocks.put_back(Cidr.parse("10.0.0.0/23"))
    assert [take(blocks, taken), take(blocks, taken)] == ["10.0.0.0/24", "10.0.1.0/24"]


def test_finding_a_block_does_not_walk_over_all_others() -> None:
    blocks, used = pool(24, "10.0.0.0/8"), set()
    asked = 0

    def occupied(cidr: Cidr) -> int | None:
        nonlocal asked
        asked += 1
        return cidr.last if cidr in used else None

    for _ in range(20_000):
        found = blocks.take(occupied)
        assert isinstance(found, Cidr)
        used.add(found)
    for cidr in sorted(used)[:5_000]:
        used.remove(cidr)
        blocks.put_back(cidr)
        found = blocks.take(occupied)
        assert isinstance(found, Cidr)
        used.add(found)
    assert asked == 25_000


def test_usage_counts_blocks_touched() -> None:
    blocks = pool(24, "10.0.0.0/22", "10.1.0.0/24")
    used = [
        Cidr.parse(text) for text in ("10.0.0.0/26", "10.0.0.64/26", "10.0.2.0/23", "10.1.0.0/16", "192.168.0.0/24")
    ]
    assert blocks.usage(used) == [
        Usage(Cidr.parse("10.0.0.0/22"), 24, 4, 3),
        Usage(Cidr.parse("10.1.0.0/24"), 24, 1, 1),
    ]


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 30)), max_size=80), st.integers(24, 26))
def test_every_free_block_is_found_and_none_is_given_twice(steps: list[tuple[bool, int]], mask: int) -> None:
    blocks, taken = pool(mask, "10.0.0.0/23", "10.0.4.0/24"), Taken()
    total = sum(usage.total for usage in blocks.usage(()))
    for give, which in steps:
        if give:
            found = blocks.take(taken)
            assert isinstance(found, Exhausted) == (len(taken.cidrs) == total)
            if isinstance(found, Cidr):
                assert not any(found.overlaps(each) for each in taken.cidrs)
                taken.cidrs.append(found)
        elif taken.cidrs:
            blocks.put_back(taken.cidrs.pop(which % len(taken.cidrs)))


def test_of_a_ledger_range_no_more_blocks_are_counted_than_its_ledger_takes() -> None:
    pool = Pool(4, [Cidr.parse("10.0.0.0/15")], 32)
    found = pool.usage([Cidr.parse("10.0.0.0/32")], [Cidr.parse("10.1.0.0/24")])
    assert found == [Usage(Cidr.parse("10.0.0.0/15"), 32, 2 * MOST_ENTRIES, 1, 256)]


def test_nodes_that_come_and_go_do_not_walk_through_the_whole_pool() -> None:
    """Of each ledger range, here as large as a block, that was ever given of, there is an object."""
    blocks, given, there = pool(56, "fd00::/32"), set[Cidr](), list[Cidr]()
    for _ in range(5 * RESTING):
        found = blocks.take(lambda cidr: cidr.last if cidr in there else None)
        assert isinstance(found, Cidr)
        given.add(found)
        there.append(found)
        if len(there) > 3:
            blocks.put_back(there.pop(0))
    assert len(given) == RESTING + 4


def test_a_block_rests_while_others_are_given_that_came_back_before() -> None:
    blocks, taken = pool(56, "fd00::/32"), Taken()
    first = [take(blocks, taken) for _ in range(RESTING + 2)]
    taken.cidrs.clear()
    for each in first:
        blocks.put_back(Cidr.parse(each))
    new = [take(blocks, taken) for _ in range(4)]
    assert new[:2] == first[:2], "the oldest, as more rest than have to"
    assert not {*new[2:]} & {*first}


def test_what_is_said_to_be_free_again_and_again_is_looked_at_once() -> None:
    blocks, taken = pool(24, "10.0.0.0/23"), Taken()
    ours = [Cidr.parse(take(blocks, taken)) for _ in range(2)]
    for _ in range(1_000):
        blocks.put_back(Cidr.parse("10.0.0.7/32"))
    before = taken.asked
    assert isinstance(blocks.take(taken), Exhausted)
    assert taken.asked == before + 1
    assert len(ours) == 2
