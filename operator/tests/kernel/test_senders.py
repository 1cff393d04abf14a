"""The table of senders as `nft` prints it, what each change costs, what lingers, and what a restart leaves alone."""

import asyncio
import errno
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netloom.cidr import Cidr
from netloom.kernel.keeper.nftables_keeper import unheard_by_each_other
from netloom.kernel.keeper.owned_table import OwnedTable
from netloom.kernel.senders.keeper import SendersKeeper, SendersReport
from netloom.kernel.senders.packed import PackedKeys
from netloom.kernel.senders.senders import Senders
from tests.economy import spread
from tests.kernel.meshes import eventually, running
from tests.kernel.netns import Namespace
from tests.kernel.nft import FaultyNftables, Masquerades, masquerades, masquerading, nft, ruleset
from tests.kernel.tunnelled import GENEVE, VXLAN, Keepers, add, keepers, ours, senders

__all__ = ["keepers", "masquerades"]

GOLDEN = """\
table inet netloom-tunnels {
    comment "Netloom's: it undoes changes"
    counter strangers {
        packets 0 bytes 0
    }

    counter forged {
        packets 0 bytes 0
    }

    set nodes {
        type ipv4_addr
        elements = { 192.168.7.2 }
    }

    set pairs4-24 {
        type ipv4_addr . ipv4_addr
        elements = { 192.168.7.2 . 10.2.0.0 }
    }

    set pods4-24 {
        type ipv4_addr
        elements = { 10.1.0.0, 10.2.0.0 }
    }

    set pairs6-64 {
        type ipv4_addr . ipv6_addr
        elements = { 192.168.7.2 . fd00:2:: }
    }

    set pods6-64 {
        type ipv6_addr
        elements = { fd00:1::,
                 fd00:2:: }
    }

    set strangers4 {
        type ipv4_addr
        size 64
        flags dynamic,timeout
        timeout 10m
    }

    set strangers6 {
        type ipv6_addr
        size 64
        flags dynamic,timeout
        timeout 10m
    }

    set forgers {
        type ipv4_addr
        size 64
        flags dynamic,timeout
        timeout 10m
    }

    chain arrivals {
        @nh,0,8 0x45 @nh,72,8 0x11 @th,224,16 0x800 @nh,96,32 . @th,336,32 & 0xffffff00 @pairs4-24 notrack accept \
comment "netloom 4bd6f5bc"
        @nh,0,8 0x45 @nh,72,8 0x11 @th,224,16 0x86dd @nh,96,32 . @th,304,128 & 0xffffffffffffffff0000000000000000 \
@pairs6-64 notrack accept comment "netloom 6f3ee81f"
        goto others comment "netloom 3f8823b8"
    }

    chain others {
        meta l4proto != udp accept comment "netloom 610d4348"
        fib daddr type unicast accept comment "netloom 4d13b05a"
        ip saddr @nodes goto members comment "netloom 14474bb4"
        add @strangers4 { ip saddr } comment "netloom 406355a2"
        add @strangers6 { ip6 saddr } comment "netloom baf5fb38"
        counter name "strangers" drop comment "netloom 006e2fc3"
    }

    chain members {
        @th,224,16 0x800 @th,336,32 & 0xffffff00 == @pods4-24 goto forged comment "netloom bac5eec3"
        @th,224,16 0x86dd @th,304,128 & 0xffffffffffffffff0000000000000000 == @pods6-64 goto forged \
comment "netloom c2d18208"
        notrack accept comment "netloom d0d7abf0"
    }

    chain forged {
        add @forgers { @nh,96,32 } comment "netloom 2c7fbdae"
        counter name "forged" drop comment "netloom 655b4b86"
    }

    chain prerouting {
        type filter hook prerouting priority raw; policy accept;
        th dport 8472 @th,64,32 0x8000000 goto arrivals comment "netloom 6ffddf4f"
    }

    chain output {
        type filter hook output priority raw; policy accept;
        th dport 8472 @th,64,32 0x8000000 meta l4proto udp notrack comment "netloom 46238ef4"
    }
}
"""


def since(keeper: SendersKeeper, before: Mapping[str, int]) -> dict[str, int]:
    """Requests written."""
    return {kind: n - before.get(kind, 0) for kind, n in keeper.stats.items() if n != before.get(kind, 0)}


async def test_the_table(node: Namespace, keepers: Keepers) -> None:
    keeper = await keepers.open()
    report = await keeper.apply(senders(2))
    assert ours(node) == GOLDEN
    assert report.in_sync


