"""What is not ours and decides all the same whether pods' packets get through, looked at as a part of its keeper.

It owns nothing. It is looked at when the kernel tells of a change (policy rules, forwarding of devices), a moment after
that, as rules come before the routes of their tables, and now and then, for what is told by nobody (tables that fill,
bridge netfilter). What it sets are switches, with a record: that devices of pods forward, and limits, where asked to.
"""

import socket
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Set

import msgspec
import structlog

from netloom.cidr import Cidr
from netloom.kernel.forwarders import translations
from netloom.kernel.keeper.part import Attempt, Outcome, Part, RefusedEntry, Worker
from netloom.kernel.keeper.report import PlannedChange
from netloom.kernel.keeper.retries import Item, Retries
from netloom.kernel.netlink.netconf import ALL, read_netconf, read_switches
from netloom.kernel.netlink.sockets import CommandSocket
from netloom.kernel.netlink.wire import RTM_DELRULE, RTM_NEWNETCONF, RTM_NEWRULE
from netloom.kernel.ownership import Ownership
from netloom.kernel.surroundings.detours import Detour, Remote, find_detours, suspicious_rules
from netloom.kernel.surroundings.local_pods import LocalPods, read_local_pods
from netloom.kernel.surroundings.rules import PolicyRule
from netloom.kernel.surroundings.tables import Tables, memory_of_machine, read_tables
from netloom.kernel.sysctl import Sysctl, SysctlRecord, forwarding, read

log = structlog.get_logger(__name__)

AFTERWARDS_SECONDS = 2.0
"""After an event it is looked at once more."""
REMEMBERED_SECONDS = 300.0
"""So long it is said that a table was full, after the last time."""
_ROOM = 0.75
"""Of nf_conntrack_max: where more is in use, it is raised if it may be."""
_BRIDGE_FILTERS = {4: "net/bridge/bridge-nf-call-iptables", 6: "net/bridge/bridge-nf-call-ip6tables"}


class Surroundings(msgspec.Struct, frozen=True):
    """For whom it is looked at: this node's own pod CIDRs, and those of others (`remotes`, asked where a rule makes it
    necessary). peers: how many others there are. native: some may be neighbours. raise_limits: set, instead of said."""

    own: tuple[Cidr, ...] = ()
    remotes: Callable[[], Iterable[Remote]] = tuple
    peers: int = 0
    native: bool = False
    raise_limits: bool = False


class UnfilteredBridge(msgspec.Struct, frozen=True):
    """A bridge of pods whose packets netfilter does not see: by which switch, and its value; "": there is none."""

    name: str
    switch: str
    value: str


class SurroundingsFound(msgspec.Struct, frozen=True):
    """What was seen. refused: how many times each table ("ipv4", "ipv6", "conntrack") was full of late, if at all.
    unset: why a limit could not be raised, by name. unfiltered: where somebody translates addresses, and not those of
    packets that stay on pods' bridges."""

    detours: tuple[Detour, ...] = ()
    tables: Tables = Tables()
    refused: Mapping[str, int] = {}
    unset: Mapping[str, str] = {}
    unfiltered: tuple[UnfilteredBridge, ...] = ()


