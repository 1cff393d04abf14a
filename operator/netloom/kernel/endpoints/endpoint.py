"""A local pod's interface as the kernel side knows it: what is wanted of it, and the names that follow from that.

An endpoint is a veth pair. Its *host end* is here, its *pod end* in the pod's network namespace. All that is derived
(the host end's name, both MACs) is a function of container id and interface, so an agent that was restarted knows it
without having written it down.
"""

import base64
import hashlib
from collections.abc import Iterable, Iterator
from typing import Literal

import msgspec

from netloom.cidr import Address
from netloom.kernel.mac import Mac

GATEWAY: dict[int, Address] = {4: b"\xa9\xfe\x01\x01", 6: b"\xfe\x80" + bytes(13) + b"\x01"}
"""Of a pod's default routes, by IP version: 169.254.1.1 and fe80::1. Nobody has these addresses: a permanent neighbour
in the pod says that they are at the host end."""

_PREFIX = "netloom_p"
_DIGITS = 6
"""Of 32 values each, behind the prefix: all of a device's 15 characters. Of 250 pods two have the same name once in
30,000 nodes; then the second ADD is refused, and the runtime's next attempt has another container id."""


def device_of(container: str, interface: str) -> str:
    """The host end's name: `netloom_p` and six characters."""
    digest = hashlib.sha256(b"netloom:endpoint:" + _identity(container, interface)).digest()
    return _PREFIX + base64.b32encode(digest).decode().lower()[:_DIGITS]


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """What is wanted of one interface of a pod.

    container, interface: CNI_CONTAINERID and CNI_IFNAME, the device's name in the pod. addresses: at most one of each
    family, at least one. netns: path of the network namespace, by which the pair is made anew if somebody deletes it;
    empty: not known. pod: namespace/name, for people. mtu: bytes, of both ends; 0: the kernel's default (1500).
    mac: of the pod end, where the runtime asks for one; empty: derived.
    """

    container: str
    interface: str
    addresses: tuple[Address, ...]
    netns: str = ""
    pod: str = ""
    mtu: int = 0
    mac: Mac = b""

    @property
    def device(self) -> str:
        """The host end's name."""
        return device_of(self.container, self.interface)

    @property
    def host_mac(self) -> Mac:
        """Of the host end."""
        return _mac("host", self.container, self.interface)

    @property
    def pod_mac(self) -> Mac:
        """Of the pod end."""
        return self.mac or self._derived_mac

    @property
    def odd_mac(self) -> Mac:
        """Of the pod end, where it is not the one that is derived; else empty."""
        return b"" if self.mac == self._derived_mac else self.mac

    @property
    def _derived_mac(self) -> Mac:
        return _mac("pod", self.container, self.interface)

    def __str__(self) -> str:
        """For people: who, and where."""
        return f"{self.interface} of {self.pod or f'container {self.container}'}"


class Wired(msgspec.Struct, frozen=True):
    """What `EndpointsKeeper.wire` made, for the CNI result.

    device: the host end's name. host_mac, pod_mac, mtu (bytes): as the kernel has them.
    """

    device: str
    host_mac: Mac
    pod_mac: Mac
    mtu: int


class FoundEndpoint(msgspec.Struct, frozen=True, kw_only=True):
    """An endpoint as the kernel shows it: what a restarted agent finds. addresses: those that routes of ours lead to;
    netns: empty if it did not fit into the device's alias. mac: of the pod end, where one was asked for."""

    device: str
    container: str
    interface: str
    netns: str = ""
    addresses: tuple[Address, ...] = ()
    mtu: int = 0
    mac: Mac = b""


Reason = Literal[
    "invalid", "namespace-gone", "interface-taken", "already-there", "address-taken", "not-permitted", "lost", "refused"
]
"""Why an endpoint was not made.

invalid:         what is wanted cannot be: the interface's name, the MTU, the addresses.
namespace-gone:  the network namespace, or the socket in it, cannot be used.
interface-taken: the pod has a device of that name, which is not of this endpoint, or a default route.
already-there:   this container has this interface: an ADD without a DEL before it.
address-taken:   another endpoint, a device of the node, or a foreign route has the address.
not-permitted:   a capability is missing, or IPv6 is switched off in the pod.
lost:            the kernel's answer did not come; trying again may help.
refused:         the kernel said something else.
"""


class WiringFailed(Exception):
    """An endpoint was not made; nothing of it is left. `sentence`: what, why, and the way out, for people."""

    def __init__(self, reason: Reason, sentence: str) -> None:
        super().__init__(sentence)
        self.reason: Reason = reason
        self.sentence = sentence


class Endpoints:
    """The whole desired state: the endpoints of this node, by their devices. Who changes one by `put` or `discard`
    pays for that one when it is applied."""

    def __init__(self, endpoints: Iterable[Endpoint] = ()) -> None:
        self._by_device = {endpoint.device: endpoint for endpoint in endpoints}
        self._touched: set[str] = set()

    def put(self, endpoint: Endpoint) -> None:
        """This one is to be, as it says."""
        self._by_device[endpoint.device] = endpoint
        self._touched.add(endpoint.device)

    def discard(self, device: str) -> None:
        """This one is not to be."""
        if self._by_device.pop(device, None) is not None:
            self._touched.add(device)

    def get(self, device: str) -> Endpoint | None:
        """The endpoint of that host end."""
        return self._by_device.get(device)

    def take_touched(self) -> set[str]:
        """The devices of those that were put or discarded since this was asked last."""
        touched, self._touched = self._touched, set()
        return touched

    def __iter__(self) -> Iterator[Endpoint]:
        return iter(self._by_device.values())

    def __len__(self) -> int:
        return len(self._by_device)


def _identity(container: str, interface: str) -> bytes:
    return f"{container}/{interface}".encode()


def _mac(end: str, container: str, interface: str) -> Mac:
    """Locally administered, unicast."""
    digest = hashlib.sha256(f"netloom:{end}:".encode() + _identity(container, interface)).digest()
    return bytes([(digest[0] & 0xFC) | 0x02]) + digest[1:6]