async def test_any_has_neither_sets_nor_chains_to_check_by(node: Namespace, keepers: Keepers) -> None:
    keeper, desired = await keepers.open(), senders(2)
    await keeper.apply(desired)
    desired.checked = False
    assert (await keeper.apply(desired)).in_sync
    assert "set " not in ours(node)
    assert ours(node).count("notrack") == ours(node).count("th dport") == 2
    add(desired, 3)
    before = keeper.stats
    assert (await keeper.apply(desired)).in_sync
    assert since(keeper, before) == {}
    desired.checked = True
    await keeper.apply(desired)
    assert "192.168.7.3 . 10.3.0.0" in ours(node)


async def test_without_a_tunnel_there_is_no_table(node: Namespace, keepers: Keepers) -> None:
    keeper, desired = await keepers.open(), senders(2)
    desired.ports = ()
    assert (await keeper.apply(desired)).written == {}
    desired.ports = (VXLAN,)
    await keeper.apply(desired)
    assert ours(node) == GOLDEN
    desired.ports = ()
    assert (await keeper.apply(desired)).in_sync
    assert ruleset(node) == ""


async def test_a_restart_writes_nothing(node: Namespace, keepers: Keepers) -> None:
    await (await keepers.open()).apply(senders(2, 3, ports=(GENEVE, VXLAN)))
    before = ruleset(node)
    report = await (await keepers.open()).apply(senders(2, 3, ports=(GENEVE, VXLAN)))
    assert (report.written, report.in_sync, report.compared) == ({}, True, 1)
    assert ruleset(node) == before


def five_thousand() -> Senders:
    desired = senders(2)
    for i in range(5000):
        high, low = divmod(i, 250)
        add(desired, i + 3, f"100.{64 + high}.{low}.0/24", addresses=(f"172.16.{high}.{low + 1}",))
    return desired


@pytest.mark.slow
async def test_a_node_of_five_thousand_costs_three_elements(node: Namespace, keepers: Keepers) -> None:
    """It comes, gets another address, another pod CIDR, and goes: nothing is written for anybody else."""
    keeper, desired = await keepers.open(), five_thousand()
    loaded = await keeper.apply(desired)
    assert loaded.in_sync
    assert loaded.written == {
        "newtable": 1,
        "newset": 8,
        "newobj": 2,
        "newchain": 6,
        "newrule": 16,
        "newsetelem": 3 * 26 + 2,
    }
    pods = "100.127.0.0/24"
    for cidrs, addresses, written in (
        ((pods,), ("172.17.0.1",), {"newsetelem": 3}),
        ((pods,), ("172.17.0.2",), {"newsetelem": 2, "delsetelem": 2}),
        ((pods,), ("172.17.0.2", "172.17.0.3"), {"newsetelem": 2}),
        (("100.127.1.0/24",), ("172.17.0.2", "172.17.0.3"), {"newsetelem": 3, "delsetelem": 3}),
    ):
        before = keeper.stats
        add(desired, 6000, *cidrs, addresses=addresses)
        desired.expire(0)
        assert (await keeper.apply(desired)).in_sync
        assert since(keeper, before) == written
    before = keeper.stats
    desired.set_nodes([("node-6000", (), ())], 0)
    desired.expire(0)
    await keeper.apply(desired)
    assert since(keeper, before) == {"delsetelem": 5}
    assert (await keeper.apply(desired)).compared == 1


async def test_another_prefix_length_or_port_changes_rules_and_no_element(node: Namespace, keepers: Keepers) -> None:
    keeper, desired = await keepers.open(), senders(2, 3)
    await keeper.apply(desired)
    before = keeper.stats
    add(desired, 4, "10.4.0.0/26")
    assert (await keeper.apply(desired)).in_sync
    assert since(keeper, before) == {"newset": 2, "newsetelem": 3, "delrule": 16, "newrule": 18}
    before = keeper.stats
    desired.set_nodes([("node-4", (), ())], 0)
    desired.expire(0)
    assert (await keeper.apply(desired)).in_sync
    assert since(keeper, before) == {"delset": 2, "delsetelem": 1, "delrule": 18, "newrule": 16}
    before = keeper.stats
    desired.ports = (GENEVE, VXLAN)
    assert (await keeper.apply(desired)).in_sync
    assert since(keeper, before) == {"delrule": 16, "newrule": 20}
    assert "th dport 6081" in ours(node)


