"""Components in terms of leadership: what begins, what ends first, and what a crash of one does to the others."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import pytest

from netloom.runtime.terms import Terms
from tests.runtime.virtual import in_virtual_time


class Elector:
    """Gives the lease whenever it is asked for, until `lose`; counts what it gave and what it got back."""

    def __init__(self) -> None:
        self.terms = self.given_back = 0
        self._lead: asyncio.Task[None] | None = None

    async def compete(self, lead: Callable[[], Awaitable[None]]) -> None:
        self.terms += 1
        self._lead = asyncio.ensure_future(lead())
        await asyncio.wait([self._lead])
        if not self._lead.cancelled():
            self._lead.result()
            self.given_back += 1

    def lose(self) -> None:
        """As often as one likes."""
        assert self._lead is not None
        self._lead.cancel()

    @property
    def ended(self) -> bool:
        return self._lead is not None and self._lead.done()


class Work:
    """Says when it begins and ends; crashes when it is told to, and takes its time to end."""

    def __init__(self, name: str, said: list[str], slow: float = 0.0) -> None:
        self.crash = asyncio.Event()
        self._name = name
        self._said = said
        self._slow = slow

    async def run(self) -> None:
        self._said.append(f"{self._name} begins")
        try:
            await self.crash.wait()
            self.crash.clear()
            raise RuntimeError(self._name)
        finally:
            now = asyncio.get_running_loop().time
            until = now() + self._slow
            while now() < until:
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(until - now())
            self._said.append(f"{self._name} ends")


async def supervise(run: Callable[[], Awaitable[None]], delay: float = 5.0) -> None:
    """In the place of a manager."""
    while True:
        try:
            await run()
        except RuntimeError:
            await asyncio.sleep(delay)


def started(terms: Terms, *work: Work) -> list[asyncio.Task[None]]:
    runs = [terms.run, *(terms.component(each.run) for each in work)]
    return [asyncio.create_task(supervise(run)) for run in runs]


async def stop(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


@in_virtual_time
async def test_a_crash_of_one_is_not_the_others_and_not_the_terms() -> None:
    said: list[str] = []
    elector, a, b = Elector(), Work("a", said), Work("b", said)
    tasks = started(Terms(elector), a, b)  # type: ignore[arg-type]
    await asyncio.sleep(1)
    a.crash.set()
    await asyncio.sleep(1)
    assert said == ["a begins", "b begins", "a ends"]
    await asyncio.sleep(10)
    assert said == ["a begins", "b begins", "a ends", "a begins"]
    assert (elector.terms, elector.given_back) == (1, 0)
    await stop(tasks)
    assert sorted(said[4:]) == ["a ends", "b ends"]


@in_virtual_time
async def test_the_lease_is_given_back_when_all_crashed_and_competed_for_when_one_would_work() -> None:
    said: list[str] = []
    elector, a, b = Elector(), Work("a", said), Work("b", said)
    tasks = started(Terms(elector), a, b)  # type: ignore[arg-type]
    await asyncio.sleep(1)
    a.crash.set()
    b.crash.set()
    await asyncio.sleep(1)
    assert (elector.terms, elector.given_back) == (1, 1)
    await asyncio.sleep(10)
    assert said[4:] == ["a begins", "b begins"]
    assert (elector.terms, elector.given_back) == (2, 1)
    await stop(tasks)


@in_virtual_time
async def test_a_term_ends_after_its_work_however_often_it_is_cancelled() -> None:
    said: list[str] = []
    elector, slow, quick = Elector(), Work("slow", said, slow=3.0), Work("quick", said)
    tasks = started(Terms(elector), slow, quick)  # type: ignore[arg-type]
    await asyncio.sleep(1)
    for _ in range(3):
        elector.lose()
        await asyncio.sleep(0.5)
        assert not elector.ended
    assert said[2:] == ["quick ends"], "it works in no other term before this one has ended"
    await asyncio.sleep(2)
    assert said[3] == "slow ends"
    assert sorted(said[4:]) == ["quick begins", "slow begins"]
    assert elector.terms == 2
    await stop(tasks)


@in_virtual_time
async def test_without_an_elector_there_is_one_term_after_the_other() -> None:
    said: list[str] = []
    work = Work("a", said)
    tasks = started(Terms(), work)
    await asyncio.sleep(1)
    work.crash.set()
    await asyncio.sleep(10)
    assert said == ["a begins", "a ends", "a begins"]
    await stop(tasks)


@in_virtual_time
async def test_what_is_done_beside_is_done_in_each_term_and_makes_none() -> None:
    said: list[str] = []

    async def once() -> None:
        said.append("once")

    elector, a, b = Elector(), Work("a", said), Work("b", said)
    terms = Terms(elector)  # type: ignore[arg-type]
    beside = [asyncio.create_task(terms.beside(run)()) for run in (once, b.run)]
    await asyncio.sleep(1)
    assert (elector.terms, said) == (0, [])
    tasks = started(terms, a)
    await asyncio.sleep(10)
    assert sorted(said) == ["a begins", "b begins", "once"]
    elector.lose()
    await asyncio.sleep(1)
    assert sorted(said[3:]) == ["a begins", "a ends", "b begins", "b ends", "once"]
    a.crash.set()
    await asyncio.sleep(1)
    assert (elector.terms, elector.given_back) == (2, 1), "nobody leads for its sake"
    assert sorted(said[8:]) == ["a ends", "b ends"]
    await asyncio.sleep(10)
    assert sorted(said[10:]) == ["a begins", "b begins", "once"]
    b.crash.set()
    with pytest.raises(RuntimeError, match="b"):
        await beside[1]
    await stop([*tasks, *beside])


@in_virtual_time
async def test_work_that_cancels_itself_has_crashed() -> None:
    async def work() -> None:
        raise asyncio.CancelledError

    terms = Terms()
    running = asyncio.create_task(terms.run())
    with pytest.raises(RuntimeError, match="it cancelled itself"):
        await terms.component(work)()
    await stop([running])
