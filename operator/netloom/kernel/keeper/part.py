"""What a part of the kernel side is to its keeper: one owner of kernel state.

A part is a pure table of what it wants and what it knows to be there, and a thin reader and writer around it. It owns
what it declares, reads and removes only that, and is asked by the keeper, one question at a time; it never decides when
something is tried again, never sleeps, never logs a failure. To add one, write a class of these methods, and a `Keeper`
that holds it.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Sequence, Set
from typing import Generic, TypeVar

import msgspec

from netloom.kernel.keeper.retries import Item, Retries
from netloom.kernel.netlink.kernel_thread import KernelThread
from netloom.kernel.netlink.sockets import CommandSocket, KernelRefusal
from netloom.kernel.ownership import Ownership

T = TypeVar("T")
D = TypeVar("D")


class RefusedEntry(msgspec.Struct, frozen=True):
    """An entry that the kernel would not take, with the sentence for people, and whose it is, if that has a name."""

    item: Item
    error: str
    errno: int = 0
    peer: str = ""


class Outcome(msgspec.Struct):
    """What came of an attempt.

    written:  keys that are as they should be, by kind. repaired: entries that turned out to be changed by somebody and
    were put right on the spot.
    """

    written: list[tuple[str, Sequence[Hashable]]] = msgspec.field(default_factory=list)
    repaired: list[Item] = msgspec.field(default_factory=list)
    refused: list[RefusedEntry] = msgspec.field(default_factory=list)


class Attempt(msgspec.Struct, frozen=True):
    """What an attempt has to know: entries that must wait (`delayed`), entries that fail already, and whether all that
    is owned was read since the passes began (`fresh`)."""

    delayed: Set[Hashable] = frozenset()
    failing: Set[Hashable] = frozenset()
    fresh: bool = False


class Worker:
    """The asking socket and the thread that waits for it: the kernel takes a lock that others may hold for seconds,
    and the event loop must not wait for that. What is asked for is done in its order."""

    def __init__(self, commands: CommandSocket, thread: KernelThread) -> None:
        self.commands = commands
        self._thread = thread

    @property
    def busy_seconds(self) -> float:
        """For how long the thread has waited for what was asked last."""
        return self._thread.busy_seconds

    def submit(self, messages: Sequence[bytes]) -> asyncio.Future[dict[int, KernelRefusal]]:
        """Have these requests done, at most netlink.BATCH; the refusals by their places. Raises AnswerLost."""
        return self._thread.call(self.commands.execute, messages)

    async def call(self, work: Callable[[CommandSocket], T]) -> T:
        """Do this in the thread."""
        return await self._thread.call(work, self.commands)


class Part(ABC, Generic[D]):
    """See the module. `D` is the type of the desired state that is handed over to all parts of a keeper.

    state: by which the failure to read what is owned is known.
    groups, kinds: multicast groups (netlink.GROUPS) and message types of the events that it is told of.
    hears_peers: whether that includes the routes to other nodes' pods, which may come and go by the thousand.
    """

    owns: Ownership
    state: Item
    groups: tuple[str, ...]
    kinds: frozenset[int]
    hears_peers: bool = True

    @property
    @abstractmethod
    def due(self) -> bool:
        """Something is to be read, or to be tried, without waiting for an event."""

    @property
    def retained(self) -> int:
        """Entries that an earlier life left, which nobody explains, and which are retained until `release_retained`."""
        return 0

    @abstractmethod
    def want(self, desired: D, retries: Retries) -> None:
        """Take over the desired state; what has changed is to be tried at once (`retries.forget`, `retries.clear`)."""

    @abstractmethod
    def hear(self, kind: int, flags: int, buffer: bytes, start: int, end: int) -> None:
        """Take in an event: its message lies in the buffer from `start`, behind the header, to `end`."""

    def drifted(self) -> Iterable[tuple[Item, bool]]:
        """Entries that somebody changed, as events and readings since the last call show; and whether each by itself:
        one that goes with what it stands on is nobody's doing. None where that shows only when it is put right."""
        return ()

    @abstractmethod
    def doubt(self) -> None:
        """What is known of the kernel may be wrong: everything is to be read again."""

    async def read(self, worker: Worker) -> bool:
        """Read what is in doubt; whether that was all that is owned. Raises AnswerLost, OSError, KernelUnsupported."""
        return False

    @abstractmethod
    async def update(self, worker: Worker, attempt: Attempt) -> Outcome:
        """Make or change what is missing or different, apart from what is delayed. Raises AnswerLost, OSError."""

    async def remove(self, worker: Worker, attempt: Attempt) -> Outcome:
        """Remove what is owned and not wanted. The parts of a keeper are asked for this in the reverse order, after all
        have updated. Raises AnswerLost, OSError."""
        return Outcome()

    @abstractmethod
    def pending(self) -> Iterable[Item]:
        """All that is known not to be as it should be."""

    def count_pending(self) -> int:
        """How many that are. A report says so, and there is one for every question how things are."""
        return sum(1 for _ in self.pending())

    def whose(self, item: Item) -> str:
        """The peer that an entry is for; empty where there is none, or it has no name."""
        return ""

    def explain(self, error: Exception) -> str:
        """Why the state cannot be read, for people; empty where that does not matter."""
        return str(error)

    def release_retained(self) -> None:
        """All that is wanted is known: what nobody explains goes."""

    def later(self) -> float:
        """When (monotonic seconds) it wants to be asked again though nothing happens."""
        return float("inf")
