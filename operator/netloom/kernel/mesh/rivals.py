"""Routes beside ours: second ones of ours under one key, and others' that packets to peers' pods take instead. Pure.

The kernel has any number of routes under one key (prefix, TOS, metric), and the first carries the traffic; `ip route
prepend` and `append` make them. Ours is one. Of the others

- those with our protocol and metrics are ours, and go: each is an entry of the table, by what tells it apart;
- those of anybody else are left alone, and reported where they come before ours, or lead to a part of a peer's CIDR.

A replacing request hits the first, whosesoever it is: while another's is known to be in front of ours, none is sent.
"""

from collections.abc import Callable, Sequence

import msgspec

from netloom.cidr import Cidr
from netloom.kernel.keeper.table import Table
from netloom.kernel.mesh.rows import DEFAULT_METRIC, EDITED, OddRoute, RouteContent, RouteKey, SeenRoute, hops_text
from netloom.kernel.netlink.wire import RTA_OIF, RTN_UNICAST, attributes, number

MOST_AT_ONCE = 4096
"""Foreign routes that are remembered from a reading while it is not known yet which peers there are."""


class ForeignRoute(msgspec.Struct, frozen=True, gc=False):
    """Somebody else's route of the main table. `body`: its type and ways, as the kernel says them. `behind`: one of
    ours of the same prefix comes first."""

    prefix: Cidr
    metric: int
    tos: int
    protocol: int
    body: bytes
    behind: bool = False

    @property
    def key(self) -> tuple[Cidr, int, int]:
        """Under which the kernel has it."""
        return self.prefix, self.metric, self.tos

    @property
    def command(self) -> str:
        """That deletes it."""
        return f"ip {'-6 ' if self.prefix.version == 6 else ''}route del {self}"

    def __str__(self) -> str:
        tos, metric = f" tos {self.tos}" if self.tos else "", f" metric {self.metric}" if self.metric else ""
        return f"{hops_text(self.prefix, self.body)}{tos}{metric} proto {self.protocol}"


class RivalRoute(msgspec.Struct, frozen=True):
    """A foreign route that takes packets to the CIDR of a peer; `whole`: all of them."""

    route: ForeignRoute
    cidr: Cidr
    peer: str
    whole: bool


