"""Mode multi-pool: what nodes ask of NetloomIPPools, get, and give back."""

from typing import Any

import pytest

from netloom.ipam import settings
from netloom_reconcilers.cluster.allocation.waiting import LAG_SECONDS
from tests.allocation.test_network import metric
from tests.allocation.world import World


@pytest.fixture
def pools(empty: World) -> World:
    """Pool `default` of 4 blocks of 16 addresses (14 for pods), pool `blue` of 2; nobody else."""
    empty.apply_network(mode="multi-pool")
    empty.apply_pool("default", "10.0.0.0/26")
    empty.apply_pool("blue", "10.1.0.0/27")
    return empty


def test_a_node_gets_its_first_block_in_its_first_write(pools: World) -> None:
    pools.join("a")
    pools.start()
    pools.calm(10)
    assert pools.server.all("netloomnodes")["a"]["spec"]["ipam"] == {
        "mode": "multi-pool",
        "pools": {"allocated": [{"pool": "default", "cidrs": ["10.0.0.0/28"]}]},
    }
    assert pools.mode_in_force == "multi-pool"
    assert pools.writes()["create netloomnodes"] == 1
    assert pools.writes()["patch netloomnodes"] == 0


def test_a_node_gets_what_it_asks_for_of_each_pool_by_a_commit_and_a_write(pools: World) -> None:
    pools.join("a")
    operator = pools.start()
    pools.calm(10)
    begin = len(pools.server.executed)
    pools.ask("a", default=15, blue=1)
    pools.calm(0.5)
    assert pools.blocks("a") == {"default": ["10.0.0.0/28", "10.0.0.16/28"], "blue": ["10.1.0.0/28"]}
    writes = pools.writes(begin)
    assert writes["patch netloomnodes"] == 1 + 1, "the agent's, and the operator's"
    assert writes["patch netloomnetworks"] == 1, "it announces the second pool's ledger, once for all nodes"
    assert writes["create netloomledgers"] + writes["replace netloomledgers"] == 2
    assert operator.said.reasons("NetloomNode/a") == []
    pools.calm(30)
    again = len(pools.server.executed)
    pools.ask("a", default=28, blue=14)
    pools.calm(30)
    assert pools.writes(again)["patch netloomnodes"] == 1, "the agent's: it has as much already"


def test_what_a_node_gives_back_goes_to_others(pools: World) -> None:
    pools.join("a")
    pools.start()
    pools.calm(10)
    pools.ask("a", default=56)
    pools.calm(10)
    pools.join("b")
    pools.calm(10)
    assert pools.blocks("b") == {}
    assert pools.condition("netloomnodes", "b")[:2] == ("False", "PoolExhausted")
    pools.ask("a", default=20)
    pools.give_back("a", "10.0.0.16/28", "10.0.0.32/28")
    pools.calm(10)
    assert pools.blocks("a") == {"default": ["10.0.0.0/28", "10.0.0.48/28"]}
    assert pools.blocks("b") == {"default": ["10.0.0.16/28"]}
    assert pools.condition("netloomnodes", "b")[0] == "True"


def test_a_part_is_better_than_nothing_and_the_rest_comes_when_there_is_room(pools: World) -> None:
    pools.join("a")
    operator = pools.start()
    pools.calm(10)
    pools.ask("a", default=8, blue=40)
    pools.calm(10)
    assert pools.blocks("a")["blue"] == ["10.1.0.0/28", "10.1.0.16/28"]
    status, reason, message = pools.condition("netloomnodes", "a")
    assert (status, reason) == ("False", "PoolExhausted")
    assert message == "all 2 IPv4 blocks (/28) of 10.1.0.0/27 (NetloomIPPool blue) are in use."
    assert operator.said.reasons("NetloomNode/a") == ["PoolExhausted"]
    pools.apply_pool("blue", "10.1.0.0/27", "10.2.0.0/27")
    pools.calm(10)
    assert pools.blocks("a")["blue"] == ["10.1.0.0/28", "10.1.0.16/28", "10.2.0.0/28"]
    assert pools.condition("netloomnodes", "a")[0] == "True"


def test_one_pool_that_is_full_keeps_nobody_from_another(pools: World) -> None:
    pools.join("a")
    pools.join("b")
    pools.start()
    pools.calm(10)
    pools.ask("a", default=8, blue=100)
    pools.calm(10)
    pools.ask("b", default=20, blue=1)
    pools.calm(10)
    assert len(pools.blocks("b")["default"]) == 2
    pools.ask("b", default=20)
    pools.give_back("a", "10.1.0.0/28")
    pools.calm(10)
    assert len(pools.blocks("a")["blue"]) == 2, "it still asks for it, and nobody else does"


