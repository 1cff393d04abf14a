"""The keepers of an agent's features, and when they are open."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from netloom.kernel.keeper.keeper import Keeper
from netloom.kernel.keeper.nftables_keeper import unheard_by_each_other
from netloom_reconcilers.features.node import NodeFeature


def keepers(features: Sequence[NodeFeature]) -> list[Keeper[Any, Any]]:
    """Of those that own something in the kernel, or follow something there."""
    return [each for feature in features for each in (feature.keeper, *feature.further) if each is not None]


@asynccontextmanager
async def opened(features: Sequence[NodeFeature]) -> AsyncIterator[None]:
    """Their keepers are open meanwhile. Raises UserError where the kernel has not what they need."""
    async with AsyncExitStack() as stack:
        for keeper in keepers(features):
            await keeper.open()
            stack.push_async_callback(keeper.close)
        unheard_by_each_other(keepers(features))
        yield
