"""Cancellation that nobody asked for.

A CancelledError that a library lets out by mistake ends a task without a word: a TaskGroup takes it for a normal way
out, and a worker or a component is missing from then on.
"""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


async def only_if_asked(work: Awaitable[T]) -> T:
    """What `work` returns or raises, but its own CancelledError as a RuntimeError unless this task is cancelled."""
    try:
        return await work
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise RuntimeError("it cancelled itself") from error