def test_pools_that_are_missing_or_drain_are_told_and_the_others_give(pools: World) -> None:
    pools.join("a")
    operator = pools.start()
    pools.calm(10)
    pools.ask("a", green=1, default=20)
    pools.calm(10)
    assert len(pools.blocks("a")["default"]) == 2
    assert pools.condition("netloomnodes", "a") == (
        "False",
        "PoolMissing",
        "spec.ipam.pools.requested[0] green: there is no such NetloomIPPool, and pods that ask for it wait. Create it, "
        "or correct the annotation netloom.dev/ip-pool of these pods or of their namespace.",
    )
    pools.apply_pool("green", "10.3.0.0/27", draining=True)
    pools.calm(10)
    assert pools.condition("netloomnodes", "a")[1] == "PoolDraining"
    pools.edit("netloomippools", "green", draining=False)
    pools.calm(10)
    assert pools.blocks("a")["green"] == ["10.3.0.0/28"]
    assert pools.condition("netloomnodes", "a")[0] == "True"
    assert operator.said.reasons("NetloomNode/a") == ["PoolMissing", "PoolDraining", "Allocated"]


def test_without_the_default_pool_nodes_exist_and_begin_when_it_comes(pools: World) -> None:
    pools.delete("netloomippools", "default")
    pools.join("a")
    pools.start()
    pools.calm(10)
    assert pools.blocks("a") == {}
    assert (
        "spec.ipam.multiPool.defaultPool default: there is no such NetloomIPPool"
        in pools.condition("netloomnetworks", "default", "Ready")[2]
    )
    pools.ask("a", blue=3)
    pools.calm(10)
    assert pools.blocks("a") == {"blue": ["10.1.0.0/28"]}
    pools.ask("a", blue=3, default=8)
    pools.apply_pool("default", "10.4.0.0/26")
    pools.calm(10)
    assert pools.blocks("a") == {"blue": ["10.1.0.0/28"], "default": ["10.4.0.0/28"]}


def test_a_cidr_that_is_taken_out_of_a_pool_stays_with_its_nodes_and_goes_to_nobody(pools: World) -> None:
    pools.join("a")
    pools.start()
    pools.calm(10)
    pools.apply_pool("default", "10.9.0.0/26")
    pools.join("b")
    pools.calm(10)
    assert pools.blocks("a") == {"default": ["10.0.0.0/28"]}
    assert pools.blocks("b") == {"default": ["10.9.0.0/28"]}
    pools.apply_pool("blue", "10.0.0.0/26")
    pools.ask("b", blue=14, default=8)
    pools.calm(10)
    assert pools.blocks("b")["blue"] == ["10.0.0.16/28"], "what another node holds is passed over, whatever the pool"
    pools.delete("netloomippools", "default")
    pools.calm(10)
    assert pools.blocks("a") == {"default": ["10.0.0.0/28"]}


def test_of_pools_that_overlap_the_older_gives(pools: World) -> None:
    pools.apply_pool("younger", "10.0.0.0/27", "10.5.0.0/28")
    pools.join("a")
    pools.start()
    pools.calm(10)
    pools.ask("a", younger=28, default=8)
    pools.calm(10)
    assert pools.blocks("a") == {"default": ["10.0.0.0/28"], "younger": ["10.5.0.0/28"]}


def test_a_pool_that_was_made_anew_while_nobody_watched_is_the_youngest_and_is_told(pools: World) -> None:
    """`kubectl replace --force`, and a list in the place of the two events: its spec is what it was."""
    pools.apply_pool("younger", "10.0.0.0/27")
    pools.join("a")
    operator = pools.start()
    pools.calm(10)
    assert pools.condition("netloomippools", "younger")[1] == "PoolOverlap"
    pools.delete("netloomippools", "default")
    pools.apply_pool("default", "10.0.0.0/26")
    operator.relist()
    pools.calm(10)
    assert pools.condition("netloomippools", "default")[:2] == ("False", "PoolOverlap")
    assert pools.condition("netloomippools", "younger")[:2] == ("True", "Ready")


