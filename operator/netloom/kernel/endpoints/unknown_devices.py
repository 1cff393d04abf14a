"""What events say of devices that nobody here knows: one of them may be one that is being made, and known in a moment.

On a host with systemd that is so with every pod: udev has `systemd-sysctl` write the node's own switches (as
`rp_filter=2`) to each device some milliseconds after it has appeared.
"""

from netloom.cidr import Cidr
from netloom.kernel.endpoints.link_messages import End, read_end
from netloom.kernel.netlink.netconf import Netconf


class UnknownDevices:
    """Of unknown devices, by ifindex, but for the last two.

    gone: they were deleted. links: what was said last of those with our names. switched: a switch was written that is
    wrong for a host end. edited: something was put on them, or taken off.
    replaced, foreign: prefixes of routes that took others' places, and of somebody's that would come before ours.
    """

    def __init__(self) -> None:
        self.gone: set[int] = set()
        self.links: dict[int, bytes] = {}
        self.switched: set[int] = set()
        self.edited: set[int] = set()
        self.replaced: set[Cidr] = set()
        self.foreign: set[Cidr] = set()

    def switch(self, said: Netconf) -> None:
        """A switch of a device is told to be like this."""
        # With all of them the kernel tells how a new device begins: that is no edit.
        if None in (said.forwarding, said.rp_filter) and is_wrong(said):
            self.switched.add(said.ifindex)

    def differs(self, end: End) -> bool:
        """Whether a device is, or was, otherwise than when it was read last."""
        last = self.links.get(end.ifindex)
        return end.ifindex in self.switched or (last is not None and read_end(last, 0, len(last)) != end)


def is_wrong(said: Netconf) -> bool:
    """Whether a host end may not have such switches."""
    return said.forwarding is False or said.rp_filter not in (None, 1)
