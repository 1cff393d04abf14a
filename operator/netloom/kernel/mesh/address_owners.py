"""Who has what only one peer can have: an underlay address, a MAC, a pod CIDR.

Two peers may claim the same (a node that was made anew before the old one was forgotten, a hand-edited object). The
senior one has it, the other one is reported, and has it when the senior lets go. The order of arrival plays no part,
so all nodes and all restarts agree.
"""

from collections.abc import Callable, Hashable, Iterable
from typing import Any, Generic, TypeVar

C = TypeVar("C", bound=Hashable)


class AddressOwners(Generic[C]):
    """Claims and their holders. Costs O(claims of one peer) per change, plus what is contested."""

    def __init__(self, seniority: Callable[[str], Any]) -> None:
        """`seniority(name)` orders the claimants of one thing; the least has it."""
        self.holders: dict[C, str] = {}
        self._contested: dict[C, set[str]] = {}
        self._seniority = seniority

    def change(self, name: str, old: Iterable[C], new: Iterable[C]) -> set[str]:
        """`name` (whose seniority may have changed, too) claims `new` instead of `old`. Returns the others that have
        lost or won something by it."""
        others: set[str] = set()
        for claim in set(old).difference(new) if old else ():
            self._release(claim, name, others)
        holders, contested = self.holders, self._contested
        for claim in new:
            if holders.setdefault(claim, name) != name or (contested and claim in contested):
                contested.setdefault(claim, {holders[claim]}).add(name)
                self._decide(claim, others)
        others.discard(name)
        return others

    def refused(self) -> list[tuple[C, str, str]]:
        """(claim, holder, claimant) of the claims that are not granted."""
        holders = self.holders
        return [
            (claim, holders[claim], name)
            for claim, names in self._contested.items()
            for name in names
            if name != holders[claim]
        ]

    def _release(self, claim: C, name: str, others: set[str]) -> None:
        names = self._contested.get(claim)
        if names is None:
            del self.holders[claim]
            return
        names.discard(name)
        self._decide(claim, others)
        if len(names) == 1:
            del self._contested[claim]

    def _decide(self, claim: C, others: set[str]) -> None:
        before, after = self.holders[claim], min(self._contested[claim], key=self._seniority)
        if after != before:
            self.holders[claim] = after
            others.update((before, after))
