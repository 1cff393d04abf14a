"""Runs a reconciler over its queue: the framework owns retry, back-off, metrics and the log.

A reconciler is given a key, makes the world as the caches say it should be for that key, and returns; the seconds it
may return mean "look again then". If it raises, the key is retried with a growing delay, and other keys go on. A
`UserError` is what no retry mends: it ends the controller, and with it the role.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

import structlog

from netloom.api.errors import UserError
from netloom.runtime import metrics
from netloom.runtime.cancellation import only_if_asked
from netloom.runtime.errors import ApiError, Conflict
from netloom.runtime.queue import WorkQueue
from netloom.runtime.time_limits import TimeLimit

log = structlog.get_logger(__name__)

RUN_SECONDS = 120.0
"""How long one run may take before it is cancelled and counted as failed."""

Reconcile = Callable[[str], Awaitable[float | None]]


class Controller:
    """A named reconciler with `workers` concurrent runs, never two of one key."""

    def __init__(
        self,
        name: str,
        reconcile: Reconcile,
        workers: int = 1,
        *,
        queue: WorkQueue | None = None,
        timeout: float = RUN_SECONDS,
    ) -> None:
        self.name = name
        self.failing: dict[str, str] = {}
        """Keys whose last run failed, with what it said."""
        self._reconcile = reconcile
        self._workers = workers
        self._timeout = timeout
        self._queue = WorkQueue() if queue is None else queue
        self._seconds = metrics.RECONCILE_SECONDS.labels(name)
        self._succeeded = metrics.RECONCILES.labels(name, "success")
        self._failed = metrics.RECONCILES.labels(name, "error")
        metrics.QUEUE_DEPTH.labels(name).set_function(lambda: len(self._queue))
        metrics.FAILING_KEYS.labels(name).set_function(lambda: len(self.failing))

    def enqueue(self, key: str) -> None:
        """The key is to be looked at, soon and at least once from now on."""
        self._queue.add(key)

    def enqueue_after(self, key: str, seconds: float) -> None:
        """The key is to be looked at in `seconds`."""
        self._queue.add_after(key, seconds)

    async def run(self) -> None:
        """Works for ever; cancellation is the way to stop it."""
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(self._workers):
                    group.create_task(self._work(), name=f"{self.name}-{number}")
        finally:
            self._queue.close()

    async def _work(self) -> None:
        limit = TimeLimit(self._timeout)
        while True:
            key = await self._queue.get()
            began = time.perf_counter()
            try:
                with limit:
                    again = await only_if_asked(self._reconcile(key))
            except UserError:
                raise  # no retry mends it: the role ends, and says so
            except Exception as error:  # noqa: BLE001 - the supervised boundary of a reconciler; logged in _failure
                self._failure(key, error)
            else:
                self._success(key, again)
            finally:
                self._seconds.observe(time.perf_counter() - began)
                self._queue.done(key)

    def _success(self, key: str, again: float | None) -> None:
        self._succeeded.inc()
        self._queue.forget(key)
        if self.failing.pop(key, None) is not None:
            log.info("reconciled after failures", controller=self.name, key=key)
        if again is not None:
            self._queue.add_after(key, again)

    def _failure(self, key: str, error: Exception) -> None:
        self._failed.inc()
        known = isinstance(error, ApiError)
        text = str(error) or type(error).__name__
        self.failing[key] = text
        wait = error.retry_after if isinstance(error, ApiError) and error.retry_after else 0.0
        delay = self._queue.retry(key, at_least=wait)
        event = {"controller": self.name, "key": key, "error": text, "retry_in": round(delay, 3)}
        if isinstance(error, Conflict):
            log.info("reconcile met another writer", **event)
        else:
            log.warning("reconcile failed", **event, exc_info=not known)
