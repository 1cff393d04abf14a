"""Which pool a pod of this node is to get its addresses of: reads what `netloom.api.pool_choice` decides by.

The pod is in the cache, as its kubelet heard of it the same way; one that is not yet there is waited for, and then
asked for. Its **namespace is asked for when it is needed** (the pod does not name all its pools itself), once for all
pods that come within a second. A watch of all namespaces on every node would be 5,000 lists of them at a start, 5,000
events for each of their changes, and still lag behind an annotation that was made just before the pod, which would put
it in another pool for its whole life. What is asked for costs one small read per pod, of the dozen requests that a new
pod costs the API server anyway, and is as new as the pod.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from netloom.api.core import NAMESPACES, PODS, Namespace, Pod, has_uid
from netloom.api.pool_choice import PoolChoice, choose, named, names_all
from netloom.api.problem import Problem
from netloom.api.v1alpha1 import NETWORK_NAME, NetloomIPPool, NetloomNetwork
from netloom.ipam.node_allocator import Owner
from netloom.runtime.client import Api
from netloom.runtime.errors import ApiError, NotFound
from netloom.runtime.store import Store
from netloom_reconcilers.node.addresses.service import REPLACED, UNREAD

POD_SECONDS = 1.0
"""For how long a pod that the cache does not have is waited for."""
NAMESPACE_SECONDS = 1.0
"""For how long what a namespace said counts: for pods that come together."""
LAST_KNOWN_SECONDS = 600.0
"""For how long it counts while the API server does not answer."""
SYNC_SECONDS = 10.0
MOST_NAMESPACES = 256


@dataclass(eq=False, repr=False)
class PoolChooser:
    """See the module. pods_fault: why the cache of pods may be old, "" if it is not."""

    node_name: str
    api: Api
    networks: Store[NetloomNetwork]
    pools: Store[NetloomIPPool]
    pods: Store[Pod]
    pods_fault: Callable[[], str] = lambda: ""
    clock: Callable[[], float] = time.monotonic
    _namespaces: dict[str, tuple[float, Namespace]] = field(default_factory=dict)
    _reading: dict[str, "asyncio.Task[Namespace]"] = field(default_factory=dict)

    async def pool_of(self, owner: Owner, pool: str = "", uid: str = "") -> PoolChoice | Problem:
        """The pools for an owner; pool: that it asks for itself, in place of all rules. uid: of the pod, "" where that
        is not known."""
        try:
            await self.pools.wait_synced(SYNC_SECONDS)
            await self.networks.wait_synced(SYNC_SECONDS)
        except TimeoutError:
            return _unread(owner.name, "the NetloomIPPools", "they are not read yet")
        network = self.networks.get(NETWORK_NAME)
        if network is None:
            return _unread(owner.name, f"NetloomNetwork {NETWORK_NAME}", "there is none")
        known = dict(self.pools.items())
        rules = network.spec.ipam.multi_pool
        if pool or "/" not in owner.name:
            return named(owner.name, pool, known, rules)
        pod = await self.pod(owner.name, uid)
        if isinstance(pod, Problem):
            return pod
        namespace = None
        if not names_all(pod.metadata):
            try:
                namespace = await self._namespace(pod.metadata.namespace)
            except ApiError as error:
                return _unread(f"Pod {owner.name}", f"Namespace {pod.metadata.namespace}", str(error))
        return choose(pod, namespace, known, rules)

    async def pod(self, name: str, uid: str = "") -> Pod | Problem:
        """A pod of this node, as `namespace/name`; with this uid, if one is named: what a successor's annotations say
        is nothing that a pod before it is to get."""
        if not all(name.partition("/")):
            message = "that is no name of a pod, and nothing else has a pool by rules."
            return Problem(f"Pod {name}", "metadata.name", "", "PodMissing", message, "Write NAMESPACE/POD.")
        pod = await self._cached(name, uid)
        if pod is None:
            namespace, _, plain = name.partition("/")
            try:
                pod = await self.api.get(PODS, plain, namespace)
            except NotFound:
                way_out = "Where it is none that asks, name a pool (`netloom ip allocate --pool`)."
                return Problem(f"Pod {name}", "metadata.name", "", "PodMissing", "there is no such pod.", way_out)
            except ApiError as error:
                return _unread(f"Pod {name}", "the pod", str(error))
        elsewhere = pod.spec.node_name
        if elsewhere and elsewhere != self.node_name:
            message = f"the pod runs on node {elsewhere}, and {self.node_name} was asked for its address."
            way_out = "Ask that node's agent."
            return Problem(f"Pod {name}", "spec.nodeName", elsewhere, "PodElsewhere", message, way_out)
        if not has_uid(pod, uid):
            message = f"its uid is {pod.metadata.uid}, and an address for a pod with uid {uid} was asked for."
            way_out = "That one is over, and its runtime will ask no more."
            return Problem(f"Pod {name}", "metadata.uid", pod.metadata.uid, REPLACED, message, way_out)
        return pod

    async def _cached(self, name: str, uid: str) -> Pod | None:
        """One that is about to end, or has another uid, is not who asks: another of its name has come, of which the
        cache is to hear."""
        if self.pods_fault():
            return None
        held = self.pods.get(name)
        if held is not None and not held.metadata.deletion_timestamp and has_uid(held, uid):
            return held
        came: asyncio.Future[Pod] = asyncio.get_running_loop().create_future()

        def look(key: str, _old: Pod | None, new: Pod | None) -> None:
            if key != name or new is None or came.done():
                return
            if not new.metadata.deletion_timestamp and has_uid(new, uid):
                came.set_result(new)

        unsubscribe = self.pods.subscribe(look)
        try:
            async with asyncio.timeout(POD_SECONDS):
                return await came
        except TimeoutError:
            return None
        finally:
            unsubscribe()

    async def _namespace(self, name: str) -> Namespace:
        """Raises ApiError."""
        at, known = self._namespaces.get(name, (0.0, None))
        if known is not None and self.clock() < at + NAMESPACE_SECONDS:
            return known
        task = self._reading.get(name)
        if task is None:
            task = self._reading[name] = asyncio.create_task(self.api.get(NAMESPACES, name))
            task.add_done_callback(lambda _task: self._reading.pop(name, None))
        try:
            found = await asyncio.shield(task)
        except NotFound:
            raise
        except ApiError:
            if known is not None and self.clock() < at + LAST_KNOWN_SECONDS:
                return known
            raise
        self._namespaces.pop(name, None)
        self._namespaces[name] = self.clock(), found
        if len(self._namespaces) > MOST_NAMESPACES:
            del self._namespaces[next(iter(self._namespaces))]
        return found


def _unread(about: str, what: str, why: str) -> Problem:
    message = f"{what} cannot be read, so it is not known from which pool to give: {why}."
    return Problem(about, "", "", UNREAD, message, "It is tried again; see the agent's log.")
