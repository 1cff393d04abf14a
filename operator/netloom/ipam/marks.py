"""Which requests may still write a block to a node, and how long a block has to be kept for them.

The marks in the ledgers tell of every incarnation's requests. Of our own we know when they were answered, and our
mark goes then; a request without an answer, and a mark of anybody else, are waited out.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from netloom.cidr import Cidr
from netloom.ipam import ledger
from netloom.ipam.known_ledgers import KnownLedger
from netloom.ipam.ledger import Entry, Mark
from netloom.ipam.plan import ChosenBlocks, Grant

REQUEST_SECONDS = 10.0
"""Time-out of every request that writes a block to a node."""
WINDOW_SECONDS = 15.0
"""A grant is good for sending requests this long, counted from before its commit was sent."""
QUARANTINE_SECONDS = 120.0
"""After this no request sent under a mark can still be executed: window, time-out, the API server's own limit of
60 s for a request, and a margin of 35 s."""

_NEVER = float("inf")


@dataclass(slots=True)
class _Requests:
    """Requests of ours that write one block to one node: granted or sent, and not answered."""

    grants: int = 0
    unanswered_until: float = 0.0


class Marks:
    """Those of `incarnation`, which must never have been used before, by any process, and the wait for others'."""

    def __init__(self, incarnation: str) -> None:
        self._incarnation = incarnation
        self._sequence = 0
        self._requests: dict[tuple[str, Cidr], _Requests] = {}

    def __len__(self) -> int:
        """Nodes' blocks with requests under way, or perhaps still to be executed."""
        return len(self._requests)

    def begin(self, now: float) -> None:
        """One more batch of commits. What was never answered, and is executed no more, is forgotten: its node may never
        be asked about again."""
        self._sequence += 1
        for key in [key for key, each in self._requests.items() if not each.grants and each.unanswered_until <= now]:
            del self._requests[key]

    def marked(self, entry: Entry) -> Entry:
        """The entry with our mark of this batch."""
        return ledger.marked(entry, Mark(self._incarnation, self._sequence))

    def grant(self, node: str, mode: str, chosen: ChosenBlocks, now: float) -> Grant:
        """Leave to write these blocks to the node, once a commit has put our mark on them; until it is finished."""
        for _, cidr in chosen.blocks:
            self._requests.setdefault((node, cidr), _Requests()).grants += 1
        return Grant(node, mode, chosen.blocks, now + WINDOW_SECONDS, chosen.short)

    def finish(self, grant: Grant, sent: float | None) -> None:
        """The grant is used up. `sent`: when a request was sent that got no answer; None if there is none such."""
        for cidr in grant.cidrs:
            requests = self._requests[grant.node, cidr]
            requests.grants -= 1
            if sent is not None:
                requests.unanswered_until = max(requests.unanswered_until, sent + QUARANTINE_SECONDS)
            if not requests.grants and not requests.unanswered_until:
                del self._requests[grant.node, cidr]

    def wait(self, known: KnownLedger, node: str, cidr: Cidr, now: float) -> float:
        """Seconds until the marks let the node's entry be freed; 0 where they do now. Infinite while we write it."""
        entry = known.entries.get(cidr)
        if entry is None or entry.node != node:
            return 0.0
        requests = self._requests.get((node, cidr))
        if requests is not None and requests.grants:
            return _NEVER
        return max([0.0, *(self._expires(known, node, cidr, mark) - now for mark in entry.marks)])

    def tidy(self, known: KnownLedger, edits: dict[Cidr, Entry | None], now: float) -> None:
        """Adds to the edits of a ledger that marks go which are no longer needed."""
        if known.problem or known.stale:
            return
        for cidr in known.marked:
            entry = edits.get(cidr, known.entries[cidr])
            if entry is None:
                continue
            gone = [mark for mark in entry.marks if self._expires(known, entry.node, cidr, mark) <= now]
            if gone:
                edits[cidr] = ledger.unmarked(entry, gone)

    def next_tidy(self, ledgers: Iterable[KnownLedger]) -> float:
        """When a mark is no longer needed; infinite where there is none that time alone removes."""
        times = (
            self._expires(known, known.entries[cidr].node, cidr, mark)
            for known in ledgers
            for cidr in known.marked
            for mark in known.entries[cidr].marks
        )
        return min(times, default=_NEVER)

    def _foreign(self, mark: Mark) -> bool:
        return mark.incarnation != self._incarnation

    def _expires(self, known: KnownLedger, node: str, cidr: Cidr, mark: Mark) -> float:
        """When the mark stops counting."""
        if self._foreign(mark):
            return known.seen[mark] + QUARANTINE_SECONDS
        requests = self._requests.get((node, cidr))
        if requests is None:
            return 0.0
        return _NEVER if requests.grants else requests.unanswered_until
