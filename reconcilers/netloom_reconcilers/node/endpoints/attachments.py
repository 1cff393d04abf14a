"""The interfaces of this node's pods: addresses from the allocator, and the wiring of the kernel's side, together.

`add` is all or nothing, also where who asked goes away in the middle: what it had been given goes back before the next
one asks about the same interface. `remove` takes nothing that is another pod's, however old the request is.
"""

import asyncio
import contextlib
from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator
from typing import Any, NamedTuple, Protocol

import structlog

from netloom.cidr import Address, format_address
from netloom.ipam.node_allocator import Owner
from netloom.kernel.endpoints.endpoint import Endpoint, Endpoints, FoundEndpoint, Wired, WiringFailed, device_of
from netloom.kernel.mac import Mac
from netloom_reconcilers.node.addresses.running import DEVICE, is_seen
from netloom_reconcilers.node.addresses.service import AddressService, NoAddress
from netloom_reconcilers.node.endpoints.attachment_locks import AttachmentLocks, Key
from netloom_reconcilers.node.endpoints.config import PodOf
from netloom_reconcilers.node.endpoints.connection import Sandbox
from netloom_reconcilers.node.endpoints.networks import NETWORK, Networks

log = structlog.get_logger(__name__)

ADD_SECONDS = 25.0
"""How long an ADD waits for addresses: the plugin waits 30 s for the agent, and the allocator's sentence is to come
before that."""


class Taken(Exception):
    """The container has that interface already: a sentence."""


class EndpointsKernel(Protocol):
    """What is asked of the kernel's side; `netloom.kernel.endpoints.keeper.EndpointsKeeper` says more of each."""

    async def wire(self, endpoint: Endpoint, netns: int, inside: int) -> Wired:
        """Make it. Raises WiringFailed."""

    async def unwire(self, container: str, interface: str) -> bool:
        """Have it no more. Raises WiringFailed."""


class Wish(NamedTuple):
    """Of a runtime: pod: whose. netns: path of its namespace, as the runtime knows it. mac: b"" for any."""

    key: Key
    pod: PodOf
    netns: str
    mac: Mac = b""
    network: str = NETWORK

    @property
    def owner(self) -> Owner:
        """By which the allocator knows it. A sandbox that no Kubernetes asks for goes by its own id."""
        return Owner(self.pod.name or self.key[0], *self.key)


