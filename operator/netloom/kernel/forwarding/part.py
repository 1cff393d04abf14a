"""What the filters of iptables have in common as parts, whichever variant they are of: they are read, it is worked out
what is to be done about each, and that is done, all at once for a table.

There is a filter table per variant and family, and any of them may be there beside the others.
"""

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import ClassVar

import msgspec
import structlog

from netloom.kernel.forwarding.blocked import Blocked
from netloom.kernel.forwarding.opening import FAMILIES, Due, ForwardingState, due_in, script
from netloom.kernel.forwarding.packets import Chain
from netloom.kernel.keeper.part import Attempt, Outcome, Part, RefusedEntry, Worker
from netloom.kernel.keeper.report import PlannedChange
from netloom.kernel.keeper.retries import Item, Retries
from netloom.kernel.netlink.sockets import CommandSocket
from netloom.kernel.ownership import FORWARD, FORWARD_CHAIN

log = structlog.get_logger(__name__)


class ForwardSeen(msgspec.Struct, frozen=True):
    """What was found. tables: the chains of the filter tables of iptables, by family. underlay: the device of this
    node's own traffic with another node, or "". foreign: what else drops packets of pods, as of the desired state.
    unread: why a table could not be read, as sentences."""

    tables: Mapping[str, Mapping[str, Chain]] = {}
    underlay: str = ""
    blocked: tuple[Blocked, ...] = ()
    unread: tuple[str, ...] = ()


class ForwardPart(Part[ForwardingState]):
    """The filter tables of one variant. `programs`: how it is called, by family."""

    owns = FORWARD
    programs: ClassVar[Mapping[str, str]]

    due = True

    def __init__(self) -> None:
        self.reading = ForwardSeen()
        self._desired = ForwardingState()
        self._wanted = False
        self._whole = True
        self._dues: dict[str, Due] = {}
        self._drifted: list[tuple[Item, bool]] = []

    def item(self, family: str) -> Item:
        """By which what is to be in a table of iptables is known."""
        return "chain", f"{FORWARD_CHAIN} of {self.programs[family]}"

    def want(self, desired: ForwardingState, retries: Retries) -> None:
        """Take over the desired state. What other filters do is looked at anew, for other packets."""
        self._wanted = True
        if desired != self._desired:
            self._desired, self.due = desired, True
            self._dues = {}
            retries.forget(map(self.item, FAMILIES))

    def doubt(self) -> None:
        """Everything is to be read."""
        self.due = self._whole = True

    async def read(self, worker: Worker) -> bool:
        """Read what there is; whether that was asked for as a whole."""
        if not self.due:
            return False
        whole, self.due, self._whole = self._whole, False, False
        desired = self._desired
        self.load(await worker.call(lambda commands: self.find(commands, desired)))
        return whole

    def load(self, reading: ForwardSeen) -> None:
        """This is what there is."""
        self.reading = reading
        before, self._dues = (
            self._dues,
            {
                family: due_in(chains, self._desired, family, reading.underlay)
                for family, chains in reading.tables.items()
            },
        )
        for family, due in self._dues.items():
            if due.any and due.needed and family in before and before[family].in_place:
                self._drifted.append((self.item(family), True))

    @abstractmethod
    def find(self, commands: CommandSocket, desired: ForwardingState) -> ForwardSeen:
        """Read it, in a thread. Raises OSError, KernelUnsupported."""

    @abstractmethod
    async def write(self, worker: Worker, family: str, due: Due) -> str:
        """Do this about a table, all or nothing; "" or what stands in the way. Raises AnswerLost."""

    @property
    def open(self) -> tuple[str, ...]:
        """The programs whose filters hold our chain."""
        return tuple(self.programs[family] for family, due in self._dues.items() if due.chain)

    def drifted(self) -> Iterable[tuple[Item, bool]]:
        """Tables in which ours was in place, and is not as it was."""
        found, self._drifted = self._drifted, []
        return found

    def pending(self) -> Iterable[Item]:
        """Tables about which something is to be done."""
        return [self.item(family) for family, due in self._dues.items() if due.any] if self._wanted else []

    async def update(self, worker: Worker, attempt: Attempt) -> Outcome:
        """Do it. What is refused on the strength of an old reading is tried again on that of a new one."""
        outcome = Outcome()
        for family, due in list(self._dues.items()) if self._wanted else ():
            item = self.item(family)
            if not due.any:
                outcome.written.append((item[0], [item[1]]))
            elif item not in attempt.delayed:
                refused = await self.write(worker, family, due)
                self.due = True
                if refused and (attempt.fresh or item in attempt.failing):
                    outcome.refused.append(RefusedEntry(item, refused))
                elif refused:
                    log.info("refused: reading everything", of=item[1], error=refused)
                    self._whole = True
                else:
                    self._dues[family] = Due(due.needed, due.needed)
                    outcome.written.append((item[0], [item[1]]))
        return outcome

    def plan(self, commands: CommandSocket, desired: ForwardingState) -> list[PlannedChange]:
        """All changes, for a part that is asked nothing else. Raises OSError, KernelUnsupported."""
        self._desired = desired
        self.load(self.find(commands, desired))
        why = {
            True: "its FORWARD chain drops packets of pods",
            False: "pods' packets pass without it" if desired.accept and desired.pods else "nothing is to be opened",
        }
        return [
            PlannedChange(f"{self.programs[family]} -t filter {line}", why[due.needed])
            for family, due in self._dues.items()
            for line in script(due, desired, family)
        ]
