"""What a part that owns an nftables table writes: requests that the kernel does all of, or none.

Packets see the table before a transaction or after it. A refused request is left out of the next attempt, and does not
stop the others. Items are known by their kinds: the table as a whole, its rules, the transaction itself, an element.
"""

import errno
from collections.abc import Sequence, Set
from enum import Enum

import msgspec
import structlog

from netloom.kernel.errors import KernelUnsupported
from netloom.kernel.keeper.part import Attempt, RefusedEntry, Worker
from netloom.kernel.keeper.retries import Item
from netloom.kernel.netlink.sockets import KernelRefusal, RefusedError

log = structlog.get_logger(__name__)

TABLE, RULES, TRANSACTION, ELEMENT = "table", "rules", "transaction", "element"
"""Kinds of items."""


class Write(msgspec.Struct, frozen=True, gc=False):
    """One request: the item by which it is known when it fails, and how it is called then.

    planned: as `nft` would say it, for a plan; what goes without saying there has none. needs: what is missing in a
    kernel that answers ENOENT. keys: of the elements of the set `name`, which it adds, or `deletes`.
    """

    item: Item
    what: str
    message: bytes
    planned: str = ""
    needs: str = ""
    name: str = ""
    keys: tuple[bytes, ...] = ()
    deletes: bool = False


class TransactionOutcome(Enum):
    """What came of a transaction: the kernel has done it; it has not, and our knowledge may be old; it would not."""

    DONE = "done"
    STALE = "stale"
    REFUSED = "refused"


class Transaction(msgspec.Struct):
    """Requests on the table `key`. `anew`: it is made or removed, with all in it; `rules`: rules are written."""

    key: str
    writes: Sequence[Write] = ()
    anew: bool = False
    rules: bool = False

    async def submit(self, worker: Worker, attempt: Attempt) -> tuple[TransactionOutcome, list[RefusedEntry]]:
        """Have it done, without what the kernel will not take. The first refusal, which may only show that something is
        not as it was, leads to a reading. Raises AnswerLost."""
        found: list[RefusedEntry] = []
        while self.writes:
            refusals = await worker.submit([write.message for write in self.writes])
            if not refusals:
                return TransactionOutcome.DONE, found
            refused = self._refused(refusals)
            if not attempt.fresh and refused.keys().isdisjoint(attempt.failing):
                log.info("the kernel refused: reading everything", error=next(iter(refused.values())).error)
                return TransactionOutcome.STALE, found
            found += refused.values()
            if not self._drop(refused.keys()):
                break
        return TransactionOutcome.REFUSED, found

    def _refused(self, refusals: dict[int, KernelRefusal]) -> dict[Item, RefusedEntry]:
        """What the kernel would not take, in words."""
        found: dict[Item, RefusedEntry] = {}
        for i, refusal in sorted(refusals.items()):
            if i < len(self.writes) and (write := self.writes[i]).item not in found:
                hint = f" ({write.needs})" if write.needs and refusal.errno == errno.ENOENT else ""
                found[write.item] = RefusedEntry(write.item, f"{write.what}: {refusal}{hint}", refusal.errno)
        if not found:
            refusal, whole = next(iter(refusals.values())), (TRANSACTION, self.key)
            found[whole] = RefusedEntry(whole, str(refusal), refusal.errno)
        return found

    def _drop(self, items: Set[Item]) -> bool:
        """Leave these out. Whether there is anything left that can be done without them."""
        kinds = {kind for kind, _key in items}
        if not kinds.isdisjoint({TABLE, TRANSACTION}):
            return False
        self.rules = self.rules and RULES not in kinds
        self.writes = [write for write in self.writes if write.item not in items]
        return bool(self.writes)


def without_nftables(error: Exception) -> bool:
    """What a socket, or nfnetlink, says where there is none."""
    refused = isinstance(error, RefusedError) and error.errno in (errno.EINVAL, errno.EOPNOTSUPP)
    return refused or isinstance(error, KernelUnsupported)


def explained(error: Exception, loss: str) -> str:
    """With the cause that is behind an errno that says little. loss: what cannot be done without nftables."""
    if isinstance(error, RefusedError):
        if without_nftables(error):
            return f"this kernel has no nftables (nf_tables), so {loss}: {error.refusal}"
        return f"nftables cannot be read: {error.refusal}"
    return str(error)
