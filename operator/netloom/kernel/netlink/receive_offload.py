"""Whether a device puts the segments of a connection that arrive together into few large ones: GRO, generic receive
offload. By ethtool's ioctl, as a link's messages do not tell it; linux/ethtool.h.
"""

import contextlib
import ctypes
import fcntl
import socket
import struct

_SIOCETHTOOL = 0x8946
_GET, _SET = 0x2B, 0x2C
"""ETHTOOL_GGRO, ETHTOOL_SGRO."""
_VALUE = struct.Struct("=II")


def is_on(device: str) -> bool:
    """Of a device in the network namespace of the calling thread; one that has gone, or does not say, does nothing."""
    with contextlib.suppress(OSError):
        return bool(_ask(device, _GET))
    return False


def switch_off(device: str) -> None:
    """`ethtool -K DEVICE gro off`. Raises OSError."""
    _ask(device, _SET)


def _ask(device: str, command: int) -> int:
    about = ctypes.create_string_buffer(_VALUE.pack(command, 0), _VALUE.size)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCETHTOOL, struct.pack("16sP16x", device.encode(), ctypes.addressof(about)))
    return int(_VALUE.unpack(about.raw)[1])