class RivalRoutes:
    """See the module. `around` says in which route of ours a prefix lies, if in any; it is asked about every foreign
    route that is seen, of which a routing daemon may have a million."""

    def __init__(self, routes: Table[RouteKey, RouteContent], around: Callable[[Cidr], Cidr | None]) -> None:
        self.crowded: set[RouteKey] = set()
        """Keys of ours under which there are second ones."""
        self._routes = routes
        self._around = around
        self._crowds: dict[RouteKey, list[SeenRoute]] = {}
        self._foreign: dict[Cidr, tuple[ForeignRoute, ...]] = {}
        self._judged = False

    # ------------------------------------------------------------------------------------------------- readings

    def concerns(self, prefix: Cidr) -> bool:
        """Whether a foreign route to it is worth to be remembered."""
        return not self._judged or self._around(prefix) is not None

    def load(self, owned: Sequence[SeenRoute], foreign: Sequence[ForeignRoute]) -> dict[RouteKey, RouteContent]:
        """Take over a full dump, in the kernel's order; what the table is to be loaded with."""
        kernel = {seen.key: seen.content for seen in owned}
        crowds: dict[RouteKey, list[SeenRoute]] = {}
        if len(kernel) < len(owned):
            for seen in owned:
                crowds.setdefault(seen.key, []).append(seen)
            crowds = {key: crowd for key, crowd in crowds.items() if len(crowd) > 1}
        for key, (first, *others) in crowds.items():
            kernel[key] = first.content
            kernel.update((beside(seen), EDITED) for seen in others)
        self._crowds, self.crowded = crowds, set(crowds)
        self._foreign = {}
        for route in foreign:
            self._foreign[route.prefix] = (*self._foreign.get(route.prefix, ()), route)
        return kernel

    def judge(self) -> None:
        """All peers are known now: forget what is none of their business."""
        if self._judged:
            return
        self._judged = True
        self._foreign = {prefix: routes for prefix, routes in self._foreign.items() if self._around(prefix)}

    def sort_out(self) -> None:
        """Of several of ours under one key the one that is desired is ours, else the first."""
        for key, crowd in self._crowds.items():
            desired = self._routes.desired.get(key)
            chosen = next((seen for seen in crowd if seen.content == desired), crowd[0])
            for seen in crowd:
                if seen is chosen:
                    self._routes.saw(key, seen.content)
                    self._routes.gone(beside(seen))
                else:
                    self._routes.saw(beside(seen), EDITED)
        self._crowds = {}

    # --------------------------------------------------------------------------------------------------- events

    def saw_second(self, seen: SeenRoute) -> RouteKey:
        """One of ours came beside another under its key; the key of its own that it has now."""
        self.crowded.add(seen.key)
        key = beside(seen)
        self._routes.saw(key, EDITED)
        return key

    def saw_foreign(self, route: ForeignRoute, *, replaced: bool) -> None:
        """Somebody else's came. `behind` says whether it was put behind all of its key."""
        if not self.concerns(route.prefix):
            return
        ours = route.prefix in self._routes.kernel
        default = DEFAULT_METRIC[route.prefix.version]
        same = route.metric == default and not route.tos
        behind = ours and (route.metric > default or (same and (route.behind or route.prefix.version == 6)))
        others = self._foreign.get(route.prefix, ())
        if replaced:
            gone = next((each for each in others if each.key == route.key), None)
            behind = gone.behind if gone is not None else behind
            others = tuple(each for each in others if each is not gone)
        kept = tuple(each for each in others if (each.key, each.body) != (route.key, route.body))
        self._foreign[route.prefix] = (*kept, msgspec.structs.replace(route, behind=behind))

    def lost_foreign(self, route: ForeignRoute) -> bool:
        """Somebody else's went. Whether it is clear what is left: of several IPv6 ways, one may have gone."""
        others = self._foreign.get(route.prefix, ())
        left = tuple(each for each in others if (each.key, each.body) != (route.key, route.body))
        if left:
            self._foreign[route.prefix] = left
        else:
            self._foreign.pop(route.prefix, None)
        return len(left) < len(others) or not any(each.key == route.key for each in others)

    def go_by(self, ifindex: int) -> bool:
        """Whether one of the foreign routes may lead to this device, with which it goes without a word (IPv4). One of
        several ways, or by a nexthop object, may."""
        bodies = (each.body for routes in self._foreign.values() for each in routes if each.body[0] == RTN_UNICAST)
        ways = (attributes(body, 1, len(body)).get(RTA_OIF) for body in bodies)
        return any(way is None or number(way) == ifindex for way in ways)

    # -------------------------------------------------------------------------------------------------- answers

    def knows(self, prefix: Cidr) -> bool:
        """Whether there are foreign routes to the very prefix."""
        return prefix in self._foreign

    def in_front(self, key: RouteKey) -> bool:
        """Whether a foreign route of the same key comes before ours, so that one that replaces would hit it."""
        if not self._foreign or isinstance(key, OddRoute):
            return False
        same = (key, DEFAULT_METRIC[key.version], 0)
        return any(each.key == same and not each.behind for each in self._foreign.get(key, ()))

    def rivals(self, peer_of: Callable[[Cidr], str]) -> tuple[RivalRoute, ...]:
        """Those that take packets to peers' pods, in order."""
        found = [
            RivalRoute(route, ours, peer_of(ours), ours == prefix)
            for prefix, routes in self._foreign.items()
            if (ours := self._around(prefix)) is not None
            for route in routes
            if prefix != ours or _is_first(route)
        ]
        return tuple(sorted(found, key=lambda rival: rival.route.key))


def _is_first(route: ForeignRoute) -> bool:
    """Before ours of the same prefix, once that is there."""
    default = DEFAULT_METRIC[route.prefix.version]
    return bool(route.tos) or route.metric < default or (route.metric == default and not route.behind)


def beside(seen: SeenRoute) -> OddRoute:
    """The key by which a second route of ours is known."""
    key = seen.key
    if isinstance(key, OddRoute):
        return OddRoute(key.prefix, key.metric, key.tos, seen.body)
    return OddRoute(key, DEFAULT_METRIC[key.version], 0, seen.body)