def test_what_is_told_of_a_pool_is_not_told_of_its_successor(pools: World) -> None:
    """The API server compares no uid where a status is patched, and a request may be late by a minute."""
    operator = pools.start()
    pools.calm(10)
    pools.edit("netloomippools", "blue", draining=True)
    late = pools.delay(pools.until(operator, "patch netloomippools"))
    pools.delete("netloomippools", "blue")
    pools.apply_pool("blue", "10.1.0.0/27")
    pools.work(operator, 20)
    assert pools.condition("netloomippools", "blue")[:2] == ("True", "Ready")
    pools.handle(late)
    assert pools.condition("netloomippools", "blue")[:2] == ("True", "Ready")


def test_named_ranges_are_kept_free(pools: World) -> None:
    pools.edit("netloomippools", "default", reservedCIDRs=["10.0.0.0/27"])
    pools.join("a")
    pools.start()
    pools.calm(10)
    assert pools.blocks("a") == {"default": ["10.0.0.32/28"]}
    pools.edit("netloomippools", "default", reservedCIDRs=[])
    pools.ask("a", default=56)
    pools.calm(10)
    assert len(pools.blocks("a")["default"]) == 4


def test_a_node_that_asks_for_a_million_gets_as_many_as_one_node_may(pools: World) -> None:
    pools.apply_pool("wide", "10.64.0.0/12", mask=24)
    pools.join("a")
    pools.start()
    pools.calm(10)
    pools.ask("a", default=8, wide=1_000_000)
    pools.calm(10)
    assert len(pools.blocks("a")["wide"]) == 17
    status, reason, message = pools.condition("netloomnodes", "a")
    assert (status, reason) == ("False", "TooManyAddresses")
    assert "it asks for 1000000 addresses of pool wide; one node is given at most 4096" in message


def test_an_operator_that_died_between_commit_and_write_leaves_nothing_behind(pools: World) -> None:
    pools.join("a")
    first = pools.start()
    pools.calm(10)
    pools.ask("a", default=20)
    pools.until(first, "patch netloomnodes")
    pools.kill(first)
    pools.ask("a", default=8)
    pools.start()
    pools.calm(200)
    assert pools.blocks("a") == {"default": ["10.0.0.0/28"]}
    pools.join("b")
    pools.ask("a", default=14)
    pools.calm(10)
    pools.ask("b", default=42)
    pools.calm(10)
    assert len(pools.blocks("b")["default"]) == 3


def test_what_was_entered_twice_comes_back_though_the_node_waits_for_another_pool(pools: World) -> None:
    pools.join("a")
    first = pools.start()
    pools.calm(10)
    pools.ask("a", default=20)
    pools.until(first, "patch netloomnodes")
    pools.kill(first)
    pools.ask("a", default=8, blue=100)
    pools.start()
    pools.calm(200)
    assert pools.condition("netloomnodes", "a")[1] == "PoolExhausted"
    pools.join("b")
    pools.calm(10)
    pools.ask("b", default=42)
    pools.calm(10)
    assert len(pools.blocks("b")["default"]) == 3


def test_a_block_that_comes_free_goes_to_one_that_needs_it_and_not_to_who_waits_for_another_pool(pools: World) -> None:
    for name in ("a", "b", "z"):
        pools.join(name)
    pools.start()
    pools.calm(10)
    pools.ask("a", default=8, blue=100)
    pools.calm(10)
    pools.ask("b", default=28)
    pools.calm(10)
    pools.ask("z", blue=100, default=28)
    pools.calm(10)
    assert (
        len(pools.blocks("a")["default"]),
        len(pools.blocks("b")["default"]),
        len(pools.blocks("z")["default"]),
    ) == (
        1,
        2,
        1,
    )
    pools.ask("b", default=8)
    pools.give_back("b", pools.blocks("b")["default"][0])
    pools.calm(10)
    assert len(pools.blocks("z")["default"]) == 2


def test_its_successor_gives_what_it_had_committed(pools: World) -> None:
    pools.join("a")
    first = pools.start()
    pools.calm(10)
    pools.ask("a", default=20)
    pools.until(first, "patch netloomnodes")
    pools.kill(first)
    pools.start()
    pools.calm(10)
    assert pools.blocks("a") == {"default": ["10.0.0.0/28", "10.0.0.16/28"]}


