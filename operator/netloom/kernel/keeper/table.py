"""The difference between what should be in the kernel and what is known to be there, kept up to date entry by entry.

After the delta tracker of Calico's Felix: `desired` and `kernel` are two dictionaries, and `pending` always holds
exactly the keys at which they differ. Every call costs O(1), so one changed peer of 10,000 costs what one costs; only
`load`, after a full dump, walks everything. No I/O: who reads `pending` sends the messages.
"""

from collections.abc import Mapping, Sequence
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Table(Generic[K, V]):
    """Entries of one kind. `kernel` holds owned entries only: what is there and not desired is to be deleted, except
    what is `retained`: nobody knows yet whether it is still needed."""

    __slots__ = ("desired", "kernel", "pending", "retained")

    def __init__(self) -> None:
        self.desired: dict[K, V] = {}
        self.kernel: dict[K, V] = {}
        self.pending: set[K] = set()
        self.retained: set[K] = set()

    def retain(self, keys: set[K]) -> None:
        """Of what is in the kernel and not desired leave these alone, and no others. One that is wanted, or that goes,
        is retained no longer."""
        freed, self.retained = self.retained - keys, keys
        self.pending.update(freed)
        self.pending -= keys

    def want(self, key: K, value: V) -> None:
        """This entry should exist."""
        self.desired[key] = value
        self.retained.discard(key)
        self._differ(key)

    def want_all(self, entries: Mapping[K, V]) -> None:
        """All of these should exist."""
        kernel, pending = self.kernel, self.pending
        self.desired.update(entries)
        if self.retained:
            self.retained.difference_update(entries)
        if not kernel:
            pending.update(entries)
            return
        for key, value in entries.items():
            if kernel.get(key) == value:
                pending.discard(key)
            else:
                pending.add(key)

    def unwant(self, key: K) -> None:
        """This entry should not exist."""
        if self.desired.pop(key, None) is not None:
            self._differ(key)

    def saw(self, key: K, value: V) -> None:
        """The kernel holds this entry: it said so, or it was just asked to."""
        self.kernel[key] = value
        self._differ(key)

    def gone(self, key: K) -> None:
        """The kernel does not hold this entry."""
        if self.kernel.pop(key, None) is not None:
            self.retained.discard(key)
            self._differ(key)

    def _differ(self, key: K) -> None:
        if key in self.retained or self.desired.get(key) == self.kernel.get(key):
            self.pending.discard(key)
        else:
            self.pending.add(key)

    def load(self, kernel: dict[K, V]) -> None:
        """Replace all that was known of the kernel by a full dump of what is owned there."""
        self.kernel = kernel
        desired = self.desired
        self.pending = {key for key, value in desired.items() if kernel.get(key) != value}
        self.retained &= kernel.keys()
        self.pending.update(kernel.keys() - desired.keys() - self.retained)

    def assume(self, writes: Sequence[tuple[K, V | None, V | None]]) -> None:
        """These writes (key, value or None to delete, what was there) are about to be made."""
        kernel = self.kernel
        for key, value, _before in writes:
            if value is None:
                kernel.pop(key, None)
            else:
                kernel[key] = value
        self.pending.difference_update([key for key, _value, _before in writes])
        self.give_back()

    def give_back(self) -> None:
        """The room of what was pending: an empty set keeps it, 0.5 MiB of 5,000."""
        self.pending = self.pending or set()

    def updates(self) -> list[tuple[K, V, V | None]]:
        """Pending (key, value, what the kernel holds instead) to create or change."""
        desired, kernel, pending = self.desired, self.kernel, self.pending
        if not kernel and len(pending) == len(desired):
            return [(key, value, None) for key, value in desired.items()]
        if 2 * len(pending) > len(desired):
            # In the order in which they lie in memory, here and in the kernel: 50,000 are a third faster so.
            return [(key, value, kernel.get(key)) for key, value in desired.items() if key in pending]
        return [(key, desired[key], kernel.get(key)) for key in pending if key in desired]

    def deletions(self) -> list[tuple[K, None, V]]:
        """Pending (key, None, what the kernel holds) to delete."""
        desired, kernel = self.desired, self.kernel
        return [(key, None, kernel[key]) for key in self.pending if key not in desired]
