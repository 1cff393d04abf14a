"""The thread that waits for the kernel in the event loop's place."""

import asyncio
import gc
import threading
import weakref
from collections.abc import Iterator

import pytest

from netloom.kernel.netlink.kernel_thread import KernelThread
from netloom.kernel.netlink.sockets import once


@pytest.fixture
def thread() -> Iterator[KernelThread]:
    made = KernelThread("waits")
    yield made
    asyncio.run(made.close())


async def test_does_what_it_is_given_in_that_order(thread: KernelThread) -> None:
    done: list[int] = []
    assert await asyncio.gather(*[thread.call(lambda n: done.append(n) or n, number) for number in range(100)]) == [
        *range(100)
    ]
    assert done == [*range(100)]


async def test_works_in_the_thread_of_its_name_that_began_at_once(thread: KernelThread) -> None:
    began = {each.ident for each in threading.enumerate() if each.name == "waits"}
    assert await thread.call(threading.get_ident) in began


async def test_tells_what_the_work_raised_and_goes_on(thread: KernelThread) -> None:
    with pytest.raises(ZeroDivisionError):
        await thread.call(lambda: 1 // 0)
    assert await thread.call(int, "7") == 7


async def test_work_whose_caller_was_cancelled_is_done_all_the_same(thread: KernelThread) -> None:
    go, done = threading.Event(), list[str]()
    waited = thread.call(go.wait, 10)
    behind = thread.call(done.append, "done")
    waited.cancel()
    behind.cancel()
    go.set()
    await thread.call(int)
    assert done == ["done"]


def test_goes_on_when_nobody_waits_any_more(thread: KernelThread) -> None:
    """A loop that ended while the kernel worked must not end the thread with it."""
    go = threading.Event()

    async def leave() -> None:
        thread.call(go.wait, 10)

    async def ask() -> int:
        return await thread.call(int, "7")

    asyncio.run(leave())
    go.set()
    assert asyncio.run(ask()) == 7


async def test_retains_nothing_of_what_it_has_done(thread: KernelThread) -> None:
    class Table:
        pass

    table = await thread.call(Table)
    seen = weakref.ref(table)
    del table
    await thread.call(int)
    gc.collect()
    assert seen() is None


async def test_closed_when_all_is_done() -> None:
    thread, done = KernelThread("waits"), list[int]()
    for number in range(10):
        thread.call(done.append, number)
    await thread.close()
    assert done == [*range(10)]


async def test_the_loop_goes_on_while_it_is_closed() -> None:
    thread, go = KernelThread("waits"), threading.Event()
    waited = thread.call(go.wait, 10)
    asyncio.get_running_loop().call_soon(go.set)
    await thread.close()
    assert await waited


def test_a_loop_ends_though_what_was_asked_once_hangs() -> None:
    go, done = threading.Event(), list[bool]()

    async def leave() -> None:
        asking = asyncio.ensure_future(once(lambda _commands: done.append(go.wait(20))))
        await asyncio.sleep(0)  # it has begun
        asking.cancel()

    asyncio.run(leave())
    assert not done
    go.set()
