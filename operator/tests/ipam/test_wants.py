"""What a node is still to get of pools."""

import msgspec
import pytest

from netloom.api.v1alpha1 import NetloomIPPool, NetworkIPAM, NodeIPAM
from netloom.cidr import Cidr
from netloom.ipam.address_block import usable
from netloom.ipam.plan import Want
from netloom.ipam.settings import Overlap, Settings, read
from netloom.ipam.wants import asked


def pool(name: str, made: int = 0, **spec: object) -> NetloomIPPool:
    meta = {"name": name, "creationTimestamp": f"2026-01-01T00:00:0{made}Z"}
    return msgspec.convert({"metadata": meta, "spec": spec}, NetloomIPPool)


def family(*cidrs: str, mask: int) -> dict[str, object]:
    return {"cidrs": list(cidrs), "maskSize": mask}


def settings(*pools: NetloomIPPool) -> Settings:
    return read(NetworkIPAM(mode="multi-pool"), "multi-pool", pools)


def ipam(allocated: dict[str, list[str]], **needed: tuple[int, int]) -> NodeIPAM:
    pools = {
        "requested": [
            {"pool": name, "needed": {"ipv4Addrs": four, "ipv6Addrs": six}} for name, (four, six) in needed.items()
        ],
        "allocated": [{"pool": name, "cidrs": cidrs} for name, cidrs in allocated.items()],
    }
    return msgspec.convert({"pools": pools}, NodeIPAM)


@pytest.mark.parametrize(
    ("cidr", "whole", "count"),
    [
        ("10.0.0.0/28", False, 14),
        ("10.0.0.0/28", True, 16),
        ("10.0.0.0/31", False, 2),
        ("10.0.0.0/32", False, 1),
        ("fd00::/127", False, 2),
        ("fd00::/64", False, 2**64 - 2),
    ],
)
def test_usable_addresses(cidr: str, whole: bool, count: int) -> None:
    assert usable(Cidr.parse(cidr), gateway=False, whole=whole) == count


BLUE = pool("blue", ipv4=family("10.1.0.0/24", mask=28), ipv6=family("fd00::/120", mask=124))
DEFAULT = pool("default", ipv4=family("10.0.0.0/24", mask=28), preAllocation=20)


def test_one_that_never_asked_gets_its_part_of_the_default_pool() -> None:
    assert asked("a", NodeIPAM(), settings(BLUE, DEFAULT)) == ((Want("default", 4, 2),), None)


def test_each_family_of_each_pool_is_counted_by_itself() -> None:
    known = settings(BLUE, DEFAULT)
    held = {"blue": ["10.1.0.0/28", "fd00::/124", "fd00::10/124"], "default": ["10.0.0.0/28"]}
    assert asked("a", ipam(held, blue=(15, 28), default=(14, 999)), known).wants == (Want("blue", 4, 1),)
    assert asked("a", ipam(held, blue=(0, 29)), known).wants == (Want("blue", 6, 1),)
    assert asked("a", ipam(held), settings()).wants == ()


def test_what_cannot_be_given_is_told_and_keeps_nothing_else_back() -> None:
    empty = pool("empty", 1, ipv4=family("10.0.0.0/26", mask=28))
    draining = pool("draining", ipv4=family("10.2.0.0/24", mask=28), draining=True)
    known = settings(BLUE, DEFAULT, empty, draining)
    for name, reason in (("green", "PoolMissing"), ("empty", "PoolUnusable"), ("draining", "PoolDraining")):
        found = asked("a", ipam({}, **{name: (1, 0)}, blue=(1, 0)), known)
        assert found.wants == (Want("blue", 4, 1),)
        assert found.problem is not None
        assert (found.problem.object, found.problem.reason) == ("NetloomNode a", reason)
    held = ipam({"draining": ["10.2.0.0/28"]}, draining=(14, 0))
    assert asked("a", held, known) == ((), None), "what it holds is enough"
    assert known.pool("empty").overlaps == (  # type: ignore[union-attr]
        Overlap(Cidr.parse("10.0.0.0/26"), Cidr.parse("10.0.0.0/24"), "default"),
    )


def test_nobody_gets_more_than_a_node_can_use() -> None:
    wide = pool("default", ipv4=family("10.64.0.0/10", mask=32))
    found = asked("a", ipam({}, default=(1_000_000, 0)), settings(wide))
    assert found.wants == (Want("default", 4, 128),)
    assert found.problem is not None
    assert found.problem.reason == "TooManyAddresses"
    full = {"default": [f"10.64.0.{number}/32" for number in range(128)]}
    assert asked("a", ipam(full, default=(4096, 0)), settings(wide)).wants == ()


def test_more_blocks_than_a_node_is_given_are_told() -> None:
    known = settings(pool("default", ipv4=family("10.64.0.0/10", mask=28)))
    full = {"default": [str(Cidr(4, (10 << 24) + (64 << 16) + 16 * number, 28)) for number in range(128)]}
    found = asked("a", ipam(full, default=(4000, 0)), known)
    assert found.wants == ()
    assert found.problem is not None
    assert (found.problem.reason, "more than 128 blocks" in found.problem.message) == ("TooManyAddresses", True)
    assert asked("a", ipam(full, default=(128 * 14, 0)), known) == ((), None)
