"""Cancellation that nobody asked for, and what a task that is cancelled still has to do.

A CancelledError that a library lets out by mistake ends a task without a word: a TaskGroup takes it for a normal way
out, and a worker or a component is missing from then on.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
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


@asynccontextmanager
async def last_words(seconds: float) -> AsyncIterator[None]:
    """What `asyncio.timeout` is, also for a task that is being cancelled. Raises TimeoutError.

    Before Python 3.11.3 (Debian 12 has 3.11.2) `asyncio.timeout` raises CancelledError there, as if its time were the
    cancellation (python/cpython#102780): what should follow a time-out did not.
    """
    task = asyncio.current_task()
    assert task is not None, "a coroutine runs in a task"
    before = task.cancelling()
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            yield
    except asyncio.CancelledError:
        if limit.expired() and task.cancelling() <= before:
            raise TimeoutError from None
        raise


async def end(task: asyncio.Future[None]) -> None:
    """Cancels the task and waits until it has ended, even if we are cancelled meanwhile; that is then passed on."""
    cancelled = False
    while not task.done():
        task.cancel()
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError
