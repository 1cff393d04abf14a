"""What one process knows of every ledger: its content, and how far that may be relied on."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from netloom.cidr import VERSIONS, WIDTH, Address, Cidr, Version, version_of
from netloom.cidr.interval_set import IntervalSet
from netloom.ipam.ledger import Entry, Ledger, LedgerError, Mark
from netloom.ipam.ledger_range import LEDGER_RANGE_LENGTH, MOST_ENTRIES, ledger_name, ledger_range_of
from netloom.ipam.plan import Deferred


@dataclass(slots=True)
class KnownLedger:
    """A ledger as it is known: `content` None where it does not exist, `version` its resourceVersion ("" then)."""

    name: str
    range: Cidr
    content: Ledger | None = None
    version: str = ""
    problem: str = ""
    """Why the content is not readable."""
    stale: bool = False
    """A commit went wrong: to be read again before anything is planned here."""
    foreign_changes: int = 0
    """Grows whenever the content was replaced by anything but our own commit."""
    taken: IntervalSet = field(default_factory=IntervalSet)
    """All entries, and blocks that are being entered."""
    marked: set[Cidr] = field(default_factory=set)
    """Entries with marks."""
    seen: dict[Mark, float] = field(default_factory=dict)
    """When each mark was first seen."""

    @property
    def mode(self) -> str:
        return self.content.mode if self.content is not None else ""

    @property
    def entries(self) -> Mapping[Cidr, Entry]:
        return self.content.entries if self.content is not None else {}

    @property
    def full(self) -> bool:
        """Whether it is to get no more entries."""
        return len(self.taken) >= MOST_ENTRIES

    def load(self, content: Ledger | LedgerError | None, version: str, now: float) -> bool:
        """The server's answer: a ledger, why it is unreadable, or None where there is none. False: that was known."""
        if self.version == version and not self.stale and self.foreign_changes:
            return False
        self.content = content if isinstance(content, Ledger) else None
        self.problem = content.problem if isinstance(content, LedgerError) else ""
        self.version, self.stale = version, False
        self.foreign_changes += 1
        self.taken = IntervalSet(self.entries)
        self.marked = {cidr for cidr, entry in self.entries.items() if entry.marks}
        self.seen = {mark: self.seen.get(mark, now) for cidr in self.marked for mark in self.entries[cidr].marks}
        return True

    def committed(self, edits: Mapping[Cidr, Entry | None], content: Ledger, version: str) -> list[Cidr]:
        """Our write of `content` succeeded, which is the old one after `edits`. The blocks that it freed."""
        freed = [cidr for cidr, entry in edits.items() if entry is None and cidr in self.entries]
        self.content, self.version = content, version
        self.marked -= edits.keys()
        self.marked |= {cidr for cidr, entry in edits.items() if entry is not None and entry.marks}
        for cidr in freed:
            self.taken.remove(cidr)
        return freed

    def deferral(self, mode: str) -> Deferred | None:
        """Why nothing may be entered in `mode`, None where it may."""
        if self.problem:
            message = f"{self.name} is unreadable: {self.problem}; docs/allocation.md says how to recover"
            return Deferred("LedgerUnreadable", f"NetloomLedger {message}")
        if self.stale:
            return Deferred("LedgerBusy", f"NetloomLedger {self.name} has to be read again")
        if self.mode not in ("", mode):
            message = f"NetloomLedger {self.name} holds blocks of IPAM mode {self.mode}; the mode in force is {mode}"
            return Deferred("ModeLocked", message)
        return None


class KnownLedgers(dict[str, KnownLedger]):
    """By name; one that was never heard of is there when it is first asked for."""

    def __init__(self) -> None:
        super().__init__()
        self._by_prefix: dict[tuple[Version, int], KnownLedger] = {}
        """By the bits that all addresses of the range have in front: a name costs ten times as much to make."""

    def of(self, cidr: Cidr) -> KnownLedger:
        """The ledger that answers for a block. CidrError where it is larger than a ledger's range."""
        version = cidr.version
        found = self._by_prefix.get((version, cidr.base >> _SHIFT[version]))
        if found is None or cidr.length < found.range.length:
            ledger_range = ledger_range_of(cidr)
            found = KnownLedger(ledger_name(ledger_range), ledger_range)
            self[found.name] = self._by_prefix[version, ledger_range.base >> _SHIFT[version]] = found
        return found

    def around(self, address: Address) -> KnownLedger | None:
        """The ledger that answers for an address, if it was ever heard of."""
        version = version_of(address)
        return self._by_prefix.get((version, int.from_bytes(address, "big") >> _SHIFT[version]))


_SHIFT: dict[Version, int] = {version: WIDTH[version] - LEDGER_RANGE_LENGTH[version] for version in VERSIONS}
