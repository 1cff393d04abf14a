"""Leader election whose holder has provably stopped before another can start.

The record is a Lease. Two rules, both on the boot-time clock, which nobody can set and which also counts while the
machine sleeps (docs/runtime.md says what this cannot promise):

- **The holder** counts from the moment *before* it sent its last successful renewal: nobody can have seen that earlier.
  `renew_deadline` later the work is cancelled, and before `lease_seconds` it has ended, or a watchdog thread ends the
  process, even if the event loop is blocked.
- **A candidate** counts `lease_seconds` from the moment *after* it received a record that it had not seen before. Its
  count therefore ends later than the holder's, whatever their wall clocks say.

Every request has a time-out and is a compare-and-swap, so a renewal that is late by minutes fails. A Lease that is
missing is created at once; if it was deleted under a holder, candidates that saw it wait for the holder's time to be
over, and the holder stops at its next renewal.
"""

import asyncio
import contextlib
import math
import os
import threading
import uuid
from collections.abc import Awaitable, Callable, Iterator

import msgspec
import structlog

from netloom.api.coordination import LEASES, Lease, LeaseSpec
from netloom.api.meta import ObjectMeta
from netloom.runtime import metrics
from netloom.runtime.backoff import Backoff
from netloom.runtime.cancellation import end, last_words
from netloom.runtime.client import Api
from netloom.runtime.clock import boottime
from netloom.runtime.errors import AlreadyExists, ApiError, Conflict, NotFound

log = structlog.get_logger(__name__)

Lead = Callable[[], Awaitable[None]]

EXIT_LEASE_LOST = 71
MARGIN = 0.05
"""Part of the lease that is kept as distance between the holder's end and another's start: clocks drift."""


class LeaseLost(Exception):
    """The lease is no longer ours, or we cannot know it any more."""


