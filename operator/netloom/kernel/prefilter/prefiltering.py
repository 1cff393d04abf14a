"""What is wanted of the prefilter, and what it says of itself: values, which cost a node without one nothing."""

from enum import StrEnum

import msgspec

from netloom.prefilter.rules import Rules


class Mode(StrEnum):
    """Where the program is to run: `native` in the driver, before the kernel has spent anything on the packet;
    `generic` in the kernel's stack, on every device with Ethernet headers; `best-effort`: native, or else generic."""

    NATIVE = "native"
    GENERIC = "generic"
    BEST_EFFORT = "best-effort"


class DeviceWish(msgspec.Struct, frozen=True):
    """A device that is to be filtered, by its name now; it need not exist yet. rules: the place of its rules in those
    that are wanted."""

    name: str
    mode: Mode = Mode.BEST_EFFORT
    rules: int = 0


class Prefiltering(msgspec.Struct, frozen=True):
    """The desired state: rules, and further ones of devices that have not the same; and the devices, of which each is
    named once. No device: nothing of the prefilter's is in the kernel. Rules that are the same objects as before are
    not compared again."""

    rules: Rules = Rules()
    devices: tuple[DeviceWish, ...] = ()
    further: tuple[Rules, ...] = ()

    @property
    def sets(self) -> tuple[Rules, ...]:
        """All of the rules."""
        return (self.rules, *self.further)


class DeviceReport(msgspec.Struct, frozen=True):
    """How a wanted device is.

    ifindex: 0 where there is no such device. mode: in which the program runs, "" where it does not.
    program: the id of the program that runs there, ours, or else somebody's who is in the way; 0: none.
    error: why ours does not run, as a sentence. note: why it runs in generic mode though native was preferred.
    """

    name: str
    ifindex: int = 0
    mode: str = ""
    program: int = 0
    error: str = ""
    note: str = ""


class Dropped(msgspec.Struct, frozen=True):
    """What was dropped for one prefilter since its first entry, on all devices. bytes: of whole Ethernet frames."""

    packets: int = 0
    bytes: int = 0
