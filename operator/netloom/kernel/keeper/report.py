"""What keepers say about themselves after they have tried to bring the kernel to the desired state."""

from collections.abc import Mapping

import msgspec


def entry(kind: str, key: str, peer: str = "") -> str:
    """An entry of the kernel for people: what `ip` calls it, and whose it is."""
    return f"{kind} {key} of {peer}" if peer else f"{kind} {key}"


class Failure(msgspec.Struct, frozen=True):
    """An entry that could not be brought to its desired state. It is tried again by itself.

    kind: link, address, sysctl, nexthop, neighbour, route, or dump (the kernel's state could not be read).
    key:  as `ip` would name it. peer: whose entry it is, or empty. attempts: in a row.
    """

    kind: str
    key: str
    error: str
    peer: str = ""
    attempts: int = 1
    errno: int = 0

    def __str__(self) -> str:
        return f"{entry(self.kind, self.key, self.peer)}: {self.error}"


class KeeperReport(msgspec.Struct, frozen=True, kw_only=True):
    """The state of what one keeper keeps.

    pending:  entries that are not yet as desired, or sent and not yet answered.
    converging: a pass is under way: what it has sent counts as done until the kernel says no.
    contended: entries that somebody changes again and again; their repair is delayed.
    written:  requests written since `open`, by message type.
    compared: resyncs since `open`.
    repaired: entries that somebody had changed and that were put back, since `open`.
    """

    failures: tuple[Failure, ...] = ()
    pending: int = 0
    converging: bool = False
    contended: tuple[str, ...] = ()
    written: Mapping[str, int] = {}
    compared: int = 0
    repaired: int = 0

    @property
    def news(self) -> tuple[object, ...]:
        """What is worth telling when it changes."""
        return self.written, self.failures, self.contended

    @property
    def in_sync(self) -> bool:
        """Whether the kernel holds all that is desired."""
        return not self.failures and not self.pending and not self.converging


class PlannedChange(msgspec.Struct, frozen=True):
    """A change that would be made, as `ip` (or sysctl) would say it, and for which peer or reason. `left_out`: it is
    none, but says what would not be done, and why."""

    text: str
    why: str = ""
    left_out: bool = False
