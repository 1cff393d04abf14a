"""Folders that are followed: by what the kernel tells of them, and now and then without that."""

import asyncio
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path

from asyncinotify import Inotify, Mask

from netloom.runtime.waking import wait

_ITSELF = Mask.DELETE_SELF | Mask.MOVE_SELF
_ELSEWHERE = _ITSELF | Mask.IGNORED
"""What is watched is no more what has its name."""


async def follow(
    folders: Collection[Path],
    events: Mask,
    wake: asyncio.Event,
    look: Callable[[], Awaitable[float]],
    settle: float = 0.0,
) -> None:
    """Look, and again `settle` seconds after each of these events and each time that `wake` is set, or once as many
    seconds are over as the look said. Returns when they are no more the same folders. Raises OSError."""
    try:
        with Inotify() as inotify:
            for folder in folders:
                inotify.add_watch(folder, events | _ITSELF | Mask.ONLYDIR)
            async with asyncio.TaskGroup() as group:
                pump = group.create_task(_pump(inotify, wake))
                while not pump.done() and all(folder.is_dir() for folder in folders):
                    wake.clear()
                    seconds = await look()
                    await wait(wake, seconds)
                    await asyncio.sleep(settle)
                pump.cancel()
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from errors


async def _pump(inotify: Inotify, wake: asyncio.Event) -> None:
    """By a task of its own, as a cancelled read loses events."""
    async for event in inotify:
        wake.set()
        if event.mask & _ELSEWHERE:
            return
