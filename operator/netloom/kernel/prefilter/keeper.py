"""The prefilter under a keeper of its own: program, maps and entries, and above them the devices."""

from collections.abc import Mapping
from pathlib import Path
from typing import Unpack

from netloom.kernel.keeper.keeper import Keeper, KeeperOptions
from netloom.kernel.keeper.report import KeeperReport, PlannedChange
from netloom.kernel.netlink import wire
from netloom.kernel.netlink.sockets import CommandSocket, read_all
from netloom.kernel.prefilter.devices_part import DevicesPart
from netloom.kernel.prefilter.filter_part import FilterPart
from netloom.kernel.prefilter.links import dump_links, read_xdp_link
from netloom.kernel.prefilter.prefiltering import DeviceReport, Dropped, Prefiltering

BPFFS = Path("/sys/fs/bpf")


class PrefilterReport(KeeperReport, frozen=True, kw_only=True):
    """The state of the prefilter.

    devices:  those that are wanted, in that order. entries: in the kernel's tries, by family (`v4`, `v6`).
    program:  the kernel's id of ours, 0: none is loaded.
    error:    why program or entries are not as wanted, as a sentence: no bpffs, no compiler, a compiler's or the
    verifier's no. verifier: what the kernel's verifier said, line by line, where it refused the program.
    """

    devices: tuple[DeviceReport, ...] = ()
    entries: Mapping[str, int] = {}
    program: int = 0
    error: str = ""
    verifier: str = ""

    @property
    def news(self) -> tuple[object, ...]:
        """What is worth telling when it changes."""
        return (*super().news, self.devices, self.entries, self.program, self.error)


class PrefilterKeeper(Keeper[Prefiltering, PrefilterReport]):
    """See the module. It looks after the network namespace in which it is made."""

    names = wire.NAMES
    nothing = Prefiltering

    def __init__(self, cache: Path, *, bpffs: Path = BPFFS, **options: Unpack[KeeperOptions]) -> None:
        """cache: the folder for what was compiled. bpffs: where it is mounted."""
        here = Path("/proc/thread-self/ns/net").stat().st_ino
        # Agents of two network namespaces that share a bpffs have nothing to do with each other.
        folder = bpffs / "netloom" / f"prefilter-{here}"
        self._devices = DevicesPart()
        self._filter = self._devices.filter = FilterPart(folder, cache, self._devices.running)
        self._is_open = False
        super().__init__((self._filter, self._devices), **options)

    async def open(self) -> None:
        """Nothing yet: a node without a prefilter has no socket and no thread for one, and is woken by no event."""

    async def close(self) -> None:
        """Close what is open. The filter stays, and works on."""
        if self._is_open:
            await super().close()
            self._filter.close()

    async def apply(self, desired: Prefiltering) -> PrefilterReport:
        """As of each keeper."""
        return await super().apply(desired) if await self._needed(desired) else self.report

    async def prune(self) -> None:
        """As of each keeper."""
        if self._is_open:
            await super().prune()

    async def plan(self, desired: Prefiltering) -> list[PlannedChange]:
        """What `apply` would change. Writes nothing."""
        if not await self._needed(desired):
            return []
        async with self._lock:
            return await self._connect().call(lambda commands: self._plan(commands, desired))

    async def _needed(self, desired: Prefiltering) -> bool:
        """Whether there is anything to do or to look after; from the first time on, the sockets are open."""
        if not self._is_open and (desired.devices or self._filter.is_there):
            self._is_open = True
            await super().open()
        return self._is_open

    def dropped(self) -> Mapping[str, Dropped]:
        """By name of prefilter, as the kernel counts at this moment: a system call for each. Raises OSError."""
        kernel = self._filter.kernel
        return kernel.dropped() if kernel is not None else {}

    def overtagged(self) -> Dropped:
        """Frames that were dropped because they have more VLAN tags than any network's. Raises OSError."""
        kernel = self._filter.kernel
        return kernel.overtagged() if kernel is not None else Dropped()

    @property
    def stats(self) -> dict[str, int]:
        """Requests written since `open`: changes of devices, programs, entries."""
        return {**super().stats, **self._filter.written}

    @property
    def report(self) -> PrefilterReport:
        """The state of things now."""
        part, kernel = self._filter, self._filter.kernel
        info = kernel.programs.info if kernel is not None else None
        return PrefilterReport(
            **self._basics(),
            devices=self._devices.reports(),
            entries=dict(part.entries),
            program=info.identity if info is not None else 0,
            error=part.error,
            verifier=part.verifier,
        )

    def _plan(self, commands: CommandSocket, desired: Prefiltering) -> list[PlannedChange]:
        self._filter.look_at()
        links = read_all(commands, dump_links(), read_xdp_link)
        steps = self._devices.planned(links, desired, self._filter.ours)
        changes = [PlannedChange(f"ip {step}", "the prefilter") for step in steps]
        return changes + self._filter.planned(desired)
