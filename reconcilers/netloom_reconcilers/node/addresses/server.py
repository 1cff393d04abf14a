"""The node's socket: HTTP/1.1 over a UNIX socket that root alone may open, and is asked again who it is.

    POST   /v1/addresses              an Ask: 200, an Assignment
    DELETE /v1/addresses?name=...     with container, interface, and any number of address: 200, a Released
    GET    /v1/addresses              200, a Listing
    POST   /v1/gc                     a Valid: 200, a Released
    GET    /v1/why?name=...           200, a Why
    GET    /v1/status                 204 where addresses can be given

Any other answer is an ErrorAnswer. 503 is: it may be another answer later.
"""

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec
from multidict import CIMultiDict, CIMultiDictProxy

from netloom.cidr import Address, CidrError, Version, format_address, parse_address, split
from netloom.ipam.node_allocator import NodeAllocator, Owner, OwnerHolding
from netloom.runtime.http import web
from netloom_reconcilers.node.addresses.service import AddressService, NoAddress
from netloom_reconcilers.node.addresses.wire import (
    AddressListing,
    Ask,
    Assignment,
    ErrorAnswer,
    Given,
    PoolCount,
    Released,
    Valid,
)

M = TypeVar("M", bound=msgspec.Struct)

BACKLOG = 512
_CREDENTIALS = struct.Struct("3i")
_JSON = CIMultiDictProxy(CIMultiDict({"Content-Type": "application/json"}))
_encode = msgspec.json.Encoder().encode
_ROOT = 0
_MOST = 60.0
"""Seconds that a request may wait."""


class SocketUnusable(Exception):
    """Why nobody can be answered, as a sentence."""


class AddressServer:
    """Speaks for a service."""

    def __init__(self, service: AddressService, node: str) -> None:
        self._service = service
        self._node = node
        self._handlers: dict[tuple[str, str], Callable[[web.BaseRequest], Awaitable[msgspec.Struct | None]]] = {
            ("POST", "/v1/addresses"): self._allocate,
            ("DELETE", "/v1/addresses"): self._release,
            ("GET", "/v1/addresses"): self._list,
            ("POST", "/v1/gc"): self._collect,
            ("GET", "/v1/status"): self._status,
            ("GET", "/v1/why"): self._why,
        }

    @contextlib.asynccontextmanager
    async def listening(self, path: Path) -> AsyncIterator[None]:
        """Answers at this path meanwhile; who hangs up waits no longer. Raises SocketUnusable."""
        runner = web.ServerRunner(
            web.Server(self._answer, handler_cancellation=True, access_log=None), shutdown_timeout=1.0
        )
        await runner.setup()
        try:
            await web.SockSite(runner, bind(path), backlog=BACKLOG).start()
            yield
        finally:
            await runner.cleanup()
            remove(path)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        handler = self._handlers.get((request.method, request.path))
        try:
            if not _came_from_root(request):
                return _error(403, "NotRoot", "root alone may ask the agent for addresses of pods.")
            if handler is None:
                return _error(404, "NoSuchRequest", f"there is no {request.method} {request.path} here.")
            answer = await handler(request)
        except NoAddress as refusal:
            return _error(503 if refusal.passing else 409, refusal.reason, str(refusal))
        except (msgspec.MsgspecError, CidrError, KeyError, ValueError) as error:
            said = f"parameter {error} is missing" if isinstance(error, KeyError) else str(error)
            return _error(400, "BadRequest", f"the request cannot be understood: {said}.")
        if answer is None:
            return web.Response(status=204)
        return web.Response(body=_encode(answer), headers=_JSON)

    async def _allocate(self, request: web.BaseRequest) -> Assignment:
        asked = await _body(request, Ask)
        owner = _owner(asked.name, asked.container, asked.interface)
        families: frozenset[Version] = frozenset(4 if each == 4 else 6 for each in asked.families)
        if families != set(asked.families):
            raise ValueError("families are 4 and 6")
        wait = min(max(asked.wait_seconds, 0.0), _MOST)
        holding = await self._service.allocate(owner, asked.pool, families, wait)
        return assignment(self._service.allocator, owner, holding)

    async def _release(self, request: web.BaseRequest) -> Released:
        said = request.query
        owner = _owner(said["name"], said.get("container", ""), said.get("interface", "eth0"))
        addresses = [_address(text) for text in said.getall("address", [])]
        self._service.check_idle(owner)
        return _released(await self._service.release(owner, addresses or None))

    async def _collect(self, request: web.BaseRequest) -> Released:
        said = await _body(request, Valid)
        return _released(await self._service.collect({(each.container, each.interface) for each in said.valid}))

    async def _list(self, _request: web.BaseRequest) -> AddressListing:
        allocator, now = self._service.allocator, self._service.clock()
        counts = [
            PoolCount(pool, version, each.used, each.free, each.resting, each.waiting)
            for pool in allocator.pools()
            for version, each in allocator.need(pool, now).items()
            if any(each)
        ]
        return AddressListing(
            node=self._node,
            assignments=tuple(assignment(allocator, *each) for each in sorted(allocator.held())),
            pools=tuple(counts),
            orphans=tuple(sorted(map(format_address, allocator.orphans()))),
        )

    async def _why(self, request: web.BaseRequest) -> msgspec.Struct:
        if self._service.why is None:
            raise NoAddress("NoPools", "feature pools of this agent is off, which knows.", passing=False)
        return await self._service.why(request.query["name"])

    async def _status(self, _request: web.BaseRequest) -> None:
        self._service.check_giving()


