"""Pods of this node that another CNI wired: whose addresses no interface of ours has.

They are from before Netloom came, or the container runtime reads its configurations elsewhere (k3s, MicroK8s), or more
of them than one. It never says so: the agent's files are where they are to be, nobody asks it anything, and all looks
well. So the API server is asked who runs here: seldom, as long as there are none.
"""

import asyncio
import random
from collections.abc import Callable, Collection
from pathlib import Path

import structlog

from netloom.api.core import PODS, Pod
from netloom.api.words import some
from netloom.cidr import Address
from netloom.runtime.client import Api
from netloom.runtime.errors import ApiError
from netloom_reconcilers.node.addresses.running import addresses_of
from netloom_reconcilers.node.endpoints.options import on_host

log = structlog.get_logger(__name__)

LOOK_SECONDS = 30.0
"""Between two looks while there are some, or may be. One that is seen once may be a pod that goes."""
REST_SECONDS = 1800.0
"""As long as there are none: a list of a node's pods for each node, at times that differ."""


class ForeignPods:
    """ours: addresses that interfaces of ours have; None while that is not known. conf_dir: where the agent puts its
    configuration. changed: is called when what is found is different."""

    def __init__(
        self,
        api: Api,
        node: str,
        ours: Callable[[], Collection[Address] | None],
        conf_dir: Path,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self.found: tuple[str, ...] = ()
        """Names of those that were seen twice."""
        self._api = api
        self._node = node
        self._ours = ours
        self._conf_dir = conf_dir
        self._changed = changed
        self._suspects: frozenset[str] = frozenset()

    async def run(self) -> None:
        """For ever."""
        while True:
            is_clear = await self.look()
            await asyncio.sleep(REST_SECONDS * random.uniform(0.5, 1.0) if is_clear else LOOK_SECONDS)

    async def look(self) -> bool:
        """Ask who runs here. Returns whether all of them are known to be ours."""
        ours = self._ours()
        if ours is None:
            return False
        try:
            pods = await self._api.list(PODS, field_selector=f"spec.nodeName={self._node}")
        except ApiError as error:
            log.info("who wired the pods of this node cannot be asked", error=str(error))
            return False
        ours = self._ours() or ours  # of those that came meanwhile
        suspects = {pod.metadata.uid: pod for pod in pods.objects if _is_strange(pod, ours)}
        found = tuple(sorted(pod.name for uid, pod in suspects.items() if uid in self._suspects))
        self._suspects = frozenset(suspects)
        if found != self.found:
            self.found = found
            self._changed()
        return not suspects

    @property
    def sentence(self) -> str:
        """Who they are, and the way out; "" where there are none."""
        if not self.found:
            return ""
        return (
            f"Another CNI wired pods of node {self._node}: {some(self.found)}. If they are from "
            "before Netloom came, delete them: their successors are wired by Netloom. If pods that come are so, too, "
            f"the container runtime does not go by {on_host(self._conf_dir)} alone: remove the other CNI, and set "
            "cni.confPath and cni.binPath of the chart to the directories that the runtime reads."
        )


def _is_strange(pod: Pod, ours: Collection[Address]) -> bool:
    """Whether it runs by addresses of its own, and by none of ours."""
    shown = addresses_of([pod])
    is_staying = pod.status.phase == "Running" and not pod.metadata.deletion_timestamp
    return is_staying and bool(shown) and not any(address in ours for address in shown)
