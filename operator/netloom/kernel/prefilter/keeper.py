"""The prefilter under a keeper of its own."""

from collections.abc import Mapping

from netloom.kernel.keeper.keeper import Keeper
from netloom.kernel.keeper.report import KeeperReport
from netloom.kernel.prefilter.prefiltering import DeviceReport, Dropped, Prefiltering


class PrefilterReport(KeeperReport, frozen=True, kw_only=True):
    """The state of the prefilter.

    devices:  those that are wanted, in that order. entries: in the kernel's tries, by family (`v4`, `v6`).
    program:  the kernel's id of ours, 0: none is loaded. tag: the kernel's hash of it.
    error:    why there is no program, as a sentence: no bpffs, no compiler, a compiler's or the verifier's no.
    verifier: what the kernel's verifier said, line by line, where it refused the program.
    """

    devices: tuple[DeviceReport, ...] = ()
    entries: Mapping[str, int] = {}
    program: int = 0
    tag: str = ""
    error: str = ""
    verifier: str = ""


class PrefilterKeeper(Keeper[Prefiltering, PrefilterReport]):
    """See the module."""

    nothing = Prefiltering

    def dropped(self) -> Mapping[str, Dropped]:
        """By name of prefilter, as the kernel counts at this moment: a few system calls."""
        raise NotImplementedError
