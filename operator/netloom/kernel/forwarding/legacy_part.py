"""iptables of the legacy variant as a part: no event tells of its changes, so it is looked at now and then."""

import time
from collections.abc import Mapping
from typing import ClassVar

from netloom.kernel.forwarding import iptables
from netloom.kernel.forwarding.blocked import blocked
from netloom.kernel.forwarding.opening import FORWARD, Due, ForwardingState, script
from netloom.kernel.forwarding.packets import Chain
from netloom.kernel.forwarding.part import ForwardPart, ForwardSeen
from netloom.kernel.forwarding.reading import Base
from netloom.kernel.forwarding.underlay import device_to
from netloom.kernel.keeper.part import Worker
from netloom.kernel.netlink.sockets import CommandSocket

LOOK_SECONDS = 5.0
"""Between looks: 4 ms of CPU time each where both families have tables (0.1 %), and 50 us where there is nothing."""


class LegacyForward(ForwardPart):
    """See the module."""

    programs: ClassVar = iptables.PROGRAMS
    state = ("dump", "iptables-legacy, table filter")
    groups = ()
    kinds: frozenset[int] = frozenset()

    def __init__(self) -> None:
        super().__init__()
        self._look_at = 0.0
        self._parsed: dict[str, tuple[str, Mapping[str, Chain]]] = {}

    def hear(self, kind: int, flags: int, buffer: bytes, start: int, end: int) -> None:
        """There are no events."""

    def later(self) -> float:
        """The next look."""
        return self._look_at

    async def read(self, worker: Worker) -> bool:
        """Look, if it is time or there is a reason to."""
        now = time.monotonic()
        if now >= self._look_at:
            self.due, self._look_at = True, now + LOOK_SECONDS
        return await super().read(worker)

    def find(self, commands: CommandSocket, desired: ForwardingState) -> ForwardSeen:
        """Read the tables that there are; what cannot be read is looked for again, and said meanwhile."""
        tables: dict[str, Mapping[str, Chain]] = {}
        unread = []
        for family, program in self.programs.items():
            if iptables.has_table(family):
                try:
                    tables[family] = self._chains(family)
                except OSError as error:
                    unread.append(
                        f"the kernel holds a filter table of {program}, and whether it drops packets of pods cannot be "
                        f"told: {error}"
                    )
        underlay = device_to(desired.peer) if tables else ""
        found = [
            each
            for family, chains in tables.items()
            if not desired.accept and FORWARD in chains
            for each in blocked(_base(family, chains), chains, desired, underlay, self.programs[family])
        ]
        return ForwardSeen(tables, underlay, tuple(found), tuple(unread))

    def _chains(self, family: str) -> Mapping[str, Chain]:
        """What is the same text as before has been read before."""
        saved = iptables.save(family)
        before = self._parsed.get(family)
        if before is None or before[0] != saved:
            before = self._parsed[family] = saved, iptables.parse(family, saved)
        return before[1]

    async def write(self, worker: Worker, family: str, due: Due) -> str:
        """iptables-restore, in a thread."""
        lines = script(due, self._desired, family)
        try:
            await worker.call(lambda _commands: iptables.restore(family, lines))
        except OSError as error:
            return str(error)
        return ""


def _base(family: str, chains: Mapping[str, Chain]) -> Base:
    return Base(family, iptables.TABLE, FORWARD, 0, "filter", chains[FORWARD].policy)
