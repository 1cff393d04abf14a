"""Drivers that refused native mode, and when they are worth asking again. Pure.

The kernel lets no device have programs in both modes, not for a moment (EEXIST), and looks at that before it asks the
driver: to ask it, what runs in generic mode has to go first, and for some 20 ms nothing is filtered. So it is done only
where something has changed by which the answer may be another, and for one device not without end.
"""

import errno
from typing import NamedTuple

from netloom.kernel.netlink.sockets import KernelRefusal
from netloom.kernel.prefilter.links import BONDING, XdpLink

MOST_ASKED = 8
"""Times that one driver is asked again because of events: an MTU may be changed in turns, for ever."""


class _Refused(NamedTuple):
    why: KernelRefusal | None = None
    asked: int = 0
    again: bool = False


class Drivers:
    """By ifindex."""

    def __init__(self) -> None:
        self._known: dict[int, _Refused] = {}

    def why(self, ifindex: int) -> KernelRefusal | None:
        """What the driver said last; None: it has not refused, as far as is known."""
        return self._known.get(ifindex, _Refused()).why

    def may_take(self, ifindex: int) -> bool:
        """Whether it is worth asking though it runs in generic mode."""
        return self._known.get(ifindex, _Refused()).again

    def changed(self, link: XdpLink) -> None:
        """Its MTU, features or bonding are others. A driver without native mode gets none by that; but a bond has it or
        not by its own mode and by its ports."""
        known = self._known.get(link.ifindex, _Refused())
        has_none = known.why is not None and known.why.errno == errno.EOPNOTSUPP and link.event != BONDING
        self._known[link.ifindex] = known._replace(again=known.asked < MOST_ASKED and not has_none)

    def wished(self, ifindex: int) -> None:
        """People want another mode: that begins anew."""
        self._known[ifindex] = _Refused(again=True)

    def refused(self, ifindex: int, why: KernelRefusal) -> None:
        """It was asked, and said this."""
        known = self._known.get(ifindex, _Refused())
        self._known[ifindex] = _Refused(why, known.asked + known.again)

    def forget(self, ifindex: int) -> None:
        """The device is gone, or filtered in native mode."""
        self._known.pop(ifindex, None)
