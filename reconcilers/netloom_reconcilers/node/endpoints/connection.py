"""One caller of the CNI server: a request that arrives in pieces with descriptors, its answer, and whether the caller
is still there.

Descriptors are owned from the moment they arrive, and closed when the call is over, however it ends. A caller that
hangs up (it was killed, or its runtime lost patience) ends the call: whatever it had begun is taken back by who handles
it, as that is cancelled.
"""

import array
import asyncio
import fcntl
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

import structlog

from netloom_reconcilers.node.endpoints.errors import (
    BAD_ENVIRONMENT,
    IO_FAILURE,
    NEWEST,
    TRY_AGAIN,
    CniError,
)
from netloom_reconcilers.node.endpoints.framing import Call, Incoming, answer

log = structlog.get_logger(__name__)

REQUEST_SECONDS = 10.0
"""For a request to arrive. The plugin writes it in one piece."""
ANSWER_SECONDS = 5.0
"""For an answer to be taken: it fits into the socket's buffer."""
NEEDED, MOST_DESCRIPTORS = 2, 3
ENTERING = ("ADD", "CHECK")
"""Commands that need them. With others they are not looked at: above all, a DEL never fails for one."""
_PIECE = 256 << 10
_ROOM = socket.CMSG_SPACE(8 * array.array("i").itemsize)
_IPV6_SWITCH = "sys/net/ipv6/conf/all/disable_ipv6"
_NS_GET_NSTYPE = 0xB703  # linux/nsfs.h
_CLONE_NEWNET = 0x40000000


class Reply(NamedTuple):
    """What the plugin is to do: its exit status, and what it prints. unheard: is awaited where nobody is there any more
    to be told."""

    status: int = 0
    output: bytes = b""
    unheard: Callable[[], Awaitable[None]] | None = None


def refusal(error: CniError, version: str = NEWEST) -> Reply:
    """A call that fails."""
    return Reply(1, error.encode(version))


class Sandbox(NamedTuple):
    """Descriptors of a container's network namespace, and of an rtnetlink socket that was made in it; whoever has
    received them closes them. ipv6: of the switch `net.ipv6.conf.all.disable_ipv6` in there, to be written, where IPv6
    is off for devices to come; -1 where it is not."""

    netns: int
    inside: int
    ipv6: int = -1

    def enable_ipv6(self) -> None:
        """Where it is off. Raises OSError."""
        if self.ipv6 >= 0:
            os.pwrite(self.ipv6, b"0\n", 0)


Handle = Callable[[Call, Sandbox | None], Awaitable[Reply]]


