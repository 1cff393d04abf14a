"""Interfaces whose device is gone and cannot be made again: mostly the pod ended, and its runtime never said so (its
state was lost, or it was killed in the wrong moment), while an agent ran or while none did.

The kernel alone is no proof, as somebody may have deleted a device. So the API server is asked about the pod, and only
where that does not run here any more, its addresses go back. A runtime's DEL that comes after all finds nothing left.
"""

import asyncio
import time
from collections.abc import Callable, Collection

import structlog

from netloom.api.core import PODS, Pod, has_uid
from netloom.cidr import format_address
from netloom.kernel.endpoints.endpoint import Endpoint, WiringFailed
from netloom.runtime.client import Api
from netloom.runtime.errors import ApiError, NotFound
from netloom_reconcilers.node.addresses.service import NoAddress
from netloom_reconcilers.node.endpoints.attachments import Attachments
from netloom_reconcilers.node.endpoints.config import PodOf

log = structlog.get_logger(__name__)

LOOK_SECONDS = 30.0
PATIENCE_SECONDS = 60.0
"""For which a device has to be missing: runtimes delete within seconds, and repeat what failed within a minute."""

FIRST = "eth0"
"""As runtimes name the interface whose addresses they show as the pod's."""


class Vanished:
    """Gives back what such pods had. missing: the endpoints whose devices are gone and cannot be made again. told: is
    called once with each of which the pod still runs: it has no network any more."""

    def __init__(
        self,
        api: Api,
        node: str,
        attachments: Attachments,
        missing: Callable[[], Collection[Endpoint]],
        clock: Callable[[], float] = time.monotonic,
        told: Callable[[Pod, Endpoint], None] = lambda pod, endpoint: None,
    ) -> None:
        self.given_back = 0
        self._told_of: set[str] = set()
        self._told = told
        self._api = api
        self._node = node
        self._attachments = attachments
        self._missing = missing
        self._clock = clock
        self._since: dict[str, float] = {}

    async def run(self) -> None:
        """For ever."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await self.look()

    async def look(self) -> None:
        """Ask about those that have been missing for long enough."""
        now, missing = self._clock(), {each.device: each for each in self._missing()}
        self._since = {device: self._since.get(device, now) for device in missing}
        self._told_of &= missing.keys()
        for device in [device for device, at in self._since.items() if at + PATIENCE_SECONDS <= now]:
            endpoint = missing[device]
            if await self._is_over(endpoint) and endpoint in self._missing():  # still, after the API server's answer
                await self._give_back(endpoint)

    async def _is_over(self, endpoint: Endpoint) -> bool:
        """Whether its pod does not run here any more; False where that is not known."""
        namespace, slash, name = endpoint.pod.partition("/")
        if not slash:
            return False
        try:
            pod = await self._api.get(PODS, name, namespace)
        except NotFound:
            return True
        except ApiError as error:
            log.info("whether a pod still runs cannot be asked", pod=endpoint.pod, error=str(error))
            return False
        uid = self._attachments.uid_of((endpoint.container, endpoint.interface))
        is_another = pod.spec.node_name != self._node or not has_uid(pod, uid)
        is_over = is_another or pod.is_over or _moved(pod, endpoint)
        if not is_over and pod.status.phase == "Running" and endpoint.device not in self._told_of:
            self._told_of.add(endpoint.device)
            self._told(pod, endpoint)
        return is_over

    async def _give_back(self, endpoint: Endpoint) -> None:
        try:
            await self._attachments.remove((endpoint.container, endpoint.interface), PodOf())
        except (NoAddress, WiringFailed) as error:
            log.info("what a pod that is gone had cannot be given back yet", pod=endpoint.pod, why=str(error))
            return
        self.given_back += 1
        addresses = [format_address(each) for each in endpoint.addresses]
        log.info("a pod is gone without a word of its runtime", pod=endpoint.pod, addresses=addresses)


def _moved(pod: Pod, endpoint: Endpoint) -> bool:
    """Whether a pod of that name runs by other addresses: a successor, or the same one in another sandbox. Those that
    the API server shows are of its first interface alone."""
    shown = {each.ip for each in pod.status.pod_ips}
    is_first = endpoint.interface == FIRST
    return is_first and bool(shown) and shown.isdisjoint(map(format_address, endpoint.addresses))
