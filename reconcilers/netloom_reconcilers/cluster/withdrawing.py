"""Takes back what earlier operators said by features that this one has no more: nobody keeps it up to date, and that
all is well would be believed for ever."""

import asyncio
from collections.abc import Iterable

import structlog

from netloom.api.core import ManagedMeta
from netloom.api.meta import Resource, Struct
from netloom.runtime.client import Api
from netloom.runtime.errors import ApiError, NotFound
from netloom_reconcilers.conditions import withdraw
from netloom_reconcilers.features.cluster import ClusterFeature

log = structlog.get_logger(__name__)

AGAIN_SECONDS = 30.0


class Said(Struct, frozen=True):
    """Any object, of which only who wrote what is wanted."""

    metadata: ManagedMeta = ManagedMeta()


class ClusterWithdrawing:
    """features: those that are off."""

    def __init__(self, api: Api, features: Iterable[type[ClusterFeature]]) -> None:
        self._api = api
        self._told = [told for each in features for told in each.told]

    async def run(self) -> None:
        """Once in a term: only a leader says such things. Returns when all is taken back."""
        while True:
            try:
                for kind, managers in self._told:
                    await self._take_back(kind.read_as(Said), managers)
                return
            except ApiError as error:
                log.warning("words of features that are off are not taken back yet", error=str(error))
            await asyncio.sleep(AGAIN_SECONDS)

    async def _take_back(self, kind: Resource[Said], managers: Iterable[str]) -> None:
        try:
            found = await self._api.list(kind)
        except NotFound:
            return  # there is no such kind, and nothing said of its objects
        for obj in found.objects:
            applied = {each.manager for each in obj.metadata.managed_fields if each.operation == "Apply"}
            for manager in applied.intersection(managers):
                await withdraw(self._api, kind, obj, manager)