class Attachments:
    """See the module. mtu: of pods that come, in bytes; 0 for the kernel's default. Raises NoAddress where it is not
    known: a pod keeps for life what it begins with."""

    def __init__(
        self, service: AddressService, wiring: EndpointsKernel, networks: Networks, mtu: Callable[[], int] = lambda: 0
    ) -> None:
        self.endpoints = Endpoints()
        """What the kernel's side holds: it changes this very object."""
        self.lost: dict[Key, Endpoint] = {}
        """Those that had addresses and no device when the agent began, and were not asked about since."""
        self._service = service
        self._wiring = wiring
        self._networks = networks
        self._mtu = mtu
        self._locks = AttachmentLocks()
        self._adding: dict[Key, tuple[PodOf, asyncio.Task[Any]]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def adding(self) -> Collection[Key]:
        """Those that are just being added."""
        return self._adding.keys()

    def owners(self, key: Key) -> list[Owner]:
        """Who has addresses for this interface: one at most, unless somebody asked by hand."""
        return [owner for owner, _ in self._service.allocator.held() if (owner.container, owner.interface) == key]

    def uid_of(self, key: Key) -> str:
        """Of the pod that this interface is for; "" where that is not known. It is written down with the addresses, so
        whoever comes late with a question about a pod before is told apart also after a restart."""
        holdings = map(self._service.allocator.holding, self.owners(key))
        return next((each.uid for each in holdings if each is not None and each.uid), "")

    def is_wired(self, key: Key) -> bool:
        """Whether something lives by it, or is about to."""
        return key in self._adding or self.endpoints.get(device_of(*key)) is not None

    # ------------------------------------------------------------------------------------------------------- adding

    async def add(self, wish: Wish, sandbox: Sandbox) -> tuple[Endpoint, Wired]:
        """Addresses and an interface for a pod. Raises Taken, NoAddress, WiringFailed; nothing is left then, nor where
        it is cancelled."""
        async with self._locks.hold(wish.key):
            self._check_free(wish)
            task = asyncio.current_task()
            assert task is not None
            self._adding[wish.key] = wish.pod, task
            try:
                return await self._add(wish, sandbox)
            finally:
                del self._adding[wish.key]

    def _check_free(self, wish: Wish) -> None:
        container, interface = wish.key
        others = [owner.name for owner in self.owners(wish.key) if owner != wish.owner]
        held = self.endpoints.get(device_of(container, interface))
        if others or held is not None:
            whose = others[0] if others else held.pod if held is not None else ""
            of = f" as that of {whose}" if whose not in ("", container) else ""
            raise Taken(f"container {container} has {interface} already{of}. A DEL has to come before another ADD.")

    async def _add(self, wish: Wish, sandbox: Sandbox) -> tuple[Endpoint, Wired]:
        owner, mtu = wish.owner, self._mtu()
        had = self._service.allocator.holding(owner) is not None
        wiring: asyncio.Task[Wired] | None = None
        try:
            self._note(wish)
            holding = await self._service.allocate(owner, wait=ADD_SECONDS, uid=wish.pod.uid)
            endpoint = self._endpoint(wish, holding.addresses, mtu)
            if any(len(address) == 16 for address in holding.addresses):
                self._enable_ipv6(sandbox)
            wiring = self._own(self._wiring.wire(endpoint, sandbox.netns, sandbox.inside))
            wired = await asyncio.shield(wiring)
        except BaseException:
            # Whoever is cancelled here goes only when all is as before: the next one about this interface waits for it.
            await _to_its_end(self._own(self._take_back(wish, wiring, had=had)))
            raise
        self.lost.pop(wish.key, None)
        return endpoint, wired

    def _note(self, wish: Wish) -> None:
        """Raises NoAddress."""
        try:
            self._networks.note(wish.key, wish.network)
        except OSError as error:
            why = f"which attachments are of network {wish.network} cannot be written down: {self._networks.path}"
            way = "Make room there, or name another directory by --state-dir."
            raise NoAddress("NetworksUnwritable", f"{why}: {error.strerror or error}. {way}") from error

    def _enable_ipv6(self, sandbox: Sandbox) -> None:
        try:
            sandbox.enable_ipv6()
        except OSError as error:  # then the kernel refuses the address, and says so
            log.warning("IPv6 of a container cannot be switched on", error=error.strerror)

    def _endpoint(self, wish: Wish, addresses: tuple[Address, ...], mtu: int) -> Endpoint:
        container, interface = wish.key
        return Endpoint(
            container=container,
            interface=interface,
            addresses=addresses,
            netns=wish.netns,
            pod=wish.pod.name,
            mtu=mtu,
            mac=wish.mac,
        )

    async def _take_back(self, wish: Wish, wiring: "asyncio.Task[Wired] | None", *, had: bool) -> None:
        """As it was before: of a wiring that is under way, once that has ended."""
        if wiring is not None:
            await asyncio.wait([wiring])
            if not wiring.cancelled() and wiring.exception() is None:
                await self._unwired(wish.key)
        self._networks.forget(wish.key)
        if had:
            return
        owner, allocator = wish.owner, self._service.allocator
        try:
            await self._service.release(owner)
        except NoAddress as refusal:  # nothing can be written down: it is, together with what comes next
            allocator.release(owner, now=self._service.clock())
            log.warning("what a pod was given and did not get is free again", pod=owner.name, but=str(refusal))

    async def _unwired(self, key: Key) -> None:
        try:
            await self._wiring.unwire(*key)
        except WiringFailed as error:
            log.warning("an interface that nobody wants is left", container=key[0], interface=key[1], why=str(error))

    def _own(self, work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        """A task that goes on when who waits for it does not."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # ----------------------------------------------------------------------------------------------------- removing

    async def take_back(self, wish: Wish, added: Endpoint) -> None:
        """Of an `add` that has ended well with this, and whose caller was not there any more to be told. Also where who
        calls this is cancelled."""
        await _to_its_end(self._own(self._unheard(wish, added)))

    async def _unheard(self, wish: Wish, added: Endpoint) -> None:
        async with self._locks.hold(wish.key):
            if self.endpoints.get(added.device) is not added:
                return  # a DEL has come before, and perhaps another ADD
            try:
                await self._remove(wish.key, [wish.owner])
            except (NoAddress, WiringFailed) as error:
                log.warning("what nobody was told of stays until its DEL", container=wish.key[0], why=str(error))

    async def remove(self, key: Key, pod: PodOf, known: Collection[str] = ()) -> bool:
        """What this pod has by this interface is given back; whether it was its own. known: the addresses that it had
        when it was added, where the runtime says so. Raises NoAddress, WiringFailed: then it is to be asked again."""
        adding = self._adding.get(key)
        if adding is not None and _is_same(adding[0], pod):
            adding[1].cancel()
        async with self._locks.hold(key):
            owners = self.owners(key)
            why = self._why_not_its_own(key, owners, pod, known)
            if why:
                log.warning("a deletion is of something that is gone, and takes nothing", container=key[0], why=why)
                return False
            await self._remove(key, owners or [Owner(pod.name or key[0], *key)])
            return True

    def _why_not_its_own(self, key: Key, owners: list[Owner], pod: PodOf, known: Collection[str]) -> str:
        """What is there by this interface may be a successor's: of another name, another uid, or other addresses."""
        others = [owner.name for owner in owners if pod.name and owner.name not in (pod.name, key[0])]
        if others:
            return f"the interface is that of {others[0]}, and {pod.name} was asked about"
        uid = self.uid_of(key)
        if uid and pod.uid and uid != pod.uid:
            return f"the interface is that of a pod with uid {uid}, and {pod.uid} was asked about"
        held = [each for owner in owners for each in self._held_by(owner)]
        if held and known and not set(held) & set(known):
            return f"the interface has {', '.join(held)}, and had {', '.join(known)} when it was asked about"
        return ""

    def _held_by(self, owner: Owner) -> Iterator[str]:
        holding = self._service.allocator.holding(owner)
        yield from map(format_address, holding.addresses if holding is not None else ())

    async def _remove(self, key: Key, owners: Iterable[Owner]) -> None:
        """No route leads to an address any more when it is released."""
        await self._wiring.unwire(*key)
        self.lost.pop(key, None)
        for owner in owners:
            await self._service.release(owner)
        self._networks.forget(key)

    async def collect(self, network: str, is_valid: Callable[[Key], bool]) -> tuple[int, dict[Key, str]]:
        """Removes what this network has and the runtime does not know. How many those were, and why others would not
        go, or not wholly."""
        found = {(owner.container, owner.interface) for owner, _ in self._service.allocator.held() if owner.container}
        found |= {(endpoint.container, endpoint.interface) for endpoint in self.endpoints}
        stale = {
            key: self.endpoints.get(device_of(*key))
            for key in sorted(found)
            if self._networks.of(key) == network and key not in self._adding and not is_valid(key)
        }
        removed, left = 0, dict[Key, str]()
        for key, endpoint in stale.items():
            try:
                async with self._locks.hold(key):
                    if self.endpoints.get(device_of(*key)) is not endpoint:
                        continue  # it was removed meanwhile, and perhaps added again
                    await self._remove(key, self.owners(key))
                    removed += 1
            except (NoAddress, WiringFailed) as error:
                left[key] = str(error)
        return removed, left

    # ----------------------------------------------------------------------------------------------------- keeping

    def forget_others(self) -> None:
        """It is known who runs: what is remembered of others goes."""
        wired = {(each.container, each.interface) for each in self.endpoints}
        held = {
            (owner.container, owner.interface): (owner, holding) for owner, holding in self._service.allocator.held()
        }
        self._networks.keep(held.keys() | wired)
        self.lost = {
            key: Endpoint(container=key[0], interface=key[1], addresses=holding.addresses, pod=owner.name)
            for key, (owner, holding) in held.items()
            if owner.container and key not in wired and key not in self._adding
        }

    def adopt(self, found: Iterable[FoundEndpoint]) -> None:
        """Enters whose addresses nobody has, once all is known that was written down or seen. An ADD writes before it
        wires, and a DEL takes the routes before it releases: so a route of ours without a record is one whose record
        was lost, and its container may well run. It goes by its own id, until its runtime's DEL."""
        allocator = self._service.allocator
        known = {(owner.container, owner.interface) for owner, _ in allocator.held()}
        for each in found:
            key = each.container, each.interface
            users = [allocator.user(address) for address in each.addresses]
            if key[0] and key not in known and None in users and all(u is None or is_seen(u) for u in users):
                allocator.adopt(Owner(key[0], *key), each.addresses)
                log.warning("an interface whose record was lost is kept", container=key[0], interface=key[1])

    def restore(self, found: Iterable[FoundEndpoint]) -> None:
        """Takes in what the kernel shows after a start, and the allocator explains: by the container, or, where that
        was lost, by addresses that somebody was seen to have."""
        allocator = self._service.allocator
        by_key = {(owner.container, owner.interface): (owner, holding) for owner, holding in allocator.held()}
        for each in found:
            owner, holding = by_key.get((each.container, each.interface), (None, None))
            addresses = holding.addresses if holding is not None else each.addresses
            users = [allocator.user(address) for address in addresses]
            if not addresses or not all(user and (user == owner or is_seen(user)) for user in users):
                continue
            names = [user.name for user in users if user and user.name != each.container]
            pod = next((name for name in names if not name.startswith(DEVICE)), "")
            self.endpoints.put(endpoint_of(each, addresses, pod))


def endpoint_of(found: FoundEndpoint, addresses: tuple[Address, ...], pod: str = "") -> Endpoint:
    """What the kernel shows, as something that is wanted. The MTU stays as it is: both ends have the same."""
    return Endpoint(
        container=found.container,
        interface=found.interface,
        addresses=addresses,
        netns=found.netns,
        pod=pod,
        mtu=found.mtu,
        mac=found.mac,
    )


def _is_same(one: PodOf, other: PodOf) -> bool:
    """Whether they may be the same pod; what is not said is not different."""
    return all(not mine or not theirs or mine == theirs for mine, theirs in zip(one, other, strict=True))


async def _to_its_end(task: "asyncio.Task[Any]") -> None:
    """However often who waits for it is cancelled meanwhile: who was cancelled is on its way out already."""
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([task])
