"""Into a pod's network namespace: by a socket that somebody made in it, or by the namespace itself.

The CNI plugin, which is root on the host, hands both over. By the socket all is done that netlink can do, with no other
capability than NET_ADMIN. By a path the namespace is entered only to repair, which takes SYS_ADMIN; a thread that has
entered it ends there: no other work must ever find itself in a pod's network.
"""

import ctypes
import errno
import fcntl
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from netloom.kernel import sysctl
from netloom.kernel.endpoints.endpoint import Endpoint, WiringFailed
from netloom.kernel.netlink.sockets import AnswerLost, CommandSocket, prepare_to_ask

T = TypeVar("T")

_CLONE_NEWNET = 0x40000000
SIOCGSKNS = 0x894C
_SO_NETNS_COOKIE = 71
HERE = "/proc/thread-self/ns/net"


class InsideSocket(CommandSocket):
    """A socket that was made in a pod's network namespace, for requests there. It cannot be opened again."""

    def __init__(self, descriptor: int) -> None:
        """The descriptor stays the caller's. Raises OSError where it is no such socket."""
        self._given: int | None = descriptor
        super().__init__()

    def _open(self) -> None:
        if self._given is None:
            raise OSError(errno.ENOTCONN, "the socket in the network namespace gave no answer")
        given, self._given = self._given, None
        self._socket = _socket_of(given)
        if self._socket.family != socket.AF_NETLINK or self._socket.proto != self.protocol:
            self._socket.close()
            raise OSError(errno.EPROTONOSUPPORT, "not a socket of NETLINK_ROUTE")
        self._socket.setblocking(True)
        prepare_to_ask(self._socket)
        if not self._socket.getsockname()[0]:
            self._socket.bind((0, 0))
        self.port = int(self._socket.getsockname()[0])

    def cookie(self) -> int:
        """See `cookie_of`."""
        return _cookie(self._socket)

    def namespace(self) -> int:
        """The number of the network namespace that it was made in; 0: not known, before Linux 4.9. Raises OSError."""
        try:
            descriptor = fcntl.ioctl(self._socket, SIOCGSKNS)
        except OSError as error:
            if error.errno in (errno.ENOTTY, errno.EPERM):
                return 0
            raise
        try:
            return os.fstat(descriptor).st_ino
        finally:
            os.close(descriptor)


@contextmanager
def asked(endpoint: Endpoint, inside: int) -> Iterator[InsideSocket]:
    """Questions about an endpoint, also to its pod's network namespace. Raises WiringFailed where that, or the kernel,
    gives no answer."""
    try:
        within = InsideSocket(inside)
    except OSError as error:
        why = f"{endpoint}: the pod's network namespace cannot be asked: {error}"
        raise WiringFailed("namespace-gone", why) from error
    try:
        yield within
    except (AnswerLost, OSError) as error:
        raise WiringFailed("lost", f"{endpoint}: no answer from the kernel ({error})") from error
    finally:
        within.close()


def within(descriptor: int, work: Callable[[], T]) -> T:
    """What `work` returns, done in a thread of its own in that network namespace. Raises OSError (EPERM: it takes
    CAP_SYS_ADMIN), and whatever `work` raises."""
    outcome: list[T] = []
    failure: list[Exception] = []

    def run() -> None:
        try:
            _enter(descriptor)
            outcome.append(work())
        except Exception as error:  # noqa: BLE001 - it is raised again, where somebody hears it
            failure.append(error)

    thread = threading.Thread(target=run, name="netloom-netns", daemon=True)
    try:
        thread.start()
    except RuntimeError as error:  # so Python says it
        raise OSError(errno.EAGAIN, f"no thread can be made to enter it: {error}") from error
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]


def socket_in(descriptor: int) -> int:
    """The descriptor of a new netlink socket in that network namespace, which is the caller's. Raises OSError."""

    def make() -> int:
        return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0).detach()

    return within(descriptor, make)


def cookie_of(descriptor: int) -> int:
    """The number that the kernel has given the network namespace of this socket, and gives to no other until the next
    boot (an inode's is given again at once); 0: not known, before Linux 5.14. Raises OSError."""
    with _socket_of(descriptor) as sock:
        return _cookie(sock)


def _socket_of(descriptor: int) -> socket.socket:
    """One of its own, that is the caller's. Raises OSError."""
    copy = os.dup(descriptor)
    try:
        return socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        raise


def _cookie(sock: socket.socket) -> int:
    try:
        return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8), sys.byteorder)
    except OSError as error:
        if error.errno == errno.ENOPROTOOPT:
            return 0
        raise


def enable_ipv6(descriptor: int, interface: str) -> None:
    """Where somebody has switched it off in the pod: `disable_ipv6` of a device there is set to 0. Raises OSError."""
    within(descriptor, lambda: sysctl.write(f"net/ipv6/conf/{interface}/disable_ipv6", "0"))


def _enter(descriptor: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(descriptor, _CLONE_NEWNET):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
