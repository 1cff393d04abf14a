"""What in the kernel is Netloom's, which part of Netloom owns it, and how that is recognised after a restart.

Nothing else is ever changed or removed. Ownership is read off the kernel's own state, so no file has to survive a
crash for the agent to know what it made. Each part declares what it owns; no two parts may own the same, and each
reads and removes only its own:

- a link, by its name; with it every address on it, and every *permanent* neighbour on it (the kernel makes entries of
  other states by itself);
- a route of the main table, by its protocol number *and* its class, a range of metrics: the metric is a part of what
  the kernel knows a route by, so whatever somebody edits, a route never changes its class;
- a nexthop object, by its range of ids *and* its protocol number: an id of the range that somebody else uses is left
  alone and never taken;
- a rule, by its priority; an nftables table, by its name; a chain in a filter table of iptables, by its name.
"""

from fnmatch import fnmatchcase

import msgspec

DEVICE_PREFIX = "netloom_"
"""Of the names of all devices that are Netloom's, whichever part's."""

ROUTE_PROTOCOL = 158
"""rtm_protocol and nh_protocol. Free in iproute2's rt_protos."""

ROUTE_TABLE = 254
"""RT_TABLE_MAIN: pods' traffic has to find its way without a policy rule."""

NEXTHOP_IDS = range(0x6E00_0000, 0x6F00_0000)
"""Ids of our nexthop objects ('n' in the first byte). 24 bits: an id is a hash of the peer's name, and at 20,000 of
them only about 12 collide and have to be moved on; in 16 bits 3,000 would."""


class Ownership(msgspec.Struct, frozen=True, kw_only=True):
    """What one part owns.

    links:    names, as shell patterns. routes: metrics of its routes. nexthops: ids of its nexthop objects.
    rules:    priorities of its policy rules. tables: its nftables tables, as `nft` names them. chains: names of its
    chains in the filter tables of iptables, of both variants and families, with the jumps to them.
    """

    links: tuple[str, ...] = ()
    routes: range = range(0)
    nexthops: range = range(0)
    rules: range = range(0)
    tables: tuple[str, ...] = ()
    chains: tuple[str, ...] = ()

    def link(self, name: str) -> bool:
        """Whether a link of this name is the part's."""
        return any(fnmatchcase(name, pattern) for pattern in self.links)

    def route(self, protocol: int, metric: int) -> bool:
        """Whether a route of the main table is the part's."""
        return protocol == ROUTE_PROTOCOL and metric in self.routes

    def nexthop(self, protocol: int, identity: int) -> bool:
        """Whether a nexthop object is the part's."""
        return protocol == ROUTE_PROTOCOL and identity in self.nexthops


MESH = Ownership(
    links=tuple(f"{DEVICE_PREFIX}{name}" for name in ("vxlan", "geneve", "v[0-9]*", "g[0-9]*")),
    routes=range(1 << 16),
    nexthops=NEXTHOP_IDS,
)
"""Tunnel devices, and the routes to other nodes' pods: those without a metric, which the kernel shows as 0 (IPv4) or
1024 (IPv6), and any metric below 65536 that somebody may have given them."""

HOLES = Ownership(routes=range(4_000_000_000, 4_000_000_002))
"""Unreachable routes, for addresses of pods that nobody has (any more): below every route that leads somewhere, as a
router advertisement, a DHCP client or a routing daemon writes its own by metrics far below these."""

MASQUERADE = Ownership(tables=("inet netloom",))

SENDERS = Ownership(tables=("inet netloom-tunnels",))

FORWARD_CHAIN = "NETLOOM-FORWARD"

FORWARD = Ownership(chains=(FORWARD_CHAIN,))
"""A chain of a table that is somebody else's, in which everybody has chains of their own."""

PROBE = Ownership(links=(f"{DEVICE_PREFIX}probe",))
"""The device of the probe. The routes to its addresses, in table `local`, are on it and go with it."""

ENDPOINTS = Ownership(links=(f"{DEVICE_PREFIX}p" + "[a-z2-7]" * 6,), routes=range(1 << 16, 1 << 17))
"""The host ends of local pods' devices, and the routes to their addresses. (The probe's device has a shorter name.)"""

PREFILTER = Ownership()
"""XDP programs on others' devices, known by their pins: in a folder of a bpffs that is all the prefilter's."""
