"""By which ids peers have their nexthop objects: a hash of the name, so that a restart finds the same."""

import zlib
from collections.abc import Iterable, Mapping

from netloom.kernel.mesh.rows import Nexthop
from netloom.kernel.ownership import NEXTHOP_IDS


class NexthopIds:
    """Ids of our range, one for each peer and family.

    given: by size of an address and the peer's name. peer_of: whose an id is. foreign: those of our range that somebody
    else uses.
    """

    def __init__(self) -> None:
        self.given: dict[int, dict[str, int]] = {4: {}, 16: {}}
        self.peer_of: dict[int, str] = {}
        self.foreign: set[int] = set()
        self._unclaimed: dict[Nexthop, int] = {}

    def give(self, name: str, size: int, nexthop: Nexthop) -> int:
        """An id for the peer's nexthop: what the kernel has it under already, else a hash of its name.

        An id in use by another peer or by a foreign nexthop is passed over. The peer that was passed over keeps its
        id after a restart because the content is looked up first.
        """
        identity = self._unclaimed.get(nexthop) if self._unclaimed else None
        if identity is None or identity in self.peer_of:
            at = zlib.crc32(name.encode(), size)
            while True:
                identity = NEXTHOP_IDS[at % len(NEXTHOP_IDS)]
                if identity not in self.peer_of and identity not in self.foreign:
                    break
                at += 1
        self.given[size][name] = identity
        self.peer_of[identity] = name
        return identity

    def take_back(self, name: str) -> None:
        """The peer is forgotten."""
        for ids in self.given.values():
            identity = ids.pop(name, None)
            if identity is not None:
                del self.peer_of[identity]

    def displaced(self) -> set[str]:
        """Peers whose ids somebody else uses by now. Theirs are taken back: they are to be given others."""
        if not self.foreign:
            return set()
        names = {self.peer_of[identity] for identity in self.foreign & self.peer_of.keys()}
        for name in names:
            self.take_back(name)
        return names

    def load(self, owned: Mapping[int, Nexthop], foreign: Iterable[int]) -> None:
        """What the kernel has: ours, and others' ids in our range."""
        self.foreign = set(foreign)
        self._unclaimed = {value: key for key, value in owned.items() if key not in self.peer_of}