async def test_what_a_node_sent_from_lingers(node: Namespace, keepers: Keepers) -> None:
    """The new comes before the old goes: nobody hears of both at the same moment as the node itself."""
    keeper, desired = await keepers.open(), senders(2, linger=30)
    add(desired, 2, "10.2.0.0/24", addresses=("192.168.7.9",))
    await keeper.apply(desired)
    for known in ("192.168.7.2 . 10.2.0.0", "192.168.7.9 . 10.2.0.0", "192.168.7.2 . fd00:2::"):
        assert known in ours(node)
    assert desired.expire(29) == 1
    assert desired.expire(30) is None
    await keeper.apply(desired)
    assert "192.168.7.9 . 10.2.0.0" in ours(node)
    assert "192.168.7.2" not in ours(node)
    add(desired, 2, "10.2.0.0/24", addresses=("192.168.7.2",))
    add(desired, 2, "10.2.0.0/24", addresses=("192.168.7.9",))
    assert desired.expire(30) is None
    await keeper.apply(desired)
    assert "192.168.7.9 . 10.2.0.0" in ours(node), "it came back before it had gone"


async def test_two_nodes_that_claim_the_same_keep_it_until_both_are_gone(node: Namespace, keepers: Keepers) -> None:
    keeper, desired = await keepers.open(), senders(2)
    add(desired, 3, "10.2.0.0/24", addresses=("192.168.7.2",))
    await keeper.apply(desired)
    desired.set_nodes([("node-3", (), ())], 0)
    desired.expire(0)
    await keeper.apply(desired)
    assert ours(node) == GOLDEN


async def test_what_nobody_explains_after_a_restart_stays_until_all_are_known(
    node: Namespace, keepers: Keepers
) -> None:
    first = senders(2)
    add(first, 3, "10.3.0.0/26")
    await (await keepers.open()).apply(first)
    before = ruleset(node)
    again, desired = await keepers.open(retain_unknown=True), senders(2)
    report = await again.apply(desired)
    assert (report.written, report.in_sync, again.retained) == ({}, True, 1)
    assert ruleset(node) == before
    add(desired, 3, "10.3.0.0/26")
    assert (await again.apply(desired)).written == {}
    assert again.retained == 0

    late = await keepers.open(retain_unknown=True)
    await late.apply(senders(2))
    await late.prune()
    assert (late.report.in_sync, late.retained) == (True, 0)
    assert ours(node) == GOLDEN


DRIFT = [
    "delete element inet netloom-tunnels nodes { 192.168.7.2 }",
    "delete element inet netloom-tunnels pairs4-24 { 192.168.7.2 . 10.2.0.0 }",
    "add element inet netloom-tunnels nodes { 192.168.7.66 }",
    "add element inet netloom-tunnels pairs6-64 { 192.168.7.66 . fd00:2:: }",
    "flush set inet netloom-tunnels pods4-24",
    "flush chain inet netloom-tunnels arrivals",
    "insert rule inet netloom-tunnels prerouting accept",
    "add chain inet netloom-tunnels more",
    "flush table inet netloom-tunnels",
    "delete table inet netloom-tunnels",
]


@pytest.mark.parametrize("edit", spread(DRIFT))
async def test_drift_is_repaired(node: Namespace, keepers: Keepers, edit: str) -> None:
    keeper = await keepers.open(count_seconds=3600)
    await keeper.apply(senders(2))
    async with running(keeper):  # type: ignore[arg-type]
        nft(node, edit)
        await eventually(lambda: ours(node) == GOLDEN, lambda: ours(node))
        await eventually(lambda: keeper.report.repaired > 0 and keeper.report.in_sync)


