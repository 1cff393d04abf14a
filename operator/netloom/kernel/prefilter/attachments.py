"""What is to be done so that the program runs on the devices that are wanted, and on no others. Pure."""

from collections.abc import Iterable, Mapping

import msgspec

from netloom.kernel.prefilter.links import XdpLink
from netloom.kernel.prefilter.prefiltering import DeviceWish, Mode

PROGRAM_PREFIX = "netloom_"
"""Of the names of our programs."""
_HOOKS = {"native": "xdpdrv", "generic": "xdpgeneric", "offloaded": "xdpoffload"}


class Step(msgspec.Struct, frozen=True):
    """Of one device: the program with the id `expected` (0: none) in `mode` is replaced by ours, or detached."""

    link: XdpLink
    mode: str
    expected: int = 0
    detach: bool = False

    def __str__(self) -> str:
        return f"link set {self.link.name} {_HOOKS[self.mode]} " + ("off" if self.detach else "pinned netloom")


def steps_to(
    link: XdpLink, wish: DeviceWish | None, ours: Iterable[int], program: int, *, better: bool = False
) -> list[Step]:
    """What is to be done about a device, in this order and at once; nothing, where somebody else's program is in the
    way.

    ours: the ids of all programs of the prefilter's; program: of the one that is wanted, 0 where there is none: what
    is attached stays, then. better: generic mode is to become native where that is liked best.
    """
    mine = [(mode, identity) for mode, identity in link.programs if identity in ours]
    if wish is None:
        return [Step(link, mode, identity, detach=True) for mode, identity in mine]
    if not program or foreign(link, ours) or not link.ethernet:
        return []
    kept = (Mode.NATIVE,) if better else (Mode.NATIVE, Mode.GENERIC)
    modes = kept if wish.mode == Mode.BEST_EFFORT else (wish.mode,)
    right = [(mode, identity) for mode, identity in mine if mode in modes]
    if right:
        mode, identity = right[0]
        return [] if identity == program else [Step(link, mode, identity)]
    wrong = [Step(link, mode, identity, detach=True) for mode, identity in mine]
    return [*wrong, Step(link, Mode.GENERIC if wish.mode == Mode.GENERIC else Mode.NATIVE)]


def foreign(link: XdpLink, ours: Iterable[int]) -> tuple[str, int] | None:
    """The mode and id of somebody else's program on a device."""
    return next(((mode, identity) for mode, identity in link.programs if identity not in ours), None)


def obstacle(link: XdpLink, ours: Iterable[int], names: Mapping[int, str]) -> str:
    """Why a device cannot be filtered though the kernel would take the program, as a sentence; empty if it can.

    names: of programs, by id, as far as they are known."""
    if not link.ethernet:
        return (
            f"frames on {link.name} have no Ethernet header, which the prefilter looks for the source address behind: "
            "choose the device that they come in by"
        )
    other = foreign(link, ours)
    if other is None:
        return ""
    mode, identity = other
    name = f" ({names[identity]})" if names.get(identity) else ""
    if names.get(identity, "").startswith(PROGRAM_PREFIX):
        return (
            f"the XDP program {identity}{name} on {link.name} is a prefilter's whose pins are not in this bpffs, as of "
            f"another network namespace's agent, or where something is mounted over them: it goes on as it is. If no "
            f"other agent has it, `ip link set dev {link.name} {_HOOKS[mode]} off`"
        )
    return (
        f"the XDP program {identity}{name} of somebody else runs on {link.name} in {mode} mode, and is left there: "
        f"have its owner detach it, or choose other devices"
    )
