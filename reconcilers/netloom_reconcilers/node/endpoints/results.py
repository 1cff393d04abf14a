"""Results of ADD, in the words of each version of the CNI specification (section 5, "ADD Success"). Pure.

0.3.1 and 0.4.0 have `version` in each of `ips`, which 1.0.0 took out; 1.1.0 brought mtu, socketPath and pciID of
interfaces, and mtu, advmss, priority, table and scope of routes.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from netloom.cidr import format_address, version_of
from netloom.kernel.endpoints.endpoint import GATEWAY, Endpoint, Wired
from netloom.kernel.mac import format_mac

_OLD = ("0.3.1", "0.4.0")
"""Those whose `ips` say which family they are."""


class Dns(msgspec.Struct, frozen=True, omit_defaults=True):
    """As in a configuration and a result."""

    nameservers: tuple[str, ...] = ()
    domain: str = ""
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


class Interface(msgspec.Struct, frozen=True, omit_defaults=True):
    """mtu: bytes. sandbox: path of the network namespace, "" on the host."""

    name: str
    mac: str = ""
    mtu: int = 0
    sandbox: str = ""
    socket_path: str = msgspec.field(name="socketPath", default="")
    pci_id: str = msgspec.field(name="pciID", default="")


class Ip(msgspec.Struct, frozen=True, omit_defaults=True):
    """address: with its prefix length. interface: index into the result's interfaces."""

    address: str
    gateway: str = ""
    interface: int | None = None

    @property
    def plain(self) -> str:
        """Without the prefix length."""
        return self.address.partition("/")[0]


class Route(msgspec.Struct, frozen=True, omit_defaults=True):
    """Of the container."""

    dst: str
    gw: str = ""
    mtu: int = 0
    advmss: int = 0
    priority: int = 0
    table: int | None = None
    scope: int | None = None


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """Of any version: what one does not have is left out when it is encoded."""

    interfaces: tuple[Interface, ...] | None = ()
    ips: tuple[Ip, ...] | None = ()
    routes: tuple[Route, ...] | None = ()
    dns: Dns | None = Dns()

    def addresses(self) -> tuple[str, ...]:
        """All of `ips`, without prefix lengths."""
        return tuple(each.plain for each in self.ips or ())


def made(endpoint: Endpoint, wired: Wired, dns: Dns, before: Result | None = None) -> Result:
    """What ADD says: both ends, the addresses (which are the pod end's), the default routes. before: what plugins ahead
    of this one said, which stays; of DNS what this configuration says counts, if it says anything."""
    before = before or Result()
    ahead = before.interfaces or ()
    pod_end = len(ahead) + 1
    found = (
        Interface(wired.device, format_mac(wired.host_mac), wired.mtu),
        Interface(endpoint.interface, format_mac(wired.pod_mac), wired.mtu, endpoint.netns),
    )
    gateways = {len(address): format_address(GATEWAY[version_of(address)]) for address in endpoint.addresses}
    ips = (
        Ip(f"{format_address(address)}/{8 * len(address)}", gateways[len(address)], pod_end)
        for address in endpoint.addresses
    )
    routes = (Route(_DEFAULT[size], gateway) for size, gateway in gateways.items())
    return Result(
        interfaces=(*ahead, *found),
        ips=(*(before.ips or ()), *ips),
        routes=(*(before.routes or ()), *routes),
        dns=dns if dns != Dns() else before.dns or dns,
    )


_DEFAULT = {4: "0.0.0.0/0", 16: "::/0"}


def encode(result: Result, version: str) -> bytes:
    """In the words of that version."""
    newest = version == "1.1.0"
    found: dict[str, Any] = {
        "cniVersion": version,
        "interfaces": [_only(each, _INTERFACE_KEYS, newest) for each in result.interfaces or ()],
        "ips": [_ip(each, version) for each in result.ips or ()],
        "routes": [_only(each, _ROUTE_KEYS, newest) for each in result.routes or ()],
        "dns": result.dns or Dns(),
    }
    return msgspec.json.encode(found)


_INTERFACE_KEYS = ("name", "mac", "sandbox")
_ROUTE_KEYS = ("dst", "gw")


def _only(each: Interface | Route, keys: Iterable[str], newest: bool) -> Mapping[str, Any]:
    said: dict[str, Any] = msgspec.to_builtins(each)
    return said if newest else {key: said[key] for key in keys if key in said}


def _ip(each: Ip, version: str) -> Mapping[str, Any]:
    said: dict[str, Any] = msgspec.to_builtins(each)
    return {"version": "6" if ":" in each.address else "4", **said} if version in _OLD else said