async def test_a_keeper_that_begins_reads_everything_once(
    node: Namespace, keepers: Keepers, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = 0
    converge = SendersKeeper._converge

    async def counting(keeper: SendersKeeper) -> SendersReport:
        nonlocal passes
        passes += 1
        await asyncio.sleep(0.01)  # the other task has its turn meanwhile
        return await converge(keeper)

    monkeypatch.setattr(SendersKeeper, "_converge", counting)
    keeper = await keepers.open(resync_seconds=3600, count_seconds=3600)
    idle = 0
    seconds = keeper._idle_seconds

    def asked() -> float | None:
        nonlocal idle
        idle += 1
        return seconds()

    monkeypatch.setattr(keeper, "_idle_seconds", asked)
    async with running(keeper):  # type: ignore[arg-type]
        await asyncio.sleep(0.01)
        assert (passes, idle) == (0, 0), "nothing is to be kept yet"
        await keeper.apply(senders(2))
        await asyncio.sleep(0.01)
    assert (passes, idle, keeper.report.compared) == (1, 1, 1)


async def test_keepers_of_a_process_hear_nothing_of_each_other_and_everything_of_others(
    node: Namespace, keepers: Keepers, masquerades: Masquerades, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[str] = []
    hear = OwnedTable.hear

    def noting(table: OwnedTable[Any], kind: int, flags: int, buffer: bytes, start: int, end: int) -> None:
        heard.append(table.table)
        hear(table, kind, flags, buffer, start, end)

    monkeypatch.setattr(OwnedTable, "hear", noting)
    one, other = await keepers.open(count_seconds=3600), await masquerades.open()
    unheard_by_each_other((one, other))
    wanted = senders(2), masquerading()
    for _ in range(2):  # each takes in events before it writes
        await one.apply(wanted[0])
        await other.apply(wanted[1])
    assert heard == []
    async with running(one), running(other):  # type: ignore[arg-type]
        nft(node, "add element inet netloom-tunnels nodes { 192.168.7.9 }")
        await eventually(lambda: one.report.repaired > 0)
    assert {"netloom", "netloom-tunnels"} == set(heard)
    assert ours(node) == GOLDEN


async def test_a_refused_element_stops_no_other(node: Namespace, keepers: Keepers) -> None:
    made: list[FaultyNftables] = []

    def commands() -> FaultyNftables:
        made.append(FaultyNftables())
        return made[-1]

    keeper, desired = await keepers.open(commands=commands), senders(2)
    await keeper.apply(desired)
    made[0].refuse("newsetelem", errno.ENOMEM)
    add(desired, 3)
    report = await keeper.apply(desired)
    assert {failure.errno for failure in report.failures} == {errno.ENOMEM}
    assert "nodes 192.168.7.3" in [failure.key for failure in report.failures]
    made[0].heal()
    async with running(keeper):  # type: ignore[arg-type]
        await eventually(lambda: keeper.report.in_sync)
    assert "192.168.7.3 . 10.3.0.0" in ours(node)


async def test_cleanup_and_plan(node: Namespace, keepers: Keepers) -> None:
    keeper = await keepers.open()
    assert [change.text for change in await keeper.plan(senders(2))] == [
        "nft add table inet netloom-tunnels",
        "nft add element inet netloom-tunnels nodes { 192.168.7.2 }",
        "nft add element inet netloom-tunnels pairs4-24 { 192.168.7.2 . 10.2.0.0 }",
        "nft add element inet netloom-tunnels pairs6-64 { 192.168.7.2 . fd00:2:: }",
        "nft add element inet netloom-tunnels pods4-24 { 10.1.0.0 }",
        "nft add element inet netloom-tunnels pods4-24 { 10.2.0.0 }",
        "nft add element inet netloom-tunnels pods6-64 { fd00:1:: }",
        "nft add element inet netloom-tunnels pods6-64 { fd00:2:: }",
        "nft add rules to inet netloom-tunnels (vxlan:8472; senders: nodes)",
    ]
    await keeper.apply(senders(2))
    assert await keeper.plan(senders(2)) == []
    assert [change.text for change in await keeper.plan_cleanup()] == ["nft delete table inet netloom-tunnels"]
    nft(node, "table inet netloom_other {\n}")
    await keeper.cleanup()
    assert ruleset(node) == "table inet netloom_other {\n}\n"


@given(st.lists(st.tuples(st.booleans(), st.binary(min_size=4, max_size=4)), max_size=60))
def test_packed_keys_are_a_multiset(steps: list[tuple[bool, bytes]]) -> None:
    keys, model = PackedKeys(4), list[bytes]()
    for adds, key in steps:
        if adds:
            assert keys.add(key) == (key not in model)
            model.append(key)
        elif key in model:
            model.remove(key)
            assert keys.remove(key) == (key not in model)
        else:
            with pytest.raises(KeyError):
                keys.remove(key)
    assert list(keys) == sorted(set(model))
    assert all(key in keys for key in model)
    assert bool(keys) == bool(model)


@given(
    *(st.lists(st.sampled_from([bytes([key]) for key in range(50)]), min_size=least, max_size=80) for least in (0, 33))
)
def test_many_packed_keys_at_once_are_as_one_by_one(there: list[bytes], more: list[bytes]) -> None:
    keys, model = PackedKeys(1), there + more
    for some in (there, more):
        known = set(keys)
        assert sorted(keys.add_all(some)) == sorted(set(some) - known)
    assert list(keys) == sorted(set(model))
    while model:
        key = model.pop()
        assert keys.remove(key) == (key not in model)
    assert not keys


def test_a_set_for_each_prefix_length() -> None:
    desired = Senders()
    desired.set_nodes([("a", (bytes([10, 0, 0, 1]),), (Cidr.parse("10.1.0.0/24"), Cidr.parse("fd00::/56")))], 0)
    assert sorted(map(str, desired.keys)) == ["nodes", "pairs4-24", "pairs6-56", "pods4-24", "pods6-56"]
