"""Objects that give cause for thousands of refusals: a few are worked out and told, and that there are more."""

from itertools import islice, product

import pytest

from netloom.api.cilium import CILIUM_POOLS
from netloom.api.core import CONFIG_MAPS
from netloom.api.meta import Resource
from netloom.api.v1alpha1 import NETLOOM_NODES, POOLS
from netloom.guard.cluster_state import ClusterState
from netloom.guard.verdict import MOST
from tests.guard import requests as ask
from tests.guard.requests import Json, config, ip_pool, ipam, refused

BY_AGENT: Json = {"user": ask.AGENT, "node": "worker-1"}


def blocks(count: int) -> list[str]:
    return [f"10.0.{number}.0/24" for number in range(count)]


def node(*cidrs: str) -> Json:
    return {"metadata": {"name": "worker-1"}, "spec": {"ipam": ipam("multi-pool", pools={"blue": list(cidrs)})}}


def binary(*keys: str) -> Json:
    return config(ipam="cluster-pool") | {"binaryData": dict.fromkeys(keys, "")}


def spelled(count: int) -> list[str]:
    """So many ways to write one key."""
    ways = product(*((each, each.upper()) for each in "cluster"))
    return ["".join(way) + "-pool-ipv4-cidr" for way in islice(ways, count)]


@pytest.fixture
def live() -> ClusterState:
    live = ask.with_record(ask.fresh(), ciliumMode="cluster-pool")
    ask.with_pool(live, ip_pool("blue", "10.0.0.0/16"))
    for number, cidr in enumerate(blocks(40)):
        ask.with_cilium_node(live, f"worker-{number}", {"pools": {"allocated": [{"pool": "blue", "cidrs": [cidr]}]}})
        ask.with_node(live, f"other-{number}", ipam("multi-pool", pools={"blue": [cidr]}))
    return live


@pytest.mark.parametrize("causes", [MOST, MOST + 9])
@pytest.mark.parametrize(
    "what", ["Cilium's pool", "pool", "pool that overlaps others", "Cilium's list", "Cilium's binary data", "node"]
)
def test_the_first_are_told_and_that_there_are_more(live: ClusterState, what: str, causes: int) -> None:
    cidrs = blocks(causes)
    changes: dict[str, tuple[Resource[ask.Any], Json, Json, Json]] = {
        "Cilium's pool": (CILIUM_POOLS, ip_pool("blue", *cidrs), ip_pool("blue", "10.9.0.0/16"), {}),
        "pool": (POOLS, ip_pool("blue", *cidrs), ip_pool("blue", "10.9.0.0/16"), {}),
        "pool that overlaps others": (POOLS, ip_pool("red", "10.8.0.0/16"), ip_pool("red", "10.8.0.0/16", *cidrs), {}),
        "Cilium's list": (
            CONFIG_MAPS,
            config(ipam="cluster-pool", cluster_pool_ipv4_cidr=" ".join(cidrs)),
            config(ipam="cluster-pool", cluster_pool_ipv4_cidr="10.9.0.0/16"),
            {},
        ),
        "Cilium's binary data": (CONFIG_MAPS, binary(), binary(*spelled(causes)), {}),
        "node": (NETLOOM_NODES, node(), node(*cidrs), BY_AGENT),
    }
    resource, old, new, by = changes[what]
    told = refused(live, resource, old, new, **by)
    assert len(set(told)) == min(causes, MOST + 1)
    more = "there is more of the kind. Mend what is named first."
    assert [more in each for each in told] == [False] * MOST + [True] * (causes > MOST)
