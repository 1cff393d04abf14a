"""iptables of the legacy variant as a part: no event tells of its changes, so it is looked at now and then."""

from collections.abc import Mapping
from typing import ClassVar

from netloom.kernel.forward import iptables
from netloom.kernel.forward.blocked import blocked
from netloom.kernel.forward.opening import FORWARD, Due, Forwarding, script
from netloom.kernel.forward.packets import Chain
from netloom.kernel.forward.part import ForwardPart, Looks, Reading
from netloom.kernel.forward.reading import Base
from netloom.kernel.forward.ways import device_to
from netloom.kernel.keeper.part import Worker
from netloom.kernel.netlink.sockets import CommandSocket


class LegacyForward(ForwardPart):
    """See the module."""

    programs: ClassVar = iptables.PROGRAMS
    state = ("dump", "iptables-legacy, table filter")
    groups = ()
    kinds: frozenset[int] = frozenset()

    def __init__(self) -> None:
        super().__init__()
        self._looks = Looks()
        self._parsed: dict[str, tuple[str, Mapping[str, Chain]]] = {}

    def hear(self, kind: int, flags: int, buffer: bytes, start: int, end: int) -> None:
        """There are no events."""

    def later(self) -> float:
        """The next look."""
        return self._looks.at

    async def read(self, worker: Worker) -> bool:
        """Look, if it is time or there is a reason to."""
        self.due = self._looks.is_time() or self.due
        return await super().read(worker)

    def find(self, commands: CommandSocket, desired: Forwarding) -> Reading:
        """Read the tables that there are; without the program, there is no way."""
        there = [family for family in self.programs if iptables.has_table(family)]
        unread = tuple(
            f"the kernel holds a filter table of {self.programs[family]}; whether it drops packets of pods nobody can "
            f"tell here, as {name} is missing. Install it beside the agent (Debian: package iptables)."
            for family in there
            if not iptables.program(name := f"{self.programs[family]}-save")
        )
        if unread:
            return Reading(unread=unread)
        tables = {family: self._chains(family) for family in there}
        underlay = device_to(desired.peer) if tables else ""
        found = [
            each
            for family, chains in tables.items()
            if not desired.accept and FORWARD in chains
            for each in blocked(_base(family, chains), chains, desired, underlay, self.programs[family])
        ]
        return Reading(tables, underlay, tuple(found), unread)

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