class PluginConnection:
    """Of a caller that the kernel says is root. `ended` is called once it is over."""

    def __init__(self, connected: socket.socket, handle: Handle, ended: Callable[["PluginConnection"], None]) -> None:
        self._socket = connected
        self._handle = handle
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._incoming = Incoming()
        self._descriptors: list[int] = []
        self._task: asyncio.Task[None] | None = None
        self._is_open = True
        self._is_cut = self._is_many = False
        """Whether descriptors were lost on their way, and whether more came than are of any use."""
        connected.setblocking(False)
        self._loop.add_reader(connected.fileno(), self._readable)
        self._deadline = self._loop.call_later(REQUEST_SECONDS, self.close)

    def close(self) -> None:
        """Over, whatever it was at. What handles the call is cancelled, and ends in its own time."""
        if not self._is_open:
            return
        self._is_open = False
        self._deadline.cancel()
        self._loop.remove_reader(self._socket.fileno())
        if self._task is not None and not self._task.done():
            self._task.cancel()  # what it holds is closed when it has ended
        else:
            self._release()

    def _release(self) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()
        self._socket.close()
        self._ended(self)

    def _readable(self) -> None:
        try:
            data, ancillary, flags, _ = self._socket.recvmsg(_PIECE, _ROOM, socket.MSG_CMSG_CLOEXEC)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.close()
            return
        self._descriptors += _descriptors_in(ancillary)
        self._is_cut |= bool(flags & socket.MSG_CTRUNC)
        while len(self._descriptors) > MOST_DESCRIPTORS:
            os.close(self._descriptors.pop())
            self._is_many = True
        if not data:
            self.close()  # it has hung up
        elif self._task is None:
            self._take(data)

    def _take(self, data: bytes) -> None:
        try:
            found = self._incoming.feed(data)
        except CniError as error:
            self._begin(error)
        else:
            if found is not None:
                self._begin(found)

    def _begin(self, found: Call | CniError) -> None:
        self._deadline.cancel()
        self._task = self._loop.create_task(self._answer(found))
        self._task.add_done_callback(self._finished)  # also where it is cancelled before it has begun

    async def _answer(self, found: Call | CniError) -> None:
        said = refusal(found) if isinstance(found, CniError) else await self._called(found)
        is_heard = False
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await self._loop.sock_sendall(self._socket, answer(said.status, said.output))
            is_heard = True
        except (OSError, TimeoutError):  # it has hung up, or does not read
            pass
        finally:
            if not is_heard and said.unheard is not None:
                await said.unheard()

    async def _called(self, call: Call) -> Reply:
        """A fault of ours is told, and the caller comes again."""
        try:
            return await self._handle(call, self._sandbox() if call.command in ENTERING else None)
        except CniError as error:
            return refusal(error)
        except Exception as error:
            log.exception("a call of a container runtime failed", command=call.command, container=call.containerid)
            why = f"the agent failed ({type(error).__name__}: {error}); its log says more."
            return refusal(CniError(TRY_AGAIN, why))

    def _sandbox(self) -> Sandbox | None:
        """Raises CniError."""
        if self._is_many:
            raise CniError(IO_FAILURE, f"more than {MOST_DESCRIPTORS} descriptors came with the request.")
        if self._is_cut:  # the kernel could not hand over all of them
            raise CniError(TRY_AGAIN, "the agent has no free file descriptors; raise its limit (LimitNOFILE).")
        return sandbox_of(self._descriptors)

    def _finished(self, _task: asyncio.Task[None]) -> None:
        if self._is_open:
            self._is_open = False
            self._loop.remove_reader(self._socket.fileno())
        self._release()


def _descriptors_in(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    found = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return list(found)


def sandbox_of(descriptors: list[int]) -> Sandbox | None:
    """What was received, if it is what it should be; None: nothing was. Raises CniError."""
    if not descriptors:
        return None
    if len(descriptors) < NEEDED:
        raise CniError(IO_FAILURE, f"{len(descriptors)} descriptor came with the request, not {NEEDED}.")
    netns, inside, *more = descriptors
    try:
        is_netns = fcntl.ioctl(netns, _NS_GET_NSTYPE) == _CLONE_NEWNET
    except OSError:
        is_netns = False
    if not is_netns:
        raise CniError(BAD_ENVIRONMENT, "CNI_NETNS is no network namespace.")
    if _is_own(netns):
        raise CniError(BAD_ENVIRONMENT, "CNI_NETNS is the node's own network namespace: it is no container's.")
    if not _is_rtnetlink(inside):
        raise CniError(IO_FAILURE, "the second descriptor is no rtnetlink socket.")
    if more and not Path(f"/proc/self/fd/{more[0]}").readlink().match(_IPV6_SWITCH):
        raise CniError(IO_FAILURE, "the third descriptor is no switch of IPv6.")
    return Sandbox(netns, inside, *more)


def _is_own(descriptor: int) -> bool:
    return os.path.samestat(os.fstat(descriptor), Path("/proc/self/ns/net").stat())


def _is_rtnetlink(descriptor: int) -> bool:
    copy = os.dup(descriptor)
    try:
        found = socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        return False
    with found:
        return found.family == socket.AF_NETLINK and found.proto == socket.NETLINK_ROUTE