class SurroundingsPart(Part[Surroundings]):
    """See the module."""

    owns = Ownership()
    state = ("dump", "surroundings")
    groups = ("ipv4-rule", "ipv6-rule", "ipv4-netconf")
    kinds = frozenset((RTM_NEWRULE, RTM_DELRULE, RTM_NEWNETCONF))

    def __init__(self, record: SysctlRecord) -> None:
        self.found = SurroundingsFound()
        self._record = record
        self._desired: Surroundings | None = None
        self._doubtful = True
        self._expected = True
        self._looked_at = 0.0
        self._again_at = float("inf")
        self._overflows = Overflows()
        self._undone: set[Item] = set()

    def want(self, desired: Surroundings, retries: Retries) -> None:
        """Take over for whom to look."""
        if desired != self._desired:
            self._desired = desired
            self._doubtful = self._expected = True

    def hear(self, kind: int, flags: int, buffer: bytes, start: int, end: int) -> None:
        """Take in a rule, or that a device does not forward: it may be a pod's, or become one's.

        Some CNI plugins make rules for each pod: only the first of many is looked at once, and all of them afterwards.
        """
        now = time.monotonic()
        if kind == RTM_NEWNETCONF:
            seen = read_netconf(buffer, start, end)
            if seen is None or seen.ifindex <= 0 or seen.forwarding is not False:
                return
            self._doubtful = True
        elif now >= self._looked_at + AFTERWARDS_SECONDS:
            self._doubtful = True
        elif self._again_at < float("inf"):
            return
        self._again_at = now + AFTERWARDS_SECONDS

    def doubt(self) -> None:
        """Look again."""
        self._doubtful = True

    @property
    def due(self) -> bool:
        """Whether it is to be looked at."""
        return self._doubtful or time.monotonic() >= self._again_at

    def later(self) -> float:
        """Once more after an event."""
        return self._again_at

    def pending(self) -> Iterable[Item]:
        """What could not be set, or has to wait."""
        return self._undone

    async def update(self, worker: Worker, attempt: Attempt) -> Outcome:
        """Look, and set what is to be set."""
        desired = self._desired
        if desired is None or not (self.due or self._undone - attempt.delayed):
            return Outcome()
        self._doubtful, self._looked_at = False, time.monotonic()
        if time.monotonic() >= self._again_at:
            self._again_at = float("inf")
        if not desired.own:
            self.found, self._undone = SurroundingsFound(), set()
            return Outcome()
        rules = await worker.call(suspicious_rules)
        remotes = list(desired.remotes()) if rules else []  # here: the caches are this thread's
        work = SurroundingsWork(self._record, desired, self._overflows, attempt.delayed)
        self.found = await worker.call(lambda commands: work.look(commands, rules, remotes))
        self._undone = work.undone
        drift, self._expected = not self._expected, False
        return work.outcome(drift=drift)


class Overflows:
    """How often tables were full, by name ("ipv4", "ipv6", "conntrack"), as counters of the kernel show that only grow.

    unraised: those that were, and whose limit could not be raised; it is tried again while they are remembered.
    """

    def __init__(self) -> None:
        self.unraised: set[str] = set()
        self._counters: dict[str, int] = {}
        self._when: dict[str, float] = {}
        self._count: dict[str, int] = {}

    def note(self, tables: Tables) -> set[str]:
        """Which of them were, since the last time."""
        counters = {table.family: table.refused for table in tables.neighbours}
        if tables.conntrack is not None:
            counters["conntrack"] = tables.conntrack.dropped
        recent, now = self.recent, time.monotonic()
        risen = {name for name, count in counters.items() if count > self._counters.get(name, count)}
        for name in risen:
            self._count[name] = recent.get(name, 0) + counters[name] - self._counters[name]
            self._when[name] = now
        self._counters = counters
        return risen

    @property
    def recent(self) -> dict[str, int]:
        """Those that were of late, with how often."""
        now = time.monotonic()
        return {name: self._count[name] for name, when in self._when.items() if now - when < REMEMBERED_SECONDS}


