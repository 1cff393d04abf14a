"""An nftables table of ours as a part: how it is read anew, written in one transaction, and heard of.

What a pass writes is one transaction, so packets see the table before it or after it, and never without its rules.
"""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence, Set
from typing import ClassVar, TypeVar

from netloom.kernel.keeper.part import Attempt, Outcome, Part, Worker
from netloom.kernel.keeper.retries import Item
from netloom.kernel.keeper.transaction import (
    ELEMENT,
    TRANSACTION,
    Transaction,
    TransactionOutcome,
    explained,
    without_nftables,
)
from netloom.kernel.netlink import nftables

D = TypeVar("D")

_STRUCTURE = {nftables.NEWTABLE, nftables.DELTABLE, nftables.NEWSET, nftables.DELSET}


class OwnedTable(Part[D], ABC):
    """See the module. `table`: its name, in family inet; `loss`: what cannot be done where there is no nftables."""

    table: ClassVar[str]
    loss: ClassVar[str]
    groups = ("nftables",)
    kinds = frozenset(range(nftables.SUBSYSTEM, nftables.SUBSYSTEM + 256))

    def __init__(self) -> None:
        self._whole: Item = (TRANSACTION, f"inet {self.table}")
        self._table_due = self._resync_due = True
        self._found: list[tuple[Item, bool]] = []
        """Drift that a reading showed."""
        self._echoed: dict[bytes, bytes] = {}
        """What this kernel was seen to make of a rule's expressions, by the rule's userdata."""
        self._rules_written = False

    @property
    @abstractmethod
    def _is_wanted(self) -> bool:
        """Whether there is to be a table."""

    @abstractmethod
    def _transaction(self, delayed: Set[Hashable]) -> Transaction:
        """What makes all right that may be tried now."""

    @abstractmethod
    def _wrote_elements(self, done: Transaction) -> Sequence[Hashable]:
        """The kernel has done it. Returns the elements, as items' keys."""

    @abstractmethod
    def _heard(self, name: str, key: bytes, *, plain: bool, came: bool) -> None:
        """An element came to the set of that name, or went."""

    @property
    def due(self) -> bool:
        """The table is to be read."""
        return self._resync_due or self._table_due

    def doubt(self) -> None:
        """All of the table is to be read again."""
        self._resync_due = True

    def explain(self, error: Exception) -> str:
        """With the cause that is behind an errno that says little; empty where no table is wanted."""
        return "" if without_nftables(error) and not self._is_wanted else explained(error, self.loss)

    async def update(self, worker: Worker, attempt: Attempt) -> Outcome:
        """Write what is due. Refused on the strength of old knowledge, it is tried again on that of new."""
        due = self._transaction(attempt.delayed)
        end, refused = await due.submit(worker, attempt)
        outcome = Outcome(refused=refused)
        if end is TransactionOutcome.DONE:
            self._wrote(due, outcome)
            await self._follow_up(due, worker)
        self._resync_due = self._resync_due or end is TransactionOutcome.STALE
        return outcome

    def _wrote(self, done: Transaction, outcome: Outcome) -> None:
        elements = self._wrote_elements(done)
        self._rules_written = done.rules
        self._table_due = self._table_due or done.anew or done.rules
        structure = dict.fromkeys(write.item for write in done.writes if not write.keys)
        outcome.written += [(kind, [key]) for kind, key in [*structure, self._whole]]
        outcome.written.append((ELEMENT, elements))

    async def _follow_up(self, done: Transaction, worker: Worker) -> None:
        """What the transaction makes necessary."""

    def hear(self, kind: int, flags: int, buffer: bytes, start: int, end: int) -> None:
        """Take in an event."""
        if not nftables.belongs_to(self.table, buffer, start, end):
            return
        what = kind & 0xFF
        if what in (nftables.NEWSETELEM, nftables.DELSETELEM):
            name, elements = nftables.read_elements(buffer, start, end)
            for key, plain in elements:
                self._heard(name, key, plain=plain, came=what == nftables.NEWSETELEM)
        elif what in _STRUCTURE:
            # A set that is deleted takes its elements along in silence.
            self._resync_due = True
        else:
            self._table_due = True
