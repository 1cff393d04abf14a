"""A pair that somebody deleted is made anew, where the pod's network namespace can still be reached by its path."""

import errno
import os

from netloom.kernel.endpoints import link_messages
from netloom.kernel.endpoints.endpoint import Endpoint, Reason, WiringFailed
from netloom.kernel.endpoints.inside import socket_in
from netloom.kernel.endpoints.link_messages import End
from netloom.kernel.endpoints.wiring import Made, Wiring
from netloom.kernel.netlink.sockets import CommandSocket

_WAY_OUT = "delete the pod, and whoever keeps it makes another"


def remake(commands: CommandSocket, endpoint: Endpoint, found: End | None) -> Made:
    """Make both ends anew; `found` has the name, and is none of them. Raises WiringFailed, AnswerLost, OSError."""
    what = f"its device {endpoint.device} is " + ("not the one that was made for it" if found is not None else "gone")
    if not endpoint.netns:
        raise _failed("namespace-gone", endpoint, f"{what}, and where its network namespace is is not known", _WAY_OUT)
    try:
        netns = os.open(endpoint.netns, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        why = f"{what}, and so is its network namespace {endpoint.netns} ({error.strerror})"
        raise _failed("namespace-gone", endpoint, why, f"if the pod still runs, {_WAY_OUT}") from error
    try:
        return _remake(commands, endpoint, found, netns, what)
    finally:
        os.close(netns)


def _remake(commands: CommandSocket, endpoint: Endpoint, found: End | None, netns: int, what: str) -> Made:
    try:
        inside = socket_in(netns)
    except OSError as error:
        if error.errno == errno.EPERM:
            why = f"{what}, and entering its network namespace to make it anew takes the capability SYS_ADMIN"
            raise _failed("not-permitted", endpoint, why, _WAY_OUT) from error
        why = f"{what}, and {endpoint.netns} cannot be entered ({error.strerror})"
        raise _failed("namespace-gone", endpoint, why, _WAY_OUT) from error
    try:
        if found is not None:
            commands.execute([link_messages.delete_named(found.name)])
        return Wiring(commands, endpoint, netns, inside).make()
    finally:
        os.close(inside)


def _failed(reason: Reason, endpoint: Endpoint, why: str, way_out: str) -> WiringFailed:
    return WiringFailed(reason, f"{endpoint}: {why}: {way_out}")