def _address(text: str) -> Address:
    """Alone, or with a prefix length, as the results of CNI plugins have it."""
    return split(text)[0] if "/" in text else parse_address(text)


def _owner(name: str, container: str, interface: str) -> Owner:
    if not name or not interface:
        raise ValueError("name and interface cannot be empty")
    return Owner(name, container, interface)


def assignment(allocator: NodeAllocator, owner: Owner, holding: OwnerHolding) -> Assignment:
    """As it is told."""
    given = [Given(format_address(each), str(allocator.block(each) or "")) for each in holding.addresses]
    return Assignment(*owner, holding.pool, tuple(given))


def _released(addresses: Iterable[Address]) -> Released:
    return Released(tuple(map(format_address, addresses)))


async def _body(request: web.BaseRequest, kind: type[M]) -> M:
    return msgspec.json.decode(await request.read(), type=kind)


def _error(status: int, reason: str, message: str) -> web.Response:
    return web.Response(status=status, body=_encode(ErrorAnswer(reason, message)), headers=_JSON)


def _came_from_root(request: web.BaseRequest) -> bool:
    connected = request.transport.get_extra_info("socket") if request.transport is not None else None
    return connected is not None and is_root(connected)


def is_root(connected: socket.socket) -> bool:
    """By what the kernel says of who connected: a socket may be bind-mounted to where its mode means nothing."""
    said = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return _CREDENTIALS.unpack(said)[1] in (_ROOT, os.geteuid())


def bind(path: Path, option: str = "--socket") -> socket.socket:
    """A socket there that root alone may open, in place of one that nobody listens on. option: by which another path is
    named. Raises SocketUnusable."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    fresh = path.with_name(f"{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if _is_listened_on(path):
            raise SocketUnusable(f"{path}: another agent listens there. Name another by {option}, or stop that agent.")
        fresh.unlink(missing_ok=True)
        made.bind(str(fresh))
        fresh.chmod(0o600)
        made.listen(BACKLOG)
        fresh.rename(path)
    except OSError as error:
        made.close()
        why = str(error) if error.strerror is None else error.strerror
        raise SocketUnusable(f"{path}: no pod can ask for an address: {why}. Name another path by {option}.") from error
    except SocketUnusable:
        made.close()
        raise
    return made


def _is_listened_on(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as caller:
        try:
            caller.connect(str(path))
        except BlockingIOError:
            return True
        except OSError:
            return False
        return True


def remove(path: Path) -> None:
    """Unless somebody listens there: it may be another agent's by now."""
    with contextlib.suppress(OSError):
        if not _is_listened_on(path):
            path.unlink()


class Listening(Protocol):
    """What answers at a path of its own."""

    def listening(self, path: Path) -> AbstractAsyncContextManager[None]:
        """Answers there meanwhile. Raises SocketUnusable."""


class ServedSocket:
    """What answers, at its path. fault: why nobody can ask, as a sentence; `changed` is called when it is another."""

    def __init__(self, server: Listening, path: Path, changed: Callable[[], object], again: float = 5.0) -> None:
        self.path = path
        self.fault = ""
        self._server = server
        self._changed = changed
        self._again = again

    async def run(self) -> None:
        """For ever; where it cannot, it is tried again."""
        while True:
            try:
                async with self._server.listening(self.path):
                    self._say("")
                    await asyncio.Event().wait()
            except SocketUnusable as error:
                self._say(str(error))
                await asyncio.sleep(self._again)

    def _say(self, fault: str) -> None:
        if fault != self.fault:
            self.fault = fault
            self._changed()
