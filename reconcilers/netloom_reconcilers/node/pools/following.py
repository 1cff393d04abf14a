"""What an agent follows of a cluster in IPAM mode multi-pool alone: the pools, and the pods of its own node.

In all other modes neither is asked for, so agents there cost the API server nothing more. Which mode it is, only the
network says, so the watches are begun and ended as it does. Pods are watched by the node that they run on, for which
the API server has an index (every kubelet does the same): 5,000 agents are sent each pod once among them all.
"""

import asyncio
from typing import Any

from netloom.api.core import PODS, STATIC, Pod, PodSpec, PodStatus
from netloom.api.ipam_modes import mode_of
from netloom.api.meta import ObjectMeta
from netloom.api.pool_choice import READ_ANNOTATIONS
from netloom.api.v1alpha1 import NETWORK_NAME, NetloomIPPool, NetloomNetwork
from netloom.runtime.client import Api
from netloom.runtime.store import Store
from netloom.runtime.watch import EVERY_NODE, ListWatch
from netloom_reconcilers.features import spec_changed


def trimmed(pod: Pod) -> Pod:
    """What is read of a pod here. Annotations may be anybody's, and long."""
    meta = pod.metadata
    kept = ObjectMeta(
        name=meta.name,
        namespace=meta.namespace,
        uid=meta.uid,
        resource_version=meta.resource_version,
        creation_timestamp=meta.creation_timestamp,
        deletion_timestamp=meta.deletion_timestamp,
        labels=meta.labels,
        annotations={key: text for key, text in meta.annotations.items() if key in (*READ_ANNOTATIONS, *STATIC)},
    )
    spec = PodSpec(host_network=pod.spec.host_network, node_name=pod.spec.node_name)
    return Pod(metadata=kept, spec=spec, status=PodStatus(phase=pod.status.phase, pod_ips=pod.status.pod_ips))


class Following:
    """Two caches, kept while the network says so. `is_on`: they are meant to be."""

    def __init__(self, node_name: str, api: Api, networks: Store[NetloomNetwork], pools: Store[NetloomIPPool]) -> None:
        self.pools = pools
        self.pods: Store[Pod] = Store(PODS)
        self._networks = networks
        watched = f"spec.nodeName={node_name}"
        self._watches: tuple[ListWatch[Any], ...] = (
            ListWatch(api, self.pools, changed=spec_changed, timing=EVERY_NODE),
            ListWatch(api, self.pods, field_selector=watched, trim=trimmed, timing=EVERY_NODE),
        )
        self._turned = asyncio.Event()
        networks.subscribe(lambda key, old, new: self._turned.set())

    @property
    def is_on(self) -> bool:
        """Whether nodes draw on pools. Without a network, as it was: it may have vanished by mistake."""
        network = self._networks.get(NETWORK_NAME)
        return mode_of(network).from_pools if network is not None else self.pools.synced.is_set()

    @property
    def fault(self) -> str:
        """Why a cache may not be what the API server holds; "" if it is, or is not needed."""
        return next((watch.fault for watch in self._watches if watch.fault), "") if self.is_on else ""

    @property
    def pods_fault(self) -> str:
        """The same of pods."""
        return self._watches[1].fault

    async def run(self) -> None:
        """Follows for ever, in the modes that need it."""
        while True:
            await self._turn(on=True)
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(watch.run()) for watch in self._watches]
                await self._turn(on=False)
                for task in tasks:
                    task.cancel()

    async def _turn(self, *, on: bool) -> None:
        """Returns when it is so."""
        while self.is_on is not on:
            self._turned.clear()
            await self._turned.wait()