def test_a_block_written_by_hand_is_entered_and_one_of_another_node_is_refused(pools: World) -> None:
    for name in "ab":
        pools.join(name)
    pools.start()
    pools.calm(10)
    mine, theirs = pools.blocks("a")["default"], pools.blocks("b")["default"]
    hand = [{"pool": "default", "cidrs": [*mine, "10.0.0.48/28"]}]
    pools.edit("netloomnodes", "a", ipam={"pools": {"allocated": hand}})
    pools.calm(LAG_SECONDS)
    pools.ask("b", default=56)
    pools.calm(10)
    assert "10.0.0.48/28" not in pools.blocks("b")["default"]
    assert theirs[0] in pools.blocks("b")["default"]


def test_the_lock_is_cleared_when_the_last_block_came_back(pools: World) -> None:
    pools.join("a")
    pools.start()
    pools.calm(10)
    pools.leave("a")
    pools.collect_garbage()
    pools.calm(200)
    assert pools.mode_in_force == ""


# What a pool says


def test_a_pool_says_how_much_of_it_is_used_and_by_how_many(pools: World) -> None:
    for name in "ab":
        pools.join(name)
    operator = pools.start()
    pools.calm(10)
    pools.ask("a", default=20)
    pools.calm(60)
    status = pools.server.all("netloomippools")["default"]["status"]
    assert status["ipv4"] == {"total": 4, "used": 3, "free": 1, "addresses": 42, "addressesNeeded": 28}
    assert (status["nodes"], status["waiting"]) == (2, 0)
    assert pools.condition("netloomippools", "default") == ("True", "Ready", "Nodes are given blocks of it.")
    assert operator.said.reasons("NetloomIPPool/default") == []
    assert metric("netloom_pool_blocks", pool="default", family="ipv4", state="free") == 1
    assert metric("netloom_pool_nodes", pool="default", state="holding") == 2


def test_before_it_is_full_and_when_it_is_it_says_so(pools: World) -> None:
    pools.apply_pool("blue", "10.1.0.0/24")
    pools.join("a")
    operator = pools.start()
    pools.calm(10)
    for number in range(12):
        pools.ask("a", default=8, blue=14 * (number + 1))
        pools.calm(60)
    status, reason, message = pools.condition("netloomippools", "blue")
    assert (status, reason) == ("True", "NearlyFull")
    full_at = pools.server.all("netloomippools")["blue"]["status"]["fullAt"]
    assert full_at
    assert message == (
        f"12 of 16 IPv4 blocks are in use, and at the present rate the pool is full at {full_at}. "
        "Append a CIDR to spec.ipv4.cidrs."
    )
    pools.ask("a", default=8, blue=1000)
    pools.calm(60)
    assert pools.condition("netloomippools", "blue") == (
        "False",
        "PoolExhausted",
        "all 16 IPv4 blocks are in use. 1 node (a) need more. "
        "Append a CIDR to spec.ipv4.cidrs, or end pods that use it.",
    )
    assert operator.said.reasons("NetloomIPPool/blue") == ["NearlyFull", "PoolExhausted"]


def test_counts_alone_are_told_seldom(pools: World) -> None:
    pools.apply_pool("default", "10.0.0.0/20")
    pools.start()
    pools.calm(60)
    begin = len(pools.server.executed)
    for number in range(30):
        pools.join(f"n{number}")
        pools.calm(1)
    assert pools.writes(begin)["patch netloomippools"] <= 2
    pools.calm(60)
    assert pools.server.all("netloomippools")["default"]["status"]["nodes"] == 30
    quiet = len(pools.server.executed)
    pools.calm(600)
    assert pools.writes(quiet)["patch netloomippools"] <= 1, "the trend has ended"


def test_nodes_that_join_cost_a_pool_no_turn_each(pools: World) -> None:
    pools.apply_pool("default", "10.0.0.0/20")
    pools.start()
    pools.calm(10)
    turns = metric("netloom_reconciles_total", controller="pools", result="success") or 0
    for number in range(50):
        pools.join(f"n{number}")
        pools.calm(0.1)
    turned = (metric("netloom_reconciles_total", controller="pools", result="success") or 0) - turns
    assert 5 <= turned <= 12, "its blocks are counted once a second: a look that says when, and one that counts"
    pools.calm(2)
    assert metric("netloom_pool_nodes", pool="default", state="holding") == 50


