"""The keepers of an agent's features, and when they are open."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import structlog

from netloom.kernel.keeper.keeper import Keeper
from netloom.kernel.keeper.nftables_keeper import unheard_by_each_other
from netloom_reconcilers.features.node import NodeFeature

log = structlog.get_logger(__name__)

CLOSE_SECONDS = 5.0
"""For what the kernel does when the process is about to end. With the manager's grace before it, below the 30 s after
which Kubernetes kills; the threads do not hold up a process's end."""


def keepers(features: Sequence[NodeFeature]) -> list[Keeper[Any, Any]]:
    """Of those that own something in the kernel, or follow something there."""
    return [each for feature in features for each in (feature.keeper, *feature.further) if each is not None]


@asynccontextmanager
async def opened(features: Sequence[NodeFeature]) -> AsyncIterator[None]:
    """Their keepers are open meanwhile. Raises UserError where the kernel has not what they need."""
    closing: list[Keeper[Any, Any]] = []
    try:
        for keeper in keepers(features):
            await keeper.open()
            closing.append(keeper)
        unheard_by_each_other(closing)
        yield
    finally:
        await _close(closing)


async def _close(closing: Sequence[Keeper[Any, Any]]) -> None:
    """All at once. Those for which the kernel still works after CLOSE_SECONDS, or for ever, are left as they are."""
    tasks = [asyncio.create_task(keeper.close(), name=type(keeper).__name__) for keeper in closing]
    if not tasks:
        return
    done, hanging = await asyncio.wait(tasks, timeout=CLOSE_SECONDS)
    if hanging:
        names = sorted(task.get_name() for task in hanging)
        log.error("the kernel does not answer, ending without it", keepers=names, waited=CLOSE_SECONDS)
        for task in hanging:
            task.cancel()
        await asyncio.wait(hanging)
    for task in done:
        task.result()
