"""What a host end says of itself, by its alias (`ip link`): for people, and for an agent that was restarted."""

import re
from typing import NamedTuple

from netloom.kernel.endpoints.endpoint import Endpoint
from netloom.kernel.mac import Mac, format_mac

MOST_BYTES = 255
"""IFALIASZ."""
CONTAINER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")

_MAC = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}")
_MARKED = re.compile(r"(.+)@([0-9]+)")


class Alias(NamedTuple):
    """What a host end says of itself. mac: of the pod end, where the runtime asked for one. netns: path of the network
    namespace; cookie: the kernel's number of it, as a path may lead elsewhere later. Empty where it says nothing of the
    kind."""

    container: str = ""
    interface: str = ""
    mac: Mac = b""
    netns: str = ""
    cookie: int = 0

    @property
    def identity(self) -> tuple[str, str]:
        """Whose it is."""
        return self.container, self.interface


def alias_of(endpoint: Endpoint, cookie: int = 0) -> str:
    """What the host end says of itself, for people and for an agent that was restarted: container, interface, the MAC
    that was asked for, and the path of the network namespace with its cookie where there is room for it."""
    words = [endpoint.container, endpoint.interface]
    words += [format_mac(endpoint.odd_mac)] if endpoint.odd_mac else []
    short = " ".join(words)
    mark = f"@{cookie}" if cookie or _MARKED.fullmatch(endpoint.netns) else ""
    whole = f"{short} {endpoint.netns}{mark}" if endpoint.netns else short
    fits = len(whole.encode()) <= MOST_BYTES and not any(letter.isspace() for letter in endpoint.netns)
    return whole if fits else short


def read_alias(alias: str) -> Alias:
    """What it says; nothing where somebody else wrote it."""
    words = alias.split(" ")
    if not 2 <= len(words) <= 4 or not CONTAINER.fullmatch(words[0]):
        return Alias()
    container, interface, *more = words
    mac = bytes.fromhex(more.pop(0).replace(":", "")) if more and _MAC.fullmatch(more[0]) else b""
    if len(more) > 1:
        return Alias()
    netns = more[0] if more else ""
    marked = _MARKED.fullmatch(netns)
    return (
        Alias(container, interface, mac, marked[1], int(marked[2]))
        if marked
        else Alias(container, interface, mac, netns)
    )


def says(endpoint: Endpoint, alias: str) -> bool:
    """Whether that is the endpoint's alias, whatever cookie is in it."""
    return alias == alias_of(endpoint, read_alias(alias).cookie)
