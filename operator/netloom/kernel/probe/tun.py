"""A TUN device: what is written to it enters the kernel as if it had come in on a link, and so is forwarded, as the
packets of a pod are; what is routed to it is read from it. linux/if_tun.h.
"""

import errno
import fcntl
import os
import struct
from pathlib import Path

PATH = "/dev/net/tun"
_SET_INTERFACE, _SET_PERSIST, _GET_INTERFACE = 0x400454CA, 0x400454CB, 0x800454D2
_TUN, _NO_PACKET_INFO = 0x0001, 0x1000


def is_there() -> bool:
    """Whether this kernel, or this container, has TUN devices."""
    return Path(PATH).exists()


def open_tun(name: str) -> int:
    """A file descriptor (non-blocking) of the device, which is made if it is not there, and stays when this is closed.

    It is in the network namespace of the calling thread. Raises OSError.
    """
    descriptor = os.open(PATH, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.ioctl(descriptor, _SET_INTERFACE, struct.pack("16sH22x", name.encode(), _TUN | _NO_PACKET_INFO))
        fcntl.ioctl(descriptor, _SET_PERSIST, 1)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def name_of(descriptor: int) -> str:
    """The name of the device now. Raises OSError if it was deleted."""
    return fcntl.ioctl(descriptor, _GET_INTERFACE, bytes(40))[:16].rstrip(b"\0").decode(errors="replace")


def give_up(descriptor: int) -> None:
    """The device, whatever its name is now, goes when this is closed. Raises OSError if it was deleted."""
    fcntl.ioctl(descriptor, _SET_PERSIST, 0)


def explain(error: OSError) -> str:
    """Why there is no such device, and what mends it."""
    if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        return f"{PATH} is not there: load the module `tun`, and mount {PATH} into the agent's container (hostPath)."
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"{PATH} may not be used ({error.strerror}): allow the device to the agent's container (c 10:200 rw)."
    if error.errno == errno.EBUSY:
        return "another process holds netloom_probe: one agent runs on a machine."
    return f"{PATH}: {error.strerror}"
