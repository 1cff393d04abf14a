"""The endpoints of a node under a keeper of their own: made and removed on request, and kept as they were made.

What is asked for is done in the keeper's thread between its passes: so nothing that is read is older than what was
made, and the part need not hear of it from the kernel. Devices go in a thread of their own, many at once: an ADD must
not wait for the 20 ms that each takes.
"""

import asyncio
import errno
import os
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar, Unpack

import structlog

from netloom.cidr import Address, format_address
from netloom.kernel.endpoints import row_messages
from netloom.kernel.endpoints.checking import differences
from netloom.kernel.endpoints.endpoint import Endpoint, Endpoints, FoundEndpoint, Wired, WiringFailed, device_of
from netloom.kernel.endpoints.kept_sockets import KeptSocket, kept_socket
from netloom.kernel.endpoints.part import EndpointsPart
from netloom.kernel.endpoints.plan import planned_changes
from netloom.kernel.endpoints.reader import found_endpoints, read_everything
from netloom.kernel.endpoints.readiness import READY_SECONDS, still_lacking
from netloom.kernel.endpoints.reaping import delete_ends
from netloom.kernel.endpoints.wiring import Made, Wiring
from netloom.kernel.errors import KernelUnsupported
from netloom.kernel.keeper.keeper import Keeper, KeeperOptions
from netloom.kernel.keeper.part import Worker
from netloom.kernel.keeper.report import KeeperReport, PlannedChange
from netloom.kernel.keeper.retries import Retries
from netloom.kernel.keeper.table_writer import ALREADY_GONE
from netloom.kernel.netlink import wire
from netloom.kernel.netlink.kernel_thread import KernelThread
from netloom.kernel.netlink.sockets import AnswerLost, CommandSocket, KernelRefusal
from netloom.kernel.netlink.wire import numbered

log = structlog.get_logger(__name__)

T = TypeVar("T")


class EndpointsReport(KeeperReport, frozen=True, kw_only=True):
    """The state of the endpoints. endpoints: those that are wanted. leaving: devices that are being deleted."""

    endpoints: int = 0
    leaving: int = 0


