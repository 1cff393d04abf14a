"""What is read to choose a pod's pool: the pod from the cache, its namespace when it is needed, and both only then."""

import asyncio
from typing import Any

import msgspec
import pytest

from netloom.api.core import PODS, Namespace, Pod
from netloom.api.problem import Problem
from netloom.api.v1alpha1 import NETWORKS, POOLS
from netloom.ipam.node_allocator import Owner
from netloom.runtime.errors import NotFound, Unavailable
from netloom.runtime.store import Store
from netloom_reconcilers.node.pools import choosing
from netloom_reconcilers.node.pools.choosing import NAMESPACE_SECONDS, PoolChooser
from tests.pool_world import network, pool

OWN = "netloom.dev/ip-pool"


def pod(
    name: str = "web", node: str = "a", version: str = "1", gone: bool = False, uid: str = "", **annotations: str
) -> Pod:
    meta: dict[str, Any] = {"namespace": "shop", "name": name, "resourceVersion": version, "annotations": annotations}
    meta["uid"] = uid
    if gone:
        meta["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    return msgspec.convert({"metadata": meta, "spec": {"nodeName": node}}, Pod)


class Server:
    """Answers reads, and counts them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(choosing, "POD_SECONDS", 0.01)
        self.asked: list[str] = []
        self.pods: dict[str, Pod] = {}
        self.annotations: dict[str, str] = {}
        self.away = False
        self.now = 0.0
        self.fault = ""
        self.cache: Store[Pod] = Store(PODS)
        networks, pools = Store(NETWORKS), Store(POOLS)
        networks.replace({"default": network()})
        pools.replace({each: pool(each, number) for number, each in enumerate(("default", "blue"), 1)})
        self.chooser = PoolChooser(
            "a",
            self,
            networks,
            pools,
            self.cache,
            lambda: self.fault,
            lambda: self.now,  # type: ignore[arg-type]
        )

    async def get(self, resource: Any, name: str, namespace: str = "") -> Any:
        self.asked.append(f"{resource.plural} {name}")
        await asyncio.sleep(0)
        if self.away:
            raise Unavailable(0, "", "no answer")
        if resource is PODS:
            if name not in self.pods:
                raise NotFound(404, "NotFound", "no such pod")
            return self.pods[name]
        return msgspec.convert({"metadata": {"name": name, "annotations": self.annotations}}, Namespace)

    async def pool(self, name: str = "shop/web", asked: str = "", uid: str = "") -> str:
        found = await self.chooser.pool_of(Owner(name), asked, uid)
        return found.reason if isinstance(found, Problem) else ",".join(found.pools)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    return Server(monkeypatch)


async def test_a_pod_that_names_its_pool_costs_no_request(server: Server) -> None:
    server.cache.put(pod(**{OWN: "blue"}))
    assert (await server.pool(), server.asked) == ("blue", [])


async def test_the_namespace_is_asked_for_once_for_pods_that_come_together_and_anew_for_the_next(
    server: Server,
) -> None:
    for number in range(5):
        server.cache.put(pod(f"web-{number}"))
    every = [server.pool(f"shop/web-{number}") for number in range(5)]
    assert (await asyncio.gather(*every), server.asked) == (["default"] * 5, ["namespaces shop"])
    server.annotations = {OWN: "blue"}
    server.now += NAMESPACE_SECONDS
    assert (await server.pool("shop/web-1"), len(server.asked)) == ("blue", 2)


async def test_while_the_server_is_away_the_last_known_counts_and_without_one_nothing_is_guessed(
    server: Server,
) -> None:
    server.cache.put(pod())
    server.away = True
    assert await server.pool() == "Unread"
    server.away, server.annotations = False, {OWN: "blue"}
    assert await server.pool() == "blue"
    server.away, server.now = True, 300.0
    assert await server.pool() == "blue"
    server.now = 3000.0
    assert await server.pool() == "Unread"


async def test_a_pod_that_the_cache_does_not_have_yet_is_waited_for_and_then_asked_for(server: Server) -> None:
    server.pods["web"] = pod(**{OWN: "blue"})
    assert (await server.pool(), server.asked) == ("blue", ["pods web"])
    waiting = asyncio.create_task(server.pool("shop/late"))
    await asyncio.sleep(0)
    server.cache.put(pod("late", **{OWN: "blue"}))
    assert (await waiting, server.asked) == ("blue", ["pods web"])


async def test_one_that_ends_is_not_the_one_of_its_name_that_asks(server: Server) -> None:
    server.cache.put(pod(gone=True, **{OWN: "blue"}))
    server.pods["web"] = pod(version="2", **{OWN: "default"})
    assert await server.pool() == "default"


async def test_a_cache_that_may_be_old_is_not_relied_on(server: Server) -> None:
    server.cache.put(pod(**{OWN: "blue"}))
    server.pods["web"] = pod(version="2", **{OWN: "default"})
    server.fault = "the watch was cut"
    assert await server.pool() == "default"


async def test_pods_of_nobody_and_of_other_nodes_get_nothing_here(server: Server) -> None:
    server.pods["web"] = pod(node="b")
    assert await server.pool() == "PodElsewhere"
    assert await server.pool("shop/nobody") == "PodMissing"


async def test_who_names_a_pool_itself_needs_be_no_pod(server: Server) -> None:
    assert await server.pool("shop/nobody", "blue") == "blue"
    assert await server.pool("router") == "default"
    assert await server.pool("router", "red") == "PoolMissing"
    assert server.asked == []


async def test_an_add_for_a_pod_that_has_a_successor_gets_nothing_by_that_ones_annotations(server: Server) -> None:
    server.cache.put(pod(uid="u2", **{OWN: "blue"}))
    server.pods["web"] = pod(uid="u2", version="2", **{OWN: "blue"})
    assert await server.pool(uid="u1") == "PodReplaced"
    assert (await server.pool(uid="u2"), server.asked) == ("blue", ["pods web"])
    server.cache.put(pod(uid="of-the-mirror", version="3", **{OWN: "blue", "kubernetes.io/config.hash": "u3"}))
    assert (await server.pool(uid="u3"), server.asked) == ("blue", ["pods web"]), "a static pod"


async def test_a_pod_that_the_cache_has_yet_to_hear_of_is_not_taken_for_the_one_before(server: Server) -> None:
    server.cache.put(pod(uid="u1", **{OWN: "default"}))
    waiting = asyncio.create_task(server.pool(uid="u2"))
    await asyncio.sleep(0)
    server.cache.put(pod(uid="u2", version="2", **{OWN: "blue"}))
    assert (await waiting, server.asked) == ("blue", [])
