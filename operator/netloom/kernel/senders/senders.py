"""Who may send through the tunnels, and from which pods: the whole desired state, with a journal of what changed. Pure.

Each node is described by the addresses that it may send from and by its pod CIDRs. What the kernel looks up is made of
that, as keys of sets, which are looked up by hashing: an address; an address with the base of a pod CIDR; a base. Bases
are in one set for each prefix length, as a packet's source is masked before it is looked up.

What a node does not have any more lingers: it may still send from there, as it hears of a change later than others.
"""

from collections import defaultdict, deque
from collections.abc import Iterable
from functools import cache
from typing import Literal, TypeVar

import msgspec

from netloom.cidr import Address, Cidr
from netloom.kernel.senders.packed import PackedKeys

T = TypeVar("T", Address, Cidr)

LINGER_SECONDS = 30.0

NODES, PAIRS, PODS = "nodes", "pairs", "pods"
"""Kinds of sets."""

_IPV6 = 64
"""Added to the prefix length of a packed IPv6 CIDR."""


class TunnelPort(msgspec.Struct, frozen=True, order=True):
    """A UDP port, and what comes by it."""

    protocol: Literal["vxlan", "geneve"]
    number: int

    def __str__(self) -> str:
        return f"{self.protocol}:{self.number}"


class SetName(msgspec.Struct, frozen=True, order=True):
    """A set. Of pods and pairs there is one for each family (bytes of an address) and prefix length."""

    kind: str
    family: int = 4
    length: int = 32

    def __str__(self) -> str:
        return self.kind if self.kind == NODES else f"{self.kind}{4 if self.family == 4 else 6}-{self.length}"

    @property
    def size(self) -> int:
        """Bytes of a key."""
        return self.family + 4 if self.kind == PAIRS else self.family


NODE_SET = SetName(NODES)

Change = tuple[SetName, bytes, bool]
"""A key that came to a set (True) or went."""


class Senders:
    """See the module. One `SendersTable` reads the journal, which begins when that first asks for it.

    ports: those by which tunnels come in; none: there is nothing to keep. checked: whether it matters who sends.
    """

    def __init__(self, *, linger: float = LINGER_SECONDS) -> None:
        self.ports: tuple[TunnelPort, ...] = ()
        self.checked = True
        self.keys: dict[SetName, PackedKeys] = {}
        self._linger = linger
        self._nodes: dict[str, bytes] = {}
        self._leaving: deque[tuple[float, SetName, bytes]] = deque()
        self._journal: list[Change] = []
        self._is_read = False

    def set_nodes(self, nodes: Iterable[tuple[str, Iterable[Address], Iterable[Cidr]]], now: float) -> None:
        """By name: they may send from these IPv4 addresses, and for pods in these CIDRs. This node is one without
        addresses: nobody sends for its pods. now: monotonic seconds."""
        came: defaultdict[SetName, list[bytes]] = defaultdict(list)
        for name, addresses, cidrs in nodes:
            new, old = _pack(addresses, cidrs), self._nodes.get(name, _NOTHING)
            if new == old:
                continue
            after: Iterable[tuple[SetName, bytes]] = _keys(new)
            if old != _NOTHING:
                before, after = set(_keys(old)), set(after)
                self._leaving.extend((now + self._linger, where, key) for where, key in before - after)
                after -= before
            for where, key in after:
                came[where].append(key)
            if new == _NOTHING:
                del self._nodes[name]
            else:
                self._nodes[name] = new
        for where, keys in came.items():
            packed = self.keys.get(where)
            if packed is None:
                packed = self.keys[where] = PackedKeys(where.size)
            first = packed.add_all(keys)
            if self._is_read:
                self._journal += [(where, key, True) for key in first]

    def expire(self, now: float) -> float | None:
        """What has lingered long enough goes. Seconds until the next does; None: there is nothing."""
        while self._leaving and self._leaving[0][0] <= now:
            _due, where, key = self._leaving.popleft()
            keys = self.keys[where]
            if keys.remove(key) and self._is_read:
                self._journal.append((where, key, False))
            if not keys:
                del self.keys[where]
        return self._leaving[0][0] - now if self._leaving else None

    @property
    def lingering(self) -> int:
        """Keys that no node has any more, and that have not gone yet."""
        return len(self._leaving)

    def take_journal(self) -> list[Change]:
        """What came and went since the last call, in that order. The first finds nothing: who asks has to read all."""
        self._is_read = True
        journal, self._journal = self._journal, []
        return journal


_NOTHING = b"\0"
"""A node without addresses and CIDRs, in one piece."""


def _pack(addresses: Iterable[Address], cidrs: Iterable[Cidr]) -> bytes:
    """A node in one piece: 10 bytes for most, where objects would take 250."""
    senders = _ordered([address for address in addresses if len(address) == 4])[:255]
    pods = [(each.length + _IPV6 * (each.version == 6)).to_bytes() + each.packed for each in _ordered([*cidrs])]
    return b"".join([len(senders).to_bytes(), *senders, *pods])


def _ordered(values: list[T]) -> list[T]:
    """Each once. Nearly always there is one."""
    return sorted(set(values)) if len(values) > 1 else values


def _keys(packed: bytes) -> list[tuple[SetName, bytes]]:
    """What is to be in the sets for it."""
    at = 1 + 4 * packed[0]
    addresses = [packed[start : start + 4] for start in range(1, at, 4)]
    keys = [(NODE_SET, address) for address in addresses]
    while at < len(packed):
        pods, pairs = _sets_of(packed[at])
        base = packed[at + 1 : at + 1 + pods.family]
        keys.append((pods, base))
        keys += [(pairs, address + base) for address in addresses]
        at += 1 + pods.family
    return keys


@cache
def _sets_of(length: int) -> tuple[SetName, SetName]:
    """Of pods and of pairs, by the length as it is packed."""
    family, length = (16, length - _IPV6) if length >= _IPV6 else (4, length)
    return SetName(PODS, family, length), SetName(PAIRS, family, length)