class EndpointsKeeper(Keeper[Endpoints, EndpointsReport]):
    """`apply` hands over all endpoints that are known, once, after a start; from then on `wire` and `unwire` change
    that very object. Devices of endpoints that it does not hold are left alone until `prune`.

    lifeline_at: what the node lives by that has an address ("a gateway of this node"), empty if nothing has: no pod is
    given such a one, as its route would come before the network on which that is.
    """

    names = wire.NAMES
    nothing = Endpoints

    def __init__(
        self, *, lifeline_at: Callable[[Address], str] = lambda _address: "", **options: Unpack[KeeperOptions]
    ) -> None:
        self._part = EndpointsPart()
        self._lifeline_at = lifeline_at
        super().__init__((self._part,), **options)
        self._reaping: asyncio.Task[None] | None = None
        self._reaper: CommandSocket | None = None
        self._going: set[str] = set()
        """Devices that the reaper is deleting, by their names: what is made under one of them now would go."""

    async def open(self) -> None:
        """Open the sockets and begin the threads."""
        self._reaper_thread = KernelThread("netloom-reaper")
        await super().open()

    async def close(self) -> None:
        """Close the sockets. The kernel keeps all that was made, but for what was on its way out."""
        await self._reaped()
        await self._reaper_thread.close()
        if self._reaper is not None:
            self._reaper.close()
        await super().close()
        self._part.kept_sockets.close_all()

    # --------------------------------------------------------------------------------------------- on request

    async def wire(self, endpoint: Endpoint, netns: int, inside: int) -> Wired:
        """Make the pair, and set up both ends: all of it or nothing.

        netns:  descriptor of the pod's network namespace. inside: descriptor of a NETLINK_ROUTE socket made in it. Both
        stay the caller's.
        A second call for the same container and interface without `unwire` between is refused (already-there), as CNI
        has it; what an earlier life left of it and nobody wants is replaced. Raises WiringFailed.
        """
        # Of the descriptors of a caller who is cancelled others may be made meanwhile.
        own, within = _kept(endpoint, netns, inside)
        try:
            made = await self._make_room_and_wire(endpoint, own, within)
            if made.lacking:
                await self._until_packets_pass(endpoint, within)
        finally:
            os.close(own)
            os.close(within)
        return Wired(endpoint.device, made.host.mac, made.pod.mac, made.host.mtu)

    async def _make_room_and_wire(self, endpoint: Endpoint, netns: int, inside: int) -> Made:
        if self._is_leaving(endpoint.device):
            await self._reaped()
        reaping = self._reaping
        leaving = reaping is not None and not reaping.done()
        try:
            return await self._wire(endpoint, netns, inside)
        except WiringFailed as failed:
            if failed.reason != "interface-taken" or not (leaving or self._reaping is not reaping):
                raise
            # Perhaps by a device of an earlier container in the same namespace, which is on its way out, or gone since.
            await self._reaped()
            return await self._wire(endpoint, netns, inside)

    async def _wire(self, endpoint: Endpoint, netns: int, inside: int) -> Made:
        device, part = endpoint.device, self._part
        async with self._lock:
            there = part.desired.get(device)
            if there is not None:
                raise self._already(endpoint, there)
            worker = await self._ready(endpoint)
            if self._is_leaving(device):  # since then somebody else's call for it was cancelled
                await self._reaped()
            self._refuse_what_others_have(endpoint)
            try:
                making = worker.call(lambda commands: _made(commands, endpoint, netns, inside))
                made, kept = await _to_the_end(making, lambda done: self._abandon(device, done[1]))
            except WiringFailed as failed:
                if failed.reason == "lost":  # so may be the answer to its removal: whatever is left goes
                    part.drop(endpoint)
                    part.doubt()
                    self._wake.set()
                raise
            self._drain()  # what the kernel has told of the device while it was not all there
            part.desired.put(endpoint)
            part.want(part.desired, self._retries)
            part.made(endpoint, made)
            part.kept_sockets.keep(device, kept)
            if part.wants_a_pass:
                self._wake.set()  # of the events that say so some were read here
        self._begun.set()  # it is to be kept, though nothing may have been handed over yet
        return made

    async def _until_packets_pass(self, endpoint: Endpoint, inside: int) -> None:
        """While others are wired. Raises WiringFailed; nothing is left then, nor where it is cancelled."""
        pause, until = 0.001, time.monotonic() + READY_SECONDS
        try:
            while lacking := await self._lacking(endpoint, inside):
                if time.monotonic() > until:
                    raise WiringFailed("refused", f"{endpoint}: after {READY_SECONDS:g} s {lacking}")
                await asyncio.sleep(pause)
                pause = min(2 * pause, 0.05)
        except BaseException:
            with suppress(WiringFailed):  # what is left goes with the next pass
                await _to_the_end(self.unwire(endpoint.container, endpoint.interface))
            raise

    async def _lacking(self, endpoint: Endpoint, inside: int) -> str:
        """What packets have to wait for yet. Raises WiringFailed."""
        worker = await self._ready(endpoint)
        return await _to_the_end(worker.call(lambda commands: still_lacking(commands, inside, endpoint)))

    def _refuse_what_others_have(self, endpoint: Endpoint) -> None:
        for address in endpoint.addresses:
            owner = self._part.owner_of(address)
            if owner is not None:
                why = f"{format_address(address)} is the address of {owner} already"
                raise WiringFailed("address-taken", f"{endpoint}: {why}")
            lifeline = self._lifeline_at(address)
            if lifeline:
                why = f"{format_address(address)} is {lifeline}: a pod with it would cut this node off from that"
                raise WiringFailed("address-taken", f"{endpoint}: {why}")

    def _already(self, endpoint: Endpoint, there: Endpoint) -> WiringFailed:
        if (there.container, there.interface) == (endpoint.container, endpoint.interface):
            why = f"container {there.container} has it already, as {there.device}: a DEL has to come before another ADD"
            return WiringFailed("already-there", f"{endpoint}: {why}")
        why = f"{endpoint.device}, the name of its device here, is taken by {there}"
        return WiringFailed("interface-taken", f"{endpoint}: {why}; the runtime's next attempt has another name")

    def _abandon(self, device: str, kept: KeptSocket | None) -> None:
        """Whoever asked for it has gone away: nobody wants it."""
        self._part.kept_sockets.keep(device, kept)
        self._part.kept_sockets.close(device)
        self._part.doubt()
        self._reap(device)

    async def unwire(self, container: str, interface: str) -> bool:
        """Have it no more: when this returns no route leads to it, and its addresses may be given to others. Whether
        there was something. The pair itself goes in the background, and before a `wire` that it would be in the way of.
        Raises WiringFailed (lost, refused), then it is to be called again."""
        device, part = device_of(container, interface), self._part
        nobody = Endpoint(container=container, interface=interface, addresses=())
        async with self._lock:
            endpoint = part.desired.get(device) or nobody
            worker = await self._ready(endpoint)
            if (endpoint.container, endpoint.interface) != (container, interface):
                return False  # the device has the same name, and is another's
            end = part.ends.get(device)
            if end is not None and not part.is_fit(endpoint, end) and endpoint is nobody:
                return False  # nor is what an earlier life left of another
            known = end is not None and device not in part.doomed
            if endpoint is nobody:
                messages = row_messages.encode_routes([(key, None, None) for key in part.routes_on(device)])
            else:
                messages = numbered([row_messages.remove_route(address) for address in endpoint.addresses])
            part.desired.discard(device)
            part.want(part.desired, self._retries)
            if end is not None:
                part.drop(endpoint)
            try:
                await self._remove_routes(worker, endpoint, messages)
            except BaseException:
                self._wake.set()  # if nobody calls again, the next pass does what is left
                raise
            part.doom(device)
            if known:
                self._reap(device)
        self._begun.set()
        return known or endpoint is not nobody

    async def _remove_routes(self, worker: Worker, endpoint: Endpoint, messages: list[bytes]) -> None:
        try:
            refusals = await _to_the_end(worker.submit(messages)) if messages else {}
        except AnswerLost as error:
            self._part.doubt()
            raise WiringFailed("lost", f"{endpoint}: no answer from the kernel ({error})") from error
        left = [refusal for refusal in refusals.values() if refusal.errno not in ALREADY_GONE]
        if left:
            raise WiringFailed("refused", f"{endpoint}: removing its routes: {left[0]}")

    async def differences(self, endpoint: Endpoint, inside: int) -> list[str]:
        """What is not as `wire` made it, on both sides, as sentences; none: all is well. Raises WiringFailed."""
        async with self._lock:
            worker = await self._ready(endpoint)
            (within,) = _kept(endpoint, inside)
            try:
                return await _to_the_end(worker.call(lambda commands: differences(commands, endpoint, within)))
            finally:
                os.close(within)

    def has(self, device: str) -> bool:
        """Whether there is such a host end, as far as the kernel has told."""
        return device in self._part.ends

    async def read_endpoints(self) -> list[FoundEndpoint]:
        """What the kernel shows, whether wanted or not. Needs no capability. Raises OSError, KernelUnsupported."""
        async with self._lock:
            return found_endpoints(await self._connect().call(read_everything))

    async def _ready(self, endpoint: Endpoint) -> Worker:
        """The worker; and the part knows what there is, if it never did. Raises WiringFailed."""
        try:
            worker = self._connect()
            if not self._part.was_read:
                self._drain()
                await self._read(self._part, worker)
        except (AnswerLost, OSError, KernelUnsupported) as error:
            self._part.doubt()
            raise WiringFailed("lost", f"{endpoint}: the kernel cannot be asked: {error}") from error
        return worker

    # ------------------------------------------------------------------------------------------ devices that go

    def _reap(self, device: str) -> None:
        """Have the device deleted soon."""
        self._part.doomed.add(device)
        if self._reaping is None or self._reaping.done():
            self._reaping = asyncio.create_task(self._reap_all(), name="netloom-reaper")

    async def _reap_all(self) -> None:
        """Until there is nothing left; those that come meanwhile go together."""
        while names := sorted(self._part.doomed):
            self._going.update(names)
            try:
                refused = await self._reaper_thread.call(self._delete, names)
            except (AnswerLost, OSError) as error:
                log.warning("devices of pods that are gone could not be deleted", error=str(error))
                refused = {}
            for name, refusal in refused.items():
                log.warning("the device of a pod that is gone could not be deleted", name=name, error=str(refusal))
            self._going.clear()
            self._part.spare(names)
            self._wake.set()

    def _delete(self, names: list[str]) -> dict[str, KernelRefusal]:
        if self._reaper is None:
            self._reaper = self._make_commands()
        return delete_ends(self._reaper, names)

    def _is_leaving(self, device: str) -> bool:
        # The part forgets a device that it is told of as gone; the reaper does not.
        return device in self._part.doomed or device in self._going

    async def _reaped(self) -> None:
        """Nothing is on its way out any more."""
        while self._reaping is not None and not self._reaping.done():
            await asyncio.shield(self._reaping)

    # ---------------------------------------------------------------------------------------------- the keeper's

    async def plan(self, desired: Endpoints) -> list[PlannedChange]:
        """What `apply` and `prune` would change. Writes nothing."""
        part = EndpointsPart(retaining=False)
        async with self._lock:
            await part.read(self._connect())
        part.want(Endpoints(desired), Retries())
        return planned_changes(part)

    async def cleanup(self) -> EndpointsReport:
        """Remove all that is owned, of whatever life."""
        await self._reaped()
        self._part.release_retained()
        return await super().cleanup()

    @property
    def report(self) -> EndpointsReport:
        """The state of things now."""
        return EndpointsReport(**self._basics(), endpoints=len(self._part.desired), leaving=len(self._part.doomed))


def _made(commands: CommandSocket, endpoint: Endpoint, netns: int, inside: int) -> tuple[Made, KeptSocket | None]:
    """In the worker's thread. Raises WiringFailed."""
    return Wiring(commands, endpoint, netns, inside).make(), kept_socket(endpoint, netns, inside)


def _kept(endpoint: Endpoint, *descriptors: int) -> list[int]:
    """Copies, to be closed. Raises WiringFailed."""
    kept: list[int] = []
    try:
        kept.extend(map(os.dup, descriptors))
    except OSError as error:
        for descriptor in kept:
            os.close(descriptor)
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise WiringFailed("lost", f"{endpoint}: there are no free file descriptors ({error})") from error
        why = f"the network namespace {endpoint.netns or 'of the pod'} cannot be used ({error}): is the pod gone?"
        raise WiringFailed("namespace-gone", f"{endpoint}: {why}") from error
    return kept


async def _to_the_end(work: Awaitable[T], abandon: Callable[[T], None] = lambda _done: None) -> T:
    """Wait for what a thread does, also when cancelled: it cannot be stopped, and its descriptors are in use."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():  # whoever is cancelled may be cancelled again
            with suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        if not task.cancelled() and task.exception() is None:
            abandon(task.result())
        raise
