"""Pools and pods are followed in the mode that needs them, and in no other; and what is kept of a pod is short."""

import asyncio
from typing import Any

import msgspec
import pytest

from netloom.api.core import Pod
from netloom.api.v1alpha1 import NETWORKS, POOLS, NetloomNetwork
from netloom.runtime.store import Store
from netloom_reconcilers.node.pools import following
from netloom_reconcilers.node.pools.following import Following, trimmed


class Watch:
    """Counts those that run."""

    running: int = 0
    chosen: list[dict[str, Any]] = []  # noqa: RUF012 - one for all of them

    def __init__(self, _api: object, store: Store[Any], **how: Any) -> None:
        self.fault = ""
        Watch.chosen.append({"kind": store.resource.kind} | {k: v for k, v in how.items() if k == "field_selector"})

    async def run(self) -> None:
        Watch.running += 1
        try:
            await asyncio.Event().wait()
        finally:
            Watch.running -= 1


def network(mode: str, version: int) -> NetloomNetwork:
    content = {"metadata": {"name": "default", "resourceVersion": str(version)}, "spec": {"ipam": {"mode": mode}}}
    return msgspec.convert(content, NetloomNetwork)


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_watches_run_in_mode_multi_pool_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "ListWatch", Watch)
    Watch.running, Watch.chosen = 0, []
    networks: Store[NetloomNetwork] = Store(NETWORKS)
    made = Following("a", None, networks, Store(POOLS))  # type: ignore[arg-type]
    assert Watch.chosen == [{"kind": "NetloomIPPool"}, {"kind": "Pod", "field_selector": "spec.nodeName=a"}]
    task = asyncio.create_task(made.run())
    seen = []
    for version, mode in enumerate(("", "cluster-pool", "multi-pool", "kubernetes", "multi-pool"), 1):
        if mode:
            networks.put(network(mode, version))
        await turns()
        seen.append((mode, Watch.running))
    assert seen == [("", 0), ("cluster-pool", 0), ("multi-pool", 2), ("kubernetes", 0), ("multi-pool", 2)]
    made.pools.synced.set()
    networks.remove("default")
    await turns()
    assert Watch.running == 2, "a network that vanishes is a mistake, and stops nothing"
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert Watch.running == 0


def test_of_a_pod_little_is_kept() -> None:
    content = {
        "metadata": {
            "name": "web",
            "namespace": "shop",
            "uid": "u",
            "resourceVersion": "7",
            "labels": {"app": "web"},
            "annotations": {
                "netloom.dev/ip-pool": "blue",
                "kubectl.kubernetes.io/last-applied-configuration": "x" * 999,
            },
            "ownerReferences": [{"kind": "ReplicaSet", "name": "r", "uid": "v", "apiVersion": "apps/v1"}],
        },
        "spec": {"nodeName": "a"},
        "status": {"phase": "Running", "podIPs": [{"ip": "10.2.0.1"}]},
    }
    pod = trimmed(msgspec.convert(content, Pod))
    assert pod.metadata.annotations == {"netloom.dev/ip-pool": "blue"}
    assert len(msgspec.json.encode(pod)) < 250
    assert (pod.metadata.labels, pod.metadata.uid, pod.status.pod_ips[0].ip) == ({"app": "web"}, "u", "10.2.0.1")
