"""How packets get from one node to another: through a tunnel of some protocol and port, or as they are.

A node accepts some encapsulations and sends in one of them to each peer; while a cluster changes from one to another,
both exist. Each tunnel has a device of its own, whose name follows from it: a restart finds the devices by their names.
"""

from typing import Literal

import msgspec

from netloom.kernel.ownership import DEVICE_PREFIX

Protocol = Literal["vxlan", "geneve", "none"]

PLAIN_PORTS: dict[Protocol, int] = {"vxlan": 8472, "geneve": 6081}
"""Ports whose device is named after the protocol alone. VXLAN's is Linux's default, as flannel and Cilium use it
(IANA's is 4789); Geneve's is IANA's."""

OVERHEAD = 50
"""Bytes a tunnel adds over IPv4, both protocols: IPv4 20, UDP 8, VXLAN or Geneve without options 8, Ethernet 14."""


DEFAULT_VNI = 1
"""What a packet carries when the sender has no identity: the same as flannel's default."""

TUNNEL_TTL = 64
"""Outer TTL. Has to be given: the kernel's default for an encapsulation route is 0 in places."""


class Encapsulation(msgspec.Struct, frozen=True, order=True, gc=False):
    """A tunnel protocol and its UDP port, or `none` (port 0): packets go as they are, by native routes."""

    protocol: Protocol
    port: int = 0

    @property
    def device(self) -> str:
        """The name of the tunnel's device; at most 15 bytes, as the kernel wants it."""
        plain = PLAIN_PORTS[self.protocol] == self.port
        return f"{DEVICE_PREFIX}{self.protocol}" if plain else f"{DEVICE_PREFIX}{self.protocol[0]}{self.port}"

    @property
    def is_tunnel(self) -> bool:
        """Whether it has a device."""
        return self.protocol != "none"

    def __str__(self) -> str:
        return f"{self.protocol}:{self.port}" if self.is_tunnel else self.protocol


NO_ENCAPSULATION = Encapsulation("none")
VXLAN = Encapsulation("vxlan", PLAIN_PORTS["vxlan"])
GENEVE = Encapsulation("geneve", PLAIN_PORTS["geneve"])


def encapsulation_of(device: str) -> Encapsulation | None:
    """The tunnel whose device has this name; None if it is none of ours."""
    rest = device.removeprefix(DEVICE_PREFIX)
    for protocol, plain in PLAIN_PORTS.items():
        port = int(rest[1:]) if rest[:1] == protocol[0] and rest[1:].isdecimal() else plain
        if (found := Encapsulation(protocol, port)).device == device:
            return found
    return None
