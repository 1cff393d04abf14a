"""A pair that somebody deleted is made anew, where the pod's network namespace can still be reached: by a socket in
it that was kept (`netloom.kernel.endpoints.kept_sockets`), or by its path.
"""

import errno
import os

from netloom.kernel.endpoints import link_messages
from netloom.kernel.endpoints.endpoint import Endpoint, Reason, WiringFailed
from netloom.kernel.endpoints.inside import cookie_of, socket_in
from netloom.kernel.endpoints.kept_sockets import KeptSocket
from netloom.kernel.endpoints.link_messages import End
from netloom.kernel.endpoints.wiring import Made, Wiring
from netloom.kernel.netlink.sockets import CommandSocket

_WAY_OUT = "delete the pod, and whoever keeps it makes another"


def remake(
    commands: CommandSocket, endpoint: Endpoint, found: End | None, cookie: int, kept: KeptSocket | None = None
) -> Made:
    """Make both ends anew; `found` has the name, and is none of them. cookie: of the network namespace in which the pod
    end was; 0: not known. kept: the socket in it, if one was kept. Raises WiringFailed, AnswerLost, OSError."""
    if kept is not None and kept.leads():
        netns = kept.namespace()
        try:
            return _make(commands, endpoint, found, netns, kept.inside)
        finally:
            os.close(netns)
    what = f"its device {endpoint.device} is " + ("not the one that was made for it" if found is not None else "gone")
    if not endpoint.netns:
        raise _failed("namespace-gone", endpoint, f"{what}, and where its network namespace is is not known", _WAY_OUT)
    try:
        # Who opens a FIFO waits otherwise until somebody writes to it.
        netns = os.open(endpoint.netns, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        why = (
            f"{what}, and its network namespace {endpoint.netns} cannot be seen from here ({error.strerror}): it is "
            "gone, too, or that directory is not mounted where the agent runs"
        )
        raise _failed("namespace-gone", endpoint, why, f"if the pod still runs, {_WAY_OUT}") from error
    try:
        return _remake(commands, endpoint, found, netns, cookie, what)
    finally:
        os.close(netns)


def _remake(commands: CommandSocket, endpoint: Endpoint, found: End | None, netns: int, cookie: int, what: str) -> Made:
    try:
        inside = socket_in(netns)
    except OSError as error:
        if error.errno == errno.EPERM:
            why = (
                f"{what}, and entering its network namespace to make it anew takes the capability SYS_ADMIN, as the "
                "agent was started again since the pod came"
            )
            raise _failed("not-permitted", endpoint, why, _WAY_OUT) from error
        why = f"{what}, and {endpoint.netns} cannot be entered ({error.strerror})"
        raise _failed("namespace-gone", endpoint, why, _WAY_OUT) from error
    try:
        if not _is_the_same(endpoint.netns, cookie, cookie_of(inside)):
            why = f"{what}, and {endpoint.netns} leads, or may lead, to another network namespace by now"
            raise _failed("namespace-gone", endpoint, why, _WAY_OUT)
        return _make(commands, endpoint, found, netns, inside)
    finally:
        os.close(inside)


def _make(commands: CommandSocket, endpoint: Endpoint, found: End | None, netns: int, inside: int) -> Made:
    if found is not None:
        commands.execute([link_messages.delete_named(found.name)])
    return Wiring(commands, endpoint, netns, inside).make()


def _is_the_same(path: str, before: int, now: int) -> bool:
    """Names are used again, and a process's number is another's soon, or in another PID namespace from the start."""
    return before == now if before and now else not path.startswith("/proc/")


def _failed(reason: Reason, endpoint: Endpoint, why: str, way_out: str) -> WiringFailed:
    return WiringFailed(reason, f"{endpoint}: {why}: {way_out}")
