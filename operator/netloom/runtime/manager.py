"""Runs the components of a role together and ends them together.

A component is a coroutine function that runs until it is cancelled. One with `restart` that crashes is started again,
with a growing delay, while the others go on. Readiness and `crashes` show it until it has run for longer than it would
wait after another crash. The crash of one without `restart`, or a `UserError`, which names what somebody has to mend
first, ends the role.

SIGTERM or SIGINT ends the role in order: for `drain` seconds it works on and says that it is not ready, then every
component is cancelled and has `grace` seconds for its last words. A second signal, or a component that overstays, ends
the process on the spot.
"""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable

import structlog

from netloom.api.errors import UserError, in_words, sentences
from netloom.runtime import metrics
from netloom.runtime.backoff import Backoff
from netloom.runtime.cancellation import only_if_asked
from netloom.runtime.health import HealthChecks

log = structlog.get_logger(__name__)

GRACE_SECONDS = 20.0
"""How long components may take to end. Below Kubernetes' 30 s, after which SIGKILL comes, also after a drain."""
SIGNALS = (signal.SIGTERM, signal.SIGINT)
EXIT_OVERSTAYED = 70

Run = Callable[[], Awaitable[None]]


class ComponentCrashed(Exception):
    """A component that is not restarted ended by an error; the error is the cause."""


class Manager:
    """The components of one role."""

    def __init__(
        self,
        *,
        drain: float = 0.0,
        grace: float = GRACE_SECONDS,
        restart_delay: float = 1.0,
        restart_cap: float = 60.0,
        on_crash: Callable[[], None] = lambda: None,
        exit: Callable[[int], None] = os._exit,
    ) -> None:
        """`on_crash` is called when `crashes` has changed."""
        self.health = HealthChecks()
        self._on_crash = on_crash
        self._crashes: dict[str, str] = {}
        self._drain = drain
        self._grace = grace
        self._delays = (restart_delay, restart_cap)
        self._exit = exit
        self._components: list[tuple[str, Run, bool]] = []
        self._stop = asyncio.Event()
        if drain:
            self.health.ready("stop", lambda: "the process is about to end" if self.stopping else "")

    @property
    def crashes(self) -> tuple[str, ...]:
        """What crashed and has not proved itself since, as sentences for people."""
        return tuple(crash_sentence(name, error) for name, error in self._crashes.items())

    @property
    def stopping(self) -> bool:
        """Whether the end has begun."""
        return self._stop.is_set()

    def add(self, name: str, run: Run, *, restart: bool = False) -> None:
        """Adds a component; to be called before `run`."""
        self._components.append((name, run, restart))

    def backoff(self) -> Backoff:
        """The delays between a component's attempts, for one that tries by itself."""
        return Backoff(*self._delays)

    def stop(self) -> None:
        """Begins the end. A second call ends the process on the spot."""
        if self.stopping:
            log.error("second request to stop, ending at once")
            self._exit(EXIT_OVERSTAYED)
        self._stop.set()

    async def run(self) -> None:
        """Runs all components until a signal, `stop`, or a crash. Raises ComponentCrashed, or a UserError as it is."""
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self._signalled, number)
        try:
            await self._run()
        finally:
            for number in SIGNALS:
                loop.remove_signal_handler(number)

    def _signalled(self, number: int) -> None:
        log.info("signal received, stopping", signal=signal.Signals(number).name)
        self.stop()

    async def _run(self) -> None:
        tasks = [asyncio.create_task(self._supervise(*part), name=part[0]) for part in self._components]
        stopping = asyncio.create_task(self._stop.wait(), name="stop")
        try:
            pending: set[asyncio.Task[None]] = set(tasks)
            while pending and not self.stopping:
                done, _ = await asyncio.wait([*pending, stopping], return_when=asyncio.FIRST_COMPLETED)
                pending -= done
                if any(not task.cancelled() and task.exception() for task in done):
                    break
            if pending and self.stopping:
                await asyncio.wait(pending, timeout=self._drain, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            stopping.cancel()
            await self._end([task for task in tasks if not task.done()])
        for task in tasks:
            if task.done() and not task.cancelled() and (error := task.exception()):
                raise error

    async def _end(self, running: list[asyncio.Task[None]]) -> None:
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running, timeout=self._grace)
        if names := sorted(task.get_name() for task in running if not task.done()):
            log.error("components did not stop, ending at once", components=names, grace=self._grace)
            self._exit(EXIT_OVERSTAYED)

    async def _supervise(self, name: str, run: Run, restart: bool) -> None:
        backoff = self.backoff()
        loop = asyncio.get_running_loop()
        self.health.ready(f"component {name}", lambda: _crashed(self._crashes.get(name, "")))
        proof: asyncio.Handle | None = None
        while True:
            began = loop.time()
            try:
                await only_if_asked(run())
            except UserError:
                raise
            except Exception as error:
                if said := sentences(error):
                    raise UserError(" ".join(said)) from error
                self._note(name, in_words(error))
                if not restart:
                    log.exception("component crashed", component=name)
                    raise ComponentCrashed(f"{name} {_crashed(in_words(error))}") from error
                if loop.time() - began > backoff.cap:
                    backoff.reset()
                delay = backoff.next()
                log.exception("component crashed, starting it again", component=name, delay=round(delay, 3))
            else:
                log.info("component ended", component=name)
                return
            finally:
                if proof is not None:
                    proof.cancel()
            metrics.COMPONENT_RESTARTS.labels(name).inc()
            await asyncio.sleep(delay)
            proof = loop.call_later(backoff.longest, self._note, name, "")

    def _note(self, name: str, error: str) -> None:
        if error:
            self._crashes[name] = error
        else:
            del self._crashes[name]
            log.info("component is well again", component=name)
        self._on_crash()


def _crashed(error: str) -> str:
    return f"crashed: {error}" if error else ""


def crash_sentence(name: str, error: str) -> str:
    """What to tell people of a component that crashed."""
    return f"{name} crashed: {error.rstrip('.')}. It is started again; the log has the details."
