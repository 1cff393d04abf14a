"""Who has the UDP port that a tunnel's device needs, and cannot have.

A tunnel device has its port in the network namespace in which it was *made*, wherever it is now, and even while it is
down. So a device that somebody moved away keeps the port of the namespace that it left, and no other can be made there:
seen on Linux 6.1 (VXLAN, Geneve) and 6.18 (VXLAN). The kernel numbers the namespaces that a namespace has to do with,
that one among them from the move on, and shows and removes devices in them by that number.
"""

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec

from netloom.kernel.mesh.encapsulation import Encapsulation
from netloom.kernel.mesh.tunnel_device import Interfaces
from netloom.kernel.netlink import wire
from netloom.kernel.netlink.links import Link, dump_links, read_address, read_link
from netloom.kernel.netlink.messages import AddressMessage, NamespaceIdMessage, decode, encode
from netloom.kernel.netlink.sockets import CommandSocket, RefusedError, read_all, read_one

_THREAD = Path("/proc/thread-self")
"""Of a thread and not of the process: the network namespace is the thread's."""
_PROCESSES = Path("/proc")


class Moved(msgspec.Struct, frozen=True):
    """A device that was made in this network namespace and is in another one, by that one's id here."""

    netns: int
    link: Link


def moved_away(commands: CommandSocket, encapsulation: Encapsulation) -> list[Moved]:
    """Devices of the tunnel's protocol and port that were made here and are elsewhere, as far as this process may see
    (CAP_NET_ADMIN in the owner of each namespace). One dump for each namespace that this one knows. Raises OSError.

    Of Geneve's devices the kernel does not say where they were made. One that has no address counts: whoever made it
    there would have given it one, and one that was moved has lost them.
    """
    found = []
    for netns in read_all(commands, encode(NamespaceIdMessage, wire.RTM_GETNSID, 0, {}), _read_id):
        with suppress(RefusedError):  # not allowed, or no longer there
            there = read_all(commands, dump_links(if_netnsid=netns), read_link)
            links = [each for each in there if (each.kind, each.port) == (encapsulation.protocol, encapsulation.port)]
            here = _id_of_this(commands) if links else None
            for link in links if netns != here else ():
                bare = link.kind == "geneve" and not _has_addresses(commands, netns, link)
                if bare if link.made_in < 0 else link.made_in == here:
                    found.append(Moved(netns, link))
    return found


def _has_addresses(commands: CommandSocket, netns: int, link: Link) -> bool:
    """IPv6 link-local ones apart, which the kernel makes by itself."""
    there = encode(AddressMessage, wire.RTM_GETADDR, 0, {}, target_netnsid=netns)
    on_it = [each.local for each in read_all(commands, there, read_address) if each.ifindex == link.ifindex]
    return not all(local.is_link_local for local in on_it)


def _read_id(buffer: bytes, start: int, _end: int) -> int | None:
    number = decode(NamespaceIdMessage, buffer, start).get_attr("NETNSA_NSID", -1)
    return int(number) if number >= 0 else None


def _id_of_this(commands: CommandSocket) -> int | None:
    """This network namespace's id in itself: in these terms the kernel says, in a dump of another, where a device was
    made. It has one from the first such dump on."""
    with (_THREAD / "ns/net").open("rb") as this:
        question = encode(NamespaceIdMessage, wire.RTM_GETNSID, 0, {}, fd=this.fileno())
        return read_one(commands, question, _read_id)


def holder_of(commands: CommandSocket, encapsulation: Encapsulation, interfaces: Interfaces) -> str:
    """What has the tunnel's port, for people: a device, here or moved away, or a program. Raises OSError."""
    port = encapsulation.port
    for link in interfaces.links:
        if link.port == port and link.name != encapsulation.device:
            return f"the {link.kind} device {link.name}"
    for each in moved_away(commands, encapsulation):
        where = f"network namespace {each.netns} (`ip netns list-id` has the names), into which somebody moved it"
        return f"the {each.link.kind} device {each.link.name} in {where}"
    return next(
        _programs(port), "a device that is not seen from here, as one that was moved to other network namespaces"
    )


def _programs(port: int) -> Iterator[str]:
    """Of a socket of the kernel's own (WireGuard's, FOU's) no process has a descriptor."""
    for inode in _sockets(port):
        yield next(_owners(inode), f"a socket (inode {inode} in /proc/net/udp) of a process that is not seen from here")


def _sockets(port: int) -> Iterator[str]:
    for table in ("udp", "udp6"):
        with suppress(OSError):
            for line in (_THREAD / "net" / table).read_text(encoding="ascii").splitlines()[1:]:
                fields = line.split()
                if int(fields[1].rpartition(":")[2], 16) == port:
                    yield fields[9]


def _owners(inode: str) -> Iterator[str]:
    socket = f"socket:[{inode}]"
    for process in sorted(_PROCESSES.iterdir()):
        if not re.fullmatch(r"\d+", process.name):
            continue
        with suppress(OSError):  # it has ended, or is not ours to look at
            if any(str(each.readlink()) == socket for each in (process / "fd").iterdir()):
                name = (process / "comm").read_text(encoding="utf-8", errors="replace").strip()
                yield f"the program {name} (process {process.name})"
