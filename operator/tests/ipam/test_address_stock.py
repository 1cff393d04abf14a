"""What a node may give of, without anybody who has it."""

import pytest

from netloom.api.v1alpha1 import PoolAddress
from netloom.cidr import Address, Cidr, format_address, parse_address
from netloom.ipam.address_stock import NO_POOL, AddressStock, Counted, Supply

REST = 30.0
BLOCK, LATER = Cidr.parse("10.0.0.0/30"), Cidr.parse("10.0.1.0/30")


def stock(*blocks: Cidr, pool: str = "web", **more: object) -> AddressStock:
    made = AddressStock()
    made.provide(Supply(blocks={pool: blocks} if blocks else {}, **more))  # type: ignore[arg-type]
    return made


def following(made: AddressStock, owner: str = "default/a", pool: str = "web", now: float = 0) -> str:
    found = made.next(owner, pool, 4, now, REST)
    return format_address(found) if found is not None else "none"


def addresses(*texts: str) -> list[Address]:
    return [parse_address(text) for text in texts]


def test_what_is_next_is_so_until_it_is_used() -> None:
    made = stock(BLOCK, LATER)
    assert [following(made), following(made)] == ["10.0.0.1", "10.0.0.1"]
    for address in addresses("10.0.0.1", "10.0.0.2"):
        made.use(address)
    assert following(made) == "10.0.1.1"
    assert made.count("web", 4, 0, REST) == Counted(used=2, free=2, resting=0)
    assert made.count("other", 4, 0, REST) == made.count("web", 6, 0, REST) == Counted(0, 0, 0)


def test_what_was_freed_rests_and_is_ready_again() -> None:
    made = stock(BLOCK)
    one, other = addresses("10.0.0.1", "10.0.0.2")
    for at, address in enumerate((other, one)):
        made.use(address)
        made.free(address, float(at))
    assert following(made, now=29) == "none"
    assert made.count("web", 4, 29, REST) == Counted(used=0, free=0, resting=2)
    assert made.ready_at("default/a", {4: "web"}, 29, REST) == 30
    assert made.ready_at("default/a", {4: "web", 6: "web"}, 29, REST) is None, "of IPv6 there is nothing that rests"
    assert following(made, now=30) == "10.0.0.2"


def test_a_block_is_busy_while_an_address_is_used_or_rests() -> None:
    made = stock(BLOCK, LATER)
    (one,) = addresses("10.0.0.1")
    made.use(one)
    assert made.is_busy(BLOCK, 0, REST)
    assert made.idle("web", 0, REST) == [LATER]
    made.free(one, 0)
    assert made.is_busy(BLOCK, 29, REST)
    assert made.idle("web", 30, REST) == [BLOCK, LATER]
    assert not made.is_busy(Cidr.parse("10.9.0.0/30"), 0, REST), "nor is one that is not there"


def test_nothing_is_given_of_closed_blocks_nor_of_closed_pools() -> None:
    made = stock(BLOCK, LATER)
    made.closed_blocks.add(BLOCK)
    assert following(made) == "10.0.1.1"
    assert made.count("web", 4, 0, REST).free == 2
    assert stock(BLOCK, closed=frozenset({"web"})).count("web", 4, 0, REST).free == 0
    assert made.provide(Supply(blocks={"web": (LATER,)})) == {BLOCK}


def test_what_is_known_of_an_address_outlives_its_block() -> None:
    made = stock(BLOCK)
    used, freed = addresses("10.0.0.1", "10.0.0.2")
    made.use(used)
    made.use(freed)
    made.free(freed, 5)
    made.provide(Supply())
    assert made.is_empty
    assert not made.has(used)
    assert [dict(each) for each in made.remembered(5, REST)] == [{freed: 5}]
    made.provide(Supply(blocks={"web": (BLOCK,)}))
    assert made.count("web", 4, 5, REST) == Counted(used=1, free=0, resting=1)
    made.provide(Supply())
    assert list(made.remembered(35, REST)) == [], "what has rested outside of all blocks is forgotten"


@pytest.mark.parametrize(("owner", "given"), [("default/a", "10.0.0.9"), ("default/b", "10.0.0.8")])
def test_a_single_address_is_first_of_all_of_whom_it_is_meant_for(owner: str, given: str) -> None:
    free, meant = addresses("10.0.0.8", "10.0.0.9")
    made = stock(singles={free: PoolAddress(), meant: PoolAddress(owner="default/a")})
    assert following(made, owner, NO_POOL) == given
    made.use(free)
    assert made.count(NO_POOL, 4, 0, REST) == Counted(used=1, free=1, resting=0)


def test_what_is_remembered_says_nothing_of_what_is_used() -> None:
    made = AddressStock()
    one, other = addresses("10.0.0.1", "10.0.0.2")
    made.use(one)
    assert not made.remember({one: 0.0, other: 0.0})
    made.provide(Supply(blocks={"web": (BLOCK,)}))
    assert made.count("web", 4, 0, REST) == Counted(used=1, free=0, resting=1)