class LeaderElector:
    """Competes for the Lease `namespace/name` and runs the work while it is held."""

    def __init__(
        self,
        api: Api,
        name: str,
        namespace: str,
        identity: str,
        *,
        lease_seconds: float = 15.0,
        renew_deadline: float = 10.0,
        retry: float = 2.0,
        clock: Callable[[], float] = boottime,
        exit: Callable[[int], None] = os._exit,
    ) -> None:
        if not 0 < retry < renew_deadline < lease_seconds * (1 - MARGIN):
            raise ValueError("a lease needs retry < renew_deadline < lease_seconds, with 5 % to spare")
        self.identity = f"{identity}_{uuid.uuid4().hex[:8]}"
        """Unique to this process: a successor of the same name must wait for us, too."""
        self._api = api
        self._name = name
        self._namespace = namespace
        self._seconds = lease_seconds
        self._renew_deadline = renew_deadline
        self._retry = retry
        self._clock = clock
        self._watchdog = Watchdog(clock, exit)
        self._observed: Lease | None = None
        self._observed_at = 0.0
        self._renewed_at = 0.0
        self._held = False
        self._leading = metrics.LEADING.labels(name)

    async def compete(self, lead: Lead) -> None:
        """Runs `lead` in every term that is won. Returns and raises as `run`, but never LeaseLost: that ends a term, is
        said in one line when the work is told to end, and the next term is competed for at once."""
        while True:
            with contextlib.suppress(LeaseLost):
                return await self.run(lead)

    async def run(self, lead: Lead) -> None:
        """One term: waits for the lease, then runs `lead`. Returns when `lead` returns; raises LeaseLost (only after
        `lead` ended), or what `lead` raised. When cancelled, ends `lead` and gives the lease back."""
        say = log.warning
        try:
            await self._acquire()
            self._held = True
            self._leading.set(1)
            log.info("leading", lease=self._name, identity=self.identity)
            with self._watchdog.armed(self._renewed_at + self._seconds * (1 - MARGIN)):
                await self._lead(lead)
        except LeaseLost:
            say = log.debug  # that it is out of reach is no news
            raise
        finally:
            self._leading.set(0)
            if self._held:
                self._held = False
                await self._release(say)

    async def _lead(self, lead: Lead) -> None:
        """Returns or raises only after the work has ended, however often it is cancelled itself."""
        work = asyncio.ensure_future(lead())
        renewal = asyncio.create_task(self._keep_renewing(), name="lease-renewal")
        try:
            await asyncio.wait([work, renewal], return_when=asyncio.FIRST_COMPLETED)
            if renewal.done() and not work.done():
                log.warning("not leading any more", lease=self._name, why=str(renewal.exception()))
                self._watchdog.shorten(self._clock() + self._seconds - self._renew_deadline)
        finally:
            # Renewal goes on until the work has ended, so that a slow end of the work is covered by the lease.
            try:
                await end(work)
            finally:
                await end(renewal)
        if not renewal.cancelled() and (error := renewal.exception()):
            raise error
        if not work.cancelled():
            work.result()

    async def _keep_renewing(self) -> None:
        while True:
            await asyncio.sleep(self._retry)
            await self._renew_in_time()

    async def _renew_in_time(self) -> None:
        deadline = self._renewed_at + self._renew_deadline
        error = "no answer"
        backoff = Backoff(self._retry / 4, self._retry)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline - self._clock()):
                # The clock is asked as well: a timer does not count the time for which the machine sleeps.
                while self._clock() < deadline:
                    try:
                        async with asyncio.timeout(self._renew_deadline / 2):
                            await self._try_renew()
                            return
                    except NotFound:
                        raise LeaseLost(f"lease {self._name} was deleted") from None
                    except (ApiError, TimeoutError) as failure:
                        error = str(failure) or "no answer"
                        log.debug("lease not renewed", lease=self._name, error=error)
                    await asyncio.sleep(backoff.next())
        raise LeaseLost(f"lease {self._name} could not be renewed in time: {error}")

    async def _try_renew(self) -> None:
        """One attempt. Raises LeaseLost if somebody else holds the lease."""
        held = self._observed or await self._look()
        if self._holder != self.identity:
            raise LeaseLost(f"lease {self._name} was taken by {self._holder or 'nobody'}")
        try:
            await self._write(held, held.spec.acquire_time, held.spec.lease_transitions)
        except (ApiError, TimeoutError, asyncio.CancelledError):
            # It may have been written all the same: the next attempt has to look first.
            self._observed = None
            raise

    async def _write(self, over: Lease, acquired: str | None, transitions: int) -> None:
        """Writes us as the holder; on success the lease counts from before the request was sent."""
        sent, written_at = self._clock(), self._date()
        spec = msgspec.structs.replace(
            over.spec,
            holder_identity=self.identity,
            lease_duration_seconds=math.ceil(self._seconds),
            acquire_time=acquired or written_at,
            renew_time=written_at,
            lease_transitions=transitions,
        )
        lease = msgspec.structs.replace(over, spec=spec)
        if lease.metadata.resource_version:
            stored = await self._api.replace(LEASES, lease)
        else:
            stored = await self._api.create(LEASES, lease)
        self._renewed_at = sent
        self._observe(stored)
        self._watchdog.extend(sent + self._seconds * (1 - MARGIN))

    async def _acquire(self) -> None:
        backoff = Backoff(self._retry, self._seconds)
        while True:
            wait = self._retry
            try:
                async with asyncio.timeout(self._renew_deadline):
                    wait = await self._try_acquire()
                if not wait:
                    return
                backoff.reset()
            except (Conflict, AlreadyExists):
                log.info("another candidate was faster", lease=self._name)
            except (ApiError, TimeoutError) as error:
                log.warning("lease not readable", lease=self._name, error=str(error) or "no answer")
                wait = backoff.next()
            await asyncio.sleep(wait)

    async def _try_acquire(self) -> float:
        """One attempt. 0 if the lease is ours now, else the seconds after which to look again."""
        try:
            found = await self._look()
        except NotFound:
            found = Lease(metadata=ObjectMeta(name=self._name, namespace=self._namespace), spec=LeaseSpec())
        if (left := self._left()) > 0:
            return min(self._retry, left)
        new = found.spec.holder_identity != self.identity
        transitions = found.spec.lease_transitions + (new and bool(found.metadata.resource_version))
        await self._write(found, None if new else found.spec.acquire_time, transitions)
        return 0.0

    @property
    def _holder(self) -> str:
        return self._observed.spec.holder_identity if self._observed else ""

    async def _look(self) -> Lease:
        found = await self._api.get(LEASES, self._name, self._namespace)
        self._observe(found)
        return found

    def _observe(self, found: Lease) -> None:
        """Notes a record; its holder's time counts from now if it is a new one."""
        if self._observed is None or self._observed.metadata.resource_version != found.metadata.resource_version:
            self._observed_at = self._clock()
        self._observed = found

    def _left(self) -> float:
        """Seconds for which the holder that we know of may still work."""
        if self._observed is None or self._holder in ("", self.identity):
            return 0.0
        seconds = max(self._seconds, self._observed.spec.lease_duration_seconds)
        return self._observed_at + seconds - self._clock()

    def _date(self) -> str:
        """For people and programs that read the record: candidates of ours go by what they see, and when."""
        return self._api.clock.now().strftime("%Y-%m-%dT%H:%M:%S.%fZ")

    async def _release(self, say: Callable[..., None]) -> None:
        """Gives the lease back, so that the next one need not wait; if that fails, it runs out."""
        try:
            async with last_words(self._retry):
                # Where there is none, a renewal was cut off, and may have been written.
                held = self._observed or await self._look()
                if self._holder != self.identity:
                    return
                spec = msgspec.structs.replace(
                    held.spec, holder_identity="", lease_duration_seconds=1, renew_time=self._date()
                )
                await self._api.replace(LEASES, msgspec.structs.replace(held, spec=spec))
            log.info("lease released", lease=self._name)
        except (ApiError, TimeoutError) as error:
            say("lease not released, it will run out", lease=self._name, error=str(error) or "no answer")


