"""Sockets in pods' network namespaces that are kept open: those that the CNI plugin made there.

Who deletes a pod's device on the node takes the pod's end along. By such a socket both are made anew with NET_ADMIN
alone, while it takes SYS_ADMIN to enter the namespace by its path. (From outside a device can be made in there, but no
address: the kernel takes IFA_TARGET_NETNSID for questions alone.) But a socket keeps its namespace alive, and with it
the pod's device: nothing would tell that a pod is over whose runtime says no word. So one is kept only where the path
is seen from here, and while it leads there: runtimes remove it with the pod.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Mapping
from typing import NamedTuple

from netloom.kernel.endpoints.endpoint import Endpoint
from netloom.kernel.endpoints.inside import SIOCGSKNS

LOOK_SECONDS = 5.0
"""Between looks at the paths. 250 of them take 1 ms."""


class KeptSocket(NamedTuple):
    """One of them. inside: the socket's descriptor. path: of the namespace; identity: what it leads to."""

    inside: int
    path: str
    identity: tuple[int, int]

    def leads(self) -> bool:
        """Whether the path still leads there."""
        return _identity(self.path) == self.identity

    def namespace(self) -> int:
        """A descriptor of the network namespace, which is the caller's. Raises OSError."""
        return fcntl.ioctl(self.inside, SIOCGSKNS)


def kept_socket(endpoint: Endpoint, netns: int, inside: int) -> KeptSocket | None:
    """One that can be kept, with a descriptor of its own; None where the path is not seen from here."""
    found = os.fstat(netns)
    identity = found.st_dev, found.st_ino
    if not endpoint.netns or endpoint.netns.startswith("/proc/") or _identity(endpoint.netns) != identity:
        return None
    try:
        return KeptSocket(os.dup(inside), endpoint.netns, identity)
    except OSError:  # no descriptor is free: others need them more
        return None


class KeptSockets:
    """Those of all pods, by their host ends."""

    def __init__(self) -> None:
        self._open: dict[str, KeptSocket] = {}
        self._looked = 0.0

    def keep(self, device: str, kept: KeptSocket | None) -> None:
        """From now on it is to this one's pod."""
        self.close(device)
        if kept is not None:
            self._looked = self._looked if self._open else time.monotonic()
            self._open[device] = kept

    def to(self, device: str) -> KeptSocket | None:
        """The one to its pod, if there is one."""
        return self._open.get(device)

    def close(self, device: str) -> None:
        """Nobody wants it any more."""
        kept = self._open.pop(device, None)
        if kept is not None:
            with contextlib.suppress(OSError):
                os.close(kept.inside)

    def close_all(self) -> None:
        """None is of any use any more."""
        for device in list(self._open):
            self.close(device)

    def later(self) -> float:
        """When (monotonic seconds) to look at the paths."""
        return self._looked + LOOK_SECONDS if self._open else float("inf")

    def take_to_look_at(self) -> Mapping[str, KeptSocket]:
        """Those whose paths are to be looked at by now."""
        now = time.monotonic()
        if self.later() > now:
            return {}
        self._looked = now
        return dict(self._open)

    def __len__(self) -> int:
        return len(self._open)


def leading_nowhere(sockets: Mapping[str, KeptSocket]) -> list[str]:
    """Those of which the paths are gone, or lead elsewhere."""
    return [device for device, kept in sockets.items() if not kept.leads()]


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)  # noqa: PTH116 - one system call
    except OSError:
        return None
    return found.st_dev, found.st_ino