def test_what_keeps_a_pool_from_giving_is_told_by_it(pools: World) -> None:
    pools.apply_pool("younger", "10.0.0.0/27", "10.5.0.0/28")
    pools.edit("netloomippools", "blue", draining=True)
    pools.give_services("10.5.0.0/16")
    pools.join("a")
    pools.start()
    pools.calm(60)
    status, reason, message = pools.condition("netloomippools", "younger")
    assert (status, reason) == ("False", "PoolOverlap")
    assert (
        "spec.ipv4.cidrs 10.0.0.0/27: it overlaps 10.0.0.0/26 of NetloomIPPool default, which was there first"
        in message
    )
    assert "spec.ipv4.cidrs 10.5.0.0/28: it overlaps 10.5.0.0/16" in message
    assert pools.condition("netloomippools", "blue")[:2] == ("False", "Draining")


def test_blocks_outside_its_present_cidrs_are_orphaned(pools: World) -> None:
    pools.join("a")
    pools.start()
    pools.calm(10)
    pools.apply_pool("default", "10.9.0.0/26")
    pools.calm(60)
    counts = pools.server.all("netloomippools")["default"]["status"]["ipv4"]
    assert (counts["orphaned"], counts.get("used", 0), counts["total"]) == (1, 0, 4)


def test_in_another_mode_a_pool_says_that_it_serves_nobody(empty: World) -> None:
    empty.apply_network(ipv4PodCIDRList=["10.0.0.0/22"], ipv4MaskSize=24)
    empty.apply_pool("default", "10.0.0.0/26")
    empty.start()
    empty.calm(60)
    assert empty.condition("netloomippools", "default") == (
        "True",
        "NotInUse",
        "nothing is given of pools, as the IPAM mode is cluster-pool. Pools serve IPAM mode multi-pool.",
    )


def test_what_agents_asked_of_pools_does_not_keep_them_from_another_mode(pools: World) -> None:
    """Nothing was ever given, so the mode may change; and what nobody takes back any more is taken back."""
    pools.give_services("10.0.0.0/16")
    pools.join("a")
    pools.start()
    pools.calm(10)
    pools.ask("a", default=8)
    pools.calm(10)
    assert pools.blocks("a") == {}
    pools.apply_network(mode="cluster-pool", ipv4PodCIDRList=["10.8.0.0/16"], ipv4MaskSize=24)
    pools.calm(10)
    ipam = pools.server.all("netloomnodes")["a"]["spec"]["ipam"]
    assert (ipam["mode"], ipam["podCIDRs"]) == ("cluster-pool", ["10.8.0.0/24"])
    assert not ipam.get("pools", {}).get("requested")


def test_a_forecast_that_is_about_right_is_not_written_again(pools: World) -> None:
    pools.apply_pool("default", "10.0.0.0/24")
    pools.join("a")
    pools.start()
    pools.calm(60)
    for number in range(2, 7):
        pools.ask("a", default=14 * number)
        pools.calm(60)
    assert pools.server.all("netloomippools")["default"]["status"]["fullAt"]
    begin = len(pools.server.executed)
    pools.calm(3600)
    assert pools.writes(begin)["patch netloomippools"] <= 12


def test_a_full_pool_says_at_once_when_somebody_needs_more(pools: World) -> None:
    pools.join("a")
    pools.start()
    pools.calm(10)
    pools.ask("a", default=8, blue=28)
    pools.calm(60)
    assert pools.condition("netloomippools", "blue")[:2] == ("True", "PoolExhausted")
    pools.ask("a", default=8, blue=29)
    pools.calm(3)
    assert pools.condition("netloomippools", "blue")[:2] == ("False", "PoolExhausted")


def test_a_full_pool_says_that_a_newcomer_finds_nothing(pools: World) -> None:
    pools.join("a")
    pools.start()
    pools.calm(10)
    pools.ask("a", default=56)
    pools.calm(60)
    assert pools.condition("netloomippools", "default")[:2] == ("True", "PoolExhausted")
    pools.join("b")
    pools.calm(3)
    assert pools.condition("netloomippools", "default") == (
        "False",
        "PoolExhausted",
        "all 4 IPv4 blocks are in use. 1 node (b) need more. "
        "Append a CIDR to spec.ipv4.cidrs, or end pods that use it.",
    )


def test_space_that_is_kept_free_no_more_is_found_however_much_it_is(pools: World) -> None:
    """More blocks come free than a number of 64 bits can say, in the same edit that takes another CIDR out."""
    six = {"cidrs": ["fd00:0:0:1::/64"], "maskSize": 128}
    pools.apply_pool("default", "10.0.0.0/26", ipv6=six, reservedCIDRs=["fd00:0:0:1::/64"])
    pools.join("a")
    pools.start()
    pools.calm(10)
    assert pools.condition("netloomnodes", "a")[:2] == ("False", "PoolExhausted")
    pools.apply_pool("default", "10.3.0.0/26", reservedCIDRs=[])
    pools.join("b")
    pools.calm(10)
    assert any(":" in cidr for cidr in pools.blocks("a")["default"])
    assert pools.blocks("b")["default"][0].startswith("10.3.0.")


