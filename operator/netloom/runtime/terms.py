"""Components that work only while this process leads, each by itself.

A role's manager supervises them as every other. `Terms` is one more component, which competes for the lease while any
of them has something to do. A term ends when the lease is lost, or is given back because none of them works any more,
and that only after all work of the term has ended.
"""

import asyncio
from collections.abc import Awaitable, Callable

from netloom.runtime.cancellation import end, only_if_asked
from netloom.runtime.leader import Lead, LeaderElector
from netloom.runtime.manager import Run

_Task = asyncio.Task[None]


class Terms:
    """See the module. Without an elector this process always leads."""

    def __init__(self, elector: LeaderElector | None = None) -> None:
        self._compete: Callable[[Lead], Awaitable[None]] = elector.compete if elector else _always
        self._ready = 0
        self._wanted, self._unwanted = asyncio.Event(), asyncio.Event()
        self._begun, self._ended = asyncio.Event(), asyncio.Event()
        self._unwanted.set()
        self._working: set[_Task] = set()

    async def run(self) -> None:
        """The component that competes. Raises as `LeaderElector.compete`."""
        while True:
            await self._wanted.wait()
            await self._compete(self._lead)

    def component(self, work: Run) -> Run:
        """`work` as a component for the manager: in each term it runs once, and is cancelled at the term's end. Returns
        when `work` returns, and raises what it raises."""

        async def in_terms() -> None:
            while True:
                self._want(1)
                try:
                    task = await self._in_term(work)
                finally:
                    self._want(-1)
                if not task.cancelled():
                    return task.result()

        return in_terms

    def beside(self, work: Run) -> Run:
        """`work` as a component that is no reason to lead: it runs once in each term that others want. Raises what it
        raises."""

        async def in_terms() -> None:
            while True:
                task = await self._in_term(work)
                if not task.cancelled():
                    task.result()
                    await self._ended.wait()

        return in_terms

    async def _in_term(self, work: Run) -> _Task:
        await self._begun.wait()
        task = asyncio.create_task(_run(work))
        self._working.add(task)
        try:
            await asyncio.wait([task])
        finally:
            await end(task)
            self._working.discard(task)
        return task

    def _want(self, change: int) -> None:
        self._ready += change
        yes, no = (self._wanted, self._unwanted) if self._ready else (self._unwanted, self._wanted)
        yes.set()
        no.clear()

    async def _lead(self) -> None:
        self._begun.set()
        self._ended.clear()
        try:
            await self._unwanted.wait()
        finally:
            self._begun.clear()
            self._ended.set()
            for task in self._working:
                task.cancel()  # all at once
            for task in list(self._working):
                await end(task)


async def _run(work: Run) -> None:
    await only_if_asked(work())


async def _always(lead: Lead) -> None:
    await lead()
