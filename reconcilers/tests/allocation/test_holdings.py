"""What NetloomNodes hold in ways other than spec.ipam.podCIDRs counts like any other address."""

from typing import Any

import pytest

from tests.allocation.server import Request
from tests.allocation.world import World

POOLS = {"pools": {"allocated": [{"pool": "a", "cidrs": ["10.0.0.0/24"]}]}}
SINGLE = {"pool": {"10.0.0.7": {}}}


def make(world: World, name: str, mode: str, ipam: dict[str, Any]) -> None:
    spec = {"ipam": {"mode": mode, **ipam}}
    world.server.execute(Request("create", "netloomnodes", name, {"metadata": {"name": name}, "spec": spec}))


@pytest.mark.parametrize("ipam", [POOLS, SINGLE])
def test_what_is_in_use_is_given_to_nobody_else(world: World, ipam: dict[str, Any]) -> None:
    make(world, "ghost", "cluster-pool", ipam)
    world.join("a")
    world.start()
    world.calm(10)
    assert world.texts()["a"] == "10.0.1.0/24"


def test_who_holds_blocks_of_pools_is_given_nothing_more(world: World) -> None:
    make(world, "a", "cluster-pool", POOLS)
    world.join("a")
    world.start()
    world.calm(10)
    assert world.texts() == {"a": "10.0.0.0/24"}
    assert "podCIDRs" not in world.server.all("netloomnodes")["a"]["spec"]["ipam"]


@pytest.mark.parametrize(("mode", "ipam"), [("multi-pool", POOLS), ("crd", SINGLE)])
def test_a_lost_lock_is_rebuilt_from_them(world: World, mode: str, ipam: dict[str, Any]) -> None:
    make(world, "ghost", mode, ipam)
    world.join("a")
    world.start()
    world.calm(10)
    assert world.mode_in_force == mode
    assert "a" not in world.texts() or not world.texts()["a"], "the mode in force is not the one that is asked for"


def test_addresses_of_two_modes_are_told_whatever_they_are(world: World) -> None:
    make(world, "one", "crd", {"pool": {"10.0.3.7": {}}})
    make(world, "two", "multi-pool", POOLS)
    world.join("a")
    world.start()
    world.calm(10)
    assert world.mode_in_force == ""
    assert not world.texts()["a"]
    _, reason, message = world.condition("netloomnetworks", "default", "Ready")
    assert "ModeAmbiguous" in reason
    assert "crd (NetloomNode one), multi-pool (NetloomNode two)" in message


def test_they_are_told_when_no_node_waits_either(world: World) -> None:
    """Then nothing but the objects themselves could say it."""
    make(world, "one", "crd", {"pool": {"10.0.3.7": {}}})
    make(world, "two", "multi-pool", POOLS)
    world.start()
    world.calm(10)
    status, reason, message = world.condition("netloomnetworks", "default", "Ready")
    assert (status, reason) == ("False", "ModeAmbiguous")
    assert message.startswith("addresses of several IPAM modes are in use: crd (NetloomNode one), multi-pool (")
    assert "in force" not in message
    world.delete("netloomnodes", "two")
    world.calm(10)
    assert world.mode_in_force == "crd"
    assert world.condition("netloomnetworks", "default", "Ready")[1] == "ModeLocked"