def test_a_block_that_comes_free_wakes_nobody_whom_it_does_not_help(pools: World) -> None:
    for name in "ab":
        pools.join(name)
    operator = pools.start()
    pools.calm(10)
    pools.ask("a", default=8, gone=1)
    pools.ask("b", default=28)
    pools.calm(10)
    assert pools.condition("netloomnodes", "a")[:2] == ("False", "PoolMissing")
    seen: list[str] = []
    operator.allocation.nodes.enqueue = seen.append  # type: ignore[method-assign]
    pools.ask("b", default=8)
    pools.give_back("b", "10.0.0.32/28")
    pools.calm(10)
    assert "b" in seen
    assert "a" not in seen


def test_a_network_of_few_nodes_that_holds_a_pool_is_told_by_the_pool(pools: World) -> None:
    for name in "abc":
        pools.join(name)
    pools.start()
    pools.calm(10)
    pools.connect("a", "10.1.0.0/16")
    pools.calm(60)
    status, reason, message = pools.condition("netloomippools", "blue")
    assert (status, reason) == ("True", "PoolOverlapsConnected")
    assert "10.1.0.0/27: it lies in 10.1.0.0/16, a network that node a is connected to" in message
    assert pools.condition("netloomippools", "default")[1] == "Ready"


def test_held_blocks_that_are_no_pods_have_the_advice_of_their_mode(pools: World) -> None:
    pools.join("a")
    pools.start()
    pools.calm(10)
    pools.give_services("10.0.0.0/28")
    pools.calm(20)
    status, reason, message = pools.condition("netloomnetworks", "default")
    assert (status, reason) == ("False", "PodCIDROverlapsServices")
    assert "a holds 10.0.0.0/28, which stays as it is" in message
    assert "Take the CIDR out of its NetloomIPPool" in message
    assert "kube-controller-manager" not in message


def test_of_pools_that_are_full_each_is_told_with_its_own_nodes(pools: World) -> None:
    for name in "abc":
        pools.join(name)
    pools.start()
    pools.calm(10)
    pools.ask("a", default=8, blue=100)
    pools.ask("b", default=100)
    pools.ask("c", default=100)
    pools.calm(30)
    message = pools.condition("netloomnetworks", "default", "Ready")[2]
    assert (
        "1 node (a) in need of more addresses: all 2 IPv4 blocks (/28) of 10.1.0.0/27 (NetloomIPPool blue)" in message
    )
    assert "2 nodes (b, c) in need of more addresses: all 4 IPv4 blocks" in message


def test_a_newcomer_without_an_address_waits_whatever_pools_there_are(pools: World) -> None:
    pools.delete("netloomippools", "default")
    pools.join("a", address=None)
    pools.start()
    pools.calm(60)
    assert pools.server.all("netloomnodes") == {}
    assert "1 node (a): " in pools.condition("netloomnetworks", "default", "Ready")[2]


def test_pools_that_come_together_are_looked_at_once(pools: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look is at all of them, and where anything is different, all nodes and pools are counted again."""
    looks, read = list[int](), settings.read

    def counted(*args: Any) -> settings.Settings:
        found = read(*args)
        looks.append(len(found.pools))
        return found

    monkeypatch.setattr(settings, "read", counted)
    for number in range(100):
        pools.apply_pool(f"of-before-{number}", f"10.2.{number}.0/24")
    operator = pools.start()
    pools.work(operator, 0.0)
    assert len(looks) <= 4, "two when it starts, and one at each write of the network"
    looks.clear()
    for number in range(100):
        pools.apply_pool(f"new-{number}", f"10.3.{number}.0/24")
    pools.see_all()
    assert looks == [202]


def test_a_pool_that_comes_while_the_operator_ends_is_nobody_s_concern(pools: World) -> None:
    operator = pools.start()
    pools.calm(10)
    pools.apply_pool("late", "10.3.0.0/24")
    operator.see()
    operator.loop.call_soon(operator.task.cancel)
    operator.loop.settle()
    assert operator.task.cancelled()
    assert operator.loop.failures == []
