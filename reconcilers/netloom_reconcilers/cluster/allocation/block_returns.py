"""What a node gives back: blocks that ledgers have for it, and that it does not hold, are freed once nothing stands
against it (docs/allocation.md)."""

import asyncio
from collections.abc import Collection

from netloom.api.v1alpha1 import NetloomNode
from netloom.cidr import Cidr
from netloom.ipam.plan import Release
from netloom_reconcilers.cluster.allocation import node_objects
from netloom_reconcilers.cluster.allocation.commit_queue import CommitQueue
from netloom_reconcilers.cluster.allocation.incarnation import Incarnation, Member
from netloom_reconcilers.cluster.allocation.node_writes import NodeWrites
from netloom_reconcilers.cluster.allocation.waiting import LAG_SECONDS, RECHECK_SECONDS

GIVEN_BACK_SECONDS = 2.0
"""When to look whether what a node gave back was freed: more than freed blocks wait for company."""


class BlockReturns(Member):
    """Asks the API server whether a node is really gone, or without the block, before a release is asked for."""

    def __init__(self, incarnation: Incarnation, commits: CommitQueue, writes: NodeWrites) -> None:
        super().__init__(incarnation)
        self._commits = commits
        self._writes = writes

    def spare(self, name: str, obj: NetloomNode | None) -> list[Cidr]:
        """What ledgers have for the node, and the object does not hold."""
        held = node_objects.held(obj) if obj is not None else ()
        return [cidr for cidr in self._allocator.assignments.entered(name) if cidr not in held]

    async def release(self, name: str, cidrs: Collection[Cidr], *, gone: bool) -> float | None:
        """Frees blocks of a node that does not hold them; `gone`: only if there is no such Node. When to look again."""
        releases = await self._to_free(name, cidrs, gone)
        if not isinstance(releases, list):
            return releases
        freed = await asyncio.gather(*map(self._commits.release, releases))
        return None if all(freed) else LAG_SECONDS

    async def give_back(self, name: str, cidrs: Collection[Cidr]) -> float | None:
        """The same of a node that is there, and may ask for more at any moment: nobody waits for it, it is looked at
        again, and what it asks for until then comes first."""
        releases = await self._to_free(name, cidrs, gone=False)
        if not isinstance(releases, list):
            return releases
        for each in releases:
            self._commits.release(each)
        return GIVEN_BACK_SECONDS

    async def _to_free(self, name: str, cidrs: Collection[Cidr], gone: bool) -> list[Release] | float | None:
        """What can be freed now, or when to look again."""
        if not cidrs:
            return None
        known = [(cidr, self._allocator.ledgers.of(cidr)) for cidr in cidrs]
        wait = max(self._allocator.marks.wait(ledger, name, cidr, self._clock()) for cidr, ledger in known)
        if wait > 0:
            return min(wait, RECHECK_SECONDS)
        # The ledger must be read before the node: what is free in it from then on stays so (see `Allocator`).
        releases = [Release(name, cidr, ledger.foreign_changes) for cidr, ledger in known]
        if gone and await self._writes.live(self._nodes, name) is not None:
            return LAG_SECONDS
        obj = await self._writes.live(self._netloom_nodes, name)
        if obj is not None and any(cidr.overlaps(other) for cidr in cidrs for other in node_objects.held(obj)):
            return LAG_SECONDS
        return releases
