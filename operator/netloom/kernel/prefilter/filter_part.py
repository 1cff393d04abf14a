"""The program, its maps and its entries, as a part: below the devices that it is attached to."""

import errno
import operator
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from netloom.kernel.errors import KernelUnsupported
from netloom.kernel.keeper.part import Attempt, Outcome, Part, RefusedEntry, Worker
from netloom.kernel.keeper.report import PlannedChange
from netloom.kernel.keeper.retries import Item, Retries
from netloom.kernel.ownership import PREFILTER
from netloom.kernel.prefilter.prefiltering import DeviceWish, Prefiltering

if TYPE_CHECKING:
    from netloom.kernel.prefilter.kernel_filter import KernelFilter

log = structlog.get_logger(__name__)

PROGRAM: Item = ("prefilter", "program")
ENTRIES: Item = ("prefilter", "entries")

VERIFY_SHARE = 200
"""Reading a million entries back takes a second of the kernel's time. It may take the 200th part of a CPU."""


class FilterPart(Part[Prefiltering]):
    """See the module. running: by device, the id of our program that runs there; None: it is not known yet. verifier:
    what it said of a program that it refused. written: programs that were loaded and entries that were changed."""

    owns = PREFILTER
    state = ("dump", "the prefilter's maps")
    groups = ()
    due = True
    kinds = frozenset()

    def __init__(self, folder: Path, cache: Path, running: Callable[[], Mapping[str, int] | None]) -> None:
        self.kernel: KernelFilter | None = None
        self.verifier = ""
        self._errors: dict[Item, str] = {}
        self.entries = {"v4": 0, "v6": 0}
        self.written: Counter[str] = Counter()
        self._folder = folder
        self._cache = cache
        self._running = running
        self._wanted = Prefiltering()
        self._numbers: tuple[int, ...] = ()
        """By place of the wanted rules, the number of their set."""
        self._undone: frozenset[Item] = frozenset()  # another one with each change: reports are made beside the thread
        self._doubted = True
        self._verify_at = 0.0
        self._drifted: list[Item] = []

    @property
    def is_there(self) -> bool:
        """Whether there is anything to do with a prefilter here. Without one this is all that it costs."""
        return bool(self._wanted.devices) or self.kernel is not None or self._folder.is_dir()

    @property
    def error(self) -> str:
        """Why the program or its entries are not as wanted, as a sentence."""
        return self._errors.get(PROGRAM) or self._errors.get(ENTRIES, "")

    @property
    def ours(self) -> set[int]:
        """Ids of our programs."""
        kernel = self.kernel  # read once: the thread may take it away between two looks
        return {*kernel.programs.open, *kernel.programs.closed} if kernel is not None else set()

    def program_for(self, wish: DeviceWish) -> int:
        """The id of the one that is to run on a device, once it may; 0: there is none."""
        number = self._numbers[wish.rules] if wish.rules < len(self._numbers) else None
        kernel = self.kernel
        if kernel is None or number not in kernel.filled:
            return 0
        return kernel.programs.current.get(number, 0)

    def descriptor(self, identity: int) -> int | None:
        """Of one of our programs; None if this process may not open it."""
        assert self.kernel is not None
        return self.kernel.programs.open.get(identity)

    def name_of(self, identity: int) -> str:
        """Of somebody else's program, if it may be known. In the thread."""
        from netloom.kernel.prefilter.bpf import name_of_program

        return name_of_program(identity)

    def look_at(self) -> None:
        """Learn what is ours, and change nothing. In the thread."""
        if self._folder.is_dir():
            self._opened().find()

    def planned(self, desired: Prefiltering) -> list[PlannedChange]:
        """What would be made or removed, but for the devices."""
        if not desired.devices:
            return [PlannedChange(f"rm -r {self._folder}", "no prefilter applies")] if self._folder.is_dir() else []
        changes = [] if self.ours else [PlannedChange("load the prefilter's program")]
        for family, count in _counts(desired).items():
            if count != self.entries[family]:
                changes.append(PlannedChange(f"{self.entries[family]} entries {family} become {count}"))
        return changes

    def want(self, desired: Prefiltering, retries: Retries) -> None:
        """Take over the rules."""
        before = self._wanted
        if desired.devices != before.devices or len(desired.sets) != len(before.sets):
            self._numbers = ()
        if not self._numbers or not all(map(operator.is_, desired.sets, before.sets)):
            self.due = True
            retries.forget([PROGRAM, ENTRIES])
        self._wanted = desired

    def hear(self, kind: int, flags: int, buffer: bytes, start: int, end: int) -> None:
        """Nobody tells of maps."""

    def drifted(self) -> Iterable[tuple[Item, bool]]:
        """What was found to be not as it was left."""
        drifted, self._drifted = self._drifted, []
        return [(item, True) for item in drifted]

    def doubt(self) -> None:
        """The entries are to be read, if the last time is not too near."""
        self._doubted = True
        self.due = self.due or time.monotonic() >= self._verify_at

    def later(self) -> float:
        """When the entries may be read that are in doubt."""
        return self._verify_at if self._doubted and self.kernel is not None and not self.due else float("inf")

    def pending(self) -> Iterable[Item]:
        """What could not be done."""
        return self._undone

    async def read(self, worker: Worker) -> bool:
        """Open what is there, and see whether it is as it was left."""
        if not self.is_there or (self.kernel is not None and not self._doubted):
            return False
        if self.kernel is not None and time.monotonic() < self._verify_at:
            return False
        self._doubted = False
        wrong = await worker.call(lambda _: self._look())
        if wrong:
            log.info("the prefilter is not as it was left", wrong=wrong)
            self._drifted = [ENTRIES]
            self.due = True
        return True

    async def update(self, worker: Worker, attempt: Attempt) -> Outcome:
        """Load the program, and make its entries those that are wanted."""
        if not self._wanted.devices:
            self._undone = frozenset()
            self._errors.clear()
            self.due = False
            return Outcome()
        if not self.due and self._undone <= attempt.delayed:
            return Outcome()
        self.due = self._running() is None  # the devices have not had their turn yet
        return Outcome() if self.due else await worker.call(lambda _: self._work(attempt))

    async def remove(self, worker: Worker, attempt: Attempt) -> Outcome:
        """Unpin programs of other versions that run nowhere any more; and where none is wanted, all."""
        if self.kernel is not None:
            await worker.call(lambda _: self._leave())
        return Outcome()

    def explain(self, error: Exception) -> str:
        """Why it cannot be read."""
        return f"the prefilter's pins in {self._folder} cannot be read: {error}"

    def close(self) -> None:
        """Close what is open. The kernel keeps what is pinned."""
        if self.kernel is not None:
            self.kernel.close()

    # ------------------------------------------------------------------------------------------- in the thread

    def _look(self) -> list[str]:
        kernel = self._opened()
        if not kernel.filled:
            kernel.find()
            return []
        begun = time.monotonic()
        try:
            return kernel.verify()
        finally:
            self._verify_at = begun + (time.monotonic() - begun) * VERIFY_SHARE

    def _opened(self) -> "KernelFilter":
        if self.kernel is None:
            # Here, as a node without a prefilter is to do without what it takes.
            from netloom.kernel.prefilter.kernel_filter import KernelFilter

            self.kernel = KernelFilter(self._folder)
        return self.kernel

    def _work(self, attempt: Attempt) -> Outcome:
        outcome = Outcome()
        self._undone = frozenset()
        for item, work in ((PROGRAM, self._need_programs), (ENTRIES, self._put)):
            # A program of another version that runs takes the entries as well.
            ready = self.ours and self._numbers and self._opened().has_maps
            if item in attempt.delayed or (item == ENTRIES and not ready):
                self._undone |= {item}
            elif (refused := self._tried(item, work)) is not None:
                self._undone |= {item}
                outcome.refused.append(refused)
            else:
                outcome.written.append((item[0], [item[1]]))
        return outcome

    def _tried(self, item: Item, work: Callable[[], None]) -> RefusedEntry | None:
        from netloom.kernel.prefilter.compiler import CompileError
        from netloom.kernel.prefilter.permission import not_permitted
        from netloom.kernel.prefilter.program import ProgramRefusal

        try:
            work()
        except (KernelUnsupported, CompileError, ProgramRefusal, ValueError, OSError) as error:
            code = getattr(error, "errno", 0) or 0
            said = error.strerror if isinstance(error, OSError) and error.filename is None else ""
            self._errors[item] = not_permitted(said or str(error)) if code == errno.EPERM else said or str(error)
            self.verifier = getattr(error, "verifier", "")
            return RefusedEntry(item, self._errors[item], code)
        self._errors.pop(item, None)
        return None

    def _need_programs(self) -> None:
        from netloom.kernel.prefilter.compiler import instructions

        kernel = self._opened()
        if self._numbers and kernel.programs.current.keys() >= set(self._numbers):
            return
        kernel.need_maps()
        kernel.find()
        self._number(kernel)
        compiled = instructions(self._cache)
        for number in self._numbers:
            if kernel.need_program(compiled, number):
                self.written["program"] += 1
                info = kernel.programs.info
                self.verifier = ""
                log.info("the prefilter's program is loaded", id=info.identity, name=info.name, tag=info.tag)

    def _number(self, kernel: "KernelFilter") -> None:
        """Say which set each of the wanted rules is, by the devices that have them."""
        from netloom.kernel.prefilter.rule_sets import numbered

        groups: list[set[str]] = [set() for _ in self._wanted.sets]
        for wish in self._wanted.devices:
            groups[wish.rules].add(wish.name)
        sets = kernel.programs.sets
        running = {name: sets[identity] for name, identity in (self._running() or {}).items() if identity in sets}
        self._numbers = numbered(groups, running)
        kernel.programs.want(self._numbers)
        kernel.filled.intersection_update(running.values())  # what another is for now is not what it was filled for

    def _put(self) -> None:
        sets = dict(zip(self._numbers, self._wanted.sets, strict=True))
        written = self._opened().put(sets)
        self.entries = _counts(self._wanted)
        if written:
            self.written["entry"] += written
            log.info("the prefilter's entries changed", changed=written, **self.entries)

    def _leave(self) -> None:
        kernel = self._opened()
        running = set((self._running() or {}).values())
        if self._wanted.devices:
            kernel.programs.leave(running)
            if kernel.has_maps and self._numbers:
                kernel.leave_sets({*self._numbers, *kernel.programs.sets.values()})
        elif not running:
            kernel.remove()
            self.kernel, self.entries, self._numbers = None, {"v4": 0, "v6": 0}, ()
            log.info("the prefilter is gone from the kernel")


def _counts(desired: Prefiltering) -> dict[str, int]:
    """Entries of all sets, by family."""
    return {"v4": sum(len(each.v4) for each in desired.sets), "v6": sum(len(each.v6) for each in desired.sets)}
