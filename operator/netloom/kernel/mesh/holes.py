"""Where packets end whose pod nobody has: which CIDRs need an unreachable route below the real ones. Pure.

Without one such packets take the default route: masqueraded as this node's, or in circles between the node and a router
that knows the node's CIDRs, until their TTL ends; the sender never hears of it. A *hole* ends them here, and says so.

- This node's own CIDRs have one always: the routes to its pods are more specific.
- The cluster CIDRs have one, whoever has a block of them, or had: no peer costs a second route.
- Outside of these (none is known, or it is shared with what the node reaches by other routes) each CIDR has its own
  for which a peer has no way, and each that a peer gave up, for an hour.

A hole that would cut the node off is not made: where a route would not be, either. A cluster CIDR is wide, and what the
node reaches by its default route is not all known; so a network of the node's own inside it, which itself is safe, as
the longer prefix wins, is a sign that others share it, and it has none as a whole. `left_out` says so.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import takewhile

import msgspec

from netloom.cidr import Address, Cidr
from netloom.kernel.keeper.table import Table
from netloom.kernel.mesh.lifelines import Lifelines
from netloom.kernel.mesh.rows import UNREACHABLE, OddRoute, RouteContent, SeenRoute
from netloom.kernel.ownership import HOLES

STANDING, PASSING = HOLES.routes
"""Metrics: of what stands as long as the objects say so, and of what goes with time. By them an agent that starts knows
which of an earlier life's holes nothing explains, and may stay all the same."""

FORMER_SECONDS = 3600.0
"""How long the CIDR of a peer that left, and which lies in no cluster CIDR, stays unreachable: longer than anybody goes
on asking for a pod that is gone."""


class Hole(msgspec.Struct, frozen=True, order=True, gc=False):
    """The key of an unreachable route."""

    prefix: Cidr
    metric: int = STANDING

    def __str__(self) -> str:
        return f"unreachable {self.prefix} metric {self.metric}"


class HoleRules(msgspec.Struct, frozen=True):
    """What of this node and its network decides about holes.

    own: the node's pod CIDRs. cluster: the CIDRs from which nodes get their blocks. services: addresses that Services
    have, and to which this node itself connects: its packets are routed before they get the address of a pod. None: not
    known, so they may lie in any cluster CIDR.
    carried: what this node has no route to is the business of a router or routing daemon, which knows pods: only own
    CIDRs end here.
    """

    own: tuple[Cidr, ...] = ()
    cluster: tuple[Cidr, ...] = ()
    services: tuple[Cidr, ...] | None = ()
    carried: bool = False


