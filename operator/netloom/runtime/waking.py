"""Waiting for whoever sets an event, and no longer than some time."""

import asyncio
from contextlib import suppress


async def wait(woken: asyncio.Event, seconds: float | None) -> None:
    """Until the event is set, or the time is over; None: it never is."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await woken.wait()
