"""What a task that is cancelled still does."""

import asyncio

import pytest

from netloom.runtime.cancellation import last_words
from tests.runtime.scripted import until


async def ends_slowly(said: list[str], seconds: float) -> None:
    try:
        await asyncio.sleep(600)
    finally:
        said.append("ending")
        try:
            async with last_words(seconds):
                await asyncio.sleep(600)
        except TimeoutError:
            said.append("no time left")


async def test_the_time_of_last_words_ends_in_a_task_that_is_cancelled():
    said: list[str] = []
    task = asyncio.create_task(ends_slowly(said, 0.01))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert said == ["ending", "no time left"]


async def test_last_words_can_be_cut_short():
    said: list[str] = []
    task = asyncio.create_task(ends_slowly(said, 600))
    await asyncio.sleep(0)
    task.cancel()
    await until(lambda: said, "it is ending")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert said == ["ending"]