class Holes:
    """See the module. A peer's change costs what its own CIDRs cost."""

    def __init__(
        self,
        lifelines: Lifelines,
        harm: Callable[[Cidr], str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`harm`: why one in place of a CIDR would cut the node off, "" if it would not; None: as lifelines say."""
        self.table: Table[Hole, RouteContent] = Table()
        self.left_out: dict[Cidr, str] = {}
        self.found: set[Hole] = set()
        """What a reading showed to be changed by somebody."""
        self.touched: set[Hole] = set()
        """What an event did."""
        self._lifelines = lifelines
        self._harm = harm or lifelines.harm
        self._due = self._stirred = False
        """Whether all is to be decided anew, or own and cluster CIDRs are, as nodes came to addresses in them."""
        self._doubtful: set[Cidr] = set()
        """Others that nodes came to addresses in, or left, and former ones that are none any more."""
        self._rules: HoleRules | None = None
        self._applied = False
        self._left_to_network = False
        self._standing: tuple[Cidr, ...] = ()
        self.unrouted: dict[str, tuple[Cidr, ...]] = {}
        """CIDRs that no route leads to, by peer; to be changed by `set_unrouted`."""
        self.former: dict[Cidr, float] = {}
        """CIDRs that were given up, and when (by the clock), the earliest first. Not to be changed from outside."""
        self._former_lengths: Counter[tuple[int, int]] = Counter()
        self._clock = clock

    # ------------------------------------------------------------------------------------------- what should be

    def set_rules(self, rules: HoleRules | None) -> None:
        """This is so now; None: nothing is to be left in the kernel."""
        if rules is None:
            self._forget_former(list(self.former))
        elif self._rules is None:
            for hole in self.table.kernel:
                if hole.metric == PASSING:
                    self._remember(hole.prefix)
        if rules != self._rules or not self._applied:
            self._rules, self._applied = rules, True
            self.review()

    def leave_to_network(self, left: bool) -> None:
        """Whether, while the cluster changes its routing, there are peers still that only the network leads to."""
        if left != self._left_to_network:
            self._left_to_network = left
            self.review()

    def moved(self, addresses: Iterable[Address]) -> None:
        """Nodes came to these, or left them."""
        if self._rules is None or self._due:
            return
        wide = (*self._rules.own, *self._rules.cluster)
        for address in addresses:
            self._stirred = self._stirred or any(prefix.holds(address) for prefix in wide)
            self._doubtful.update(self._passing_around(address))

    def _passing_around(self, address: Address) -> Iterable[Cidr]:
        """Those that it lies in. Of thousands that were given up in an hour not all are looked at for each node."""
        whole = Cidr.of(address)
        former = (whole.supernet(length) for v, length in self._former_lengths if v == whole.version)
        yield from (prefix for prefix in former if prefix in self.former)
        yield from (each for prefixes in self.unrouted.values() for each in prefixes if each.holds(address))

    def look_again(self) -> None:
        """What this node lives by is different."""
        self._due = True

    def bring_up_to_date(self) -> None:
        """Before anything is written: all that was left for later."""
        now = self._clock()
        if self.later() <= now:
            self._forget_former([*takewhile(lambda each: self.former[each] + FORMER_SECONDS <= now, self.former)])
        if self._due or (self._stirred and self._decide_standing()):
            self.review()
        unrouted = {prefix for prefixes in self.unrouted.values() for prefix in prefixes} if self._doubtful else ()
        for prefix in self._doubtful:
            if (prefix in self.former or prefix in unrouted) and self._has_its_own(prefix):
                self.table.want(Hole(prefix, PASSING), UNREACHABLE)
            else:
                self.table.unwant(Hole(prefix, PASSING))
        self._stirred, self._doubtful = False, set()

    def review(self) -> None:
        """Decide everything anew."""
        self._due, self._stirred, self._doubtful = False, False, set()
        self._decide_standing()
        wanted = dict.fromkeys(map(Hole, self._standing), UNREACHABLE)
        concerned = [*self.former, *(prefix for prefixes in self.unrouted.values() for prefix in prefixes)]
        wanted |= {Hole(prefix, PASSING): UNREACHABLE for prefix in concerned if self._has_its_own(prefix)}
        for hole in self.table.desired.keys() - wanted:
            self.table.unwant(hole)
        self.table.want_all(wanted)

    def _decide_standing(self) -> bool:
        """About own and cluster CIDRs; whether they are others, by which all else is to be decided anew."""
        before, self.left_out = self._standing, {}
        rules = self._rules or HoleRules()
        standing = list(rules.own)
        for prefix in rules.own:
            if why := self._harm(prefix):
                self.left_out[prefix] = why
        for prefix in () if self._carried else rules.cluster:
            if why := self._harm(prefix) or self._lifelines.network_in(prefix) or self._services_in(prefix):
                self.left_out[prefix] = why
            standing.append(prefix)
        self._standing = tuple(prefix for prefix in dict.fromkeys(standing) if prefix not in self.left_out)
        return self._standing != before

    def _services_in(self, prefix: Cidr) -> str:
        services = self._rules.services if self._rules is not None else ()
        if services is None:
            return "it is not known which addresses are those of Services"
        among = next(filter(prefix.overlaps, services), None)
        return f"it overlaps {among}, the addresses of Services" if among is not None else ""

    @property
    def _carried(self) -> bool:
        return self._rules is None or self._rules.carried or self._left_to_network

    def _has_its_own(self, prefix: Cidr) -> bool:
        covered = any(standing.contains(prefix) for standing in self._standing)
        return not (covered or self._carried or self._harm(prefix))

    def set_unrouted(self, name: str, prefixes: tuple[Cidr, ...]) -> None:
        """No route leads to these CIDRs of the peer, which nobody else has."""
        before = self.unrouted.get(name, ())
        if before == prefixes:
            return
        if prefixes:
            self.unrouted[name] = prefixes
        else:
            del self.unrouted[name]
        for prefix in before:
            if prefix not in prefixes and prefix not in self.former:
                self.table.unwant(Hole(prefix, PASSING))
                self._due = True  # another peer that has taken it over may have no way, either
        self._want(prefixes)

    def _want(self, prefixes: Iterable[Cidr]) -> None:
        for prefix in prefixes:
            if self._has_its_own(prefix):
                self.table.want(Hole(prefix, PASSING), UNREACHABLE)

    def given_up(self, prefixes: Iterable[Cidr]) -> None:
        """No peer has these any more, nor any that holds them."""
        if not self._carried:
            lost = [prefix for prefix in prefixes if not any(each.contains(prefix) for each in self._standing)]
            for prefix in lost:
                self._remember(prefix)
            self._want(lost)

    def claimed(self, prefixes: Iterable[Cidr]) -> None:
        """A peer has these: whatever they were before, they are its own now."""
        for prefix in prefixes:
            inner = any(v == prefix.version and length > prefix.length for v, length in self._former_lengths)
            within = [each for each in self.former if prefix.contains(each)] if inner else [prefix]
            self._forget_former([each for each in within if each in self.former])

    def later(self) -> float:
        """When (monotonic seconds) the first of those that were given up may go."""
        return next(iter(self.former.values())) + FORMER_SECONDS if self.former else float("inf")

    def _remember(self, prefix: Cidr) -> None:
        if self.former.pop(prefix, None) is None:
            self._former_lengths[prefix.version, prefix.length] += 1
        self.former[prefix] = self._clock()  # last in order

    def _forget_former(self, prefixes: Iterable[Cidr]) -> None:
        for prefix in prefixes:
            del self.former[prefix]
            self.table.unwant(Hole(prefix, PASSING))
            self._doubtful.add(prefix)  # a peer without a way may have it
            key = prefix.version, prefix.length
            self._former_lengths[key] -= 1
            if not self._former_lengths[key]:
                del self._former_lengths[key]

    # ----------------------------------------------------------------------------------------- what is there

    def saw(self, hole: Hole, content: RouteContent | None) -> None:
        """Somebody made or changed it; None: deleted it."""
        if content is None:
            self.table.gone(hole)
        else:
            self.table.saw(hole, content)
        self.touched.add(hole)

    def load(self, routes: Iterable[SeenRoute]) -> None:
        """Replace what is known of the kernel by a full dump of our routes."""
        known = set(self.table.pending)
        odd = [seen for seen in routes if isinstance(seen.key, OddRoute)]
        self.table.load({hole: seen.content for seen in odd if (hole := hole_of(seen)) is not None})
        if self._applied:
            self.found |= self.table.pending - known


def hole_of(seen: SeenRoute) -> Hole | None:
    """The hole that this route of the main table is, edited or not; None if it is none."""
    key = seen.key
    mine = isinstance(key, OddRoute) and HOLES.route(seen.protocol, key.metric)
    return Hole(key.prefix, key.metric) if mine else None  # type: ignore[union-attr]