class SurroundingsWork:
    """One look, in a thread."""

    def __init__(
        self, record: SysctlRecord, desired: Surroundings, overflows: Overflows, delayed: Set[Hashable] = frozenset()
    ) -> None:
        self.changes: list[PlannedChange] = []
        self._record = record
        self._desired = desired
        self._overflows = overflows
        self._delayed = delayed
        self._raised = False
        self._done: list[Item] = []
        self._waiting: set[Item] = set()
        self._refused: list[RefusedEntry] = []

    def look(self, commands: CommandSocket, rules: list[PolicyRule], remotes: list[Remote]) -> SurroundingsFound:
        """See and set everything. Raises OSError where it cannot be seen."""
        desired = self._desired
        pods = read_local_pods(commands, desired.own)
        self._let_forward(commands, pods)
        tables = read_tables(commands, pods.counts, native=desired.native)
        full = self._overflows.note(tables)
        unset = self._raise(tables, full | self._overflows.unraised) if desired.raise_limits else {}
        self._overflows.unraised = {name for name in self._overflows.recent if any(name in each for each in unset)}
        if self._raised:
            tables = read_tables(commands, pods.counts, native=desired.native)
        detours = find_detours(commands, rules, pods.places, remotes, pods.names) if rules and pods.places else []
        return SurroundingsFound(tuple(detours), tables, self._overflows.recent, unset, _unfiltered(pods))

    def _let_forward(self, commands: CommandSocket, pods: LocalPods) -> None:
        """Where forwarding is off as a whole, that is the mesh's to mend, and mends all devices."""
        switches = read_switches(commands, socket.AF_INET)
        on = ALL in switches and switches[ALL].forwarding
        for ifindex, name in pods.devices.items() if on else ():
            if ifindex in switches and switches[ifindex].forwarding is False:
                sysctl = forwarding(name)
                item: Item = ("sysctl", sysctl.name)
                if item in self._delayed:
                    self._waiting.add(item)
                    continue
                try:
                    if self._set(sysctl):
                        self._done.append(item)
                except FileNotFoundError:
                    continue  # the pod has gone
                except OSError as error:
                    sentence = f"cannot set {sysctl.name} to {sysctl.value}: {error}"
                    self._refused.append(RefusedEntry(item, sentence, error.errno or 0))

    def _raise(self, tables: Tables, full: Set[str]) -> dict[str, str]:
        """Those that are nearly reached, and those of tables that were full just now; why which could not be raised."""
        small = [each for each in tables.neighbours if each.needed >= each.thresholds[1] or each.family in full]
        wanted = [sysctl for table in small for sysctl in table.raised()]
        tracked = tables.conntrack
        if tracked is not None and (tracked.count >= tracked.limit * _ROOM or "conntrack" in full):
            wanted += tracked.raised(memory_of_machine())
        unset = {}
        for sysctl in wanted:
            try:
                self._set(sysctl)
                self._raised = True
            except FileNotFoundError:
                unset[sysctl.name] = "it is shown in the machine's first network namespace only"
            except OSError as error:
                unset[sysctl.name] = error.strerror or str(error)
        return unset

    def _set(self, sysctl: Sysctl) -> bool:
        done = self._record.set(sysctl)
        if done:
            log.info("switch set", sysctl=sysctl.name, value=sysctl.value)
        return done

    @property
    def undone(self) -> set[Item]:
        """What could not be set, or has to wait."""
        return self._waiting | {refused.item for refused in self._refused}

    def outcome(self, *, drift: bool) -> Outcome:
        """What came of it. `drift`: what had to be set, somebody had changed."""
        return Outcome([(kind, [key]) for kind, key in self._done], self._done if drift else [], self._refused)


class PlannedSurroundingsWork(SurroundingsWork):
    """Notes what would be set."""

    def _set(self, sysctl: Sysctl) -> bool:
        now = read(sysctl.name)
        self.changes.append(PlannedChange(f"sysctl -w {sysctl.dotted}={sysctl.value}", f"is {now}"))
        return True


def _unfiltered(pods: LocalPods) -> tuple[UnfilteredBridge, ...]:
    """Where somebody's rules translate addresses: an answer from a pod to another on its bridge, which should have its
    address turned back, then goes around them."""
    bridges = sorted({(place.device, place.destination.version) for place in pods.places if place.bridge})
    found = [UnfilteredBridge(name, _BRIDGE_FILTERS[version], _value(version)) for name, version in bridges]
    off = tuple(each for each in found if each.value != "1")
    return off if off and translations() else ()


def _value(version: int) -> str:
    try:
        return read(_BRIDGE_FILTERS[version])
    except FileNotFoundError:
        return ""  # br_netfilter is not loaded