class Watchdog:
    """Ends the process when a deadline passes, from a thread of its own: a blocked event loop cannot hold it up."""

    LOOK_SECONDS = 0.5
    """A thread's wait does not count the time for which the machine sleeps, so the clock is looked at this often."""

    def __init__(self, clock: Callable[[], float], exit: Callable[[int], None]) -> None:
        self._clock = clock
        self._exit = exit
        self._changed = threading.Condition()
        self._deadline: float | None = None

    @contextlib.contextmanager
    def armed(self, deadline: float) -> Iterator[None]:
        """While the context lasts, the deadline counts."""
        self._deadline = deadline
        thread = threading.Thread(target=self._watch, name="lease-watchdog", daemon=True)
        thread.start()
        try:
            yield
        finally:
            with self._changed:
                self._deadline = None
                self._changed.notify_all()
            thread.join()

    def extend(self, deadline: float) -> None:
        """Moves the deadline, if one counts."""
        with self._changed:
            if self._deadline is not None:
                self._deadline = deadline

    def shorten(self, deadline: float) -> None:
        """Moves the deadline, if one counts that is later."""
        with self._changed:
            if self._deadline is not None:
                self._deadline = min(deadline, self._deadline)

    def _watch(self) -> None:
        with self._changed:
            while self._deadline is not None:
                left = self._deadline - self._clock()
                if left <= 0:
                    break
                self._changed.wait(min(left, self.LOOK_SECONDS))
            else:
                return
        # Straight to the file descriptor: the log's locks may be held by the thread that is stuck.
        os.write(2, b'{"level":"critical","event":"lease ran out before the work of its holder had ended, exiting"}\n')
        self._exit(EXIT_LEASE_LOST)
